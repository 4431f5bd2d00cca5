"""The one door: which layout a checkpoint has, and the networks in it, whoever wrote it."""

from __future__ import annotations

import json
import re
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any, ClassVar

from torch import Tensor

from jepa_lightning.checkpoint import CONFIG_KEY, read_any
from jepa_lightning.interop import safetensors_file
from jepa_lightning.interop.huggingface import load_huggingface
from jepa_lightning.interop.huggingface_files import local
from jepa_lightning.interop.meta import NETWORKS, meta_networks, read_meta
from jepa_lightning.interop.meta_probes import is_probe, load_probes
from jepa_lightning.interop.networks import Branch, Networks, family
from jepa_lightning.interop.own_layout import configuration, own_networks
from jepa_lightning.interop.timm import load_timm

States = dict[str, dict[str, Tensor]]
"""The tensors of each network (encoder, target_encoder, predictor, ...), under our names."""

SUFFIXES = {".ckpt", ".pt", ".pth", ".tar", ".bin", ".safetensors", ".yaml"}
"""Of files: what ends so is never looked for on the hub."""


class Layout(ABC):
    """A checkpoint of one kind; nothing of it is built until it is asked for.

    Attributes:
        title: What people call the layout.
        given: What may be said about the networks, because no file of this layout does.
        path: The file or the folder.
    """

    title: ClassVar[str]
    given: ClassVar[tuple[str, ...]] = ()

    def __init__(self, path: Path, content: Any = None) -> None:
        self.path, self.content = path, content

    def networks(self, branch: Branch = "target", predictor: bool = False, **given: Any) -> Networks:
        """One encoder, frozen, and the predictor if that is wanted and there.

        Args:
            branch: ``target`` is the EMA encoder, ``context`` the one that was trained; a layout that has only one
                gives that one and says so.
            predictor: Read the predictor too.
            **given: What the file does not say, num_heads for example; see ``given`` of the layout.

        Raises:
            TypeError: If something is given that this layout says itself.
            ValueError: If the file is damaged, or has no encoder.
        """
        unknown = sorted(set(given) - set(self.given))
        if unknown:
            can = f"can be given: {', '.join(self.given)}" if self.given else "has to be given: the file says it all"
            raise TypeError(f"{self.path} ({self.title}): {', '.join(unknown)} cannot be given. What {can}")
        return self._networks(branch, predictor, **given)

    @abstractmethod
    def _networks(self, branch: Branch, predictor: bool, **given: Any) -> Networks:
        """As above, with arguments that are right."""

    @abstractmethod
    def states(self) -> States:
        """All tensors; an encoder that stands for both is under both names."""

    def tensors(self) -> dict[str, Tensor]:
        """The same under the names that they have in a method: ``encoder.norm.weight``."""
        return {
            f"{network}.{name}": tensor for network, state in self.states().items() for name, tensor in state.items()
        }

    def family(self) -> str:
        """``I-JEPA``, ``V-JEPA``, ``V-JEPA 2`` or the class that was trained."""
        return family(self.networks().encoder)


class Own(Layout):
    """A ``.ckpt`` that `jepa fit` wrote."""

    title = "checkpoint of jepa_lightning"

    def _networks(self, branch: Branch, predictor: bool, **given: Any) -> Networks:
        return own_networks(self.path, self.content, branch, predictor)

    def states(self) -> States:
        """By the first part of the name; parameters of the method itself are under ``method``."""
        states: States = {}
        for name, tensor in self.tensors().items():
            network, _, rest = name.rpartition(".") if "." not in name else name.partition(".")
            states.setdefault(network or "method", {})[rest] = tensor
        return states

    def tensors(self) -> dict[str, Tensor]:
        """As they are in the file."""
        return {name: tensor for name, tensor in self.content["state_dict"].items() if isinstance(tensor, Tensor)}

    def family(self) -> str:
        """The class that was trained."""
        return str(configuration(self.path, self.content)["model"].get("class_path")).split(".")[-1]


class Meta(Layout):
    """A checkpoint of Meta's repositories, or one in their layout."""

    title = "checkpoint in Meta's layout"
    given = ("num_heads", "img_size", "predictor_num_heads", "num_frames", "rotary")

    def _networks(self, branch: Branch, predictor: bool, **given: Any) -> Networks:
        return meta_networks(self.path, branch, self.content, predictor, **given)

    def states(self) -> States:
        """Of the networks that are there."""
        return read_meta(self.path, self.content).networks

    def family(self) -> str:
        """By the tensors."""
        return read_meta(self.path, self.content).family


class MetaProbe(Layout):
    """Attentive probes of Meta's jepa and vjepa2."""

    title = "attentive probe in Meta's layout"

    def _networks(self, branch: Branch, predictor: bool, **given: Any) -> Networks:
        raise ValueError(
            f"{self.path} holds attentive probes, not an encoder: jepa_lightning.interop.meta_probes.load_probes reads "
            "them; `jepa validate --config attentive_probe.yaml --model.checkpoint ENCODER --ckpt_path` uses them"
        )

    def states(self) -> States:
        """Of each head."""
        heads = load_probes(self.path, self.content, num_heads=1)  # how many does not show in the tensors
        return {f"head {number}": head.state_dict() for number, head in enumerate(heads)}

    def family(self) -> str:
        """V-JEPA has one layer, V-JEPA 2 four."""
        return "V-JEPA 2" if any("pooler.blocks" in name for name in self.states()["head 0"]) else "V-JEPA"


class OneEncoder(Layout):
    """A layout that holds one encoder, perhaps with its predictor."""

    def states(self) -> States:
        """The encoder under both names."""
        networks = self._networks("target", True)
        states = {name: dict(networks.encoder.state_dict()) for name in ("encoder", "target_encoder")}
        if networks.predictor is not None:
            states["predictor"] = dict(networks.predictor.state_dict())
        return states


class HuggingFace(OneEncoder):
    """A folder as transformers writes and reads it."""

    title = "folder in Hugging Face's layout"

    def _networks(self, branch: Branch, predictor: bool, **given: Any) -> Networks:
        return load_huggingface(self.path)


class Timm(OneEncoder):
    """A file or folder of timm's ``vit_*_ijepa``."""

    title = "file in timm's layout"
    given = ("num_heads", "img_size")

    def _networks(self, branch: Branch, predictor: bool, **given: Any) -> Networks:
        return load_timm(self.path, **given)

    def states(self) -> States:
        """The encoder under both names."""
        state = load_timm(self.path, num_heads=1).encoder.state_dict()  # how many does not show in the tensors
        return {name: dict(state) for name in ("encoder", "target_encoder")}

    def family(self) -> str:
        """The only one that timm has."""
        return "I-JEPA"


class Safetensors(OneEncoder):
    """What `jepa export --to safetensors` wrote."""

    title = "safetensors file of jepa_lightning"

    def _networks(self, branch: Branch, predictor: bool, **given: Any) -> Networks:
        return safetensors_file.read_networks(self.path)


def is_hub_name(name: str) -> bool:
    """Whether this may be the name of a folder on Hugging Face's hub, ``owner/name``, and is none of a file."""
    return re.fullmatch(r"[\w-][\w.-]*/[\w-][\w.-]*", name) is not None and Path(name).suffix not in SUFFIXES


def open_layout(path: str | Path) -> Layout:
    """Find out what a checkpoint is, without building anything.

    Args:
        path: A file, a folder, or the name of a folder on Hugging Face's hub, downloaded if there is none here.

    Raises:
        FileNotFoundError: No such file, and nothing of that name on the hub.
        ValueError: Damaged, or of no known layout.
    """
    found = Path(path).expanduser()
    if not found.exists() and is_hub_name(str(path)):
        found = local(path)
    if found.is_dir():
        return _folder(found)
    if found.suffix == ".safetensors" or (found.is_file() and _begins_with_json(found)):
        return _safetensors(found)
    content = read_any(found)
    if CONFIG_KEY in content and isinstance(content.get("state_dict"), dict):
        return Own(found, content)
    if "state_dict" in content:
        raise ValueError(
            f"{found} holds no configuration of jepa_lightning: it was not made by `jepa fit`, but by "
            f"{_author(content)}. Build the module yourself and call "
            "load_state_dict(torch.load(path, weights_only=True)['state_dict'])"
        )
    if is_probe(content):
        return MetaProbe(found, content)
    if "patch_embed.proj.weight" in content:
        return Timm(found)
    if not set(NETWORKS) & set(content):
        read_meta(found, content)  # says what it lacks
    return Meta(found, content)


def _author(content: dict[str, Any]) -> str:
    version = content.get("pytorch-lightning_version")
    return f"another project with PyTorch Lightning {version}" if version else "another project"


def _folder(path: Path) -> Layout:
    about = path / "config.json"
    if not about.is_file():
        if (path / ".metadata").is_file():
            raise ValueError(
                f"{path} is a checkpoint in several parts (FSDP): make one file of it first, "
                f"python -m lightning.pytorch.utilities.consolidate_checkpoint {path}"
            )
        raise ValueError(
            f"{path} is a folder, not a checkpoint: give a file in it; Hugging Face and timm have a config.json"
        )
    try:
        config = json.loads(about.read_text())
    except ValueError as error:
        raise ValueError(f"{about} is no valid JSON: {error}") from error
    config = config if isinstance(config, dict) else {}
    if "model_type" in config:
        return HuggingFace(path, config)
    if "architecture" in config:
        return Timm(path, config)
    if {"encoder", "branch"} <= set(config):
        return Safetensors(path, config)
    raise ValueError(f"{about} is neither transformers' (model_type) nor timm's (architecture) nor ours (encoder)")


def _safetensors(path: Path) -> Layout:
    tensors, metadata = safetensors_file.read_tensors(path)
    if safetensors_file.KEY in metadata:
        return Safetensors(path)
    if "patch_embed.proj.weight" in tensors:
        return Timm(path)
    if (path.parent / "config.json").is_file():
        return _folder(path.parent)
    names = ", ".join(sorted(tensors)[:4])
    raise ValueError(
        f"{path} holds no network that is known here (its tensors: {names or 'none'}): Hugging Face's files need the "
        "config.json beside them"
    )


def _begins_with_json(path: Path) -> bool:
    """Whether it looks like safetensors: the length of the header, then the header."""
    with path.open("rb") as file:
        return file.read(9)[8:] == b"{"
