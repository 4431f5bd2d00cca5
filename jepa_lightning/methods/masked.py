"""What I-JEPA and V-JEPA share: the loop over families of masks, and the mean distance of predictions and targets."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from jepa_lightning.losses import Regularizer
from jepa_lightning.masking import MaskedBatch, gather_tokens
from jepa_lightning.masking.padded import mean_of
from jepa_lightning.masking.tokens import Family
from jepa_lightning.methods.base import JEPA, Observed, watched
from jepa_lightning.methods.groups import OptimizerFactory
from jepa_lightning.models import Encoder, Predictor
from jepa_lightning.schedules import Schedule


class Prediction(NamedTuple):
    """What one family of masks gives.

    Attributes:
        masks: Which tokens are context and which are targets.
        context: Output of the context encoder, (B, Nc, D).
        predicted: Output of the predictor, (B, M, Nt, D).
        target: Layer-normalised features of the target encoder at the targets, (B, M, Nt, D).
    """

    masks: Family
    context: Float[Tensor, "batch nc dim"]
    predicted: Float[Tensor, "batch m nt dim"]
    target: Float[Tensor, "batch m nt dim"]


class MaskedJEPA(JEPA):
    """A JEPA that predicts the features of masked tokens from the other tokens of the same input.

    Args:
        encoder: The context encoder, which is trained.
        predictor: Builds the predictor for an encoder, so that sizes are said once.
        lr: Learning rate by optimizer step.
        weight_decay: Weight decay by optimizer step; biases, norms and other vectors are never decayed.
        momentum: Momentum of the target encoder by optimizer step, which is the encoder itself if this is null.
        betas: The two decay rates of AdamW.
        ipe_scale: Length of the schedules over the length of the training; above 1 they are not finished.
        compile: Compile the networks with torch.compile; the first steps then take minutes.
        regularizer: A term against collapse on the context features: SIGReg or VarianceCovariance; null for none.
        stop_gradient: Keep gradients out of the targets.
        target_layers: How many last blocks of the target encoder the targets are averaged over; null for all.
        optimizer: Makes the optimizer, for example jepa_lightning.muon.Muon; null for AdamW with ``betas``.
    """

    def __init__(
        self, encoder: Encoder, predictor: Callable[[Encoder], Predictor], lr: Schedule, weight_decay: Schedule,
        momentum: Schedule | None, *, betas: tuple[float, float] = (0.9, 0.999), ipe_scale: float = 1.0,
        compile: bool = False, regularizer: Regularizer | None = None, stop_gradient: bool = True,
        target_layers: int | None = 1, optimizer: OptimizerFactory | None = None,
    ) -> None:  # fmt: skip
        super().__init__(
            encoder, lr, weight_decay, momentum, betas, ipe_scale, compile, regularizer, stop_gradient, target_layers,
            optimizer,
        )  # fmt: skip
        self.predictor = predictor(encoder)

    def predictions(self, batch: MaskedBatch, share_mask_token: bool = False) -> list[Prediction]:
        """Context, prediction and target of each family of masks; observers see the last family.

        Args:
            batch: Inputs and masks.
            share_mask_token: Use the first mask token of the predictor for every family.
        """
        grid = self.encoder.grid_of(batch.inputs)
        features = F.layer_norm(self.targets_of(batch.inputs), (self.embed_dim,))  # (B, N, D)
        found = []
        for family, masks in enumerate(batch.families()):
            context = self.encoder(batch.inputs, masks.context)  # (B, Nc, D)
            target = gather_tokens(features, masks.targets)  # (B, M, Nt, D)
            token = 0 if share_mask_token else family
            predicted = self.predictor(context, masks.context, masks.targets, token, grid, target)  # (B, M, Nt, D)
            found.append(Prediction(masks, context, predicted, target))
        self.observe(Observed(batch.masks[-1], grid, context, predicted, features))
        return found

    def mean_distance(
        self, predictions: Sequence[Prediction], distance: Callable[[Tensor, Tensor], Tensor]
    ) -> dict[str, Tensor]:
        """The loss: the mean over families, tokens and channels of a distance, with the regularizer if there is one.

        Args:
            predictions: One for each family of masks.
            distance: Of predictions and targets, (B, M, Nt, D) each, to (B, M, Nt, D).
        """
        losses = [mean_of(distance(p.predicted, p.target), p.masks.targets) for p in predictions]
        loss = torch.stack(losses).mean()
        return {
            **self.regularized(loss, [p.context for p in predictions], [p.masks for p in predictions]),
            **watched(*predictions[-1]),
        }
