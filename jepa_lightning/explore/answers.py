"""The figures that the page shows; small results are cached."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from threading import Lock

import numpy as np
import plotly.graph_objects as go
import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from jepa_lightning.explore import figures
from jepa_lightning.explore.dense import components, followed
from jepa_lightning.explore.items import Item, dropped
from jepa_lightning.explore.subject import Bank, Expectation, Subject, perplexity, similarity
from jepa_lightning.masking import MaskSampler

BANK = 100
"""Number of samples among whose patches those most similar to a prediction are searched."""
PATIENCE = 1.0
"""Seconds in which a request may encode more of these samples; the next request continues."""


class Answers:
    """All that callbacks of the page call; safe from several threads.

    Args:
        subject: The networks.
        items: Samples of the data set; dropped files are added behind them.
        masks: Draws masks for the grid of the data; None if there is no sampler for it.
    """

    def __init__(self, subject: Subject, items: list[Item], masks: MaskSampler | None) -> None:
        self.subject, self.items, self.masks, self.samples = subject, items, masks, len(items)
        self._lock, self._draws = Lock(), 0
        self._latest: tuple[int, int, Tensor] | None = None
        self._bank: Bank | None = None
        self._plane: np.ndarray | None = None
        self.tokens: Callable[[int, int], Tensor] = lru_cache(64)(self._tokens)
        self.attention: Callable[[int, int], Tensor] = lru_cache(4)(self._attention)
        self._expectation: Callable[[int, tuple[int, ...]], Expectation] = lru_cache(4)(self._expect)

    # ------------------------------------------------------------------ one patch

    def look(
        self, number: int, patch: int, layer: int, head: int | None, opacity: float, threshold: float = 0.0
    ) -> list[go.Figure]:
        """Input, attention from and toward the patch, its perplexity by head, PCA, similarity, the patch followed."""
        item = self.items[number]
        grid = self.subject.grid(item.pixels)
        picture = figures.strip(item.pixels, grid[0])
        patch = min(patch, grid[0] * grid[1] * grid[2] - 1)
        shown: list[go.Figure] = [figures.figure("click a patch", picture, grid, marked=[patch])]
        try:
            attention = self.attention(number, layer)
        except ValueError as error:
            shown += [figures.message(str(error))] * 3
        else:
            one = attention.mean(dim=0) if head is None else attention[head]
            who = "mean of the heads" if head is None else f"head {head}"
            shown += [
                figures.figure(f"attends to ({who})", picture, grid, one[patch], opacity, [patch]),
                figures.figure(f"attended to by ({who})", picture, grid, one[:, patch], opacity, [patch]),
                figures.bars("perplexity of its attention, by head", perplexity(attention[:, patch]), head),
            ]
        tokens = self.tokens(number, layer)
        colours = figures.strip(components(tokens, grid, threshold=threshold), grid[0])
        shown.append(figures.figure(f"principal components, layer {layer}", colours, grid, marked=[patch]))
        shown.append(
            figures.figure(f"similarity, layer {layer}", picture, grid, similarity(tokens, patch), opacity, [patch])
        )
        goes = followed(tokens, grid, patch)
        shown.append(figures.figure(f"followed through the clip, layer {layer}", picture, grid, goes, opacity, [patch]))
        return shown

    # ------------------------------------------------------------------ predictions

    def surprise(self, number: int, hidden: list[int]) -> tuple[go.Figure, str]:
        """A map of the differences between the predicted and the true features, and a summary in words."""
        item = self.items[number]
        grid = self.subject.grid(item.pixels)
        found = self._expected(number, hidden)
        values = torch.full((grid[0] * grid[1] * grid[2],), torch.nan)
        values[found.targets] = found.surprise
        picture = figures.strip(item.pixels, grid[0])
        return figures.figure("surprise: squared difference", picture, grid, values, 0.75), _says(found)

    def expect(self, number: int, hidden: list[int]) -> list[go.Figure]:
        """The predicted and the true features, shown as the most similar patches of other samples."""
        found, bank = self._expected(number, hidden), self.bank()
        source = f"{bank.count} samples" + (" so far" if bank.count < len(bank.inputs) else "")
        pixels = self.items[number].pixels
        grid, own, shown = self.subject.grid(pixels), self.subject.patches(pixels), []
        for title, features in (
            (f"expected, in patches of {source}", found.predicted),
            ("seen by the target encoder, likewise", found.seen),
        ):
            patches = own.clone()
            patches[found.targets] = bank.nearest(features, without=number)[:, 0]
            shown.append(figures.figure(title, figures.mosaic(patches, grid), grid))
        return shown

    def hidden_picture(self, number: int, hidden: list[int]) -> go.Figure:
        """The input with the hidden patches dark, to draw a mask on."""
        item = self.items[number]
        grid = self.subject.grid(item.pixels)
        patches = self.subject.patches(item.pixels).clone()
        patches[torch.tensor(hidden, dtype=torch.long)] //= 4
        picture = figures.mosaic(patches, grid)
        return figures.figure("drag a box or click to hide patches", picture, grid, select=True)

    def neighbours(self, number: int, hidden: list[int], token: int, count: int = 8) -> list[str]:
        """The patches of the data set that are nearest to what is predicted at one token, as image sources."""
        found = self._expected(number, hidden)
        row = (found.targets == token).nonzero()
        if not len(row):
            return []
        patches = self.bank().nearest(found.predicted[row[0]], count, without=number)[0]
        return [figures.url(patch.permute(1, 2, 0)) for patch in patches]

    def sample_mask(self, number: int) -> list[int]:
        """The targets of one sample of the mask sampler of the training.

        Raises:
            ValueError: If there is no sampler for an input of this size.
        """
        grid = self.subject.grid(self.items[number].pixels)
        if self.masks is None:
            raise ValueError("no mask sampler goes with this checkpoint: draw a box or click patches")
        with self._lock:
            self._draws += 1
            (masks, *_) = self.masks.sample(1, Generator().manual_seed(self._draws), 0)
        targets = masks.targets[0].flatten().unique().tolist()
        if max(targets) >= grid[0] * grid[1] * grid[2]:
            raise ValueError("this input has another size than the data: draw a box or click patches")
        return [token for token in targets if token >= 0]

    def bank(self) -> Bank:
        """Patches of the first samples, as many as are encoded so far."""
        with self._lock:
            if self._bank is None:
                self._bank = Bank(self.subject, [item.pixels for item in self.items[: min(BANK, self.samples)]])
            self._bank.grow(PATIENCE)
            return self._bank

    # ------------------------------------------------------------------ all samples

    def plane(self) -> go.Figure:
        """UMAP of the average-pooled features of the samples, coloured by their first label.

        Raises:
            ValueError: If umap-learn is not installed, or there are too few samples.
        """
        count = self.samples
        if count < 8:
            raise ValueError(f"a map of {count} samples says nothing: start with --samples 200 or more")
        with self._lock:
            if self._plane is None:
                self._plane = self._places(count)
        shown = self.items[:count]
        return figures.scatter(
            self._plane, [item.labels[0] if item.labels else "-" for item in shown], [item.title() for item in shown]
        )

    def _places(self, count: int) -> np.ndarray:
        try:
            from jepa_lightning.explore.plane import plane
        except ImportError as error:
            raise ValueError("the map needs umap-learn: pip install 'jepa-lightning[explore]'") from error
        return plane(torch.stack([self.subject.tokens(item.pixels).mean(dim=0) for item in self.items[:count]]))

    def thumbnail(self, number: int) -> str:
        """Source of a small image of a sample."""
        return figures.url(figures.strip(self.items[number].pixels, 1))

    # ------------------------------------------------------------------ files

    def drop(self, name: str, content: bytes) -> int:
        """Add a file, and say which number it has."""
        item = dropped(name, content, self.subject.encoder)
        with self._lock:
            self.items.append(item)
            return len(self.items) - 1

    def _expected(self, number: int, hidden: list[int]) -> Expectation:
        return self._expectation(number, tuple(sorted(hidden)))

    def _expect(self, number: int, hidden: tuple[int, ...]) -> Expectation:
        pixels = self.items[number].pixels
        steps, rows, columns = self.subject.grid(pixels)
        kept = torch.zeros(steps * rows * columns, dtype=torch.bool)
        kept[torch.tensor(hidden, dtype=torch.long)] = True
        return self.subject.expect(pixels, kept)

    def _tokens(self, number: int, layer: int) -> Tensor:
        latest = self._latest  # of the pass that showed the attention
        if latest is not None and latest[:2] == (number, layer):
            return latest[2]
        return self.subject.tokens(self.items[number].pixels, layer)

    def _attention(self, number: int, layer: int) -> Tensor:
        attention, tokens = self.subject.look(self.items[number].pixels, layer)
        self._latest = number, layer, tokens
        return attention


def _says(found: Expectation) -> str:
    """The figures in words."""
    explained = 1.0 - float(found.surprise.sum() / found.against_mean.sum().clamp_min(1e-12))
    cosine = float(F.cosine_similarity(found.predicted, found.seen).mean())
    return (
        f"{len(found.targets)} hidden patches: mean squared difference {float(found.surprise.mean()):.3f}, "
        f"{abs(explained):.0%} {'less' if explained >= 0 else 'more'} than with the mean feature of this input "
        f"everywhere; cosine similarity {cosine:.2f}. "
        "Click a hidden patch in the surprise map to see the patches that are most like what is expected there."
    )
