"""Plain PyTorch modules: encoders, predictors and their parts. Nothing here imports Lightning."""

from jepa_lightning.models.ema import ema_update, frozen_copy
from jepa_lightning.models.predictor import Predictor
from jepa_lightning.models.vision_transformer import SIZES, Encoder, VisionTransformer

__all__ = ["SIZES", "Encoder", "Predictor", "VisionTransformer", "ema_update", "frozen_copy"]
