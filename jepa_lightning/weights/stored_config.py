"""The configuration inside a checkpoint is data from a stranger: it is read with limits, and describes only.

Sections ``model`` and ``data`` count, and of the rest a few numbers: how long a training is, how it was measured.
Every class must be of this package or of one that the user named. It can name no output, no logger, no callback and no
file of code.
"""

from __future__ import annotations

import collections.abc
import dataclasses
import inspect
import os
import re
import sys
import types
from collections.abc import Iterator, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import yaml

from jepa_lightning.weights.limits import as_number, check_data, check_heads
from jepa_lightning.weights.policy import DoesNotFit, NotTrusted, Unreadable, policy

PACKAGE = __name__.partition(".")[0]
LARGEST_TEXT, MOST_NODES, DEEPEST = 2**20, 100_000, 50
"""Bytes of a configuration; nodes of it, each as often as it occurs; levels."""
LENGTH = (
    *("max_epochs", "min_epochs", "max_steps", "min_steps", "limit_train_batches", "limit_val_batches"),
    *("val_check_interval", "check_val_every_n_epoch", "log_every_n_steps", "accumulate_grad_batches"),
    *("gradient_clip_val", "gradient_clip_algorithm", "precision", "deterministic"),
)
"""Options of the trainer that a resumed training needs; none names a place."""
MEASURES, MOST_MEASURED = ("max_train", "max_held_out", "k"), 10**9
"""Numbers of the probe: with others, an evaluation would not repeat what the training printed."""
WRITES = {"cache": None, "download": False}
"""Options of data that would write files, and what they are set to."""
LOADS = {"pretrained": False, "weights": None, "checkpoint_path": None, "teacher": None, "compile": False}
"""Options of networks that would load tensors from elsewhere, likewise: those in the file take their place anyway.
``compile`` would run a compiler of this machine."""
OPTIMIZERS = "torch.optim."
"""Beside those of trusted packages, these classes may be named: they are harmless, and there are no others for it."""
LARGEST_SCALAR, LARGEST_NUMBER = 4096, 64
"""Characters of a text, and of what may be a number: YAML reads ``1:1:1`` with base 60, which takes long."""
LARGEST_SEED = 2**32
NAME = re.compile(r"\w+(\.\w+){1,9}", re.ASCII)
"""Of a class."""
MOVED = {
    f"methods.{old}{name}": f"probing.{name}"
    for name, module in (
        ("AttentiveProbe", "probe."),
        ("FineTune", "finetune."),
        ("LinearProbe", "linear_probe."),
        ("PretrainedEncoder", "pretrained."),
    )
    for old in ("", module)
}
"""Classes that older checkpoints name at another place of this package."""
GONE = {"final_norm": True}
"""Options that older checkpoints name, and the value that is left of them."""
TEXTS = (str, int, float, bool, Path, Any)
"""What a text in a configuration may be, if it is not one of several words."""
CONTAINERS = (list, tuple, dict, set, bytes, complex, type(None))
Section = dict[str, Any]


def parse(path: Path, text: Any) -> Section:
    """The configuration of a training, as plain values.

    Args:
        path: The checkpoint, for messages.
        text: YAML.

    Returns:
        ``model``, ``data``, ``seed_everything``, ``trainer`` and ``probe``, of these two only numbers, and
        ``compiled``, whether the training compiled its networks; what is missing is empty.

    Raises:
        Unreadable: If it is damaged, or too large to be a configuration.
        NotTrusted: If it names a class of a package that the user did not name, or code as a string.
    """
    try:
        content = _load(text)
        model = dict(content["model"])
        data, trainer, probe = (dict(content.get(name) or {}) for name in ("data", "trainer", "probe"))
    except Unreadable as error:
        raise Unreadable(f"{path}: {error}") from error
    except (yaml.YAMLError, KeyError, TypeError, AttributeError, ValueError, ArithmeticError, RecursionError) as error:
        raise Unreadable(f"{path}: the configuration in it is damaged ({type(error).__name__})") from error
    seed = content.get("seed_everything")
    found = {
        "seed_everything": seed if isinstance(seed, int) and 0 <= seed < LARGEST_SEED else None,
        "model": without_side_effects(_moved(model), LOADS),
        "data": without_side_effects(_moved(data), WRITES),
        "trainer": {name: trainer[name] for name in LENGTH if isinstance(trainer.get(name), int | float | str)},
        "compiled": isinstance(model.get("init_args"), dict) and model["init_args"].get("compile") is True,
        "probe": {name: probe[name] for name in MEASURES if _measures(probe.get(name))},
    }
    check(path, found["model"], "model")
    if found["data"]:
        check(path, found["data"], "data")
        check_data(path, found["data"])
    check_heads(path, found["model"])
    return found


def _measures(value: Any) -> bool:
    return isinstance(value, int) and 0 < value < MOST_MEASURED


def _load(text: Any) -> Section:
    """Parse YAML of a limited size; an alias counts as what it stands for."""
    if not isinstance(text, str):
        raise TypeError("no text")
    if len(text) > LARGEST_TEXT:
        raise Unreadable(f"the configuration in it has {len(text):,} characters, which no configuration has")
    counts: dict[str | None, int] = {}
    total = 0
    stack: list[tuple[str | None, int]] = [
        (None, 0)
    ]  # anchors of the collections that are open, and the total before each
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    for event in yaml.parse(text, Loader=loader):
        anchor = getattr(event, "anchor", None)
        if isinstance(event, yaml.AliasEvent):
            if event.anchor not in counts:
                raise Unreadable("the configuration in it has an alias of itself")
            total += counts[event.anchor]
        elif isinstance(event, yaml.CollectionStartEvent):
            stack.append((anchor, total))
            total += 1
        elif isinstance(event, yaml.CollectionEndEvent):
            anchor, before = stack.pop()
            counts[anchor] = total - before
        elif isinstance(event, yaml.ScalarEvent):
            if len(event.value) > LARGEST_SCALAR or (
                event.implicit[0] and len(event.value) > LARGEST_NUMBER <= _digits(event.value)
            ):
                raise Unreadable(f"the configuration in it has a value of {len(event.value):,} characters")
            total += 1
            counts[anchor] = 1
        if total > MOST_NODES or len(stack) > DEEPEST:
            raise Unreadable(f"the configuration in it has more than {MOST_NODES:,} values or {DEEPEST} levels")
    content = yaml.load(text, Loader=loader)  # one of the safe loaders
    return dict(content)


def _digits(text: str) -> int:
    """How many characters of a text may be of a number, however YAML writes it."""
    return sum(character in "0123456789abcdefABCDEFxXoO_:+-." for character in text)


def _moved(value: Any) -> Any:
    """The same with the names and options that classes of this package have."""
    if isinstance(value, list):
        return [_moved(entry) for entry in value]
    if not isinstance(value, dict):
        return value
    value = {key: _moved(entry) for key, entry in value.items() if key not in GONE or GONE[key] != entry}
    path = value.get("class_path")
    if isinstance(path, str) and path.startswith(f"{PACKAGE}."):
        below = path.removeprefix(f"{PACKAGE}.")
        value["class_path"] = f"{PACKAGE}.{MOVED.get(below, below)}"
    return value


def without_side_effects(value: Any, resets: Mapping[str, Any]) -> Any:
    """The same without options that write, fetch or compile; loader processes are at most the cores of this machine.

    Args:
        value: A part of a configuration.
        resets: WRITES or LOADS.
    """
    if isinstance(value, list):
        return [without_side_effects(entry, resets) for entry in value]
    if not isinstance(value, dict):
        return value
    value = {
        key: resets[key] if key in resets and isinstance(entry, str | bool) else without_side_effects(entry, resets)
        for key, entry in value.items()
    }
    if isinstance(value.get("num_workers"), int):
        value["num_workers"] = max(0, min(value["num_workers"], os.cpu_count() or 1))
    return value


def data_title(data: Section) -> str:
    """The ``data`` section of a configuration in a few words: ``photos (ImageDataModule)``."""
    arguments = data.get("init_args") or {}
    source = arguments.get("source") or {}
    source = source if isinstance(source, dict) else {"class_path": source}
    kind, name = (str(part.get("class_path") or "").split(".")[-1] for part in (data, source))
    where = arguments.get("root") or (source.get("init_args") or {}).get("root")
    return f"{where or name or 'its own data'} ({kind})"


# ---------------------------------------------------------------------- classes


def check(path: Path, value: Any, place: str, hint: Any = object) -> None:
    """Check that a part of a configuration names only classes that it may, and each as ``class_path`` alone.

    Args:
        path: The checkpoint, for messages.
        value: The part.
        place: Where it stands in the configuration, for messages.
        hint: The annotation of the argument; None where it is not known.

    Raises:
        NotTrusted: If it names code of others, or code as a text.
        Unreadable: If it describes an object of a class that is not there, or that does not go there.
    """
    if isinstance(value, str):
        _check_text(path, value, place, hint)
    elif isinstance(value, list | tuple):
        for number, entry in enumerate(value):
            check(path, entry, f"{place}[{number}]", _inner(hint))
    elif isinstance(value, dict) and "class_path" in value:
        _check_class(path, value, place, hint)
    elif isinstance(value, dict):
        kind, kinds = _dataclass(hint), _kinds(hint)
        if kind is None and len(kinds) == 1 and _allowed(kinds[0].__module__) and not inspect.isabstract(kinds[0]):
            kind = kinds[0]  # one class only goes there, as the regulariser of LeJEPA: its name may be left out
        if kind is None and kinds:
            raise Unreadable(f"{path}: {place} describes an object without its class_path, which says what it is")
        _check_arguments(path, value, place, _arguments(kind) if kind else {}, takes_any=kind is None)


def _check_text(path: Path, value: str, place: str, hint: Any) -> None:
    texts = hint is None or any(part in TEXTS or get_origin(part) is Literal for part in _parts(hint))
    if not texts:
        raise NotTrusted(
            f"{path}: {place} is the text {value[:80]!r} where a class is described: a checkpoint must not name code "
            "or files of code; it was not loaded. Give a checkpoint that `jepa fit` wrote"
        )
    words = hint is None or any(part in (str, Path, Any) or get_origin(part) is Literal for part in _parts(hint))
    if not words and as_number(value) is None:  # a parser would read YAML in it, which nobody has checked
        raise DoesNotFit(f"{path}: {place} is the text {value[:80]!r} where a number goes: copy the file again")
    fetched = place.startswith(("model", "network")) and not place.endswith(".checkpoint")
    if fetched and (":" in value or (place.endswith(".name") and "/" in value)):
        raise NotTrusted(f"{path}: {place} is {value[:80]!r}: a checkpoint must not fetch a network from elsewhere")


def _check_class(path: Path, value: Section, place: str, hint: Any) -> None:
    name, arguments = value["class_path"], value.get("init_args") or {}
    if set(value) - {"class_path", "init_args"} or not isinstance(arguments, dict):
        there = ", ".join(map(str, value))[:200]
        raise Unreadable(f"{path}: {place} has {there}: a class has class_path and init_args alone")
    kind = resolve(path, name, place)
    wanted = _kinds(hint)
    if not issubclass(kind, wanted):
        names = " or ".join(each.__name__ for each in wanted) or "no class"
        raise Unreadable(f"{path}: {place} is of the class {name}, but {names} goes there")
    takes_any = any(each.kind is each.VAR_KEYWORD for each in inspect.signature(kind.__init__).parameters.values())
    _check_arguments(path, arguments, place, _arguments(kind), takes_any)


def _check_arguments(path: Path, arguments: Section, place: str, hints: dict[str, Any], takes_any: bool) -> None:
    """Check the options of an object by their annotations, and that it has them unless it ``takes_any``."""
    for key, entry in arguments.items():
        name = repr(str(key)[:80])[1:-1]  # it goes to a terminal
        if key not in hints and not takes_any:
            raise Unreadable(f"{path}: {place} has the option {name}, which its class does not have in this version")
        check(path, entry, f"{place}.{name}", hints.get(key))


def resolve(path: Path, name: Any, place: str) -> type:
    """The class of this name, which must be in this package or in one that the user named, or be an optimizer.

    Raises:
        NotTrusted: If it is not; nothing is imported then.
        Unreadable: If there is no such class.
    """
    package = str(name).partition(".")[0][:100]
    if not _allowed(str(name)):
        raise NotTrusted(
            f"{path}: {place} is of the class {str(name)[:100]}, which is not of jepa_lightning: nothing was imported. "
            f"If you trust that package and this file: --trust {package} (in Python trust={package!r})"
        )
    found = _found(name) if NAME.fullmatch(name) else None
    if not inspect.isclass(found) or not _allowed(found.__module__):
        raise Unreadable(f"{path}: {place} is of the class {name[:100]!r}, which is not in this version of {package}")
    return found


def _allowed(name: str) -> bool:
    return name.partition(".")[0] in {PACKAGE, *policy().packages} or name.startswith(OPTIMIZERS)


def _found(name: str) -> Any:
    """What has this name; None if nothing has."""
    module, attributes = name, list[str]()
    while module:
        try:
            found: Any = sys.modules.get(module) or import_module(module)
            for attribute in attributes:
                found = getattr(found, attribute)
            return found
        except (ImportError, AttributeError):
            module, _, last = module.rpartition(".")
            attributes.insert(0, last)
    return None


def _arguments(kind: Any) -> dict[str, Any]:
    """Annotations of the constructor arguments of a class, those of its parents included."""
    found: dict[str, Any] = {}
    for base in reversed(inspect.getmro(kind)):
        if "__init__" in vars(base):
            found |= dict.fromkeys(inspect.signature(base.__init__).parameters)  # type: ignore[misc]
            try:
                found |= get_type_hints(base.__init__)  # type: ignore[misc]
            except (NameError, TypeError, AttributeError):  # an annotation that only type checkers can resolve
                continue
    return found


def _parts(hint: Any) -> Iterator[Any]:
    """What a hint can be: the members of a union."""
    if get_origin(hint) in (Union, types.UnionType):
        for part in get_args(hint):
            yield from _parts(part)
    else:
        yield hint


def _kinds(hint: Any) -> tuple[type, ...]:
    """The classes whose objects an argument takes; of a factory, those whose objects it makes."""
    found: list[type] = []
    for part in _parts(hint):
        if get_origin(part) is collections.abc.Callable:
            found += _kinds(get_args(part)[-1])
        elif get_origin(part) is None and inspect.isclass(part) and part not in (*TEXTS, *CONTAINERS):
            found.append(part)
    return tuple(found)


def _inner(hint: Any) -> Any:
    """The annotation of the entries of a sequence."""
    for part in _parts(hint):
        if get_args(part) and get_origin(part) is not Literal:
            return get_args(part)[0]
    return None


def _dataclass(hint: Any) -> Any:
    return next((part for part in _parts(hint) if dataclasses.is_dataclass(part)), None)
