"""Completes a command line with what its checkpoint says; options of the user win, differences are printed.

`jepa fit|validate|test|predict` take arguments in this order: the configurations that were named, then what the
checkpoint says of its networks and its data set, then the options on the command line.

| | from the checkpoint | from ``--config`` | from options |
|---|---|---|---|
| networks (sizes, blocks, positions), seed | always | - | ``--model...``, ``--seed_everything`` |
| data set, mean and standard deviation | unless options name another | if the checkpoint has none | ``--data...`` |
| learning rates, masks, augmentation, batch size, trainer | without ``--config`` | with ``--config`` | all |
| logger, callbacks, folders | never | with ``--config`` | all |
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from lightning.pytorch.utilities import rank_zero_info

from jepa_lightning import weights
from jepa_lightning.commands.find import find_checkpoint, has_encoder, option_values
from jepa_lightning.commands.stored_folders import check_folders
from jepa_lightning.weights import CheckpointError, Weights
from jepa_lightning.weights.stored_config import data_title, parse

COMMANDS = ("fit", "validate", "test", "predict")
KEY_WORDS = ("last", "best", "hpc")
"""Of Lightning: it finds the file itself."""
NETWORKS = ("encoder", "predictor", "projector")
"""Arguments of methods that make networks, whose tensors a checkpoint has."""
DATA_SET = ("source", "root", "normalization")
"""Arguments of data modules that say which pictures there are, and how an encoder wants them."""
UNIMPORTANT = ("num_workers", "cache", "download", "pretrained", "checkpoint", "class_path")
"""Options that do not change the results, or are reset on purpose."""
Section = dict[str, Any]


class Call(NamedTuple):
    """A command line after a look at the checkpoint that it names.

    Attributes:
        arguments: The arguments, with the path of the checkpoint and with what it says.
        opened: The checkpoint, held so that it is read once; None if none was named.
    """

    arguments: list[str]
    opened: Weights | None = None


def with_checkpoint(arguments: Sequence[str]) -> Call:
    """Find and open the checkpoint that a command line names, and let it say its networks and its data set.

    Args:
        arguments: Those of the process, without its name; configurations are paths or YAML text.

    Raises:
        FileNotFoundError: No such checkpoint.
        CheckpointError: If it cannot be read, or is for something else.
    """
    given = list(arguments)
    if not given or given[0] not in COMMANDS or {"-h", "--help", "--print_config"} & set(given):
        return Call(given)
    config = _merged(option_values(given, "--config") + option_values(given, "-c"))
    root = (option_values(given, "--trainer.default_root_dir") or ["runs"])[-1]
    kind = (option_values(given, "--model") or [_kind(config.get("model") or {})])[-1].split(".")[-1]
    probed = option_values(given, "--model.checkpoint")
    if not probed and isinstance(named := _arguments(config.get("model")).get("checkpoint"), str):
        probed, given = [named], [*given, f"--model.checkpoint={named}"]
    if probed:
        path = find_checkpoint(probed[-1], root, "--model.checkpoint", has_encoder)
        given = _replaced(given, "--model.checkpoint", path)
    if names := option_values(given, "--ckpt_path"):
        if names[-1] in KEY_WORDS or "://" in names[-1]:
            return Call(given)
        path = find_checkpoint(names[-1], root, wanted=lambda model: not kind or _kind(model) in (kind, ""))
        given = _replaced(given, "--ckpt_path", path)
        if option_values(given, "--init_from"):
            raise CheckpointError("--ckpt_path goes on with a training, --init_from starts one: give one of them")
        if (Path(path) / ".metadata").is_file() and path in option_values(given, "--trust"):  # parts of FSDP
            return _resumed(given, path, config, _beside(Path(path)), None)
        opened = weights.open(path)
        return _resumed(given, str(opened.path), config, opened.config, opened)
    if probed:
        opened = weights.open(path)
        return Call(_probing(given, path, config, opened.config), opened)
    if names := option_values(given, "--init_from"):  # opened here, before a run has a folder
        path = find_checkpoint(names[-1], root, "--init_from", lambda model: not kind or _kind(model) in (kind, ""))
        return Call(_replaced(given, "--init_from", path), weights.open(path))
    return Call(given)


def data_section(config: Section | None, opened: Weights, arguments: Sequence[str]) -> Section | None:
    """The ``data`` section for the evaluation of a checkpoint; None if only options give one.

    Args:
        config: A configuration that was named, if one was.
        opened: The checkpoint.
        arguments: The command line.

    Raises:
        CheckpointError: If nothing says on which data.
    """
    stored, named = opened.config.get("data"), (config or {}).get("data")
    if named and stored and data_title(named) != data_title(stored) and not _names_data(arguments):
        rank_zero_info(f"{opened.path} was trained on {data_title(stored)}; data of {data_title(named)} are used")
    if stored and _names_data(arguments):
        rank_zero_info(f"{opened.path} was trained on {data_title(stored)}; the data of the options are used")
    if section := named or stored:
        if not named and not _names_data(arguments):
            check_folders(opened.path, stored)
        return _without_hidden_source(dict(section), arguments)
    if not option_values(arguments, "--data"):
        raise CheckpointError(
            f"{opened.path} does not say on which data: give --config NAME, whose data section is used, or --data "
            "ImageDataModule --data.root FOLDER (VideoDataModule for videos)"
        )
    return None


# ---------------------------------------------------------------------- resuming or evaluating a checkpoint


def _resumed(given: list[str], path: str, config: Section, stored: Section, opened: Weights | None) -> Call:
    if not stored:
        if not config.get("model") and not option_values(given, "--model"):
            raise CheckpointError(
                f"--ckpt_path {path} holds no configuration: say on which data, with --config NAME (its encoder is "
                "then evaluated on the data of that configuration)"
            )
        return Call(given, opened)
    named, kept = _kind(config.get("model") or {}), _kind(stored["model"])
    if option_values(given, "--model"):
        return Call(given, opened)
    if not named:
        return Call(_with(given, _whole(given[0], path, stored, given)), opened)
    if named != kept:
        raise CheckpointError(
            f"--ckpt_path {path} holds {kept}, the configuration is for {named}: leave out --config to take the model "
            f"from the checkpoint, or give it as --init_from or --model.checkpoint"
        )
    overlay: Section = {"seed_everything": stored["seed_everything"]} if stored["seed_everything"] is not None else {}
    mine = {k: v for k, v in (stored["model"].get("init_args") or {}).items() if k in NETWORKS and v is not None}
    _say_sizes(path, config["model"].get("init_args") or {}, mine)
    overlay["model"] = {"class_path": stored["model"]["class_path"], "init_args": mine}
    data = _data_set(given, config.get("data") or {}, stored["data"], path)
    return Call(_with(given, {**overlay, **({"data": data} if data else {})}), opened)


def _whole(command: str, path: str, stored: Section, given: Sequence[str]) -> Section:
    """A configuration in place of one that was not named."""
    data = _without_hidden_source(dict(stored["data"]), given)
    if not _names_data(given):
        check_folders(path, data)
    trainer = dict(stored["trainer"]) if command == "fit" else {}
    if command == "fit" and stored["compiled"] and not option_values(given, "--model.compile"):
        rank_zero_info(f"{path} was trained with torch.compile, which no file starts: --model.compile true does")
    if logger := _logger_beside(Path(path)):
        trainer["logger"] = logger
    named = option_values(given, "--model.checkpoint")
    model = stored["model"] if named else _with_encoder(path, stored["model"])
    whole = {"model": model, "data": data, "trainer": trainer, "probe": stored["probe"]}
    return {name: value for name, value in {"seed_everything": stored["seed_everything"], **whole}.items() if value}


def _without_hidden_source(data: Section, given: Sequence[str]) -> Section:
    """The section without the root of the training where an option names a source, which the root would hide."""
    if option_values(given, "--data.source") and not option_values(given, "--data.root"):
        data["init_args"] = {**(data.get("init_args") or {}), "root": None}
    return data


def _with_encoder(path: str, model: Section) -> Section:
    """The model section; a probe's names the file of its encoder as it is found from here."""
    arguments = model.get("init_args") or {}
    if not isinstance(arguments.get("checkpoint"), str):
        return model
    from jepa_lightning.weights.ours import found_beside

    return {**model, "init_args": {**arguments, "checkpoint": str(found_beside(Path(path), arguments["checkpoint"]))}}


def _logger_beside(path: Path) -> Section | None:
    """A TensorBoard log beside that of the run that a checkpoint is in, ``runs/NAME/version_0/checkpoints/FILE``."""
    folders = [folder.name for folder in path.absolute().parents]
    if len(folders) < 4 or folders[0] != "checkpoints" or not folders[1].startswith("version_"):
        return None
    place = path.parents[3] if len(path.parents) > 3 else path.absolute().parents[3]
    log = {"save_dir": str(place), "name": folders[2], "default_hp_metric": False}
    return {"class_path": "lightning.pytorch.loggers.TensorBoardLogger", "init_args": log}


def _say_sizes(path: str, named: Section, mine: Section) -> None:
    """One line about the sizes of networks in which the configuration differs from the checkpoint."""
    found = []
    for name, section in mine.items():
        of_config = (named.get(name) or {}).get("init_args") or {} if isinstance(named.get(name), dict) else {}
        of_file = section.get("init_args") or {}
        found += [
            f"{name}.{key} {of_file.get(key)} ({value} in the configuration)"
            for key, value in of_config.items()
            if key in of_file and isinstance(value, int) and of_file[key] != value
        ]
    if found:
        rank_zero_info(f"--ckpt_path {path} keeps its own sizes: {', '.join(found)}")


def changes(stored: Section, chosen: Section) -> list[str]:
    """Options in which a configuration differs from that of a checkpoint: ``data.batch_size 64 (was 16)``.

    Args:
        stored: Sections of the checkpoint.
        chosen: The same sections, resolved; sections, classes and options that only one of the two has do not count.
    """
    found = []
    for name, before in _leaves({section: stored.get(section) for section in ("model", "data")}):
        value: Any = chosen
        for key in name.split("."):
            value = value.get(key) if isinstance(value, dict) else None
        if value is not None and name.split(".")[-1] not in UNIMPORTANT and _plain(value) != before:
            found.append(f"{name.replace('.init_args', '')} {_plain(value)} (was {before})")
    return found


def _leaves(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict):
        for key, entry in value.items():
            yield from _leaves(entry, f"{name}.{key}".lstrip("."))
    elif value is not None:
        yield name, _plain(value)


def _plain(value: Any) -> Any:
    return [_plain(entry) for entry in value] if isinstance(value, list | tuple) else value


# ---------------------------------------------------------------------- the data set


def _probing(given: list[str], path: str, config: Section, stored: Section) -> list[str]:
    """A probe's data set is that of the encoder's training, unless told another."""
    named = config.get("data") or {}
    if not stored.get("data"):
        if not _names_data(given) and named:
            rank_zero_info(
                f"--model.checkpoint {path} does not say its data set: the probe learns from that of the "
                f"configuration, {data_title(named)}; --data.root FOLDER gives another"
            )
        return given
    data = _data_set(given, named, stored["data"], path, "--model.checkpoint")
    return _with(given, {"data": data}) if data else given


def _data_set(
    given: Sequence[str], named: Section, stored: Section, path: str, option: str = "--ckpt_path"
) -> Section | None:
    """The part of the stored ``data`` section that is used beside a configuration; None if nothing is."""
    if not stored or option_values(given, "--data"):
        return None
    arguments = stored.get("init_args") or {}
    kept = {name: arguments[name] for name in DATA_SET if name in arguments}
    if isinstance(inputs := arguments.get("inputs"), dict):  # of clips
        kept["inputs"] = {name: inputs[name] for name in ("mean", "std") if name in inputs}
    if _names_data(given):
        kept = {name: value for name, value in kept.items() if name not in ("source", "root")}
        if option_values(given, "--data.source"):
            kept["root"] = None
    else:
        check_folders(path, kept)
    if not _names_data(given) and named and data_title(named) != data_title(stored):
        rank_zero_info(_kept(f"{option} {path}", "the configuration", data_title(stored), data_title(named)))
    if not named or _kind(named) == _kind(stored):
        return {"class_path": stored["class_path"], "init_args": kept}
    others = {name: arguments[name] for name in ("clips", "transform") if name in arguments}
    return {"class_path": stored["class_path"], "init_args": {**others, **kept, "masks": None}}


def _kept(who: str, other: str, stored: str, named: str) -> str:
    return f"{who}: its own data set is used, {stored}, not that of {other}, {named}; --data.root FOLDER gives another"


def _names_data(arguments: Sequence[str]) -> bool:
    """Whether options name a data set."""
    return any(_is_of(argument, name) for argument in arguments for name in ("--data.root", "--data.source", "--data"))


def _is_of(argument: str, name: str) -> bool:
    option = argument.partition("=")[0].replace(".init_args", "")
    return option == name or (name != "--data" and option.startswith(f"{name}."))


# ---------------------------------------------------------------------- command lines and YAML


def trusted_packages(arguments: Sequence[str]) -> set[str]:
    """Packages of the classes that the user named, in configurations and options: they may be in a checkpoint too.

    The folder of a configuration becomes importable, so that a method can stand beside it; with ``--trust`` also this
    folder.
    """
    files = [Path(name) for name in option_values(arguments, "--config") + option_values(arguments, "-c")]
    trusted = option_values(arguments, "--trust")
    folders = [file.parent for file in files if _is_file(file)] + [Path()] * bool(trusted)
    sys.path += [folder for folder in dict.fromkeys(str(each.resolve()) for each in folders) if folder not in sys.path]
    config = _merged([str(file) for file in files])
    words = [*_strings({section: config.get(section) for section in ("model", "data")})]
    for argument in arguments:  # --model.encoder=mypackage.Encoder
        option, _, value = argument.partition("=")
        path = option.split(".")[-1] in ("root", "checkpoint", "cache")
        words += [value] * (option.startswith(("--model", "--data")) and not path)
    words += [value for option in ("--model", "--data") for value in option_values(arguments, option)]
    classes = [word for word in words if re.fullmatch(r"([A-Za-z_]\w*\.)+[A-Z]\w*", word)]
    return {*trusted, *(name.partition(".")[0] for name in classes)}


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:  # YAML text is no name of a file
        return False


def _strings(value: Any, key: str = "") -> Iterator[str]:
    if isinstance(value, dict):
        for name, entry in value.items():
            yield from _strings(entry, str(name))
    elif isinstance(value, list):
        for entry in value:
            yield from _strings(entry)
    elif isinstance(value, str) and key == "class_path":
        yield value


def _merged(names: Sequence[str]) -> Section:
    """The top-level sections of several configurations; later ones win."""
    found: Section = {}
    for name in names:
        text = Path(name).read_text(encoding="utf-8") if _is_file(Path(name)) else name
        content = yaml.safe_load(text)
        found |= content if isinstance(content, dict) else {}
    return found


def _kind(section: Section) -> str:
    return str(section.get("class_path") or "").split(".")[-1] if isinstance(section, dict) else ""


def _arguments(section: Any) -> Section:
    arguments = section.get("init_args") if isinstance(section, dict) else None
    return arguments if isinstance(arguments, dict) else {}


def _beside(path: Path) -> Section:
    """The configuration that a run left beside a folder of several parts; empty without one."""
    file = path.parent.parent / "config.yaml"
    return parse(file, file.read_text(encoding="utf-8")) if file.is_file() else {}


def _replaced(arguments: Sequence[str], option: str, value: str) -> list[str]:
    """The arguments with another value of an option, at its place; ``--option VALUE`` and ``--option=VALUE``."""
    found, skip = [], False
    for argument in arguments:
        name, equals, _ = argument.partition("=")
        if skip:
            skip = False
            continue
        if name == option:
            skip = not equals
            argument = f"{option}={value}"
        found.append(argument)
    return found


def _with(arguments: Sequence[str], overlay: Section) -> list[str]:
    """Configurations first, then what the checkpoint says, then all other options."""
    command, *rest = arguments
    configs: list[str] = []
    others: list[str] = []
    taking = False
    for argument in rest:
        name, equals, _ = argument.partition("=")
        if argument.startswith("-"):
            taking = name in ("--config", "-c")
        (configs if taking else others).append(argument)
        taking = taking and not equals
    return [command, *configs, f"--config={yaml.safe_dump(overlay, sort_keys=False)}", *others]
