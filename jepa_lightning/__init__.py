"""JEPAs in PyTorch Lightning: I-JEPA and its relatives, each a short LightningModule and one YAML file.

Names are imported when first used, so that ``import jepa_lightning.models`` does not import Lightning.
"""

from __future__ import annotations

import os
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jepa_lightning import losses as losses
    from jepa_lightning import masking as masking
    from jepa_lightning.loading import load as load
    from jepa_lightning.loading import load_encoder as load_encoder
    from jepa_lightning.loading import load_meta as load_meta
    from jepa_lightning.methods import IJEPA as IJEPA
    from jepa_lightning.methods import JEPA as JEPA
    from jepa_lightning.methods import PLDM as PLDM
    from jepa_lightning.methods import VJEPA as VJEPA
    from jepa_lightning.methods import VJEPA2AC as VJEPA2AC
    from jepa_lightning.methods import VJEPA21 as VJEPA21
    from jepa_lightning.methods import LeJEPA as LeJEPA
    from jepa_lightning.methods import SaccadeJEPA as SaccadeJEPA
    from jepa_lightning.models import Predictor as Predictor
    from jepa_lightning.models import VisionTransformer as VisionTransformer
    from jepa_lightning.probing import AttentiveProbe as AttentiveProbe
    from jepa_lightning.probing import FineTune as FineTune
    from jepa_lightning.probing import LinearProbe as LinearProbe

__version__ = "0.1.0"

# OpenMP threads that wait spin by default. On a machine whose cores are also used by loader workers or anything else,
# that made a training step up to ten times slower (measured on 2 cores). Read when torch is loaded, so set before.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

_HOME = {
    "AttentiveProbe": "probing",
    "FineTune": "probing",
    "IJEPA": "methods",
    "JEPA": "methods",
    "LeJEPA": "methods",
    "LinearProbe": "probing",
    "PLDM": "methods",
    "SaccadeJEPA": "methods",
    "VJEPA": "methods",
    "VJEPA21": "methods",
    "VJEPA2AC": "methods",
    "Predictor": "models",
    "VisionTransformer": "models",
    "load": "loading",
    "load_encoder": "loading",
    "load_meta": "loading",
}
_MODULES = {"losses", "masking", "metrics", "models", "methods", "probing", "data", "schedules"}

__all__ = [*sorted(_HOME), *sorted(_MODULES)]  # names are resolved by __getattr__


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
    if name in _MODULES:
        return import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
