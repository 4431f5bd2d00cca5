"""LeJEPA and LeVJEPA: views of one sample meet in one point, and all points together are a standard Gaussian.

Balestriero and LeCun, "LeJEPA: Provable and Scalable Self-Supervised Learning Without the Heuristics", 2025, arXiv
2511.08544; Kuhn et al., "LeVJEPA: Efficient & Scalable Video Pretraining without the Heuristics", 2026, arXiv
2608.27395. With embeddings z = projector(class token of a view, or mean of its tokens), lambda the weight of SIGReg,
and the mean over views v, samples and channels,

    loss = (1 - lambda) mean |z_v - mean over global views of z|^2 + lambda mean over views of SIGReg(z_v).

No predictor, no EMA, no stop-gradient, one weight. SIGReg looks at the batch of each view alone: views of a sample
depend on each other, and thrown together they look less Gaussian than they are.

| LeJEPA | paper | official code | here |
|---|---|---|---|
| weights | 1 - lambda and lambda, 0.05 | minimal example 0.02; other libraries 1 and lambda | as the paper, 0.05 |
| centre | mean of the global views | minimal example: of all views, which are all global | mean of the global views |
| |z - centre|^2 | - | mean over channels | mean over channels |
| token for the sample | - | class token, or mean without one | class token of encoders that have one, else mean |
| several processes | - | SIGReg of all; BatchNorm of each, unless converted | all of both |
| weight averaging | none | a copy for evaluation in the ImageNet scripts | none; `momentum` makes one |
| patches left out | - | 30 % in the ImageNet scripts | none; `drop_tokens: 0.3` |

| LeVJEPA | paper and official code | here |
|---|---|---|
| loss | invariance + 0.02 SIGReg | the same in the ratio for weight 0.0196 = 0.02 / 1.02 |
| views | one global, 4 to 10 local, all of the same frames | `MultiCropClip` |
| token for the clip | class token, which attends to the whole clip | the same in CausalVisionTransformer |
| tokens left out | 95 % of each view, uniformly at random, in training | `drop_tokens: 0.95` |
| tokens | one frame each, rotary positions | `tubelet_size: 1`, `RoPE` |
| attention | causal from frame to frame; both ways is as good within 0.5 points | CausalVisionTransformer: causal |
| weight averaging | a copy for evaluation, 0.9999 every 32 steps | none; `momentum` makes one, every step |
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from jepa_lightning import metrics
from jepa_lightning.distributed import rank
from jepa_lightning.losses import SIGReg
from jepa_lightning.masking import MaskedBatch, seeded
from jepa_lightning.methods.base import JEPA
from jepa_lightning.methods.groups import OptimizerFactory
from jepa_lightning.models import Encoder, Projector
from jepa_lightning.schedules import Schedule


class LeJEPA(JEPA):
    """Multi-view invariance and SIGReg (Balestriero and LeCun 2025); of clips LeVJEPA (Kuhn et al. 2026).

    The data module's transform makes the views: MultiCrop, or MultiCropClip. Of several processes, SIGReg and the
    projector see all samples; a BatchNorm in the encoder sees its own, unless ``--trainer.sync_batchnorm true``.

    Args:
        encoder: The network that is trained and kept: a VisionTransformer, or any network of torchvision or timm.
        projector: Builds the projector for an encoder, so that sizes are said once.
        lr: Learning rate by optimizer step.
        weight_decay: Weight decay by optimizer step; biases, norms and other vectors are never decayed.
        momentum: Momentum of an EMA copy of the encoder that is evaluated in its place; null for none.
        betas: The two decay rates of AdamW.
        ipe_scale: Length of the schedules over the length of the training; above 1 they are not finished.
        compile: Compile the networks with torch.compile; the first steps then take minutes.
        sigreg: The term against collapse, whose weight is lambda; null for the paper's.
        drop_tokens: Fraction of the tokens of each view that is left out in training, drawn uniformly.
        optimizer: Makes the optimizer, for example jepa_lightning.muon.Muon; null for AdamW with ``betas``.

    Raises:
        ValueError: If the weight of SIGReg or the fraction of tokens is not from 0 to below 1.
    """

    def __init__(
        self,
        encoder: Encoder,
        projector: Callable[[Encoder], Projector],
        lr: Schedule,
        weight_decay: Schedule,
        momentum: Schedule | None = None,
        betas: tuple[float, float] = (0.9, 0.999),
        ipe_scale: float = 1.0,
        compile: bool = False,
        sigreg: SIGReg | None = None,
        drop_tokens: float = 0.0,
        optimizer: OptimizerFactory | None = None,
    ) -> None:
        sigreg = sigreg or SIGReg()
        if not 0.0 <= sigreg.weight < 1.0 or not 0.0 <= drop_tokens < 1.0:
            raise ValueError(
                f"sigreg.weight and drop_tokens are shares: use 0 to below 1, not {sigreg.weight} and {drop_tokens}"
            )
        super().__init__(encoder, lr, weight_decay, momentum, betas, ipe_scale, compile, optimizer=optimizer)
        self.projector, self.sigreg, self.drop_tokens = projector(encoder), sigreg, drop_tokens

    def losses(self, batch: MaskedBatch) -> dict[str, Tensor]:
        """Invariance and SIGReg of the projections, and how far they are spread."""
        if not batch.views:
            raise ValueError("LeJEPA compares views, but the batch has none: set data.transform to MultiCrop")
        z = self.projector(self.features(batch.views)).float()  # (V, B, P)
        centre = z[: batch.views[0].shape[1]].mean(dim=0)
        invariance = (z - centre).square().mean()
        sigreg = self.sigreg(z, self.draw)
        weight = self.sigreg.weight
        return {
            "loss": (1.0 - weight) * invariance + weight * sigreg,
            "invariance": invariance.detach(),
            "sigreg": sigreg.detach(),
            "embedding_std": metrics.feature_std(z.detach()),
        }

    def features(self, views: Sequence[Tensor]) -> Float[Tensor, "views batch dim"]:
        """One vector for each view of each sample: its class token, or the mean of the tokens that are seen."""
        found = []
        for number, same_size in enumerate(views):
            inputs = same_size.flatten(0, 1)  # (B * V, C, h, w)
            found.append(self.encoder.summary(inputs, self._kept(inputs, number)).unflatten(0, same_size.shape[:2]))
        return torch.cat(found, dim=1).transpose(0, 1)

    def _kept(self, inputs: Tensor, number: int) -> Int[Tensor, "batch kept"] | None:
        """Which tokens of each view are seen, in raster order; None for all."""
        if self.drop_tokens == 0.0 or not self.training:
            return None
        time, height, width = self.encoder.grid_of(inputs)
        tokens = time * height * width
        key = seeded("drop", self.draw, rank(), number).initial_seed()
        generator = torch.Generator(inputs.device).manual_seed(key)
        order = torch.rand(len(inputs), tokens, device=inputs.device, generator=generator).argsort(dim=1)
        return order[:, : max(1, round(tokens * (1.0 - self.drop_tokens)))].sort(dim=1).values
