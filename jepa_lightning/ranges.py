"""Checks of numeric options, each with one line: the option, its value, what is allowed."""

from __future__ import annotations

from typing import Any


def at_least(least: float, **options: Any) -> None:
    """Refuse options below a bound; of pairs (height, width) each entry counts.

    Raises:
        ValueError: Names the first option that is.
    """
    within(least, None, **options)


def within(least: float, most: float | None, **options: Any) -> None:
    """Refuse options outside of a range, the ends included.

    Raises:
        ValueError: Names the first option that is.
    """
    for name, value in options.items():
        for number in value if isinstance(value, tuple | list) else (value,):
            if number is not None and not (least <= number and (most is None or number <= most)):
                allowed = f"at least {least}" if most is None else f"{least} to {most}"
                raise ValueError(f"{name} {value}: use {allowed}")
