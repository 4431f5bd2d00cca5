"""How a trainer writes and reads checkpoints: never half-written, and of any format that has a training in it."""

from __future__ import annotations

import contextlib
import os
import re
import sys
from pathlib import Path
from typing import IO, Any

import torch
from lightning import __version__
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO

from jepa_lightning.weights import Weights


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes beside the file, flushes to the disk, then renames: the old checkpoint is whole until the new one is."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """Write a checkpoint.

        Raises:
            OSError: If it cannot be written; what was there before is untouched.
        """
        if "://" in str(path):  # remote storage: fsspec knows how
            super().save_checkpoint(checkpoint, path, storage_options)
            return
        path = Path(path)
        temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            remove_rests(path.parent)
            with temporary.open("wb") as file:
                with contextlib.suppress(OSError):  # a file system without locks
                    _lock(file)
                torch.save(checkpoint, file)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
        except (OSError, RuntimeError) as error:  # torch reports a full disk as RuntimeError
            kept = "; the one that was there is whole" if path.exists() else ""
            raise OSError(
                f"cannot write the checkpoint {path}: {error}{kept}. Make room or the folder writable, and resume"
            ) from error
        finally:
            with contextlib.suppress(OSError):  # a disk that became read-only
                temporary.unlink(missing_ok=True)

    def load_checkpoint(self, path: Any, map_location: Any = None, weights_only: bool | None = None) -> dict[str, Any]:
        """Read a checkpoint, and remove what a killed run left beside it."""
        if "://" not in str(path):
            remove_rests(Path(path).parent)
        return super().load_checkpoint(path, map_location, weights_only)


def remove_rests(folder: Path) -> None:
    """Remove what processes that were killed while they wrote a checkpoint left in a folder.

    A file that another process still writes is locked, and left alone; of a folder that cannot be written nothing is
    removed.
    """
    for rest in folder.glob(".*.part"):
        if not re.fullmatch(r"\..+\.\d+\.part", rest.name):
            continue
        with contextlib.suppress(OSError), rest.open("r+b") as file:
            _lock(file)
            rest.unlink()


def _lock(file: IO[bytes]) -> None:
    """Take the lock that a process holds until it ends, however it ends; OSError if another process holds it."""
    if sys.platform != "win32":
        import fcntl

        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


class WeightsIO(AtomicCheckpointIO):
    """Lets a trainer read a checkpoint of another format as if Lightning had written it; writes as always.

    Args:
        module: The method that takes the weights.
        weights: The checkpoint.
    """

    def __init__(self, module: Any, weights: Weights) -> None:
        self.module, self.weights = module, weights

    def load_checkpoint(self, path: Any, map_location: Any = None, weights_only: bool | None = None) -> dict[str, Any]:
        """The content of a Lightning checkpoint of the same training.

        Raises:
            CheckpointError: If the file is not of this method, or has no training to go on with.
        """
        content = self.weights.resumed(self.module, fitting=bool(self.module.trainer.training))
        return {"pytorch-lightning_version": __version__, **content}
