"""`jepa fit` with a shipped recipe, but pixels in place of features as targets: what is the latent space worth?

Masks, crops, networks, optimizer and the average of weights that is evaluated are those of the recipe. The hidden
patches are predicted as a masked autoencoder does it (He et al. 2022, arXiv 2111.06377): a linear layer after the
predictor, and the mean squared distance to the pixels of each patch, standardised in the patch.
"""

from __future__ import annotations

from typing import Any

import ours
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from jepa_lightning.masking import MaskedBatch, gather_tokens
from jepa_lightning.masking.padded import mean_of
from jepa_lightning.methods import IJEPA


class MaskedPixels(IJEPA):
    """I-JEPA that predicts pixels; everything that it may be told is IJEPA's."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.decoder = nn.Linear(self.embed_dim, 3 * self.encoder.patch_size**2)

    def losses(self, batch: MaskedBatch) -> dict[str, Tensor]:
        """Squared distance, mean over the hidden patches of each sample."""
        grid = self.encoder.grid_of(batch.inputs)
        (masks,) = batch.families()
        context = self.encoder(batch.inputs, masks.context)
        predicted = self.decoder(self.predictor(context, masks.context, masks.targets, 0, grid))
        pixels = gather_tokens(self.patches(batch.inputs), masks.targets)
        return {"loss": mean_of((predicted - pixels).square(), masks.targets)}

    def patches(self, images: Float[Tensor, "batch 3 height width"]) -> Float[Tensor, "batch tokens pixels"]:
        """Patches in raster order, each standardised."""
        side = self.encoder.patch_size
        boxes = images.unflatten(3, (-1, side)).unflatten(2, (-1, side)).permute(0, 2, 4, 1, 3, 5)
        return F.layer_norm(boxes, boxes.shape[3:]).flatten(3).flatten(1, 2)


if __name__ == "__main__":
    ours.fit("--model=masked_pixels.MaskedPixels")
