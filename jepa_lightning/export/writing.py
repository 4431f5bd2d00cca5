"""Writes a checkpoint for another library, reloads it there and compares; only what agrees is left behind."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from pathlib import Path

from jepa_lightning.export.card import write_card
from jepa_lightning.export.formats import FIXED_SIZE, FORMATS, check_packages, prepared
from jepa_lightning.export.parity import TOLERANCE, Parity, compare
from jepa_lightning.export.samples import samples
from jepa_lightning.export.source import Source, functions_of


def export(
    source: Source,
    to: str,
    out: str | Path,
    with_predictor: bool | None = None,
    fixed_size: bool = False,
    overwrite: bool = False,
) -> Parity:
    """Write a checkpoint in another format, reload it there and compare; only what agrees is left behind.

    Args:
        source: What to write, from open_source.
        to: A key of FORMATS.
        out: The folder; if something fails, it is left as it was.
        with_predictor: Whether the predictor goes out too; None for where the format always has one.
        fixed_size: Write a graph for inputs of one size and length only; ``to`` must be a key of FIXED_SIZE.
        overwrite: Replace an export that is there.

    Returns:
        What the comparison found.

    Raises:
        FileExistsError: If the folder exists and may not be replaced.
        ImportError: If the other library is not installed; the message says how to install it.
        ValueError: If the format cannot hold this model, or the other library computes something else.
    """
    out = Path(out).expanduser()
    check_free(out, overwrite)
    check_packages(to)
    form = FIXED_SIZE[to] if fixed_size else FORMATS[to]
    source = prepared(to, source, with_predictor)
    out.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=out.parent))
    try:
        say(f"Writing {source.kind} as {form.title}")
        form.write(source, temporary)
        say(f"Reloading it in {form.library} and comparing")
        parity = compare(functions_of(source.networks), form.reload(temporary, source), samples(source), form.library)
        say(parity.table())
        if not parity.passed:
            raise ValueError(
                f"{form.library} computes something else than jepa_lightning (differences above {TOLERANCE:g} in the "
                f"table): {out} was not written. Please report this with the table"
            )
        (temporary / "parity.json").write_text(json.dumps(parity.content(), indent=2) + "\n")
        write_card(source, form, parity, temporary)
        _put(temporary, out)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    say(f"Written to {out}: {', '.join(sorted(path.name for path in out.iterdir()))}")
    return parity


def check_free(out: Path, overwrite: bool) -> None:
    """Check that an export to this folder loses nothing of value.

    Raises:
        FileExistsError: If it would.
    """
    if not out.exists():
        return
    if not overwrite:
        raise FileExistsError(f"{out} is there already: give another --out, or --overwrite if it is an earlier export")
    if not (out / "parity.json").is_file():
        raise FileExistsError(
            f"{out} has no parity.json, so it is no earlier export and is not replaced: give another --out"
        )


def _put(temporary: Path, out: Path) -> None:
    """Give the finished folder its name; an earlier one is there until that moment."""
    temporary.chmod(0o777 & ~_umask())  # tempfile makes it readable to nobody else
    old = out.with_name(f".{out.name}.{os.getpid()}.old")
    if out.exists():
        out.rename(old)
    temporary.rename(out)
    shutil.rmtree(old, ignore_errors=True)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def say(text: str) -> None:
    """Print a line for the person at the terminal."""
    print(text, flush=True)  # noqa: T201  # what a person at the terminal waits for
