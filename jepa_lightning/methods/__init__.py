"""LightningModules that learn an encoder: one file is one paper."""

from jepa_lightning.methods.base import JEPA, Method
from jepa_lightning.methods.distillation import Distillation
from jepa_lightning.methods.ijepa import IJEPA
from jepa_lightning.methods.lejepa import LeJEPA
from jepa_lightning.methods.pldm import PLDM
from jepa_lightning.methods.saccade import SaccadeJEPA
from jepa_lightning.methods.vjepa import VJEPA
from jepa_lightning.methods.vjepa2_ac import VJEPA2AC
from jepa_lightning.methods.vjepa21 import VJEPA21

__all__ = [
    "IJEPA",
    "JEPA",
    "PLDM",
    "VJEPA",
    "VJEPA2AC",
    "VJEPA21",
    "Distillation",
    "LeJEPA",
    "Method",
    "SaccadeJEPA",
]
