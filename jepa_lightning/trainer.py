"""Lightning's Trainer with a folder of its own for every run, whatever the logger."""

from __future__ import annotations

import shutil
from itertools import count
from pathlib import Path

from lightning import Trainer
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger

WORTHLESS = ("config.yaml", "hparams.yaml", "metrics.csv", "events.out.tfevents.*")
"""Files that a run writes before its first step."""


class RunTrainer(Trainer):
    """A Trainer whose ``log_dir`` belongs to one run.

    It is that of the first logger where that numbers its runs (TensorBoard, CSV), else a new `version_N` in
    ``default_root_dir``: without a logger, and beside one that has no folder for each run (W&B, MLflow).
    """

    _folder: Path | None = None

    @property
    def log_dir(self) -> str | None:
        """The folder; all processes ask together."""
        first = self.loggers[0] if self.loggers else None
        if isinstance(first, TensorBoardLogger | CSVLogger) or "://" in str(self.default_root_dir):
            return super().log_dir
        if self._folder is None:
            mine = str(_new_version(Path(self.default_root_dir))) if self.is_global_zero else ""
            self._folder = Path(self.strategy.broadcast(mine))
        return str(self._folder)

    def reserve_folder(self, resumed: str | None) -> None:
        """Create the folder that a logger would choose, so that a run that starts at the same time takes another.

        Args:
            resumed: The checkpoint that a training goes on with.

        Raises:
            FileExistsError: If the folder was chosen by the user and has another training in it.
        """
        logger = self.loggers[0] if self.loggers else None
        if not isinstance(logger, TensorBoardLogger | CSVLogger) or "://" in str(logger.root_dir):
            return
        if not self.is_global_zero:
            return
        if logger._version is None:
            self._folder = _new_version(Path(logger.root_dir))
            logger._version = int(self._folder.name.removeprefix("version_"))
            return
        last = Path(logger.log_dir) / "checkpoints" / "last.ckpt"
        if last.exists() and (resumed is None or last.parent.resolve() != Path(resumed).parent.resolve()):
            raise FileExistsError(
                f"{logger.log_dir} has another training in it, which this one would overwrite: go on with it, "
                f"--ckpt_path {last}, or leave the version of the logger out"
            )

    def remove_folder_without_results(self) -> None:
        """Remove the folder of a run that failed before it had done anything."""
        if self._folder is not None and self.is_global_zero:
            files = [path for path in self._folder.rglob("*") if not path.is_dir()]
            if all(any(path.match(name) for name in WORTHLESS) for path in files):
                shutil.rmtree(self._folder, ignore_errors=True)


def _new_version(root: Path) -> Path:
    """A folder `version_N` that was not there before, also where two runs start at the same time."""
    numbers = [path.name.removeprefix("version_") for path in root.glob("version_*")]
    first = max([int(name) for name in numbers if name.isdigit()], default=-1) + 1
    for number in count(first):
        folder = root / f"version_{number}"
        try:
            folder.mkdir(parents=True)
        except FileExistsError:
            continue
        except OSError as error:
            raise OSError(
                f"cannot make the folder of the run: {error}. --trainer.default_root_dir gives another"
            ) from None
        break
    return folder
