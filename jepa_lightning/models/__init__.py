"""Plain PyTorch modules: encoders, predictors and their parts. Nothing here imports Lightning."""

from jepa_lightning.models.action_predictor import ActionPredictor
from jepa_lightning.models.affine import Affine, AffineViews, affine_code
from jepa_lightning.models.affine_predictor import AffineMLP
from jepa_lightning.models.backbones import Backbone, TimmBackbone, TorchvisionBackbone
from jepa_lightning.models.causal_transformer import CausalVisionTransformer
from jepa_lightning.models.convnext import ConvNeXt
from jepa_lightning.models.dense_predictor import DensePredictor
from jepa_lightning.models.dense_transformer import DenseVisionTransformer, is_image
from jepa_lightning.models.ema import ema_copy, ema_update, evaluating, frozen_copy
from jepa_lightning.models.energy_transformer import EnergyBlocks
from jepa_lightning.models.keypoint_encoder import KeypointEncoder
from jepa_lightning.models.latent_dynamics import InverseDynamics, LatentDynamics, TemporalDistance
from jepa_lightning.models.layers import BlockOptions, Trunk
from jepa_lightning.models.positions import Positions, RoPE, SinCos2D, SinCos3D
from jepa_lightning.models.predictor import Predictor, TargetNoise
from jepa_lightning.models.projector import BatchNorm, Projector
from jepa_lightning.models.targets import target_tokens
from jepa_lightning.models.vision_transformer import SIZES, Encoder, VisionTransformer

__all__ = [
    "SIZES",
    "ActionPredictor",
    "Affine",
    "AffineMLP",
    "AffineViews",
    "Backbone",
    "BatchNorm",
    "BlockOptions",
    "CausalVisionTransformer",
    "ConvNeXt",
    "DensePredictor",
    "DenseVisionTransformer",
    "Encoder",
    "EnergyBlocks",
    "InverseDynamics",
    "KeypointEncoder",
    "LatentDynamics",
    "Positions",
    "Predictor",
    "Projector",
    "RoPE",
    "SinCos2D",
    "SinCos3D",
    "TargetNoise",
    "TemporalDistance",
    "TimmBackbone",
    "TorchvisionBackbone",
    "Trunk",
    "VisionTransformer",
    "affine_code",
    "ema_copy",
    "ema_update",
    "evaluating",
    "frozen_copy",
    "is_image",
    "target_tokens",
]
