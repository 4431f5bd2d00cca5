"""What every method shares: an encoder and schedules; what every JEPA shares: its EMA copy, optimizer and steps."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, cast

import torch
from jaxtyping import Float, Int
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer
from torchmetrics import MeanMetric

from jepa_lightning import metrics
from jepa_lightning.distributed import shard
from jepa_lightning.log_steps import is_log_step
from jepa_lightning.losses import Regularizer
from jepa_lightning.masking import MaskedBatch, TokenMasks
from jepa_lightning.masking.padded import Padded, without_padding
from jepa_lightning.masking.tokens import Family
from jepa_lightning.methods.groups import LayerDecay, OptimizerFactory, groups_of, groups_with_matrices, learning_rate
from jepa_lightning.methods.progress import Progress
from jepa_lightning.models import Encoder, ema_copy, ema_update, evaluating, frozen_copy, target_tokens
from jepa_lightning.models.attention_maps import attention_depth, attention_maps
from jepa_lightning.ranges import within
from jepa_lightning.schedules import Schedule
from jepa_lightning.trajectory import Trajectory

Batch = MaskedBatch | Trajectory


class Observed(NamedTuple):
    """Detached tensors of a training step, of one family of masks; an observer copies what it keeps.

    Attributes:
        masks: Which tokens are context and which are predicted.
        grid: Tokens along time, height and width.
        context: Output of the context encoder, (B, Nc, D).
        predicted: Output of the predictor, (B, M, Nt, D).
        features: Target features of all tokens, (B, N, D), in the space of the predictions.
    """

    masks: TokenMasks
    grid: tuple[int, int, int]
    context: Float[Tensor, "batch nc dim"]
    predicted: Float[Tensor, "batch m nt dim"]
    features: Float[Tensor, "batch n dim"]


class Method(Progress, ABC):
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

    @property
    def evaluated(self) -> nn.Module:
        """The network that ``encode`` uses."""
        return self.encoder

    def attention(
        self, inputs: Float[Tensor, "batch channels *size"], block: int = -1
    ) -> Float[Tensor, "batch heads queries keys"] | None:
        """What each token attends to in a block of the network that ``encode`` uses; None without softmax attention."""
        if not attention_depth(self.evaluated):
            return None
        with evaluating(self.evaluated):
            return attention_maps(self.evaluated, inputs, blocks=[block])[0]

    def predict_step(self, batch: MaskedBatch, batch_idx: int) -> Float[Tensor, "batch dim"]:
        """Features: the tokens of ``encode``, averaged."""
        return self.encode(batch.inputs).mean(dim=1)


class JEPA(Method):
    """A method that learns an encoder: subclass it, build the other networks, say what ``losses`` are.

    Args:
        encoder: The context encoder, the network that is trained and kept.
        lr: Learning rate by optimizer step.
        weight_decay: Weight decay by optimizer step; biases, norms and other vectors are never decayed.
        momentum: Momentum of the target encoder by optimizer step; null for no EMA copy: the target encoder is then
            the encoder itself.
        betas: The two decay rates of AdamW.
        ipe_scale: Length of the schedules over the length of the training; above 1 they are not finished.
        compile: Compile the networks with torch.compile; the first steps then take minutes.
        regularizer: A term against collapse that is added on the context features, averaged over the tokens of each
            sample: SIGReg or VarianceCovariance; null for none.
        stop_gradient: Keep gradients out of the targets; false, without an EMA copy, trains the encoder through both
            branches, which collapses unless a regularizer prevents it.
        target_layers: How many last blocks of the target encoder the targets are averaged over, each normalised
            (data2vec, Baevski et al. 2022, section 3.3); 1 in the papers of JEPAs, null for all.
        optimizer: Makes the optimizer of groups of parameters, for example jepa_lightning.muon.Muon; groups of matrices
            of Transformer blocks say ``matrices: True``. null for AdamW with ``betas``.

    Raises:
        ValueError: If an EMA copy, which is never trained, is to get gradients, or ``target_layers`` exceeds the depth.
    """

    def __init__(
        self,
        encoder: Encoder,
        lr: Schedule,
        weight_decay: Schedule,
        momentum: Schedule | None,
        betas: tuple[float, float] = (0.9, 0.999),
        ipe_scale: float = 1.0,
        compile: bool = False,
        regularizer: Regularizer | None = None,
        stop_gradient: bool = True,
        target_layers: int | None = 1,
        optimizer: OptimizerFactory | None = None,
    ) -> None:
        super().__init__()
        if momentum is not None and not stop_gradient:
            raise ValueError("stop_gradient: false needs momentum: null, because an EMA copy gets no gradient")
        depth = getattr(encoder, "depth", 1)  # networks that are no Transformers have one output
        target_layers = depth if target_layers is None else target_layers
        if not 1 <= target_layers <= depth:
            raise ValueError(
                f"target_layers {target_layers} of an encoder of {depth}: use 1 to {depth}, or null for all"
            )
        for name, schedule, most in (
            ("lr", lr, None),
            ("weight_decay", weight_decay, None),
            ("momentum", momentum, 1.0),
        ):
            for part in ("start", "peak", "final", "value"):
                within(0.0, most, **{f"{name}.{part}": getattr(schedule, part, None)})
        within(0.0, 1.0, betas=betas)
        self.encoder = encoder
        if momentum is not None:  # not by assignment: the name is that of the property below
            self._modules["target_encoder"] = ema_copy(encoder)
        self.embed_dim = encoder.embed_dim
        self.lr, self.weight_decay, self.momentum = lr, weight_decay, momentum
        self.betas, self.ipe_scale, self.compile_networks = betas, ipe_scale, compile
        self.regularizer, self.stop_gradient, self.target_layers = regularizer, stop_gradient, target_layers
        self.optimizer = optimizer
        self._finished_steps: int | None = None
        self.observers: list[Callable[[Observed], None]] = []
        """Called with the tensors of each step; health and alarm add themselves."""

    @property
    def target_encoder(self) -> Encoder:
        """The EMA copy of the encoder; where there is none the encoder itself, which is registered only once."""
        return cast(Encoder, self._modules.get("target_encoder", self.encoder))

    @abstractmethod
    def losses(self, batch: Any) -> dict[str, Tensor]:
        """``{"loss": scalar to minimise, name: scalar to log, ...}``."""

    @torch.no_grad()
    def encode(self, inputs: Float[Tensor, "batch channels *size"]) -> Float[Tensor, "batch tokens dim"]:
        """Tokens of the target encoder in eval mode: the network that the papers evaluate."""
        with evaluating(self.target_encoder):
            return cast(Tensor, self.target_encoder(inputs))

    @property
    def evaluated(self) -> nn.Module:
        """The network that ``encode`` uses."""
        return self.target_encoder

    def frozen_encoder(self) -> nn.Module:
        """A copy of the network that ``encode`` uses, as it is now."""
        return frozen_copy(self.target_encoder)

    @torch.no_grad()
    def encode_context(self, inputs: Float[Tensor, "batch channels *size"]) -> Float[Tensor, "batch tokens dim"]:
        """Tokens of the context encoder for whole inputs, in eval mode, to compare with those of ``encode``."""
        with evaluating(self.encoder):
            return cast(Tensor, self.encoder(inputs))

    def networks(self) -> dict[str, nn.Module]:
        """The parts with parameters, by name: a regularizer and a metric have none."""
        return {name: part for name, part in self.named_children() if any(True for _ in part.parameters())}

    # ------------------------------------------------------------------ what losses are made of

    @property
    def draw(self) -> int:
        """Seed of the random numbers of this step: the same in all processes and after a resume.

        The number of finished optimizer steps; 0 in evaluation, so that validations are comparable.
        """
        return self.global_step if self.training else 0

    def targets_of(self, inputs: Float[Tensor, "batch channels *size"]) -> Float[Tensor, "batch tokens dim"]:
        """Tokens of the target encoder, from which targets are made; without gradient if ``stop_gradient`` is true."""
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.stop_gradient):
            return target_tokens(self.target_encoder, inputs, self.target_layers)

    def regularized(
        self, loss: Tensor, contexts: Sequence[Tensor], masks: Sequence[TokenMasks | Family]
    ) -> dict[str, Tensor]:
        """``{"loss": loss}``; with a regularizer its weighted terms are added to the loss, and all parts are named.

        The terms see the mean context token of each sample: tokens of a sample depend on each other, and would also
        be spread out if they held nothing but their positions.

        Args:
            loss: What the method minimises without a regularizer.
            contexts: Context tokens (B, Nc, D) of each family of masks.
            masks: The families.
        """
        if self.regularizer is None:
            return {"loss": loss}
        prediction = loss.detach()
        pooled = torch.stack([_mean(c, family.context) for c, family in zip(contexts, masks, strict=True)])
        terms = self.regularizer.terms(pooled, self.draw)
        for weight, value in terms.values():
            loss = loss + weight * value
        parts = {name: value.detach() for name, (_, value) in terms.items()}
        return {"loss": loss, "prediction": prediction, **parts}

    # ------------------------------------------------------------------ steps

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Loss of one batch."""
        losses = self.losses(batch)
        shown = {**losses, **self.diagnostics()} if is_log_step(self.trainer, batch_idx) else {"loss": losses["loss"]}
        values = {f"train/{name}": value.detach() for name, value in shown.items()}
        self.log_dict(values, batch_size=len(batch.inputs), sync_dist=True)
        return losses["loss"]

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """The same loss on held-out data, with masks that are the same every time."""
        self._log_held_out("val", batch)

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        """As validation, on the test split."""
        self._log_held_out("test", batch)

    def _log_held_out(self, stage: str, batch: Batch) -> None:
        """Log the mean over the samples of all processes.

        A metric, because Lightning 2.6 rounds the mean number of samples of a process down to an integer.
        """
        self.held_out_loss.update(self.losses(batch)["loss"].expand(len(batch.inputs)))  # each sample counts once
        self.log(f"{stage}/loss", self.held_out_loss)

    def diagnostics(self) -> dict[str, Tensor]:
        """Scalars that networks report about their last pass in training, with the networks' names before theirs."""
        found: dict[str, Tensor] = {}
        for name, network in self.networks().items():
            report: Any = getattr(network, "diagnostics", dict)
            found |= {f"{name}_{key}": value for key, value in report().items()}
        return found

    def observe(self, step: Observed) -> None:
        """Show the tensors of a step to the observers; ``losses`` calls it, outside of compiled code.

        It costs nothing without observers.
        """
        for observer in self.observers:
            observer(Observed(*step[:2], *(tensor.detach() for tensor in step[2:])))

    # ------------------------------------------------------------------ optimisation

    def configure_optimizers(self) -> Optimizer:
        """The optimizer of all networks with trainable parameters: first their decayed groups, then the others."""
        if self.optimizer is None:
            return self.adamw()
        if isinstance(self.optimizer, LayerDecay):
            return self.optimizer.build(self.optimizer.groups(self))
        return self.optimizer(groups_with_matrices(self))

    def adamw(self) -> AdamW:
        """AdamW over all trained parameters, as in the official trainings, regardless of ``optimizer``."""
        return AdamW(groups_of(self), lr=0.0, betas=self.betas, fused=True)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse to continue with another kind of optimizer.

        Raises:
            ValueError: If the checkpoint has the state of another kind.
        """
        super().on_load_checkpoint(checkpoint)
        trainer = self._trainer  # None where Lightning loads a module without one
        states = checkpoint.get("optimizer_states") if trainer is not None and trainer.training else None
        if states and any("matrices" in group for group in states[0]["param_groups"]) != (self.optimizer is not None):
            there, remedy = ("AdamW", "null") if self.optimizer else ("Muon", "jepa_lightning.muon.Muon")
            raise ValueError(
                f"the optimizer of this checkpoint is {there}: to go on with it set --model.optimizer {remedy}; "
                "to start another training from its networks use --init_from"
            )

    def schedule_values(self) -> dict[str, float]:
        """Learning rate, weight decay and momentum of the next optimizer step (official convention)."""
        step, steps, per_epoch = self.progress()
        schedules = {"lr": self.lr, "weight_decay": self.weight_decay, "momentum": self.momentum}
        return {
            name: schedule(step, self.ipe_scale * steps, per_epoch)
            for name, schedule in schedules.items()
            if schedule is not None
        }

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """Set learning rate and weight decay from the step number (idempotent under gradient accumulation)."""
        self._finished_steps = self.global_step
        values, (step, _, per_epoch) = self.schedule_values(), self.progress()
        self.next_momentum = values.get("momentum", 0.0)
        for group in cast(Optimizer, self.optimizers(use_pl_optimizer=False)).param_groups:
            group["lr"] = learning_rate(group, values["lr"], (step - 1) / per_epoch)
            group["weight_decay"] = values["weight_decay"] if group["decay"] else 0.0
        if is_log_step(self.trainer, batch_idx):
            self.log_dict({f"schedule/{name}": value for name, value in values.items()}, batch_size=1)

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Target encoder <- EMA(encoder), if this batch ended an optimizer step."""
        self.update_target_encoder()

    def update_target_encoder(self) -> None:
        """Make the EMA update of an optimizer step, once."""
        if self._finished_steps is not None and self.global_step > self._finished_steps:
            if self.momentum is not None:
                ema_update(self.target_encoder, self.encoder, self.next_momentum)
            self._finished_steps = self.global_step

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Save the target encoder of the last finished step.

        Lightning calls the callbacks' ``on_train_batch_end`` before ours: what a ModelCheckpoint writes there would
        hold the target encoder of the step before, and a resumed run would miss one update.
        """
        super().on_save_checkpoint(checkpoint)
        if self._finished_steps is None or self.global_step == self._finished_steps:
            return
        self.update_target_encoder()
        state = self.trainer.strategy.lightning_module_state_dict()  # of sharded networks the checkpoint has a copy
        checkpoint["state_dict"].update({k: v for k, v in state.items() if k.startswith("target_encoder.")})

    # ------------------------------------------------------------------ set-up

    def configure_model(self) -> None:
        """Shard the networks where the strategy asks for it (a no-op elsewhere)."""
        mesh = None if self.device_mesh is None else self.device_mesh["data_parallel"]
        for name, network in self.networks().items():
            setattr(self, name, shard(network, mesh))

    def setup(self, stage: str) -> None:
        """Make the metric of held-out data, compile networks in place if asked for, say if a collapse is possible."""
        free = self.momentum is None and not any(isinstance(child, Regularizer) for child in self.children())
        if stage == "fit" and free and any(parameter.requires_grad for parameter in self.encoder.parameters()):
            rank_zero_info(
                "momentum is null and so is regularizer: without an EMA copy of the encoder and without a term against "
                "collapse all features may become equal"
            )
        if not hasattr(self, "held_out_loss"):  # not in the constructor, which may run on the meta device
            self.held_out_loss = MeanMetric(nan_strategy="disable")  # a loss that is no number must show
        if self.compile_networks:
            for network in self.networks().values():
                network.compile()


@torch.no_grad()
def watched(masks: Family, context: Tensor, predicted: Tensor, target: Tensor) -> dict[str, Tensor]:
    """What is logged beside the loss and not trained: measures of the tokens (..., D) of one family of masks."""
    context = without_padding(context, masks.context)
    predicted, target = (without_padding(values, masks.targets) for values in (predicted, target))
    return {
        "explained_variance": metrics.explained_variance(predicted, target),
        "context_std": metrics.feature_std(context),
        "predicted_std": metrics.feature_std(predicted),
        "target_std": metrics.feature_std(target),
    }


def _mean(tokens: Float[Tensor, "batch n dim"], index: Int[Tensor, "batch n"] | Padded) -> Float[Tensor, "batch dim"]:
    """The tokens of each sample, averaged, without those of padding."""
    kept = ((index.indices if isinstance(index, Padded) else index) >= 0).unsqueeze(-1)
    return (tokens * kept).sum(dim=1) / kept.sum(dim=1)
