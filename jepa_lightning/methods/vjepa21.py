"""V-JEPA 2.1: predict several levels of features, of masked tokens and of visible ones, in images and in clips.

"V-JEPA 2.1", arXiv 2603.14482. The target h of a token is the features of four blocks of the target encoder, each
layer-normalised on its own, side by side. For each family of masks the predictor reads the same four levels of the
context tokens, and predicts all tokens. A visible token x counts the less the farther it is from the masked ones M:

    loss = mean over families of [ mean |prediction - h| over masked tokens
                                   + weight * mean |prediction - h| / sqrt(min over M of |x - M|) over visible tokens ]

with distances in tokens (time, row, column). f_target <- EMA(f). A batch holds clips or images, which share everything
but their patch embedding and the embedding of their kind: see data/alternating.py.

| | paper / official code | here |
|---|---|---|
| images and clips | images on ranks of their own; none, or a crash, on one GPU | batches take turns (`own_ranks`) |
| masks of a batch | cut to the shortest, the last frames go | cut at random (`compat: true`: official) |
| mask token | that of the clip length: always the first | always the first, the others are not trained |
| `context_weight` | 0 until step 15,000, up to 0.5 at 30,000, fixed | Ramp, in epochs: fits short runs |
| `offset_context_loss`, `normalize_predictor` | set nowhere; the second crashes | none |
| batch of one | crashes | works |
| one row or column of tokens | not a number | position 0 |
| predictor on non-square input | positions of a square grid | the true grid |
| predictor's rotation | spread over 16 x 16 in training, not in the hub | as in training |
| pure bfloat16 | crashes (rotated queries are float32) | works |
| evaluation configurations of 2.1 | load V-JEPA 2's class: other rotation, no final norm | this encoder |
| GradScaler | also with bfloat16 | none with bfloat16 |
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from jepa_lightning.masking import MaskedBatch, Padded, gather_tokens
from jepa_lightning.masking.padded import mean_of
from jepa_lightning.masking.tokens import Family
from jepa_lightning.methods.base import Observed, watched
from jepa_lightning.methods.groups import OptimizerFactory
from jepa_lightning.methods.vjepa import VJEPA
from jepa_lightning.models import DensePredictor, DenseVisionTransformer, is_image
from jepa_lightning.models.positions import Grid
from jepa_lightning.schedules import Constant, Schedule


class VJEPA21(VJEPA):
    """V-JEPA 2.1 (arXiv 2603.14482): dense features of images and clips.

    Args:
        encoder: The context encoder, the network that is trained and kept.
        predictor: Builds the predictor for an encoder, so that sizes are said once.
        lr: Learning rate by optimizer step.
        weight_decay: Weight decay by optimizer step; biases, norms and other vectors are never decayed.
        momentum: Momentum of the target encoder by optimizer step; null for no EMA copy.
        context_weight: Weight of the loss on visible tokens: a number, or Ramp by optimizer step. Evaluation has the
            value of the end of training.
        weight_by_distance: Let visible tokens count by their distance to the masked ones (off in the cool-down).
        loss_exp: p of the distance mean(|prediction - target|^p) / p.
        betas: The two decay rates of AdamW.
        ipe_scale: Length of the schedules over the length of the training; above 1 they are not finished.
        compile: Compile the networks with torch.compile; the first steps then take minutes.
        optimizer: Makes the optimizer, for example jepa_lightning.muon.Muon; null for AdamW with ``betas``.
    """

    encoder: DenseVisionTransformer
    predictor: DensePredictor

    def __init__(
        self, encoder: DenseVisionTransformer, predictor: Callable[[DenseVisionTransformer], DensePredictor],
        lr: Schedule, weight_decay: Schedule, momentum: Schedule | None, *, context_weight: Schedule | float = 0.5,
        weight_by_distance: bool = True, loss_exp: float = 1.0, betas: tuple[float, float] = (0.9, 0.999),
        ipe_scale: float = 1.0, compile: bool = False, optimizer: OptimizerFactory | None = None,
    ) -> None:  # fmt: skip
        super().__init__(
            encoder, cast(Any, predictor), lr, weight_decay, momentum, loss_exp=loss_exp, share_mask_token=True,
            betas=betas, ipe_scale=ipe_scale, compile=compile, optimizer=optimizer,
        )  # fmt: skip
        self.context_weight = context_weight if isinstance(context_weight, Schedule) else Constant(context_weight)
        self.weight_by_distance = weight_by_distance

    def losses(self, batch: MaskedBatch) -> dict[str, Tensor]:
        """The loss on masked tokens, and the weighted one on visible tokens."""
        image, grid = is_image(batch.inputs), self.encoder.grid_of(batch.inputs)
        features = self.features(batch.inputs)  # (B, N, levels D)
        on_masked, on_visible = [], []
        for masks in batch.families():
            context = self.predictor.reads(self.encoder, batch.inputs, masks.context)  # (B, Nc, levels D)
            predicted, recovered = self.predictor(context, *masks, 0, grid, image=image, with_context=True)
            target, visible = gather_tokens(features, masks.targets), gather_tokens(features, masks.context)
            on_masked.append(mean_of(self.distance(predicted, target), masks.targets))
            error = self.distance(recovered, visible.unsqueeze(1).expand_as(recovered))  # (B, M, Nc, levels D)
            if self.weight_by_distance:
                error = error * nearness(masks, grid).unsqueeze(-1)
            on_visible.append(mean_of(error.mean(dim=1), masks.context))
        self.observe(Observed(batch.masks[-1], grid, context, predicted, features))
        prediction, visible_loss = torch.stack(on_masked).mean(), torch.stack(on_visible).mean()
        return {
            "loss": prediction + self.weight_of_context() * visible_loss,
            "prediction": prediction.detach(),
            "context": visible_loss.detach(),
            **watched(masks, context, predicted, target),
        }

    @torch.no_grad()
    def features(self, inputs: Float[Tensor, "batch channels *size"]) -> Float[Tensor, "batch tokens dim"]:
        """Targets of all tokens: levels of the target encoder, each layer-normalised, side by side.

        Raises:
            ValueError: If the predictor was distilled from a teacher of another width, which this method does not have.
        """
        if self.predictor.target_dim != self.predictor.input_dim:
            raise ValueError(
                f"the predictor was distilled: it predicts {self.predictor.target_dim} channels of a teacher, the "
                f"target encoder gives {self.predictor.input_dim}. Its encoder is ready to use; to train on, give a "
                "new predictor"
            )
        return normalized_levels(self.predictor.reads(self.target_encoder, inputs), self.embed_dim)

    def weight_of_context(self) -> float:
        """Weight of the loss on visible tokens in this optimizer step; outside of training the last one."""
        if self._trainer is None or not self.training:
            return self.context_weight(2**62, 2**62, 1)
        step, steps, per_epoch = self.progress()
        return self.context_weight(step, self.ipe_scale * steps, per_epoch)

    def on_train_batch_start(self, batch: MaskedBatch, batch_idx: int) -> None:
        """Refuse a DDP that waits for the gradient of the patch embedding that a batch does not use.

        Raises:
            ValueError: If it does.
        """
        parallel: Any = self.trainer.strategy.model
        if isinstance(parallel, DistributedDataParallel) and not parallel.find_unused_parameters:
            raise ValueError(
                "a batch of clips leaves the patch embedding of images without a gradient, and DDP waits for it: set "
                "--trainer.strategy ddp_find_unused_parameters_true"
            )
        super().on_train_batch_start(batch, batch_idx)


def normalized_levels(tokens: Float[Tensor, "*batch wide"], dim: int) -> Float[Tensor, "*batch wide"]:
    """Layer-normalise each level, of ``dim`` channels, on its own."""
    return F.layer_norm(tokens.unflatten(-1, (-1, dim)), (dim,)).flatten(-2)


@torch.no_grad()
def nearness(masks: Family, grid: Grid) -> Float[Tensor, "batch m nc"]:
    """1 / sqrt(distance in tokens) from each context token to the nearest target of each block."""
    context, targets = (index.indices if isinstance(index, Padded) else index for index in masks)
    nearest: Tensor | None = None
    for stride, side in ((grid[1] * grid[2], grid[0]), (grid[2], grid[1]), (1, grid[2])):
        here, there = (index // stride % side for index in (context[:, None, :, None], targets[:, :, None, :]))
        square = (here - there).square()  # (B, M, Nc, Nt), exact in integers
        nearest = square if nearest is None else nearest + square
    assert nearest is not None
    nearest = nearest.masked_fill((targets < 0)[:, :, None, :], 2**62).amin(dim=-1)
    return nearest.float().clamp(min=1.0).pow(-0.25)  # padding of the context may lie anywhere
