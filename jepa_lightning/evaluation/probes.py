"""The quick probes of a run in progress: a linear classifier and nearest neighbours, nothing of them chosen."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from jepa_lightning.evaluation.features import Features
from jepa_lightning.evaluation.nearest import Neighbours


def linear_top1(train: Features, held_out: Features, weight_decay: float = 1e-3, iterations: int = 100) -> float:
    """Accuracy of multinomial logistic regression, in [0, 1].

    Features are standardised with the statistics of ``train``; L-BFGS minimises the mean cross-entropy plus
    ``weight_decay / 2`` times the squared weights (not the biases), in so many iterations; logistic.py goes to the
    optimum. Deterministic; nothing is tuned on ``held_out``.
    """
    with torch.inference_mode(False), torch.enable_grad():  # Lightning evaluates in inference mode
        x, y, held_out_x = train.x.clone(), train.y.clone(), held_out.x.clone()
        mean, std = x.mean(dim=0), x.std(dim=0).clamp_min(1e-6)
        x, held_out_x = (x - mean) / std, (held_out_x - mean) / std
        classes = int(max(y.max(), held_out.y.max())) + 1
        weight = torch.zeros(classes, x.shape[1], device=x.device, requires_grad=True)
        bias = torch.zeros(classes, device=x.device, requires_grad=True)
        optimizer = torch.optim.LBFGS([weight, bias], max_iter=iterations, line_search_fn="strong_wolfe")

        def closure() -> Tensor:
            optimizer.zero_grad()
            loss = F.cross_entropy(x @ weight.T + bias, y) + 0.5 * weight_decay * weight.square().sum()
            loss.backward()
            return loss

        optimizer.step(closure)
        predicted = (held_out_x @ weight.T + bias).argmax(dim=1)
    return float((predicted == held_out.y).float().mean())


def knn_top1(train: Features, held_out: Features, k: int = 20, temperature: float = 0.07) -> float:
    """Accuracy of weighted k nearest neighbours by cosine similarity, in [0, 1], exact over all of ``train``.

    Each neighbour votes with exp(similarity / temperature) (Wu et al. 2018, section 3.4).
    """
    predicted = Neighbours(train, held_out.x, k).vote(k, temperature)
    return float((predicted == held_out.y.to(predicted.device)).float().mean())
