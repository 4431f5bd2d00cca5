"""Distillation: a small student predicts the tokens of a frozen teacher, of the same input, from a part of it.

V-JEPA 2.1 (arXiv 2603.14482) has students B and L of a teacher G; of their training only the names of tensors and the
width of the teacher were released. With t the layer-normalised tokens of the teacher for the whole input, z the
predictions for masked tokens and c those for visible tokens,

    loss = mean |z - t|^p / p over masked tokens + weight * mean |c - t|^p / p over visible tokens.

| | released files of V-JEPA 2.1 | here |
|---|---|---|
| teacher | ViT-G of V-JEPA 2.1, its last level | any checkpoint with an encoder, its output |
| predictor | of the student, one level, output as wide as the teacher | the same: a Predictor, then a Linear layer |
| visible tokens | predicted, too (``predictor_proj_context``) | a Linear layer on the context tokens |
| which copy is kept | EMA of the student (``ema_encoder``) | EMA of the student, or the student (``momentum: null``) |
| other grid of the teacher | - | its tokens are resampled to the grid of the student |
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from jepa_lightning import weights
from jepa_lightning.masking import MaskedBatch, gather_tokens
from jepa_lightning.masking.padded import mean_of
from jepa_lightning.methods.base import JEPA, Observed, watched
from jepa_lightning.methods.groups import OptimizerFactory
from jepa_lightning.models import Encoder, Predictor
from jepa_lightning.models.positions import Grid
from jepa_lightning.ranges import at_least
from jepa_lightning.schedules import Schedule


class Distillation(JEPA):
    """A student that predicts a frozen teacher's tokens (the distilled models of V-JEPA 2.1, arXiv 2603.14482).

    Args:
        encoder: The student, the network that is trained and kept.
        predictor: Builds the predictor for an encoder, so that sizes are said once.
        teacher_dim: Channels of the teacher's tokens.
        lr: Learning rate by optimizer step.
        weight_decay: Weight decay by optimizer step; biases, norms and other vectors are never decayed.
        momentum: Momentum of the EMA copy of the student by optimizer step; null for none.
        teacher: Checkpoint of the teacher, of any format; needed for training alone, and not part of the student's
            checkpoints.
        visible_weight: Weight of the loss on visible tokens.
        loss_exp: p of the distance.
        optimizer: Makes the optimizer, for example jepa_lightning.muon.Muon; null for AdamW.

    Raises:
        ValueError: If the teacher has tokens of another width.
    """

    def __init__(
        self,
        encoder: Encoder,
        predictor: Callable[[Encoder], Predictor],
        teacher_dim: int,
        lr: Schedule,
        weight_decay: Schedule,
        momentum: Schedule | None = None,
        teacher: str | None = None,
        visible_weight: float = 0.5,
        loss_exp: float = 1.0,
        optimizer: OptimizerFactory | None = None,
    ) -> None:
        at_least(1, teacher_dim=teacher_dim)
        super().__init__(encoder, lr, weight_decay, momentum, optimizer=optimizer)
        self.predictor = predictor(encoder)
        self.masked_head = nn.Linear(encoder.embed_dim, teacher_dim)
        self.visible_head = nn.Linear(encoder.embed_dim, teacher_dim)
        self.visible_weight, self.loss_exp = visible_weight, loss_exp
        # In a tuple it is no submodule: neither trained nor saved.
        self._teacher = None if teacher is None else (self._opened(teacher, teacher_dim),)

    @staticmethod
    def _opened(path: str, dim: int) -> Encoder:
        encoder = weights.open(path).networks("target").encoder.eval().requires_grad_(False)
        if encoder.embed_dim != dim:
            raise ValueError(f"{path} has tokens of {encoder.embed_dim} channels: set teacher_dim to that, not {dim}")
        return encoder

    def losses(self, batch: MaskedBatch) -> dict[str, Tensor]:
        """The loss on masked tokens, and the weighted one on visible tokens."""
        grid = self.encoder.grid_of(batch.inputs)
        features = self.features(batch.inputs, grid)  # (B, N, teacher_dim)
        on_masked, on_visible = [], []
        for family, masks in enumerate(batch.families()):
            context = self.encoder(batch.inputs, masks.context)  # (B, Nc, D)
            predicted = self.masked_head(self.predictor(context, masks.context, masks.targets, family, grid))
            target, visible = gather_tokens(features, masks.targets), gather_tokens(features, masks.context)
            on_masked.append(mean_of(self.distance(predicted, target), masks.targets))
            context = self.visible_head(context)  # as wide as the teacher, as what observers compare it with
            on_visible.append(mean_of(self.distance(context, visible), masks.context))
        self.observe(Observed(batch.masks[-1], grid, context, predicted, features))
        masked_loss, visible_loss = torch.stack(on_masked).mean(), torch.stack(on_visible).mean()
        return {
            "loss": masked_loss + self.visible_weight * visible_loss,
            "prediction": masked_loss.detach(),
            "context": visible_loss.detach(),
            **watched(masks, context, predicted, target),
        }

    def distance(self, predicted: Tensor, target: Tensor) -> Tensor:
        """|predicted - target|^p / p of each channel."""
        return (predicted - target).abs().pow(self.loss_exp) / self.loss_exp

    @torch.no_grad()
    def features(
        self, inputs: Float[Tensor, "batch channels *size"], grid: Grid
    ) -> Float[Tensor, "batch tokens teacher_dim"]:
        """Layer-normalised tokens of the teacher on the grid of the student.

        Raises:
            ValueError: If there is no teacher.
        """
        if self._teacher is None:
            raise ValueError("a student learns from a teacher: give --model.teacher CHECKPOINT")
        (teacher,) = self._teacher
        tokens = teacher.to(inputs.device)(inputs)
        if (there := teacher.grid_of(inputs)) != grid:
            maps = tokens.transpose(1, 2).unflatten(2, there)
            tokens = F.interpolate(maps, size=grid, mode="trilinear", align_corners=False).flatten(2).transpose(1, 2)
        return F.layer_norm(tokens, tokens.shape[-1:])
