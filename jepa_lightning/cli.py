"""The `jepa` command: shipped configurations found by name, LightningCLI wired with our base classes, short errors."""

from __future__ import annotations

import re
import signal
import sys
from collections.abc import Sequence

from jsonargparse import lazy_instance  # type: ignore[attr-defined]  # not in its __all__
from lightning.pytorch.loggers import TensorBoardLogger

from jepa_lightning import __version__, callbacks, commands, weights
from jepa_lightning.callbacks.signals import signals_end_the_command
from jepa_lightning.commands.configs import with_shipped_configs
from jepa_lightning.commands.find import with_named_option
from jepa_lightning.commands.messages import JepaParser, quieten, told
from jepa_lightning.commands.stored import trusted_packages, with_checkpoint
from jepa_lightning.data import JEPADataModule
from jepa_lightning.lightning_cli import JepaCLI
from jepa_lightning.methods import Method
from jepa_lightning.strategies import FSDP2Strategy as FSDP2Strategy  # registers --trainer.strategy fsdp2
from jepa_lightning.trainer import RunTrainer


def main(args: Sequence[str] | None = None) -> None:
    """Run the command line: `jepa fit|validate|test|predict`, or one of commands.COMMANDS.

    Args:
        args: Arguments; those of the process if None.
    """
    quieten()
    given, sys.argv = sys.argv, [sys.argv[0], *with_named_option(sys.argv[1:] if args is None else args)]
    try:
        with signals_end_the_command():
            if not commands.run(sys.argv[1:]):
                run([re.sub(r"^--model\.init_from\b", "--init_from", argument) for argument in sys.argv[1:]])
    except Exception as error:
        sys.exit(told(error))
    except KeyboardInterrupt:
        sys.exit(128 + signal.SIGINT)
    except SystemExit as stop:
        if isinstance(stop.__context__, KeyboardInterrupt):  # Lightning leaves with 1
            sys.exit(128 + signal.SIGINT)
        raise
    finally:
        sys.argv = given


def run(arguments: Sequence[str]) -> None:
    """Run one of Lightning's commands, on what a checkpoint says where the arguments do not.

    Args:
        arguments: Those after `jepa`.
    """
    named = with_shipped_configs(arguments)
    with weights.trusting(*trusted_packages(named), allow_non_finite="--allow_non_finite" in named):
        call = with_checkpoint(named)  # holds the checkpoint, which is read once
        sys.argv[1:] = call.arguments  # processes that Lightning starts take it from there
        JepaCLI(
            Method,
            JEPADataModule,
            trainer_class=RunTrainer,
            save_config_callback=callbacks.SaveConfig,
            save_config_kwargs={"overwrite": True},
            trainer_defaults={
                "default_root_dir": "runs",
                "logger": lazy_instance(TensorBoardLogger, save_dir="runs", name="jepa"),
            },
            seed_everything_default=0,
            parser_kwargs={"prog": "jepa", "version": __version__, "description": __doc__, **commands.DESCRIPTIONS},
            parser_class=JepaParser,
            subclass_mode_model=True,
            subclass_mode_data=True,
            auto_configure_optimizers=False,
        )
