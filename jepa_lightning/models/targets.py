"""What targets are made of: tokens of the target encoder, of its last block or of several."""

from __future__ import annotations

from typing import cast

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from jepa_lightning.models.vision_transformer import Encoder


def target_tokens(
    encoder: Encoder, inputs: Float[Tensor, "batch channels *size"], blocks: int
) -> Float[Tensor, "batch tokens dim"]:
    """Tokens of the last block, or those of the last ``blocks``, each normalised, averaged.

    The average is that of data2vec (Baevski et al. 2022, section 3.3).
    """
    if blocks == 1:
        return cast(Tensor, encoder(inputs))
    layers = encoder(inputs, layers=range(-blocks, 0))
    return torch.stack([F.layer_norm(layer, (encoder.embed_dim,)) for layer in layers]).mean(dim=0)
