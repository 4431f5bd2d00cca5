"""LightningCLI with the observers, checkpoints of every format and a folder for each run."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import torch
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.utilities import rank_zero_info

from jepa_lightning import callbacks, commands, weights
from jepa_lightning.checkpoint_io import AtomicCheckpointIO, WeightsIO
from jepa_lightning.commands.adopt import adopt
from jepa_lightning.commands.messages import JepaParser, condense
from jepa_lightning.commands.options import NON_FINITE, TRUST
from jepa_lightning.commands.stored import KEY_WORDS, changes
from jepa_lightning.commands.stored_folders import make_absolute
from jepa_lightning.data.workers import available_cores
from jepa_lightning.explore.maps import Maps
from jepa_lightning.loading import start_from
from jepa_lightning.probing import PretrainedEncoder
from jepa_lightning.ranges import at_least, within
from jepa_lightning.trainer import RunTrainer
from jepa_lightning.weights import Weights

OBSERVERS = {
    "checkpoints": callbacks.Checkpoints,
    "probe": callbacks.Probe,
    "pictures": callbacks.Pictures,
    "monitor": callbacks.Monitor,
    "health": callbacks.Health,
    "alarm": callbacks.Alarm,
    "progress": callbacks.ProgressBar,
    "waiting": callbacks.Waiting,
    "features": callbacks.FeatureWriter,
    "maps": Maps,
    "report": callbacks.Report,
    "verdict": callbacks.Verdict,
}
"""Always there, each configured under its name: `--probe.k 10`."""


class JepaCLI(LightningCLI):
    """LightningCLI wired once for all methods."""

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add the observers."""
        for name, observer in OBSERVERS.items():
            parser.add_lightning_class_args(observer, name)
        parser.add_argument(
            "--init_from",
            type=str | None,
            default=None,
            help="fit: start a new training from the networks and optimizer state of this checkpoint (a cool-down at "
            "another resolution, other data); --ckpt_path instead goes on with the same training.",
        )
        parser.add_argument(
            "--init_optimizer",
            type=bool,
            default=True,
            help="With --init_from: also take the optimizer state, if there is one; false: the optimizer starts anew.",
        )
        parser.add_argument("--trust", action="append", default=[], help=f"Name of a {TRUST}.")
        parser.add_argument("--allow_non_finite", action="store_true", help=f"{NON_FINITE.capitalize()}.")

    def _add_subcommands(self, parser: LightningArgumentParser, **kwargs: Any) -> None:
        """List the other commands beside Lightning's, for `jepa --help` and for typing errors."""
        super()._add_subcommands(parser, **kwargs)
        for name, command in commands.COMMANDS.items():
            cast(Any, parser)._subcommands_action.add_subcommand(name, JepaParser(), help=command.summary)

    def _parse_ckpt_path(self) -> None:
        """Check the checkpoint; Lightning's own lets hyper-parameters in it overrule the command line."""
        config = self.config[self.config.subcommand]
        self.opened: Weights | None = None
        if config.get("ckpt_path"):
            if config.weights_only is None:  # Lightning would unpickle anything
                config.weights_only = True
            in_parts = (Path(config.ckpt_path) / ".metadata").is_file() and config.ckpt_path in config.trust  # of FSDP
            if config.ckpt_path not in KEY_WORDS and "://" not in config.ckpt_path and not in_parts:
                self.opened = weights.open(config.ckpt_path)
                adopt(config, self.opened, fitting=self.config.subcommand == "fit")

    def before_instantiate_classes(self) -> None:
        """Pick the precision that suits the machine, unless one was asked for."""
        trainer, model = self.config[self.subcommand].trainer, self.config[self.subcommand].model
        make_absolute(self.config[self.subcommand].data)  # as the configuration in checkpoints has them
        at_least(1, **{"trainer.accumulate_grad_batches": trainer.accumulate_grad_batches})
        on_cpu = trainer.accelerator == "cpu" or not torch.cuda.is_available()
        if on_cpu and str(trainer.devices).isdigit():  # there devices are processes, and Lightning starts any number
            within(1, max(2, available_cores()), **{"trainer.devices": int(trainer.devices)})
        if self.opened is not None and self.opened.config:
            chosen = {name: self.config[self.subcommand][name].as_dict() for name in ("model", "data")}
            if differing := changes(self.opened.config, chosen):
                rank_zero_info(f"otherwise than in the training of {self.opened.path}: {', '.join(differing)}")
        arguments = self.config[self.subcommand].data.get("init_args", {})
        if model.class_path.endswith(f".{PretrainedEncoder.__name__}") and "masks" in arguments:
            arguments["masks"] = (
                None  # it predicts nothing, and the grid may be too small for those of the configuration
            )
        if trainer.precision is None:
            on_gpu = trainer.accelerator in ("auto", "gpu", "cuda") and torch.cuda.is_available()
            bf16 = on_gpu and torch.cuda.is_bf16_supported(including_emulation=False)
            trainer.precision = "bf16-mixed" if bf16 else "32-true"
        if trainer.enable_progress_bar is False or trainer.barebones:  # Lightning refuses a bar beside these
            self._parser(self.subcommand).callback_keys.remove("progress")

    def after_instantiate_classes(self) -> None:
        """Write checkpoints atomically, unless a plug-in writes them; read those of other formats."""
        if type(self.trainer.strategy.checkpoint_io) is TorchCheckpointIO:
            foreign = self.opened is not None and not self.opened.by_lightning
            io = WeightsIO(self.model, self.opened) if foreign and self.opened else AtomicCheckpointIO()
            self.trainer.strategy.checkpoint_io = io

    def _run_subcommand(self, subcommand: str) -> None:
        """Run in a folder that is this run's alone; one that fails before it has done anything leaves none."""
        trainer = cast(RunTrainer, self.trainer)
        if not trainer.fast_dev_run:  # type: ignore[attr-defined]  # which has no logger
            trainer.reserve_folder(self.config[subcommand].ckpt_path)
        try:
            super()._run_subcommand(subcommand)
        except RuntimeError as error:
            trainer.remove_folder_without_results()
            if self.opened is not None and str(error).startswith("Error(s) in loading state_dict"):
                raise weights.DoesNotFit(f"{self.opened.path}: {condense(str(error))}") from error
            raise
        except BaseException:
            trainer.remove_folder_without_results()
            raise

    def before_fit(self) -> None:
        """Start from another training, if that was asked for; a resumed run has all that in its checkpoint."""
        config = self.config[self.subcommand]
        if not config.init_from or config.ckpt_path:
            return
        moments = start_from(self.model, weights.open(config.init_from))
        for callback in self.trainer.callbacks:  # type: ignore[attr-defined]
            if isinstance(callback, callbacks.Probe):
                callback.start = Path(config.init_from).name
        if config.init_optimizer:
            self.trainer.callbacks.append(callbacks.OptimizerState(moments))  # type: ignore[attr-defined]

    def validate(self, **kwargs: Any) -> None:
        """`jepa validate`; the probe prints a better table than Lightning."""
        self.trainer.validate(**{**kwargs, "verbose": False})

    def test(self, **kwargs: Any) -> None:
        """`jepa test`, likewise."""
        self.trainer.test(**{**kwargs, "verbose": False})

    def predict(self, **kwargs: Any) -> None:
        """`jepa predict`; features go to a file, not into memory."""
        self.trainer.predict(**{**kwargs, "return_predictions": False})
