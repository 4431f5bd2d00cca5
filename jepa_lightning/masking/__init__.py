"""Which tokens are shown and which are predicted. Knows token grids, nothing of pixels."""

from jepa_lightning.masking.collator import MaskCollator, Sample, seeded
from jepa_lightning.masking.multiblock import MultiBlock
from jepa_lightning.masking.random import RandomTokens
from jepa_lightning.masking.sampler import Grid, MaskSampler
from jepa_lightning.masking.tokens import MaskedBatch, TokenMasks, gather_tokens

__all__ = [
    "Grid",
    "MaskCollator",
    "MaskSampler",
    "MaskedBatch",
    "MultiBlock",
    "RandomTokens",
    "Sample",
    "TokenMasks",
    "gather_tokens",
    "seeded",
]
