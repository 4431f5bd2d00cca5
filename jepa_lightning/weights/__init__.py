"""Checkpoints of every format: ``open(path)`` reads a file once and says what it is. Nothing in a file is executed.

A format is one file here: a subclass of Weights with ``claims`` and its networks, and its name in FORMATS.
"""

from __future__ import annotations

from pathlib import Path
from weakref import WeakValueDictionary

from jepa_lightning.weights.base import Hints, Progress, Weights
from jepa_lightning.weights.file import is_hub_name, read
from jepa_lightning.weights.huggingface import HuggingFace
from jepa_lightning.weights.meta import Meta
from jepa_lightning.weights.meta_probes import MetaProbe
from jepa_lightning.weights.networks import Branch, Networks
from jepa_lightning.weights.ours import Own
from jepa_lightning.weights.policy import (
    CheckpointError,
    DoesNotFit,
    HintNeeded,
    NotTrusted,
    Policy,
    UnknownFormat,
    Unreadable,
    policy,
    trusting,
)
from jepa_lightning.weights.safetensors_file import Safetensors
from jepa_lightning.weights.timm import Timm

__all__ = [
    "FORMATS",
    "Branch",
    "CheckpointError",
    "DoesNotFit",
    "HintNeeded",
    "Hints",
    "Networks",
    "NotTrusted",
    "Progress",
    "UnknownFormat",
    "Unreadable",
    "Weights",
    "is_hub_name",
    "open",
    "trusting",
]

FORMATS: tuple[type[Weights], ...] = (Own, MetaProbe, Safetensors, HuggingFace, Timm, Meta)
"""In the order in which ``claims`` is called."""

_held: WeakValueDictionary[tuple[str, int, int, Policy], Weights] = WeakValueDictionary()
"""By place, time, size, and what was allowed."""


def open(path: str | Path) -> Weights:
    """Read a checkpoint and find its format; no network is built yet.

    A file whose Weights are still in use is not read again, unless it has changed.

    Args:
        path: A file, a folder, or the name of a folder on Hugging Face's hub, downloaded if it is no folder here.

    Raises:
        FileNotFoundError: No such file, and nothing of that name on the hub.
        Unreadable: The file is damaged, or would run code.
        UnknownFormat: The file is in no known format.
        NotTrusted: The file names classes of a package that the user did not name.
    """
    place = Path(path).expanduser()
    about = place.stat() if place.is_file() else None
    key = (str(place.resolve()), about.st_mtime_ns, about.st_size, policy()) if about else None
    if key is not None and (known := _held.get(key)) is not None:
        return known
    file = read(path)
    kind = next((kind for kind in FORMATS if kind.claims(file)), None)
    if kind is None:
        raise UnknownFormat(_unknown(file.path, file.content, file.config))
    weights = kind(file)
    if key is not None:
        _held[key] = weights
    return weights


def _unknown(path: Path, content: dict[object, object], config: dict[str, object]) -> str:
    """Why no format claims a file."""
    if "state_dict" in content:
        version = content.get("pytorch-lightning_version")
        author = f"another project with PyTorch Lightning {version}" if version else "another project"
        return (
            f"{path} holds no configuration of jepa_lightning: it was not made by `jepa fit`, but by {author}. Build "
            "the module yourself and call load_state_dict(torch.load(path, weights_only=True)['state_dict'])"
        )
    if path.is_dir():
        return (
            f"{path / 'config.json'} is neither transformers' (model_type) nor timm's (architecture) nor ours "
            f"(encoder): it has {', '.join(sorted(map(str, config))[:6]) or 'nothing'}"
        )
    names = ", ".join(sorted(str(name)[:40] for name in content)[:8])
    return (
        f"{path} is a checkpoint of no known format; it holds {names or 'nothing'}. Known are files of `jepa fit`, of "
        "Meta (encoder, target_encoder), of timm, and folders of Hugging Face with the config.json beside the tensors"
    )
