"""What the user allows checkpoints, and the errors of checkpoints."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import NamedTuple


class CheckpointError(ValueError):
    """A checkpoint that cannot be used; the message names the file, the reason and the remedy."""


class Unreadable(CheckpointError):
    """A file that is damaged or truncated, or would run code."""


class UnknownFormat(CheckpointError):
    """A readable file in no known format."""


class NotTrusted(CheckpointError):
    """A file that names code which the user did not name."""


class DoesNotFit(CheckpointError):
    """Tensors that are missing, unexpected, of the wrong shape or kind, or not finite."""


class HintNeeded(CheckpointError):
    """Neither the tensors nor the file say something that is needed; the user has to give it."""


# ---------------------------------------------------------------------- what the user allows


class Policy(NamedTuple):
    """What the user allows checkpoints.

    Attributes:
        packages: Packages whose classes a checkpoint may name, beside this one.
        allow_non_finite: Whether weights may be infinite or not a number.
    """

    packages: frozenset[str] = frozenset()
    allow_non_finite: bool = False


NOTHING = Policy()
_policy: ContextVar[Policy] = ContextVar("policy", default=NOTHING)


def policy() -> Policy:
    """The current policy."""
    return _policy.get()


@contextmanager
def trusting(*packages: str, allow_non_finite: bool = False) -> Iterator[None]:
    """Within this context, let checkpoints name classes of these packages too.

    Args:
        packages: Names of packages, without submodules.
        allow_non_finite: Accept weights that are infinite or not a number.
    """
    before = _policy.get()
    names = before.packages | {name.partition(".")[0] for name in packages}
    token = _policy.set(Policy(frozenset(names), before.allow_non_finite or allow_non_finite))
    try:
        yield
    finally:
        _policy.reset(token)
