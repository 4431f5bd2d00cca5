"""LightningModules: one file is one paper."""

from jepa_lightning.methods.base import JEPA
from jepa_lightning.methods.ijepa import IJEPA

__all__ = ["IJEPA", "JEPA"]
