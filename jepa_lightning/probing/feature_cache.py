"""Features of the clean splits, computed once; the heads of a probe learn from them in place of images."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor
from torch.utils.data import Dataset
from tqdm import tqdm

from jepa_lightning.distributed import gather_rows, rank, world_size
from jepa_lightning.masking import Sample


class CachedFeatures(Dataset[Sample]):
    """Samples whose inputs are features.

    Args:
        x: (N, V, F), float32.
        labels: (N,) or (N, L).
        index: Position of each sample in its data set (N,).
    """

    def __init__(self, x: Tensor, labels: Tensor, index: Tensor) -> None:
        self.x = x
        self.labels = [tuple(row) if isinstance(row, list) else row for row in labels.tolist()]
        self.index = index.tolist()

    def __len__(self) -> int:
        return len(self.index)

    def __getitem__(self, draw: Any) -> Sample:
        """The sample of a draw, which is its number or starts with it."""
        row = draw[0] if isinstance(draw, tuple) else draw
        return Sample(self.x[row], self.labels[row], self.index[row])


def features_of_splits(module: Any, encode: Callable[[Tensor], Tensor], on_disk: bool) -> dict[str, CachedFeatures]:
    """Features of the training and the validation split, clean.

    Args:
        module: The module that is about to train.
        encode: (B, ...) -> (B, V, F).
        on_disk: Keep them in files below the folder of the run, not in main memory.

    Raises:
        ValueError: If there is no data module of ours, or it draws its sources by weights.
    """
    trainer = module.trainer
    data, found = trainer.datamodule, {}
    ours = hasattr(data, "probe_dataloader")
    if not ours or data.shares() is not None:
        reason = "draws its sources by weights" if ours else "is no JEPADataModule"
        raise ValueError(f"cache: {type(data).__name__} {reason}, which a cache cannot do: leave it out")
    folder = Path(trainer.log_dir or trainer.default_root_dir) / "features" if on_disk else None
    for split in ("train", "val"):
        options = {}
        if hasattr(data, "num_clips"):  # of videos: as many clips and views as without the cache
            options = {"num_clips": data.num_clips, "views": data.views if split == "val" else 1}
        loader = data.probe_dataloader(split, **options)
        if loader is None:
            continue
        begun = time.monotonic()
        with trainer.precision_plugin.forward_context():
            found[split] = _cached(module, encode, loader, split, folder)
        size = "x".join(str(side) for side in found[split].x.shape)
        where = f"in {folder}" if folder else "in main memory" + " of each process" * (world_size() > 1)
        rank_zero_info(
            f"features of the {split} split: {size} values, {found[split].x.numel() * 4 / 2**20:,.1f} MiB {where}, "
            f"{time.monotonic() - begun:.0f} s, once"
        )
    return found


def _cached(
    module: Any, encode: Callable[[Tensor], Tensor], loader: Any, split: str, folder: Path | None
) -> CachedFeatures:
    """Encode this process's part of the samples; all get the features of all."""
    trainer, data = module.trainer, module.trainer.datamodule
    store = _Store(None if folder is None else folder / f"{split}.npy", trainer, len(loader.dataset))
    labels, index = [], []
    for batch in tqdm(loader, desc=f"{split} features", leave=False, disable=rank() > 0 or None, unit="batch"):
        kept = batch.index >= 0  # files that could not be decoded
        if kept.any():
            store.add(encode(data.normalize(batch.inputs[kept].to(module.device))), batch.index[kept])
            labels.append(batch.labels[kept])
            index.append(batch.index[kept])
    where, known = torch.cat(index).to(module.device), torch.cat(labels).to(module.device)
    where, known = gather_rows(where).cpu(), gather_rows(known).cpu()
    order = where.argsort(stable=True)
    first = torch.ones(len(where), dtype=torch.bool)
    first[1:] = where[order][1:] != where[order][:-1]  # a process without a sample of its own had a copy
    rows = order[first]
    return CachedFeatures(store.take(rows, where[rows], module.device), known[rows], where[rows])


class _Store:
    """Where features go: a list, or an array on disk that all processes write."""

    def __init__(self, path: Path | None, trainer: Any, share: int) -> None:
        self.path, self.trainer = path, trainer
        self.total = int(gather_rows(torch.tensor([share], device=trainer.strategy.root_device)).sum())
        self.parts: list[Tensor] = []
        self.array: Any = None

    def add(self, x: Tensor, index: Tensor) -> None:
        """Features of a batch, and their places."""
        x = x.float().cpu()
        if self.path is None:
            self.parts.append(x)
            return
        if self.array is None:
            self._open(x)
        self.array[index.numpy()] = x.numpy()

    def _open(self, x: Tensor) -> None:
        path = cast(Path, self.path)
        if self.trainer.is_global_zero:
            path.parent.mkdir(parents=True, exist_ok=True)
            np.lib.format.open_memmap(path, "w+", np.float32, (self.total, *x.shape[1:])).flush()
        self.trainer.strategy.barrier()
        self.array = np.lib.format.open_memmap(path, "r+")

    def take(self, rows: Tensor, places: Tensor, device: torch.device) -> Tensor:
        """The rows of all processes that are wanted."""
        if self.path is None:
            return gather_rows(torch.cat(self.parts).to(device)).cpu()[rows]
        self.array.flush()
        self.trainer.strategy.barrier()
        whole = torch.from_numpy(self.array)  # pages are read when they are needed
        return whole if torch.equal(places, torch.arange(len(whole))) else whole[places]
