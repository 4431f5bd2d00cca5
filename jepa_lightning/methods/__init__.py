"""LightningModules: one file is one paper."""

from jepa_lightning.methods.base import JEPA, Method
from jepa_lightning.methods.ijepa import IJEPA
from jepa_lightning.methods.probe import AttentiveProbe
from jepa_lightning.methods.vjepa import VJEPA

__all__ = ["IJEPA", "JEPA", "VJEPA", "AttentiveProbe", "Method"]
