"""LightningModules: one file is one paper."""

from jepa_lightning.methods.base import JEPA
from jepa_lightning.methods.ijepa import IJEPA
from jepa_lightning.methods.vjepa import VJEPA

__all__ = ["IJEPA", "JEPA", "VJEPA"]
