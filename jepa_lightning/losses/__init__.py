"""Terms of losses that look at the distribution of a whole batch. Right across processes, plain PyTorch."""

from jepa_lightning.losses.regularizer import Regularizer
from jepa_lightning.losses.sigreg import SIGReg
from jepa_lightning.losses.variance_covariance import VarianceCovariance, covariance, variance

__all__ = ["Regularizer", "SIGReg", "VarianceCovariance", "covariance", "variance"]
