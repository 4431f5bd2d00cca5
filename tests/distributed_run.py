"""Trains tiny JEPAs, three steps each, in as many processes as asked for, and saves what each of them saw.

All of them one after another: what costs is the start of a process.
"""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path
from typing import Any

import torch
from lightning import Callback, LightningDataModule, Trainer
from torch.utils.data import DataLoader, Dataset

from jepa_lightning.data import Folder, ImageDataModule
from jepa_lightning.losses import SIGReg, VarianceCovariance
from jepa_lightning.masking import MaskedBatch, MultiBlock, MultiBlock3D, TokenMasks
from jepa_lightning.methods import IJEPA, JEPA, VJEPA, LeJEPA, SaccadeJEPA
from jepa_lightning.models import AffineMLP, ConvNeXt, EnergyBlocks, Predictor, Projector, RoPE, VisionTransformer
from jepa_lightning.muon import Muon
from jepa_lightning.schedules import Constant, Linear
from jepa_lightning.strategies import FSDP2Strategy

BATCH, STEPS = 8, 3


def module(method: str) -> JEPA:
    torch.manual_seed(0)
    schedules = (Constant(1e-3), Constant(0.1), Linear(0.5, 1.0))
    if method in ("ijepa", "cjepa", "ijepa_sigreg", "energy", "muon"):
        blocks = EnergyBlocks() if method == "energy" else None
        std = None if method == "energy" else 0.02  # Adam makes steps of the rounding errors of larger key biases
        networks = (
            VisionTransformer(32, 8, 3, 32, 2, 2, init_std=std, blocks=blocks),
            partial(Predictor, embed_dim=16, depth=1, init_std=std, blocks=blocks),
        )
        if method == "ijepa_sigreg":
            sigreg = SIGReg(num_slices=16)
            return IJEPA(*networks, *schedules[:2], None, regularizer=sigreg, stop_gradient=False)
        if method == "muon":
            return IJEPA(*networks, *schedules, optimizer=Muon, target_layers=2)
        return IJEPA(*networks, *schedules, regularizer=VarianceCovariance(0.5, 0.25) if method == "cjepa" else None)
    if method == "lejepa":
        projector = partial(Projector, hidden_dim=16, out_dim=8)
        return LeJEPA(VisionTransformer(32, 8, 3, 32, 2, 2), projector, *schedules[:2], sigreg=SIGReg(num_slices=16))
    if method == "saccade":
        return SaccadeJEPA(ConvNeXt(24, 3, (8, 16), (1, 1), 4, init_std=None, layer_scale=None), AffineMLP, *schedules)
    encoder = VisionTransformer(32, 8, 3, 32, 2, 2, num_frames=4, tubelet_size=2, positions=RoPE())
    predictor = partial(Predictor, embed_dim=16, depth=1, num_mask_tokens=4)
    return VJEPA(encoder, predictor, *schedules, share_mask_token=True)  # three mask tokens get no gradient


class Batches(Dataset[MaskedBatch]):
    """The part of each batch that belongs to one process."""

    def __init__(self, method: str, rank: int, world: int) -> None:
        self.method = method
        self.part = slice(rank * BATCH // world, (rank + 1) * BATCH // world)

    def __len__(self) -> int:
        return STEPS

    def __getitem__(self, step: int) -> MaskedBatch:
        generator = torch.Generator().manual_seed(step)
        if self.method == "lejepa":
            views = [
                torch.randn(BATCH, n, 3, side, side, generator=generator)[self.part] for n, side in ((2, 32), (2, 16))
            ]
            return MaskedBatch(views[0][:, 0], (), views=tuple(views))
        size = (4, 32, 32) if self.method == "vjepa" else (32, 32)
        inputs = torch.randn(BATCH, 3, *size, generator=generator)
        if self.method == "saccade":
            return MaskedBatch(inputs[self.part], (), index=torch.arange(BATCH)[self.part])
        sampler = (
            MultiBlock3D((2, 4, 4))
            if self.method == "vjepa"
            else MultiBlock(4, min_keep=2, per_sample=self.method == "energy")
        )
        families = sampler.sample(BATCH, generator)
        masks = tuple(TokenMasks(family.context[self.part], family.targets[self.part]) for family in families)
        return MaskedBatch(inputs[self.part], masks)


class HeldOut(Batches):
    """Of 7 and 4 samples the first process has 4 and 2, the second 3 and 2; one process has them in other batches."""

    def __init__(self, method: str, rank: int, world: int) -> None:
        super().__init__(method, rank, world)
        pair = [[(100, slice(0, 4)), (101, slice(0, 2))], [(100, slice(4, 7)), (101, slice(2, 4))]]
        self.parts = pair[rank] if world > 1 else [(100, slice(0, 1)), (100, slice(1, 7)), (101, slice(0, 4))]

    def __len__(self) -> int:
        return len(self.parts)

    def __getitem__(self, step: int) -> MaskedBatch:
        number, self.part = self.parts[step]
        return super().__getitem__(number)


class Data(LightningDataModule):
    def __init__(self, method: str) -> None:
        super().__init__()
        self.method = method

    def train_dataloader(self) -> Any:
        return DataLoader(Batches(self.method, self.trainer.global_rank, self.trainer.world_size), batch_size=None)

    def val_dataloader(self) -> Any:
        return DataLoader(HeldOut(self.method, self.trainer.global_rank, self.trainer.world_size), batch_size=None)


def whole(tensor: Any) -> torch.Tensor:
    """All shards of an FSDP2 tensor together."""
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor


class Record(Callback):
    def __init__(self, checkpoint: Path) -> None:
        self.checkpoint = checkpoint
        self.losses: list[float] = []
        self.gradients: list[dict[str, torch.Tensor]] = []

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: Any, optimizer: Any) -> None:
        named = {name: p.grad for name, p in pl_module.named_parameters() if p.grad is not None}
        self.gradients.append({name: whole(grad).clone() for name, grad in named.items()})

    def on_train_batch_end(self, trainer: Trainer, *rest: Any) -> None:
        self.losses.append(float(trainer.callback_metrics["train/loss"]))  # the mean over processes
        trainer.save_checkpoint(self.checkpoint, weights_only=True)  # before the module's own hook


def train(devices: int, strategy: str, out: str, images: str, method: str) -> None:
    record, model = Record(Path(out) / f"{strategy}-{method}.ckpt"), module(method)
    chosen = FSDP2Strategy() if strategy == "fsdp2" else strategy
    trainer = Trainer(
        accelerator="cpu", devices=devices, strategy=chosen, max_epochs=1, logger=False, callbacks=[record],
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
        use_distributed_sampler=False, num_sanity_val_steps=0,
    )  # fmt: skip
    trainer.fit(model, datamodule=Data(method))
    state = {name: whole(tensor) for name, tensor in model.state_dict().items()}
    loader = ImageDataModule(Folder(images), masks=partial(MultiBlock, min_keep=1), batch_size=4, num_workers=0,
                             img_size=32, patch_size=8).train_dataloader()  # fmt: skip
    drawn = next(iter(loader))
    saved = torch.load(record.checkpoint, weights_only=True)["state_dict"]
    torch.save(
        {
            "saved": saved,
            "val/loss": float(trainer.callback_metrics["val/loss"]),
            "losses": record.losses,
            "gradients": record.gradients,
            "state": state,
            "index": drawn.index,
            "masks": drawn.masks[0].targets,
        },
        Path(out) / f"{strategy}-{method}-{trainer.global_rank}.pt",
    )


if __name__ == "__main__":
    torch.set_num_threads(1)
    for method in sys.argv[5:]:
        train(int(sys.argv[1]), *sys.argv[2:5], method)
