"""Evaluation without gradients: features of a frozen encoder, readouts of them, and the report."""

from jepa_lightning.evaluation.features import Features, extract
from jepa_lightning.evaluation.knn import knn_top1
from jepa_lightning.evaluation.logistic import linear_top1
from jepa_lightning.evaluation.protocols import Protocols
from jepa_lightning.evaluation.report import Report, read
from jepa_lightning.evaluation.results import Result, logged

__all__ = ["Features", "Protocols", "Report", "Result", "extract", "knn_top1", "linear_top1", "logged", "read"]
