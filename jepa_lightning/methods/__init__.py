"""LightningModules: one file is one paper."""

from jepa_lightning.methods.base import JEPA, Method
from jepa_lightning.methods.finetune import FineTune
from jepa_lightning.methods.ijepa import IJEPA
from jepa_lightning.methods.lejepa import LeJEPA
from jepa_lightning.methods.linear_probe import LinearProbe
from jepa_lightning.methods.pretrained import PretrainedEncoder
from jepa_lightning.methods.probe import AttentiveProbe
from jepa_lightning.methods.saccade import SaccadeJEPA
from jepa_lightning.methods.vjepa import VJEPA

__all__ = [
    "IJEPA",
    "JEPA",
    "VJEPA",
    "AttentiveProbe",
    "FineTune",
    "LeJEPA",
    "LinearProbe",
    "Method",
    "PretrainedEncoder",
    "SaccadeJEPA",
]
