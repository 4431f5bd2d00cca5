"""What was learned: features of a frozen encoder and what can be read off them."""

from jepa_lightning.evaluation.features import Features, extract
from jepa_lightning.evaluation.probes import knn_top1, linear_top1
from jepa_lightning.evaluation.report import score, table

__all__ = ["Features", "extract", "knn_top1", "linear_top1", "score", "table"]
