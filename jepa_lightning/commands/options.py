"""Options of several commands: hints, and what a checkpoint may do."""

from __future__ import annotations

import argparse
from contextlib import AbstractContextManager
from typing import Any

from jepa_lightning.weights import Hints, trusting

TRUST = (
    "package whose classes the checkpoint may name, beside jepa_lightning; importing it runs its code "
    "(may be given several times)"
)
NON_FINITE = "accept weights that are infinite or not a number, to look at a run that broke"


def add_hints(parser: argparse.ArgumentParser) -> None:
    """Add ``--num_heads``, ``--predictor_num_heads``, ``--img_size`` and ``--num_frames``."""
    group = parser.add_argument_group(
        "sizes that the tensors of other formats do not show, if the width is no published one"
    )
    group.add_argument("--num_heads", type=int, metavar="N", help="attention heads of the encoder")
    group.add_argument("--predictor_num_heads", type=int, metavar="N", help="attention heads of the predictor")
    group.add_argument("--img_size", type=int, nargs="+", metavar="PIXELS", help="side of the inputs, or height width")
    group.add_argument("--num_frames", type=int, metavar="N", help="frames of the clips")


def hints_given(options: Any) -> Hints:
    """The hints among parsed arguments."""
    size = options.img_size
    return Hints(
        num_heads=options.num_heads,
        img_size=None if size is None else (size[0], size[-1]),
        num_frames=options.num_frames,
        predictor_num_heads=options.predictor_num_heads,
    )


def add_permissions(parser: Any) -> None:
    """Add ``--trust`` and ``--allow_non_finite``."""
    parser.add_argument("--trust", action="append", default=[], metavar="PACKAGE", help=TRUST)
    parser.add_argument("--allow_non_finite", action="store_true", help=NON_FINITE)


def allowed(options: Any) -> AbstractContextManager[None]:
    """What the parsed arguments allow checkpoints."""
    return trusting(*options.trust, allow_non_finite=options.allow_non_finite)
