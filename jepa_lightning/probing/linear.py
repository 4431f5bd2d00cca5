"""The linear probe of I-JEPA (Assran et al. 2023, arXiv 2301.08243, appendix A.2): linear layers on averaged features.

Average-pooled tokens of the last block, or of the last four side by side, are read by a linear layer, with or without a
BatchNorm before it; the paper reports the best. Every pair of a learning rate and a weight decay has a head of its own,
and all are trained in parallel on one pass over the data. Baselines: the same encoder before training, raw pixels.

| | paper | here |
|---|---|---|
| encoder | target | `branch` |
| features | last block, or last four side by side | `features` |
| final norm on inner blocks | not said | yes |
| head | linear, or BatchNorm and linear | `batch_norm`; its BatchNorm has no affine part, which the linear layer has |
| optimizer | LARS, batch 16384, 50 epochs, /10 every 15 | `optimizer`, `lr_schedule` |
| grid | lr 0.01, 0.05, 0.001 x weight decay 0.0005, 0 | `lr`, `weight_decay` |
| reported | best of all on the validation split | the same (`val/top1`); `jepa test` takes the best of val |
| weight decay of biases | not said | none |
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from typing import Any, Literal, NamedTuple, cast

import torch
from jaxtyping import Float
from torch import Generator, Tensor, nn

from jepa_lightning import weights
from jepa_lightning.masking import seeded
from jepa_lightning.methods.groups import MakeOptimizer
from jepa_lightning.models.average_pool import PIXEL_FEATURES, AveragePool, pooled, raw_pixels
from jepa_lightning.probing.classifier import by_clip
from jepa_lightning.probing.feature_cache import CachedFeatures, features_of_splits
from jepa_lightning.probing.frozen import FrozenProbe, grid_of
from jepa_lightning.schedules import Schedule
from jepa_lightning.weights import Branch, Hints

TRAINED, UNTRAINED, PIXELS = "trained", "random initialisation", "raw pixels"


class Part(NamedTuple):
    """Some of the features, which several heads read.

    Attributes:
        encoder: Name of the encoder.
        kind: Name of the features.
        start: Index of the first.
        stop: Index after the last.
    """

    encoder: str
    kind: str
    start: int
    stop: int


class LinearHead(nn.Module):
    """A linear layer on some of the features, after a BatchNorm without affine part if that is wanted.

    Args:
        part: Which of the features.
        outputs: Classes.
        batch_norm: Whether features are normalised first.
        generator: Source of the initial weights, N(0, 0.01).
    """

    def __init__(self, part: Part, outputs: int, batch_norm: bool, generator: Generator) -> None:
        super().__init__()
        self.start, self.stop = part.start, part.stop
        size = part.stop - part.start
        self.norm = nn.BatchNorm1d(size, affine=False) if batch_norm else nn.Identity()
        self.linear = nn.Linear(size, outputs)
        nn.init.normal_(self.linear.weight, std=0.01, generator=generator)
        nn.init.zeros_(self.linear.bias)

    def forward(self, features: Float[Tensor, "batch features"]) -> Float[Tensor, "batch classes"]:
        """Logits."""
        return self.linear(self.norm(features[:, self.start : self.stop]))


class LinearProbe(FrozenProbe):
    """Linear classifiers on averaged features of a frozen encoder; images and clips, one label or several.

    Args:
        checkpoint: The pretrained model, in any format that ``load_encoder`` reads.
        branch: Which of its encoders: ``target`` (EMA, as the paper) or ``context``.
        overrides: Sizes of the encoder that the checkpoint does not say: num_heads, img_size, num_frames.
        features: What is averaged; there are heads for each.
        batch_norm: Heads without a BatchNorm (false), with one (true), or both.
        lr: Highest learning rates of the grid.
        weight_decay: Weight decays of the grid; there is one head for each pair, of each kind.
        optimizer: Makes the optimizer; null for AdamW. LARS is in jepa_lightning.lars.
        lr_schedule: Factor of the learning rates by optimizer step; null for a cosine to 0.
        cache: Compute features of the clean splits once and learn from these, without augmentation, kept in main
            ``memory`` or on ``disk`` in the folder of the run; null to encode augmented images in every epoch.
        baselines: Also train heads on the encoder as it was before training, and on raw pixels.
    """

    def __init__(
        self,
        checkpoint: str,
        branch: Branch = "target",
        overrides: Hints | None = None,
        features: Sequence[AveragePool] = (AveragePool(1), AveragePool(4)),
        batch_norm: Sequence[bool] = (False, True),
        lr: Sequence[float] = (0.01, 0.05, 0.001),
        weight_decay: Sequence[float] = (0.0005, 0.0),
        optimizer: MakeOptimizer | None = None,
        lr_schedule: Schedule | None = None,
        cache: Literal["memory", "disk"] | None = None,
        baselines: bool = True,
    ) -> None:
        opened = weights.open(checkpoint)
        encoder = opened.networks(branch, hints=overrides).encoder
        self.kinds, self.norms, self.points = list(features), list(batch_norm), grid_of(lr, weight_decay)
        if not self.kinds or not self.norms:
            raise ValueError(f"features {self.kinds} and batch_norm {self.norms} make no head: give one of each")
        self.parts = _parts(encoder.embed_dim, self.kinds, baselines)
        grid = self.points * len(self.norms) * len(self.parts)
        super().__init__(checkpoint, encoder, grid, lr_schedule, optimizer=optimizer)
        self.branch, self.baselines, self.cache = branch, baselines, cache
        self.cached: dict[str, CachedFeatures] = {}
        """What the data module serves in place of the samples of a split."""
        if baselines:
            self.untrained = opened.untrained(encoder)
        self.register_buffer("best_of_group", torch.zeros(len(self.groups()), dtype=torch.long))

    # ------------------------------------------------------------------ heads, ordered by part, norm and grid

    def new_heads(self, outputs: int) -> list[nn.Module]:
        """Heads on the same features have the same initial weights, whatever other heads there are."""
        seed = torch.initial_seed()
        return [
            LinearHead(part, outputs, norm, seeded("linear head", seed, part.encoder, part.kind))
            for part, norm, _ in self._order()
        ]

    def _order(self) -> list[tuple[Part, bool, tuple[float, float]]]:
        return list(product(self.parts, self.norms, self.points))

    def about(self, number: int) -> dict[str, Any]:
        """Settings of a head by name, for tables."""
        part, norm, (rate, decay) = self._order()[number]
        return {
            "features": part.kind,
            "batch_norm": "yes" if norm else "no",
            "lr": rate,
            "weight_decay": decay,
        }

    def name(self, number: int) -> str:
        """`trained/last_block_bn_lr0.1_wd0`."""
        part, norm, _ = self._order()[number]
        words = f"{part.encoder}/{part.kind}_{'bn_' * norm}".replace(" ", "_")
        return f"{words}{super().name(number)}"

    def groups(self) -> dict[tuple[str, str], list[int]]:
        """The paper takes the best of all heads of an encoder."""
        found: dict[tuple[str, str], list[int]] = {}
        for number, (part, _, _) in enumerate(self._order()):
            found.setdefault(("linear probe", part.encoder), []).append(number)
        return found

    def choose(self, accuracy: Float[Tensor, "heads tasks"]) -> None:
        """The best head of each encoder; that of the trained one is the best."""
        means = accuracy.mean(dim=1)
        best = [members[int(means[members].argmax())] for members in self.groups().values()]
        cast(Tensor, self.best_of_group).copy_(torch.tensor(best))
        cast(Tensor, self.best).fill_(best[0])

    def chosen(self) -> list[int]:
        """The best head of each encoder."""
        return cast(Tensor, self.best_of_group).tolist()

    def sentences(self) -> list[str]:
        """How the results were made, for a report."""
        kinds = ", ".join(str(kind) for kind in self.kinds)
        norms = " and ".join("BatchNorm and linear" if norm else "linear" for norm in self.norms)
        source = "clean samples, encoded once" if self.cache else "samples as the data module augments them"
        return [
            f"Linear probe (I-JEPA, appendix A.2): averaged tokens of the {self.branch} encoder ({kinds}), {norms}, "
            f"the best of {len(self.points)} pairs of learning rate and weight decay; learned from {source}.",
            "Random initialisation: the same encoder before training. Raw pixels: averaged to 16 x 16, of clips to 4 "
            "frames of 8 x 8.",
            *super().sentences(),
        ]

    def settings(self) -> str:
        """What a checkpoint with other heads is told to give."""
        return (
            f"features, batch_norm, lr, weight_decay and baselines make {len(self.heads)}: give the features, "
            "batch_norm, lr, weight_decay and baselines"
        )

    # ------------------------------------------------------------------ features

    @torch.no_grad()
    def features(self, inputs: Float[Tensor, "batch channels *size"]) -> Float[Tensor, "batch features"]:
        """What the heads read, those of all parts one after the other."""
        found = pooled(self.encoder, inputs, self.kinds)
        if self.baselines:
            found += [*pooled(self.untrained, inputs, self.kinds), raw_pixels(inputs)]
        return torch.cat([part.float() for part in found], dim=1)

    def tokens(self, inputs: Tensor) -> Tensor:
        """(B, V, F): features of each clip and view; those of the cache are taken as they are."""
        return inputs if inputs.ndim == 3 else by_clip(self.features, inputs)

    def predict_step(self, batch: Any, batch_idx: int) -> Float[Tensor, "batch dim"]:
        """Features of the encoder alone, as the first kind of head reads them."""
        part = self.parts[0]
        return self.tokens(batch.inputs).mean(dim=1)[:, part.start : part.stop]

    def on_fit_start(self) -> None:
        """Compute the features once, if that is wanted."""
        if self.cache is not None and not cast(Any, self.trainer).fast_dev_run:
            self.cached = features_of_splits(self, self.tokens, on_disk=self.cache == "disk")


def _parts(embed_dim: int, kinds: Sequence[AveragePool], baselines: bool) -> list[Part]:
    named = [(TRAINED, str(kind), kind.blocks * embed_dim) for kind in kinds]
    if baselines:
        named += [(UNTRAINED, kind, size) for _, kind, size in named] + [(PIXELS, "16 x 16", PIXEL_FEATURES)]
    parts, start = [], 0
    for encoder, kind, size in named:
        parts.append(Part(encoder, kind, start, start + size))
        start += size
    return parts
