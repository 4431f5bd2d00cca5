"""Observers: what is measured, drawn, written and saved. Removing one never changes training."""

from jepa_lightning.callbacks.alarm import Alarm
from jepa_lightning.callbacks.checkpoints import Checkpoints
from jepa_lightning.callbacks.config import SaveConfig
from jepa_lightning.callbacks.features import FeatureWriter
from jepa_lightning.callbacks.forgetting import Forgetting
from jepa_lightning.callbacks.health import Health
from jepa_lightning.callbacks.monitor import Monitor
from jepa_lightning.callbacks.optimizer_state import OptimizerState
from jepa_lightning.callbacks.pictures import Pictures
from jepa_lightning.callbacks.probe import Probe
from jepa_lightning.callbacks.progress import ProgressBar
from jepa_lightning.callbacks.report import Report
from jepa_lightning.callbacks.verdict import Verdict
from jepa_lightning.callbacks.waiting import Waiting

__all__ = [
    "Alarm",
    "Checkpoints",
    "FeatureWriter",
    "Forgetting",
    "Health",
    "Monitor",
    "OptimizerState",
    "Pictures",
    "Probe",
    "ProgressBar",
    "Report",
    "SaveConfig",
    "Verdict",
    "Waiting",
]
