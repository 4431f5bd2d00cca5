"""Base class of probes and fine-tuning: classification heads on an encoder, and exact accuracy."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, cast

import torch
import torch.nn.functional as F
from jaxtyping import Float
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor, nn
from torch.optim import Optimizer

from jepa_lightning.distributed import gather_rows, replicate, shard, sum_over_processes, world_size
from jepa_lightning.evaluation import Report, Result
from jepa_lightning.masking import MaskedBatch
from jepa_lightning.methods.base import Method
from jepa_lightning.methods.groups import MakeOptimizer
from jepa_lightning.models import Encoder
from jepa_lightning.schedules import Schedule

UNKNOWN = -1
"""Index of a sample whose data set gives none."""
Tasks = list[tuple[str, int]]
"""Name and number of classes of each label."""


class Group(NamedTuple):
    """Parameters with the same learning rate and weight decay.

    Attributes:
        parameters: The parameters.
        lr: Factor of the learning rate.
        weight_decay: Factor of the weight decay.
        decay: Whether they are decayed at all: matrices are, vectors are not.
    """

    parameters: list[nn.Parameter]
    lr: float
    weight_decay: float
    decay: bool


class Found(NamedTuple):
    """The latest evaluation.

    Attributes:
        stage: ``val`` or ``test``.
        accuracy: Of each head, for each label.
        samples: On how many samples.
    """

    stage: str
    accuracy: Float[Tensor, "heads tasks"]
    samples: int


class Classifier(Method):
    """An encoder with one head or several, each with an output for each class of each label.

    Subclasses say what the heads are and what they read. Inputs may be (B, K, C, T, H, W), K clips and views of each
    video: a video's prediction is then the mean of the probabilities over what is predicted separately.

    Args:
        checkpoint: Where the encoder comes from.
        encoder: The encoder.
        grid: Learning rate and weight decay of each head.
        optimizer: Makes the optimizer of groups of parameters.
    """

    label_smoothing = 0.0

    def __init__(
        self, checkpoint: str, encoder: Encoder, grid: Sequence[tuple[float, float]], optimizer: MakeOptimizer
    ) -> None:
        super().__init__()
        self.optimizer = optimizer
        self.checkpoint, self.encoder, self.grid = checkpoint, encoder, list(grid)
        self.heads = nn.ModuleList()
        self.tasks: Tasks = []
        self.register_buffer("best", torch.tensor(0))
        self.found: Found | None = None
        self._rows: list[Tensor] = []

    @abstractmethod
    def new_heads(self, outputs: int) -> list[nn.Module]:
        """A head for each point of the grid; those that are alike have the same initial weights."""

    @abstractmethod
    def tokens(self, inputs: Tensor) -> Tensor:
        """(B, V, ...): what the heads read of each sample, V parts of it that are classified separately."""

    def about(self, number: int) -> dict[str, Any]:
        """Settings of a head by name, for tables."""
        rate, decay = self.grid[number]
        return {"lr": rate, "weight_decay": decay}

    def name(self, number: int) -> str:
        """Log name of a head."""
        rate, decay = self.grid[number]
        return f"lr{rate:g}_wd{decay:g}"

    def groups(self) -> dict[tuple[str, str], list[int]]:
        """Heads that are alternatives to each other, by protocol and encoder, for reports."""
        return {(type(self).__name__, "trained"): list(range(len(self.heads)))}

    def choose(self, accuracy: Float[Tensor, "heads tasks"]) -> None:
        """Remember which heads were best in validation, for the test split."""
        cast(Tensor, self.best).fill_(int(accuracy.mean(dim=1).argmax()))

    def chosen(self) -> list[int]:
        """The head that was best in validation, of each group."""
        return [int(cast(Tensor, self.best))]

    # ------------------------------------------------------------------ the networks

    def configure_model(self) -> None:
        """Build the heads, whose sizes come from the data."""
        if not len(self.heads):
            self._build(self._tasks_of_the_data())
        if self.device_mesh is not None:  # FSDP2; an encoder of a billion weights is why one would want it
            mesh = self.device_mesh["data_parallel"]
            replicate(self.heads.parameters())
            shard(self.encoder, mesh)  # in place
            for head in self.heads:
                shard(head, mesh)

    def _tasks_of_the_data(self) -> Tasks:
        data = cast(Any, self.trainer).datamodule
        if data is None:
            article = "an" if type(self).__name__[0] in "AEIOU" else "a"
            raise ValueError(
                f"{article} {type(self).__name__} takes the number of classes from a data module: give datamodule="
            )
        names = data.label_names
        classes = data.classes if names else [data.classes]
        counts = [len(of_one) for of_one in classes]
        if min(counts) < 2:
            raise ValueError(
                f"a probe needs labels of two classes or more, the data have {min(counts)}: "
                "sort the files into a folder for each class, or give a list of paths and labels"
            )
        return list(zip(names or ("",), counts, strict=True))

    def _build(self, tasks: Tasks) -> None:
        self.tasks = tasks
        self.heads.extend(self.new_heads(sum(count for _, count in tasks)))

    def predict_step(self, batch: MaskedBatch, batch_idx: int) -> Float[Tensor, "batch dim"]:
        """Features: what the heads read, averaged, also over clips and views."""
        return self.tokens(batch.inputs).flatten(1, -2).mean(dim=1)

    # ------------------------------------------------------------------ optimisation

    @abstractmethod
    def trained(self) -> list[Group]:
        """The trained parameters, in the order of the optimizer's groups, also in checkpoints."""

    @abstractmethod
    def schedules(self) -> dict[str, Schedule]:
        """Learning rate and weight decay by optimizer step, in this order, by the names that logs give them."""

    def configure_optimizers(self) -> Optimizer:
        """The optimizer of all groups."""
        return self.optimizer([{"params": group.parameters, "decay": group.decay} for group in self.trained()])

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """Set learning rate and weight decay of every group from the step number."""
        values = {name: schedule(*self.progress()) for name, schedule in self.schedules().items()}
        lr, weight_decay = values.values()
        groups = cast(Optimizer, self.optimizers(use_pl_optimizer=False)).param_groups
        for settings, group in zip(groups, self.trained(), strict=True):
            settings["lr"] = lr * group.lr
            settings["weight_decay"] = weight_decay * group.weight_decay * group.decay
        self.log_dict({f"schedule/{name}": value for name, value in values.items()}, batch_size=1)

    # ------------------------------------------------------------------ checkpoints

    def get_extra_state(self) -> dict[str, Any]:
        """The classes of the outputs, and the file of the encoder."""
        return {"tasks": [list(task) for task in self.tasks], "checkpoint": self.checkpoint}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """Known since ``load_state_dict``."""

    def load_state_dict(self, state_dict: Any, strict: bool = True, assign: bool = False) -> Any:
        """Heads, and whatever else is kept.

        Raises:
            ValueError: If the heads are for data with other classes.
        """
        if isinstance(state_dict.get("_extra_state"), dict):  # under FSDP2 the strategy has asked already
            self.accept(state_dict)
        return super().load_state_dict(state_dict, strict=strict, assign=assign)

    def accept(self, state_dict: Any) -> None:
        """Refuse heads for other data before any is loaded; build the heads if there are none."""
        tasks = [(name, count) for name, count in state_dict["_extra_state"]["tasks"]]
        if not len(self.heads):  # without a trainer nothing else says how many classes there are
            self._build(tasks)
        if tasks != self.tasks:
            raise ValueError(
                f"these heads were trained on the classes {_counts(tasks)}, the data have {_counts(self.tasks)}: "
                "give the data that they were trained on"
            )

    # ------------------------------------------------------------------ steps

    def training_step(self, batch: MaskedBatch, batch_idx: int) -> Tensor:
        """Cross-entropy, summed over heads: they share no parameter, so none disturbs another."""
        tokens, labels = self.tokens(batch.inputs), self._labels(batch)
        # Of all processes, because gradients are averaged over them: they may lack unequal numbers of labels.
        known = sum_over_processes((labels >= 0).sum(dim=0).float()) / world_size() * tokens.shape[1]
        losses = torch.stack([self._loss(head(tokens.flatten(0, 1)), labels, known) for head in self.heads])
        self.log("train/loss", losses.detach().mean(), batch_size=len(labels), sync_dist=True)
        self.log("train/loss_of_best", losses.detach().min(), batch_size=len(labels), sync_dist=True)
        return losses.sum()

    def _loss(self, logits: Tensor, labels: Tensor, known: Tensor) -> Tensor:
        """Summed over labels; each averaged over those of its targets that are ``known``, if there are any."""
        parts = logits.split([count for _, count in self.tasks], dim=1)
        targets = labels.repeat_interleave(len(logits) // len(labels), dim=0).unbind(dim=1)
        options: dict[str, Any] = {"ignore_index": -1, "reduction": "sum", "label_smoothing": self.label_smoothing}
        totals = [F.cross_entropy(part, target, **options) for part, target in zip(parts, targets, strict=True)]
        return (torch.stack(totals) / known.where(known > 0, 1.0)).sum()

    def _labels(self, batch: MaskedBatch) -> Tensor:
        """(B, L), also where there is one label."""
        labels = cast(Tensor, batch.labels)
        return labels.unsqueeze(1) if labels.ndim == 1 else labels

    def validation_step(self, batch: MaskedBatch, batch_idx: int) -> None:
        """Note for each sample which heads are right."""
        tokens, labels = self.tokens(batch.inputs), self._labels(batch)
        sizes = [count for _, count in self.tasks]
        right = []
        for head in self.heads:
            logits = head(tokens.flatten(0, 1)).float().split(sizes, dim=1)
            shares = [part.softmax(dim=1).unflatten(0, tokens.shape[:2]).mean(dim=1) for part in logits]
            right.append(torch.stack([share.argmax(dim=1) for share in shares], dim=1) == labels)
        found = torch.stack(right, dim=1).flatten(1).long()  # (B, heads * tasks)
        known = (labels >= 0).all(dim=1)
        if batch.index is None:  # samples of a user's own: nothing tells copies apart
            index = torch.full_like(labels[:, 0], UNKNOWN)
        else:
            index, known = batch.index, known & (batch.index >= 0)  # not a file that could not be decoded
        self._rows.append(torch.cat([index.unsqueeze(1), found], dim=1)[known])

    def test_step(self, batch: MaskedBatch, batch_idx: int) -> None:
        """The same."""
        self.validation_step(batch, batch_idx)

    # ------------------------------------------------------------------ accuracy

    def on_validation_epoch_end(self) -> None:
        """Accuracy of every head; the best ones are remembered for the test split."""
        found = self._evaluated("val")
        if found is not None and not self.trainer.sanity_checking:
            self.choose(found.accuracy)
            self._log_accuracy(found)

    def on_test_epoch_end(self) -> None:
        """Accuracy of the heads that were best in validation."""
        found = self._evaluated("test")
        if found is not None:
            self._log_accuracy(found)

    def _evaluated(self, stage: str) -> Found | None:
        """Accuracy of each head, every sample counted once (processes may hold copies)."""
        none = torch.empty(0, 1 + len(self.heads) * len(self.tasks), dtype=torch.long, device=self.device)
        rows = gather_rows(torch.cat([none, *self._rows]))  # all processes, also one without a batch
        self._rows.clear()
        if not len(rows):
            rank_zero_warn("no sample of this split has a label: there is no accuracy")
            return None
        rows = rows[rows[:, 0].argsort(stable=True)]
        first = torch.ones(len(rows), dtype=torch.bool, device=rows.device)
        first[1:] = (rows[1:, 0] != rows[:-1, 0]) | (rows[1:, 0] == UNKNOWN)
        accuracy = rows[first, 1:].float().mean(dim=0).unflatten(0, (len(self.heads), len(self.tasks)))
        return Found(stage, accuracy, int(first.sum()))

    def _log_accuracy(self, found: Found) -> None:
        stage, accuracy, best = found.stage, found.accuracy, int(cast(Tensor, self.best))
        values = {f"{stage}/top1": accuracy[best].mean()}
        if len(self.tasks) > 1:
            values |= {f"{stage}/top1_{name}": accuracy[best, task] for task, (name, _) in enumerate(self.tasks)}
        if len(self.heads) > 1:
            values |= {f"{stage}_heads/{self.name(n)}": row.mean() for n, row in enumerate(accuracy)}
        self.log_dict(values, sync_dist=True)  # the same in every process
        self.found = found

    # ------------------------------------------------------------------ the report

    def findings(self) -> Report | None:
        """Accuracy of the chosen head of each group, and of all heads; None before an evaluation."""
        if self.found is None:
            return None
        groups = self.groups().items()
        results = [r for (kind, head) in zip(groups, self.chosen(), strict=True) for r in self._results(*kind[0], head)]
        heads = [r for names, members in groups for head in members for r in self._results(*names, head)]
        rates, notes = [rate for rate, _ in self.grid], []
        if self.trainer.ckpt_path is None and self.global_step == 0:
            notes = ["These heads are untrained: give --ckpt_path."]
        elif self.found.stage == "val":
            notes = at_the_edge(rates, rates[int(cast(Tensor, self.best))])
        title = f"{type(self).__name__} on {self.checkpoint}"
        return Report(title, results, self.sentences(), {}, heads=heads if len(self.heads) > 1 else (), notes=notes)

    def _results(self, protocol: str, encoder: str, head: int) -> list[Result]:
        """One for each label."""
        found, data = cast(Found, self.found), getattr(self.trainer, "datamodule", None)
        title = getattr(data, "title", type(data).__name__)
        return [
            Result(protocol, label, encoder, (value,), found.samples, self.about(head), title, found.stage)
            for (label, _), value in zip(self.tasks, found.accuracy[head].tolist(), strict=True)
        ]

    def sentences(self) -> list[str]:
        """How the results were made, for a report."""
        if self.found is None or self.found.stage == "val":
            choice = "the validation split, on which the best head was chosen too, as the papers do"
        else:
            choice = "the test split; the heads are those that were best on the validation split"
        return [f"Reported: {choice}. {len(self.heads)} heads, every sample counted once."]


def by_clip(encode: Callable[[Tensor], Tensor], inputs: Tensor) -> Tensor:
    """(B, V, ...): what ``encode`` makes of each of the V clips and views of a sample; V is 1 of (B, C, [T,] H, W)."""
    if inputs.ndim < 6:
        return encode(inputs).unsqueeze(1)
    return encode(inputs.flatten(0, 1)).unflatten(0, inputs.shape[:2])


def at_the_edge(rates: Sequence[float], best: float) -> list[str]:
    """A line, if the best learning rate is the highest or the lowest of several: a better one may lie beyond it."""
    if len(set(rates)) < 2 or min(rates) < best < max(rates):
        return []
    there, beyond = ("highest", "higher") if best == max(rates) else ("lowest", "lower")
    return [f"The best lr, {best:g}, is the {there} of the grid: a {beyond} one may be better still (--model.lr)."]


def _counts(tasks: Tasks) -> str:
    return ", ".join(f"{name} {count}".strip() for name, count in tasks)
