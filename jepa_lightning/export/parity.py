"""Checks an export: what the other library reloads must compute the same as our networks."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib.metadata import PackageNotFoundError, version
from typing import Any, NamedTuple

import torch
from torch import Tensor

from jepa_lightning.export.source import Functions

TOLERANCE = 1e-4
"""Largest absolute difference in float32. Outputs are layer-normed tokens or logits, so of order 1."""


class Comparison(NamedTuple):
    """One function of the networks on one batch.

    Attributes:
        what: ``tokens``, ``logits`` or ``predicted tokens``.
        inputs: Which batch.
        shape: Of the output.
        difference: Largest absolute difference; infinite where the other library's shape or a number is wrong.
        magnitude: Largest absolute value of ours.
    """

    what: str
    inputs: str
    shape: tuple[int, ...]
    difference: float
    magnitude: float


class Parity(NamedTuple):
    """The comparisons of an export.

    Attributes:
        library: Name and version of the library that reloaded it.
        comparisons: All of them.
    """

    library: str
    comparisons: list[Comparison]

    @property
    def passed(self) -> bool:
        """Whether every difference is within TOLERANCE."""
        return bool(self.comparisons) and all(each.difference <= TOLERANCE for each in self.comparisons)

    def content(self) -> dict[str, Any]:
        """For ``parity.json``."""
        return {
            "reloaded_in": self.library,
            "precision": "float32, CPU",
            "tolerance": TOLERANCE,
            "passed": self.passed,
            "comparisons": [{**each._asdict(), "shape": list(each.shape)} for each in self.comparisons],
        }

    def table(self) -> str:
        """Plain text, which is Markdown as well."""
        rows = [("what", "inputs", "shape", "largest value", "largest difference")]
        rows += [
            (each.what, each.inputs, "x".join(map(str, each.shape)), f"{each.magnitude:.3g}", f"{each.difference:.1e}")
            for each in self.comparisons
        ]
        widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
        lines = ["| " + " | ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)) + " |" for row in rows]
        return "\n".join([lines[0], "|" + "|".join("-" * (width + 2) for width in widths) + "|", *lines[1:]])


@torch.no_grad()
def compare(ours: Functions, theirs: Functions, batches: Mapping[str, Tensor], library: str) -> Parity:
    """Compare all that both compute.

    Args:
        ours: Our networks.
        theirs: What the other library reloaded.
        batches: Inputs by name.
        library: The package that reloaded it.
    """
    found: list[Comparison] = []
    for name, inputs in batches.items():
        if ours.encode and theirs.encode:
            found.append(_comparison("tokens", name, ours.encode(inputs), theirs.encode(inputs)))
        if ours.classify and theirs.classify:
            found.append(_comparison("logits", name, ours.classify(inputs), theirs.classify(inputs)))
        if ours.encode and ours.predict and theirs.predict:
            tokens = (ours.read or ours.encode)(inputs)
            asked = _masks(tokens)
            both: list[Callable[..., Tensor]] = [ours.predict, theirs.predict]
            found.append(_comparison("predicted tokens", name, *(each(tokens, *asked) for each in both)))
    return Parity(f"{library} {_version(library)}", found)


def _masks(tokens: Tensor) -> tuple[Tensor, Tensor]:
    """Context and targets, drawn for each sample: half and a quarter of the tokens, at least one."""
    generator, count = torch.Generator().manual_seed(len(tokens)), tokens.shape[1]
    order = torch.rand(len(tokens), count, generator=generator).argsort(dim=1)
    return order[:, : max(1, count // 2)].sort(dim=1).values, order[:, -max(1, count // 4) :].sort(dim=1).values


def _comparison(what: str, inputs: str, ours: Tensor, theirs: Tensor) -> Comparison:
    same = ours.shape == theirs.shape
    difference = float((ours - theirs).abs().max()) if same else float("inf")
    difference = float("inf") if difference != difference else difference  # not a number
    return Comparison(what, inputs, tuple(ours.shape), difference, float(ours.abs().max()))


def _version(package: str) -> str:
    try:
        return version(package.replace("_", "-"))
    except PackageNotFoundError:
        return "(version unknown)"
