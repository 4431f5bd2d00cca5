"""Plain PyTorch modules: encoders, predictors and their parts. Nothing here imports Lightning."""

from jepa_lightning.models.ema import ema_update, frozen_copy
from jepa_lightning.models.layers import BlockOptions
from jepa_lightning.models.positions import Positions, RoPE, SinCos2D, SinCos3D
from jepa_lightning.models.predictor import Predictor, TargetNoise
from jepa_lightning.models.vision_transformer import SIZES, Encoder, VisionTransformer

__all__ = [
    "SIZES",
    "BlockOptions",
    "Encoder",
    "Positions",
    "Predictor",
    "RoPE",
    "SinCos2D",
    "SinCos3D",
    "TargetNoise",
    "VisionTransformer",
    "ema_update",
    "frozen_copy",
]
