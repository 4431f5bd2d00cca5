"""What every method shares: an encoder and schedules; what every JEPA shares: its EMA copy, optimizer and steps."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable
from typing import Any, cast

import torch
from jaxtyping import Float
from lightning import LightningModule
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer

from jepa_lightning import metrics
from jepa_lightning.distributed import shard
from jepa_lightning.masking import MaskedBatch
from jepa_lightning.models import Encoder, ema_update, frozen_copy
from jepa_lightning.schedules import Schedule


class Method(LightningModule, ABC):
    """What the command line trains: a JEPA, or a probe of one.

    Attributes:
        encoder: The network whose sizes the data module asks for.
    """

    encoder: Encoder

    @abstractmethod
    def encode(self, inputs: Float[Tensor, "batch channels *size"]) -> Float[Tensor, "batch tokens dim"]:
        """Tokens of the network that is evaluated, without gradient."""

    def frozen_encoder(self) -> nn.Module:
        """A copy of the network that ``encode`` uses, as it is now."""
        return frozen_copy(self.encoder)

    def predict_step(self, batch: MaskedBatch, batch_idx: int) -> Float[Tensor, "batch dim"]:
        """Features: the tokens of ``encode``, averaged."""
        return self.encode(batch.inputs).mean(dim=1)

    def progress(self) -> tuple[int, int, int]:
        """Where the training is: number of the next optimizer step from 1, all steps, steps in an epoch.

        Raises:
            ValueError: If the length of the training is not known.
        """
        steps = self.trainer.estimated_stepping_batches
        if steps == float("inf"):
            raise ValueError(
                "the schedules need to know how long the training is: set --trainer.max_epochs or --trainer.max_steps"
            )
        batches = self.trainer.num_training_batches
        per_epoch = steps if batches == float("inf") else -(-int(batches) // self.trainer.accumulate_grad_batches)
        return self.global_step + 1, int(steps), int(per_epoch)


class JEPA(Method):
    """A method that learns an encoder: subclass it, build the other networks, say what ``losses`` are.

    Args:
        encoder: The context encoder, the network that is trained and kept.
        lr: Learning rate by optimizer step.
        weight_decay: Weight decay by optimizer step; biases, norms and other vectors are never decayed.
        momentum: Momentum of the target encoder by optimizer step.
        betas: The two decay rates of AdamW.
        ipe_scale: Length of the schedules over the length of the training; above 1 they are not finished.
        compile: Compile the networks with torch.compile; the first steps then take minutes.
    """

    def __init__(
        self,
        encoder: Encoder,
        lr: Schedule,
        weight_decay: Schedule,
        momentum: Schedule,
        betas: tuple[float, float] = (0.9, 0.999),
        ipe_scale: float = 1.0,
        compile: bool = False,
    ) -> None:
        super().__init__()
        self.encoder = encoder
        self.target_encoder = frozen_copy(encoder)
        self.embed_dim = encoder.embed_dim
        self.lr, self.weight_decay, self.momentum = lr, weight_decay, momentum
        self.betas, self.ipe_scale, self.compile_networks = betas, ipe_scale, compile
        self._finished_steps: int | None = None

    @abstractmethod
    def losses(self, batch: MaskedBatch) -> dict[str, Tensor]:
        """``{"loss": scalar to minimise, name: scalar to log, ...}``."""

    @torch.no_grad()
    def encode(self, inputs: Float[Tensor, "batch channels *size"]) -> Float[Tensor, "batch tokens dim"]:
        """Tokens of the target encoder, the network that the papers evaluate."""
        return cast(Tensor, self.target_encoder(inputs))

    def frozen_encoder(self) -> nn.Module:
        """A copy of the network that ``encode`` uses, as it is now."""
        return frozen_copy(self.target_encoder)

    # ------------------------------------------------------------------ steps

    def training_step(self, batch: MaskedBatch, batch_idx: int) -> Tensor:
        """Loss of one batch."""
        losses = self.losses(batch)
        self._log_losses("train", losses, batch)
        return losses["loss"]

    def validation_step(self, batch: MaskedBatch, batch_idx: int) -> None:
        """The same loss on held-out data, with masks that are the same every time."""
        self._log_losses("val", {"loss": self.losses(batch)["loss"]}, batch)

    def test_step(self, batch: MaskedBatch, batch_idx: int) -> None:
        """As validation, on the test split."""
        self._log_losses("test", {"loss": self.losses(batch)["loss"]}, batch)

    def _log_losses(self, stage: str, losses: dict[str, Tensor], batch: MaskedBatch) -> None:
        values = {f"{stage}/{name}": value.detach() for name, value in losses.items()}
        self.log_dict(values, batch_size=len(batch.inputs), sync_dist=True)

    # ------------------------------------------------------------------ optimisation

    def configure_optimizers(self) -> Optimizer:
        """AdamW over every network with trainable parameters: first their decayed groups, then the others."""
        networks = [net for net in self.children() if any(p.requires_grad for p in net.parameters())]
        groups = [_group(net.named_parameters(), decay) for decay in (True, False) for net in networks]
        own = [_group(self.named_parameters(recurse=False), decay) for decay in (True, False)]
        groups += [group for group in own if group["params"]]  # of the method itself, a temperature for example
        return AdamW(groups, lr=0.0, betas=self.betas, fused=True)

    def schedule_values(self) -> dict[str, float]:
        """Learning rate, weight decay and momentum of the optimizer step that comes next (official convention)."""
        step, steps, per_epoch = self.progress()
        arguments = (step, self.ipe_scale * steps, per_epoch)
        return {
            "lr": self.lr(*arguments),
            "weight_decay": self.weight_decay(*arguments),
            "momentum": self.momentum(*arguments),
        }

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """Set learning rate and weight decay from the step number (idempotent under gradient accumulation)."""
        self._finished_steps = self.global_step
        values = self.schedule_values()
        self.next_momentum = values["momentum"]
        for group in cast(Optimizer, self.optimizers(use_pl_optimizer=False)).param_groups:
            group["lr"] = values["lr"]
            group["weight_decay"] = values["weight_decay"] if group["decay"] else 0.0
        self.log_dict({f"schedule/{name}": value for name, value in values.items()}, batch_size=1)

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Target encoder <- EMA(encoder), if this batch ended an optimizer step."""
        self.update_target_encoder()

    def update_target_encoder(self) -> None:
        """The EMA update of an optimizer step that has been taken; nothing if it was done already."""
        if self._finished_steps is not None and self.global_step > self._finished_steps:
            ema_update(self.target_encoder, self.encoder, self.next_momentum)
            self._finished_steps = self.global_step

    def state_dict(self, *args: Any, **kwargs: Any) -> dict[str, Any]:  # type: ignore[override]
        """The state after the last finished step.

        Lightning calls the callbacks' ``on_train_batch_end`` before ours: a ModelCheckpoint that saves there would
        store the target encoder of the step before, and a resumed run would lose one update.
        """
        self.update_target_encoder()
        return cast(dict[str, Any], super().state_dict(*args, **kwargs))

    # ------------------------------------------------------------------ set-up

    def configure_model(self) -> None:
        """Shard the networks where the strategy asks for it (a no-op elsewhere)."""
        mesh = None if self.device_mesh is None else self.device_mesh["data_parallel"]
        for name, network in list(self.named_children()):
            setattr(self, name, shard(network, mesh))

    def setup(self, stage: str) -> None:
        """Compile in place, which keeps the parameter names."""
        if self.compile_networks:
            for network in self.children():
                network.compile()


@torch.no_grad()
def watched(context: Tensor, predicted: Tensor, target: Tensor) -> dict[str, Tensor]:
    """What is logged beside the loss of a prediction, and not trained: tokens (..., D) of one family of masks."""
    return {
        "explained_variance": metrics.explained_variance(predicted, target),
        "context_std": metrics.feature_std(context),
        "predicted_std": metrics.feature_std(predicted),
        "target_std": metrics.feature_std(target),
    }


def _group(named: Iterable[tuple[str, nn.Parameter]], decay: bool) -> dict[str, Any]:
    """Parameters that are (not) decayed: vectors and biases are not, the mask token is."""
    parameters = [
        parameter
        for name, parameter in named
        if parameter.requires_grad and decay == (parameter.ndim > 1 and "bias" not in name)
    ]
    return {"params": parameters, "decay": decay}
