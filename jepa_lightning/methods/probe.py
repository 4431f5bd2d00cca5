"""The attentive probe: what can a small head with attention read off a frozen encoder?

V-JEPA (arXiv 2404.08471, section 4.3) pools the tokens with one cross-attention layer, V-JEPA 2 (arXiv 2506.09985,
section 4) puts three self-attention layers before it. Several heads, one for each learning rate and weight decay, learn
side by side from one pass of the encoder; each has its own parameters, moments and gradient clipping, so that each
learns what it would learn alone.

| | official code | here |
|---|---|---|
| accuracy | running mean of batch means, padded samples counted | each sample counted once |
| reported | best head on the evaluation split | the same (`val/top1`); `jepa test` takes the best of val |
| validation clips | at random places, shuffled | the same clips every time |
| weight decay | V-JEPA: weights; V-JEPA 2: everything | weights |
| precision | float16 | `trainer.precision` |
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, cast

import torch
import torch.nn.functional as F
from jaxtyping import Float
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer

from jepa_lightning.distributed import gather_rows
from jepa_lightning.masking import MaskedBatch
from jepa_lightning.methods.base import Method
from jepa_lightning.models.pooling import AttentiveClassifier
from jepa_lightning.schedules import Constant, Schedule, WarmupCosine


class AttentiveProbe(Method):
    """Attentive classifiers on a frozen encoder; works on images and clips, with one label or several.

    Inputs may be (B, K, C, T, H, W), K clips and views of each video: a video's prediction is then the mean of the
    probabilities over what is predicted separately.

    Args:
        checkpoint: The pretrained model: a ``.ckpt`` of ours, or a file in Meta's layout.
        branch: Which of its encoders: ``target`` (EMA, as the papers) or ``context``.
        out_layers: Blocks, from 0, whose tokens are read together; null for the last one's.
        depth: Layers of a head (V-JEPA 1, V-JEPA 2: 4).
        num_heads: Attention heads of a head.
        lr: Highest learning rates of the grid.
        weight_decay: Weight decays of the grid; there is one head for each pair.
        lr_schedule: By what the learning rates are multiplied, step by step.
        weight_decay_schedule: By what the weight decays are multiplied.
        attend_across_clips: Give a head the tokens of all clips of a video in one sequence.
    """

    def __init__(
        self,
        checkpoint: str,
        branch: Literal["target", "context"] = "target",
        out_layers: Sequence[int] | None = None,
        depth: int = 1,
        num_heads: int = 16,
        lr: Sequence[float] = (1e-3,),
        weight_decay: Sequence[float] = (0.01,),
        lr_schedule: Schedule | None = None,
        weight_decay_schedule: Schedule | None = None,
        attend_across_clips: bool = False,
    ) -> None:
        super().__init__()
        from jepa_lightning.checkpoint import load_encoder

        self.checkpoint, self.encoder = checkpoint, load_encoder(checkpoint, branch)
        self._fingerprint = _fingerprint(self.encoder)
        self.out_layers = None if out_layers is None else list(out_layers)
        self.depth, self.num_heads = depth, num_heads
        self.grid = [(rate, decay) for rate in lr for decay in weight_decay]
        if not self.grid:
            raise ValueError(f"lr {list(lr)} and weight_decay {list(weight_decay)} make no head: give one of each")
        self.lr_schedule = lr_schedule or WarmupCosine(start=1.0, peak=1.0, final=0.0)
        self.weight_decay_schedule = weight_decay_schedule or Constant(1.0)
        self.attend_across_clips = attend_across_clips
        self.heads = nn.ModuleList()
        self.tasks: list[tuple[str, int]] = []
        self.register_buffer("best", torch.tensor(0))
        self._rows: list[Tensor] = []
        self._found: tuple[str, Tensor] | None = None  # split and accuracy of the latest evaluation

    # ------------------------------------------------------------------ the networks

    def configure_model(self) -> None:
        """One head for each point of the grid, all with the same initial weights; sizes come from the data."""
        if len(self.heads):
            return
        data = cast(Any, self.trainer).datamodule
        if data is None:
            raise ValueError("an AttentiveProbe takes the number of classes from a data module: give datamodule=")
        names = data.label_names
        classes = data.classes if names else [data.classes]
        counts = [len(of_one) for of_one in classes]
        if min(counts) < 2:
            raise ValueError(
                f"a probe needs labels of two classes or more, the data have {min(counts)}: "
                "sort the files into a folder for each class, or give a list of paths and labels"
            )
        self._build(list(zip(names or ("",), counts, strict=True)))

    def _build(self, tasks: list[tuple[str, int]]) -> None:
        self.tasks = tasks
        outputs, embed_dim = sum(count for _, count in tasks), self.encoder.embed_dim
        head = AttentiveClassifier(embed_dim, outputs, self.num_heads, self.depth)
        for _ in self.grid:
            self.heads.append(AttentiveClassifier(embed_dim, outputs, self.num_heads, self.depth))
            self.heads[-1].load_state_dict(head.state_dict())

    @torch.no_grad()
    def encode(self, inputs: Float[Tensor, "batch channels *size"]) -> Float[Tensor, "batch tokens dim"]:
        """Tokens of the frozen encoder; those of several blocks one after the other."""
        if self.out_layers is None:
            return cast(Tensor, self.encoder(inputs))
        return torch.cat(self.encoder(inputs, out_layers=self.out_layers), dim=1)

    def tokens(self, inputs: Tensor) -> Tensor:
        """(B, V, N, D): the sequences of each sample that are classified separately."""
        if inputs.ndim < 6:
            return self.encode(inputs).unsqueeze(1)
        batch, count = inputs.shape[:2]
        tokens = self.encode(inputs.flatten(0, 1)).unflatten(0, (batch, count))  # (B, clips * views, N, D)
        if not self.attend_across_clips:
            return tokens
        # In training a clip has one view; in evaluation all views of a clip stand before those of the next.
        views = 1 if self.training else int(getattr(cast(Any, self.trainer).datamodule, "views", 1))
        return tokens.unflatten(1, (-1, views)).transpose(1, 2).flatten(2, 3)  # (B, views, clips * N, D)

    # ------------------------------------------------------------------ steps

    def training_step(self, batch: MaskedBatch, batch_idx: int) -> Tensor:
        """Cross-entropy, summed over heads: they share no parameter, so none disturbs another."""
        tokens = self.tokens(batch.inputs)
        labels = self._labels(batch)
        losses = torch.stack([self._loss(head(tokens.flatten(0, 1)), labels, tokens.shape[1]) for head in self.heads])
        self.log("train/loss", losses.detach().mean(), batch_size=len(labels), sync_dist=True)
        self.log("train/loss_of_best", losses.detach().min(), batch_size=len(labels), sync_dist=True)
        return losses.sum()

    def _loss(self, logits: Tensor, labels: Tensor, views: int) -> Tensor:
        parts = logits.split([count for _, count in self.tasks], dim=1)
        losses = []
        for task, part in enumerate(parts):
            target = labels[:, task].repeat_interleave(views)
            total = F.cross_entropy(part, target, ignore_index=-1, reduction="sum")
            losses.append(total / (target >= 0).sum().clamp(min=1))  # a batch without a label must not give 0 / 0
        return torch.stack(losses).sum()

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
        index = cast(Tensor, batch.index)
        known = (index >= 0) & (labels >= 0).all(dim=1)  # not a file that could not be decoded, not without a label
        self._rows.append(torch.cat([index.unsqueeze(1), found], dim=1)[known])

    def test_step(self, batch: MaskedBatch, batch_idx: int) -> None:
        """The same."""
        self.validation_step(batch, batch_idx)

    def on_validation_epoch_end(self) -> None:
        """Accuracy of every head; the best one is remembered for the test split."""
        accuracy = self._accuracy()
        if accuracy is None or self.trainer.sanity_checking:
            return
        cast(Tensor, self.best).fill_(int(accuracy.mean(dim=1).argmax()))
        self._report("val", accuracy)

    def on_test_epoch_end(self) -> None:
        """Accuracy of the head that was best in validation."""
        accuracy = self._accuracy()
        if accuracy is not None:
            self._report("test", accuracy)

    def on_validation_end(self) -> None:
        """Show the heads, in `jepa validate`."""
        if self.trainer.state.fn != "fit":
            self._show()

    def on_test_end(self) -> None:
        """The same."""
        self._show()

    def on_train_end(self) -> None:
        """Show how good the heads were in the last validation."""
        self._show()

    def _accuracy(self) -> Float[Tensor, "heads tasks"] | None:
        """Share of samples that each head has right, every sample counted once (processes may hold copies)."""
        if not self._rows:
            return None
        rows = gather_rows(torch.cat(self._rows))
        self._rows.clear()
        if not len(rows):
            rank_zero_warn("no sample of this split has a label: there is no accuracy")
            return None
        rows = rows[rows[:, 0].argsort(stable=True)]
        first = torch.ones(len(rows), dtype=torch.bool, device=rows.device)
        first[1:] = rows[1:, 0] != rows[:-1, 0]
        return rows[first, 1:].float().mean(dim=0).unflatten(0, (len(self.heads), len(self.tasks)))

    def _report(self, stage: str, accuracy: Tensor) -> None:
        best = int(cast(Tensor, self.best))
        values = {f"{stage}/top1": accuracy[best].mean()}
        if len(self.tasks) > 1:
            values |= {f"{stage}/top1_{name}": accuracy[best, task] for task, (name, _) in enumerate(self.tasks)}
        if len(self.grid) > 1:
            for number, (rate, decay) in enumerate(self.grid):
                values[f"{stage}_heads/lr{rate:g}_wd{decay:g}"] = accuracy[number].mean()
        self.log_dict(values, sync_dist=True)  # the same in every process
        self._found = stage, accuracy

    def _show(self) -> None:
        """Print the accuracy of every head, and write it beside the logs."""
        trainer = cast(Any, self.trainer)
        folder = trainer.log_dir  # every process asks, because Lightning broadcasts the answer
        if self._found is None or not trainer.is_global_zero or trainer.fast_dev_run:
            return
        stage, accuracy = self._found
        heads = []
        for (rate, decay), row in zip(self.grid, accuracy.tolist(), strict=True):
            heads.append({"lr": rate, "weight_decay": decay, "top1": sum(row) / len(row)})
            if len(self.tasks) > 1:
                heads[-1] |= {f"top1_{name}": value for (name, _), value in zip(self.tasks, row, strict=True)}
        untrained = trainer.ckpt_path is None and self.global_step == 0
        note = "\nThese heads are untrained: give --ckpt_path." if untrained else ""
        print(f"\n\n{_table(heads, int(cast(Tensor, self.best)))}\n{note}")  # noqa: T201  # what was asked for
        if folder is not None:
            path = Path(folder) / ("heads_validation.json" if stage == "val" else "heads_test.json")
            path.parent.mkdir(parents=True, exist_ok=True)
            content = {
                "encoder": self.checkpoint,
                "checkpoint": str(trainer.ckpt_path or ""),
                "step": self.global_step or None,  # unknown outside of training
                "best": int(cast(Tensor, self.best)),
                "heads": heads,
            }
            path.write_text(json.dumps(content, indent=2) + "\n")
            print(f"written to {path}")  # noqa: T201

    # ------------------------------------------------------------------ optimisation

    def configure_optimizers(self) -> Optimizer:
        """AdamW with two groups for each head: matrices, which are decayed, and vectors."""
        groups: list[dict[str, Any]] = []
        for head in self.heads:
            parameters = list(head.parameters())
            groups.append({"params": [p for p in parameters if p.ndim > 1], "decay": True})
            groups.append({"params": [p for p in parameters if p.ndim <= 1], "decay": False})
        return AdamW(groups, lr=0.0)

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """Set every head's learning rate and weight decay from the step number."""
        arguments = self.progress()
        lr_factor, decay_factor = self.lr_schedule(*arguments), self.weight_decay_schedule(*arguments)
        groups = cast(Optimizer, self.optimizers(use_pl_optimizer=False)).param_groups
        for number, group in enumerate(groups):  # two for each head
            rate, decay = self.grid[number // 2]
            group["lr"], group["weight_decay"] = lr_factor * rate, decay_factor * decay * group["decay"]
        self.log("schedule/lr_factor", lr_factor, batch_size=1)

    def configure_gradient_clipping(
        self,
        optimizer: Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """`trainer.gradient_clip_val` for each head by itself."""
        if gradient_clip_algorithm == "value":  # each element by itself already
            self.clip_gradients(optimizer, gradient_clip_val, gradient_clip_algorithm)
            return
        for head in self.heads if gradient_clip_val else ():
            torch.nn.utils.clip_grad_norm_(head.parameters(), cast(float, gradient_clip_val))

    # ------------------------------------------------------------------ checkpoints

    def state_dict(self, *args: Any, **kwargs: Any) -> dict[str, Any]:  # type: ignore[override]
        """The heads; the frozen encoder stays in the file that it came from."""
        state = cast(dict[str, Any], super().state_dict(*args, **kwargs))
        return {name: tensor for name, tensor in state.items() if not name.startswith("encoder.")}

    def get_extra_state(self) -> dict[str, Any]:
        """What the outputs of a head mean, and of which encoder its inputs are."""
        tasks = [list(task) for task in self.tasks]
        return {"tasks": tasks, "encoder": self._fingerprint, "checkpoint": self.checkpoint}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """Known since ``load_state_dict``."""

    def load_state_dict(self, state_dict: Any, strict: bool = True, assign: bool = False) -> Any:
        """Heads from the file, beside the encoder that is there.

        Raises:
            ValueError: If the heads are for another encoder, or for data with other classes.
        """
        about = state_dict["_extra_state"]
        if about["encoder"] != self._fingerprint:
            raise ValueError(
                f"these heads were not trained on the encoder of {self.checkpoint}: give the one that they were "
                f"trained on, --model.checkpoint {about['checkpoint']}"
            )
        tasks = [(name, count) for name, count in about["tasks"]]
        if not len(self.heads):  # without a trainer nothing else says how many classes there are
            self._build(tasks)
        if tasks != self.tasks:
            raise ValueError(
                f"these heads were trained on the classes {_counts(tasks)}, the data have {_counts(self.tasks)}: "
                "give the data that they were trained on"
            )
        encoder = {f"encoder.{name}": tensor for name, tensor in self.encoder.state_dict().items()}
        return super().load_state_dict({**encoder, **state_dict}, strict=strict, assign=assign)


def _fingerprint(encoder: nn.Module) -> str:
    """Of a few numbers of each tensor: tells one trained encoder from another."""
    digest = hashlib.blake2b(digest_size=8)
    for name, tensor in encoder.state_dict().items():
        digest.update(f"{name} {tuple(tensor.shape)}".encode())
        digest.update(tensor.flatten()[:64].float().cpu().numpy().tobytes())
    return digest.hexdigest()


def _counts(tasks: Sequence[tuple[str, int]]) -> str:
    return ", ".join(f"{name} {count}".strip() for name, count in tasks)


def _table(heads: Sequence[dict[str, float]], best: int) -> str:
    """Plain text, one row for each head."""
    rows = [[name.replace("top1", "top-1").replace("_", " ") for name in heads[0]]]
    rows += [[f"{100 * v:.1f} %" if name.startswith("top1") else f"{v:g}" for name, v in h.items()] for h in heads]
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = ["  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in rows]
    lines[1 + best] += "  best in validation"
    return "\n".join([lines[0], "-" * len(lines[0]), *lines[1:]])
