"""95 % intervals: of one accuracy by its number of samples, of several by how they scatter."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple


class Interval(NamedTuple):
    """A mean and where it may as well be.

    Attributes:
        mean: The mean, or the one value there is.
        low: Lower end of the interval.
        high: Upper end.
        kind: How it was made, in words.
    """

    mean: float
    low: float
    high: float
    kind: str


def wilson(share: float, samples: int, z: float = 1.959963984540054) -> Interval:
    """Of a share of ``samples`` that are independent (Wilson 1927): it stays in [0, 1] and is right near its ends.

    Raises:
        ValueError: If there is no sample.
    """
    if samples < 1:
        raise ValueError(f"an interval needs at least one sample, got {samples}")
    centre = (share + z * z / (2 * samples)) / (1 + z * z / samples)
    half = z / (1 + z * z / samples) * math.sqrt(share * (1 - share) / samples + z * z / (4 * samples * samples))
    # Rounding must not leave the value itself outside.
    low, high = max(0.0, min(share, centre - half)), min(1.0, max(share, centre + half))
    return Interval(share, low, high, "Wilson")


def student(values: Sequence[float], level: float = 0.95) -> Interval:
    """Of the mean of ``values`` that are independent draws from a normal distribution (Student 1908).

    Raises:
        ValueError: If there are fewer than two.
    """
    from scipy.stats import t

    if len(values) < 2:
        raise ValueError(f"Student's t needs at least two values, got {len(values)}")
    mean = math.fsum(values) / len(values)
    variance = math.fsum((value - mean) ** 2 for value in values) / (len(values) - 1)
    half = float(t.ppf((1 + level) / 2, len(values) - 1)) * math.sqrt(variance / len(values))
    return Interval(mean, mean - half, mean + half, "Student's t")


def interval(values: Sequence[float], samples: int) -> Interval:
    """Of the accuracies of one or several runs, each on ``samples`` samples."""
    if len(values) > 1:
        return student(values)
    return wilson(values[0], samples)
