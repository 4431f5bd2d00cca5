"""What `jepa explore` shows as files of `jepa predict`: attention, principal components, surprise, the UMAP map."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from torch import Tensor
from tqdm import tqdm

from jepa_lightning.callbacks.pictures import pca_rgb
from jepa_lightning.distributed import world_size
from jepa_lightning.explore.items import to_pixels
from jepa_lightning.explore.subject import Pixels, Subject

FEWEST = 8
"""Fewest samples in a map."""


class Maps(Callback):
    """Writes `maps/SAMPLE.png` of the first samples and `maps/umap.png` of all to the folder of the run.

    A picture has rows for the frames, the mean attention that each head of the last layer pays to each patch, the
    principal components of the features, and the surprise: every quarter of the picture is hidden once and predicted.
    A model without attention or without a predictor has no such row. A run of several processes draws nothing.

    Args:
        count: Samples that get a picture; 0 for no pictures and no map.
        most: Most samples in the map.
    """

    def __init__(self, count: int = 8, most: int = 2000) -> None:
        self.count, self.most = count, most
        self._kept: list[tuple[Pixels, int]] = []
        self._rows: list[tuple[Tensor, Tensor]] = []
        self._draws = False

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Say before the work begins if matplotlib is missing."""
        self._kept, self._rows, self._draws = [], [], self.count > 0 and world_size() == 1
        try:
            import matplotlib
        except ImportError:
            self._draws = False
            rank_zero_info("no maps are drawn without matplotlib: pip install 'jepa-lightning[explore]'")
        else:
            assert matplotlib
        channels = trainer.datamodule.channels()  # type: ignore[attr-defined]
        if self._draws and channels not in (1, 3):
            self._draws = False
            rank_zero_info(f"no maps are drawn: {channels} channels are no picture")

    def on_predict_batch_end(
        self, trainer: Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Keep the features of all samples, and the first ones themselves."""
        if not self._draws:
            return
        numbers = torch.arange(len(batch.inputs)) if batch.index is None else batch.index.cpu()
        good = numbers >= 0  # files that could be decoded
        room = self.most - sum(len(features) for features, _ in self._rows)
        if room > 0:
            self._rows.append((outputs.float().cpu()[good][:room], batch.labels.cpu()[good][:room]))
        for position in good.nonzero().flatten().tolist()[: self.count - len(self._kept)]:
            values = trainer.datamodule.denormalize(batch.inputs[position : position + 1])[0]  # type: ignore[attr-defined]
            self._kept.append((to_pixels(values).cpu(), int(numbers[position])))

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draw."""
        folder = trainer.log_dir  # a broadcast
        if not self._draws or not self._kept:
            return
        data = trainer.datamodule  # type: ignore[attr-defined]
        target = getattr(pl_module, "target_encoder", pl_module.encoder)
        predictor = getattr(pl_module, "predictor", None)
        layers = getattr(pl_module, "target_layers", 1)
        subject = Subject(target, pl_module.encoder, predictor, data.mean, data.std, layers)  # type: ignore[arg-type]
        path = Path(folder or trainer.default_root_dir) / "maps"
        path.mkdir(parents=True, exist_ok=True)
        names = data.names([number for _, number in self._kept])
        for (pixels, number), name in tqdm(list(zip(self._kept, names, strict=True)), desc="drawing maps", leave=False):
            draw(subject, pixels, name, path / f"{number:06d}.png")
        self._map(path / "umap.png", data.classes)
        rank_zero_info(f"maps written to {path}")
        self._kept, self._rows = [], []

    def _map(self, path: Path, classes: Any) -> None:
        features, labels = (torch.cat(parts) for parts in zip(*self._rows, strict=True))
        if len(features) < FEWEST:
            return
        try:
            from jepa_lightning.explore.plane import plane
        except ImportError:
            rank_zero_warn("no map of all samples without umap-learn: pip install 'jepa-lightning[explore]'")
            return
        rank_zero_info(f"drawing the map of {len(features)} samples ...")
        several = labels.ndim == 2
        first = labels[:, 0] if several else labels
        lists = classes[0] if several else classes
        draw_plane(plane(features), [lists[n] if 0 <= n < len(lists) else "unknown" for n in first.tolist()], path)


def rows_of(subject: Subject, pixels: Pixels) -> list[tuple[str, Tensor]]:
    """Titles of the rows of one input, with (T', H', W') values or (T', H', W', 3) colours each."""
    grid = subject.grid(pixels)
    frames = pixels[:, :: pixels.shape[1] // grid[0]].permute(1, 2, 3, 0)
    rows = [("input", frames)]
    try:
        attention = subject.attention(pixels)
    except ValueError:  # not a Transformer
        attention = torch.empty(0)
    rows += [(f"head {n} attends to", head.mean(dim=0).reshape(grid)) for n, head in enumerate(attention)]
    colours = pca_rgb(subject.tokens(pixels).unsqueeze(0), grid)[0]  # (3, T', H', W')
    rows.append(("principal components", colours.permute(1, 2, 3, 0)))
    if subject.predictor is not None:
        rows.append(("surprise", subject.surprise(pixels).reshape(grid)))
    return rows


def draw(subject: Subject, pixels: Pixels, title: str, path: Path) -> None:
    """Draw one input: rows of an image stand side by side, those of a clip below each other."""
    from matplotlib.figure import Figure

    rows = rows_of(subject, pixels)
    steps = len(rows[0][1])
    down, across = (len(rows), steps) if steps > 1 else (-(-len(rows) // 4), min(4, len(rows)))
    figure = Figure(figsize=(2.2 * across, 2.4 * down + 0.4), layout="constrained")
    figure.suptitle(title, fontsize=10)
    axes = figure.subplots(down, across, squeeze=False)
    for axis in axes.flat:
        axis.axis("off")
    for number, (name, values) in enumerate(rows):
        least, most = (None, None) if values.ndim == 4 else (float(values.min()), float(values.max()))
        for step, picture in enumerate(values):
            axis = axes[number, step] if steps > 1 else axes.flat[number]
            axis.imshow(picture.numpy(), cmap="turbo", vmin=least, vmax=most)
            if step == 0:
                axis.set_title(name, fontsize=8, loc="left")
    figure.savefig(path, dpi=110)


def draw_plane(places: Any, labels: list[str], path: Path) -> None:
    """Draw points in the colours of their labels."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 6.5), layout="constrained")
    axis = figure.subplots()
    for label in sorted(set(labels)):
        chosen = [n for n, own in enumerate(labels) if own == label]
        axis.scatter(places[chosen, 0], places[chosen, 1], s=14, label=label)
    axis.set_axis_off()
    axis.legend(title="label", fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))
    axis.set_title(f"UMAP of the averaged features of {len(labels)} samples", fontsize=10)
    figure.savefig(path, dpi=110)
