"""Samples on a plane: UMAP (McInnes et al. 2018) of their features."""

from __future__ import annotations

import warnings

import numpy as np
from jaxtyping import Float
from torch import Tensor

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # it tells that Tensorflow, which nothing here uses, is not installed
    from umap import UMAP


def plane(features: Float[Tensor, "samples dim"]) -> Float[np.ndarray, "samples 2"]:
    """Two coordinates for each sample, from its standardised features; the same every time."""
    features = (features - features.mean(dim=0)) / features.std(dim=0).clamp_min(1e-6)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of fewer samples than UMAP likes, and of its own dependencies
        reducer = UMAP(n_neighbors=min(15, len(features) - 1), random_state=0, n_jobs=1)
        return np.asarray(reducer.fit_transform(features.numpy()))
