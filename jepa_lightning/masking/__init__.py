"""Which tokens are shown and which are predicted. Knows token grids, nothing of pixels."""

from jepa_lightning.masking.blocks import Blocks
from jepa_lightning.masking.collator import MaskCollator, Sample, seeded
from jepa_lightning.masking.multiblock import MultiBlock
from jepa_lightning.masking.multiblock3d import MultiBlock3D
from jepa_lightning.masking.padded import Padded, padded
from jepa_lightning.masking.random import RandomTokens
from jepa_lightning.masking.sampler import Grid, MaskSampler
from jepa_lightning.masking.tokens import MaskedBatch, TokenMasks, gather_tokens
from jepa_lightning.masking.tubes import Causal, RandomTubes

__all__ = [
    "Blocks",
    "Causal",
    "Grid",
    "MaskCollator",
    "MaskSampler",
    "MaskedBatch",
    "MultiBlock",
    "MultiBlock3D",
    "Padded",
    "RandomTokens",
    "RandomTubes",
    "Sample",
    "TokenMasks",
    "gather_tokens",
    "padded",
    "seeded",
]
