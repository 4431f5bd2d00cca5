"""Pictures of inputs and features: masks drawn on images, principal components of patch features."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from lightning import Callback, LightningModule, Trainer
from torch import Tensor
from torchvision.utils import make_grid, save_image

from jepa_lightning.callbacks.observer import dry_run, tensorboards
from jepa_lightning.masking import Grid, MaskedBatch
from jepa_lightning.ranges import at_least

GREY = 0.25
"""Brightness of masked patches."""


class Pictures(Callback):
    """Draws a table after every n-th validation: image, context, each target block, PCA of the patch features.

    Of a clip, columns are steps in time and rows are the frames, context and targets of each family of masks, and the
    PCA. Goes to TensorBoard and as PNG to `pictures/` in the folder of the run.

    Args:
        every_n_epochs: Draw at the validations of every n-th epoch and at the last; 0 for never.
        images: Images in the table; a third as many clips.
        side: Least height of an image in pixels.
    """

    def __init__(self, every_n_epochs: int = 1, images: int = 6, side: int = 128) -> None:
        at_least(0, every_n_epochs=every_n_epochs)
        at_least(1, images=images, side=side)
        self.every_n_epochs, self.images, self.side = every_n_epochs, images, side
        self._batch: MaskedBatch | None = None

    def on_validation_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Keep the first batch: the same images, with the same masks, every time."""
        if batch_idx == 0 and dataloader_idx == 0 and hasattr(batch, "masks"):  # trajectories have none
            self._batch = batch

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draw."""
        batch, self._batch = self._batch, None
        if batch is None or not self.every_n_epochs or trainer.sanity_checking or dry_run(trainer):
            return
        last = trainer.max_epochs == trainer.current_epoch + 1
        if trainer.state.fn == "fit" and (trainer.current_epoch + 1) % self.every_n_epochs and not last:
            return
        # Every process takes part (networks may be sharded, Lightning broadcasts the folder); the first one writes.
        picture, folder = self.draw(batch, pl_module, trainer.datamodule), trainer.log_dir  # type: ignore[attr-defined]
        if not trainer.is_global_zero:
            return
        for writer in tensorboards(trainer):
            writer.add_image("masks and features", picture, trainer.global_step)
        if folder is not None and trainer.loggers:
            path = Path(folder) / "pictures" / f"step_{trainer.global_step:06d}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            save_image(picture, path)

    @torch.no_grad()
    def draw(self, batch: MaskedBatch, pl_module: Any, data: Any) -> Float[Tensor, "3 height width"]:
        """The table as an image with values from 0 to 1: a row for each image, or several for each clip."""
        if batch.inputs.ndim == 6:  # of several clips and views of a video the first
            batch = batch._replace(inputs=batch.inputs[:, 0])
        video = batch.inputs.ndim == 5
        count = min(max(1, self.images // 3) if video else self.images, len(batch.inputs))
        inputs = batch.inputs[:count]
        grid = pl_module.encoder.grid_of(inputs)
        pixels = as_colours(data.denormalize(inputs).clamp(0, 1))
        frames = pixels[:, :, :: pixels.shape[2] // grid[0]] if video else pixels.unsqueeze(2)  # (B, 3, T', H, W)
        shown = [frames]
        for masks in batch.masks if video else batch.masks[:1]:
            shown.append(show_only(frames, masks.context[:count], grid))
            shown += [show_only(frames, block[:count], grid) for block in masks.targets.unbind(1)]
        shown.append(pca_rgb(pl_module.encode(inputs).float(), grid).to(pixels))
        scale = max(1, -(-self.side // frames.shape[-2]))
        size = [scale * side for side in frames.shape[-2:]]
        cells = torch.stack([F.interpolate(row, (grid[0], *size), mode="nearest") for row in shown], dim=1)
        cells = cells.transpose(2, 3)  # (B, rows, T', 3, H, W)
        columns = grid[0] if video else len(shown)
        return make_grid(cells.flatten(0, 2).cpu(), nrow=columns, padding=4, pad_value=1.0)


def as_colours(
    pixels: Float[Tensor, "batch channels *size"],
) -> Float[Tensor, "batch 3 *size"]:
    """What of any number of channels a picture can show: the first three, or the first in grey."""
    return pixels[:, :3] if pixels.shape[1] > 2 else pixels[:, :1].expand(-1, 3, *pixels.shape[2:])


def show_only(
    pixels: Float[Tensor, "batch 3 t h w"], kept: Int[Tensor, "batch k"], grid: Grid
) -> Float[Tensor, "batch 3 t h w"]:
    """Images in which every patch that is not ``kept`` is dark; -1 stands for no patch."""
    shown = torch.full((len(pixels), math.prod(grid) + 1), GREY, device=pixels.device)
    shown.scatter_(1, kept.where(kept >= 0, math.prod(grid)), 1.0)  # the last column belongs to no patch
    return pixels * F.interpolate(shown[:, :-1].reshape(-1, 1, *grid), pixels.shape[-3:], mode="nearest")


def pca_rgb(tokens: Float[Tensor, "batch tokens dim"], grid: Grid) -> Float[Tensor, "batch 3 steps rows columns"]:
    """The first three principal components of all patch features of the batch, as colours from 0 to 1."""
    flat = tokens.flatten(0, 1).nan_to_num(0.0, 0.0, 0.0)
    flat = flat - flat.mean(dim=0)
    directions = torch.linalg.svd(flat, full_matrices=False).Vh[:3]  # (3, D)
    # The sign of a component is arbitrary; this one makes two pictures of the same features equal.
    directions = directions * directions.sum(dim=1, keepdim=True).sign()
    scores = flat @ directions.T
    low, high = scores.quantile(0.01, dim=0), scores.quantile(0.99, dim=0)
    colours = ((scores - low) / (high - low).clamp_min(1e-12)).clamp(0, 1)
    return colours.view(len(tokens), *grid, 3).permute(0, 4, 1, 2, 3)
