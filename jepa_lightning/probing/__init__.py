"""LightningModules on a pretrained encoder: probes of a frozen encoder, and fine-tuning."""

from jepa_lightning.probing.attentive import AttentiveProbe
from jepa_lightning.probing.finetune import FineTune
from jepa_lightning.probing.linear import LinearProbe
from jepa_lightning.probing.pretrained import PretrainedEncoder

__all__ = ["AttentiveProbe", "FineTune", "LinearProbe", "PretrainedEncoder"]
