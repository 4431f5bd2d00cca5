"""95 % confidence intervals of one accuracy (Wilson), of a gain (Newcombe), of the mean of several (Student's t)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple


class Interval(NamedTuple):
    """A mean and its 95 % interval.

    Attributes:
        mean: The mean, or the one value there is.
        low: Lower end of the interval.
        high: Upper end.
        kind: Name of the method.
    """

    mean: float
    low: float
    high: float
    kind: str


def wilson(fraction: float, samples: int, z: float = 1.959963984540054) -> Interval:
    """Interval of a fraction of independent samples (Wilson 1927); it stays in [0, 1] and is valid near its ends.

    Raises:
        ValueError: If there is no sample.
    """
    if samples < 1:
        raise ValueError(f"an interval needs at least one sample, got {samples}")
    centre = (fraction + z * z / (2 * samples)) / (1 + z * z / samples)
    half = z / (1 + z * z / samples) * math.sqrt(fraction * (1 - fraction) / samples + z * z / (4 * samples * samples))
    # Rounding must not leave the value itself outside.
    low, high = max(0.0, min(fraction, centre - half)), min(1.0, max(fraction, centre + half))
    return Interval(fraction, low, high, "Wilson")


def student(values: Sequence[float], level: float = 0.95) -> Interval:
    """Interval of the mean of values that are independent draws from a normal distribution (Student 1908).

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


def interval(values: Sequence[float], samples: int, bounds: tuple[float, float] | None = None) -> Interval:
    """Interval of the accuracy of one run or of the mean of several, each on ``samples`` samples.

    Args:
        values: One of each run.
        samples: On which each is measured.
        bounds: The interval of one run, where it is known; None for Wilson's.
    """
    if len(values) > 1:
        return student(values)
    if bounds is not None:
        return Interval(values[0], *bounds, "resampled")
    return wilson(values[0], samples)


def difference(before: float, after: float, samples: int) -> Interval:
    """Interval of the gain of one accuracy over another, each on ``samples`` samples (Newcombe 1998, method 10).

    Both are taken as independent. On the same samples they seldom are, so the interval is rather too wide.
    """
    first, second = wilson(before, samples), wilson(after, samples)
    gain = after - before
    low = gain - math.hypot(after - second.low, first.high - before)
    high = gain + math.hypot(second.high - after, before - first.low)
    return Interval(gain, low, high, "Newcombe")
