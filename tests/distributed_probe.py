"""Trains tiny attentive heads in as many processes as asked for, saves what they became and how good they were."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from lightning import Callback, LightningDataModule, Trainer
from torch.utils.data import DataLoader, Dataset, IterableDataset

from jepa_lightning.callbacks import Report
from jepa_lightning.masking import MaskCollator, MaskedBatch, Sample
from jepa_lightning.probing import AttentiveProbe
from jepa_lightning.strategies import FSDP2Strategy

BATCH, STEPS, VIDEOS = 8, 4, 7
CLIPS = (2, 3, 4, 16, 16)
"""Two clips of each video."""


class Batches(IterableDataset[MaskedBatch]):
    """The part of each batch that belongs to one process."""

    def __init__(self, rank: int, world: int) -> None:
        self.part = slice(rank * BATCH // world, (rank + 1) * BATCH // world)

    def __len__(self) -> int:
        return STEPS

    def __iter__(self) -> Iterator[MaskedBatch]:
        for step in range(STEPS):
            generator = torch.Generator().manual_seed(step)
            inputs = torch.randn(BATCH, *CLIPS, generator=generator)
            labels = torch.randint(3, (BATCH,), generator=generator)
            labels[: step + 1] = -1  # only the first process lacks some, in the last step all
            yield MaskedBatch(inputs[self.part], (), labels[self.part])


class Videos(Dataset[Sample]):
    """As many as two processes cannot share evenly; one could not be decoded, another has no label."""

    def __len__(self) -> int:
        return VIDEOS

    def __getitem__(self, index: int) -> Sample:
        inputs = torch.randn(CLIPS, generator=torch.Generator().manual_seed(1000 + index))
        return Sample(inputs, -1 if index == 3 else index % 3, -1 if index == 5 else index)


class Data(LightningDataModule):
    classes, label_names, views = ("a", "b", "c"), (), 1

    def train_dataloader(self) -> Any:
        return DataLoader(Batches(self.trainer.global_rank, self.trainer.world_size), batch_size=None)

    def val_dataloader(self) -> Any:
        return DataLoader(Videos(), batch_size=2, collate_fn=MaskCollator(None))


class Losses(Callback):
    def __init__(self) -> None:
        self.values: list[float] = []

    def on_train_batch_end(self, trainer: Trainer, *rest: Any) -> None:
        self.values.append(float(trainer.callback_metrics["train/loss"]))  # the mean over processes


def trainer_of(devices: int, strategy: str, *callbacks: Callback) -> Trainer:
    return Trainer(
        accelerator="cpu", devices=devices, strategy=FSDP2Strategy() if strategy == "fsdp2" else strategy, max_epochs=1,
        logger=False, callbacks=[*callbacks, Report(write=False)], enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, gradient_clip_val=0.5, num_sanity_val_steps=0,
    )  # fmt: skip


def probe(encoder: str) -> AttentiveProbe:
    return AttentiveProbe(encoder, depth=2, num_heads=2, lr=[1e-3, 3e-2], weight_decay=[0.1])


def train(devices: int, out: str, encoder: str, strategy: str) -> None:
    losses = Losses()
    trainer = trainer_of(devices, strategy, losses)
    torch.manual_seed(trainer.global_rank)  # processes need not agree on what the heads start from
    trainer.fit(probe(encoder), datamodule=Data())
    path, accuracy = Path(out) / f"{strategy}.ckpt", dict(trainer.callback_metrics)
    trainer.save_checkpoint(path)
    trainer.strategy.barrier()
    (again,) = trainer_of(devices, strategy).validate(
        probe(encoder), Data(), ckpt_path=path, verbose=False, weights_only=True
    )
    found = {"losses": losses.values, "fit": accuracy, "validate": again}
    torch.save(found, Path(out) / f"{strategy}-{trainer.global_rank}.pt")


if __name__ == "__main__":
    torch.set_num_threads(1)
    for strategy in sys.argv[4:]:
        train(int(sys.argv[1]), *sys.argv[2:4], strategy)
