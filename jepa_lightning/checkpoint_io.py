"""How a trainer writes and reads checkpoints: never half-written, and of any format that has a training in it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

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
            with temporary.open("wb") as file:
                torch.save(checkpoint, file)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
        except (OSError, RuntimeError) as error:  # torch reports a full disk as RuntimeError
            kept = "; the one that was there is whole" if path.exists() else ""
            raise OSError(f"cannot write the checkpoint {path}: {error}{kept}. Make room and resume") from error
        finally:
            temporary.unlink(missing_ok=True)


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
