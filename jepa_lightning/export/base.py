"""What a format of `jepa export` has to say and do, and the reasons and texts that several formats share."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable
from importlib.util import find_spec
from pathlib import Path
from typing import ClassVar

from torch import nn

from jepa_lightning.export.source import Functions, Source
from jepa_lightning.models import CausalVisionTransformer, DenseVisionTransformer, Encoder, VisionTransformer
from jepa_lightning.models.layers import MLP, Block
from jepa_lightning.weights.networks import Networks

OTHER_BLOCKS = "its blocks are not the plain ones (attention, GELU MLP) that other libraries have"


class Format(ABC):
    """A format that a checkpoint can be exported to: what it can hold, how it is written, reloaded and used.

    Attributes:
        title: Name of the format in texts.
        library: The package that reloads it.
        needs: Packages beside the library.
        mask_index: Which mask token the library's predictor uses; None for that of the networks.
    """

    title: ClassVar[str]
    library: ClassVar[str]
    needs: ClassVar[tuple[str, ...]] = ()
    mask_index: ClassVar[int | None] = None

    def takes_predictor(self, source: Source) -> bool:
        """Whether the predictor is exported unless the user says otherwise."""
        return False

    def unsupported(self, source: Source) -> str | None:
        """Why the format cannot hold a model; None if it can."""
        return None

    @abstractmethod
    def write(self, source: Source, folder: Path) -> None:
        """Write the files.

        Args:
            source: What to write; ``unsupported`` is None for it.
            folder: An existing folder.
        """

    @abstractmethod
    def reload(self, folder: Path, source: Source) -> Functions:
        """What the library computes from the files that ``write`` wrote."""

    @abstractmethod
    def usage(self, source: Source) -> str:
        """Section "Use" of the model card: lines of Python, and which input sizes work."""

    def prepared(self, source: Source, with_predictor: bool | None) -> Source:
        """The part of a source that is exported.

        Args:
            source: All networks of the checkpoint.
            with_predictor: Whether the predictor is exported; None for ``takes_predictor``.
        """
        networks = source.networks
        if not (self.takes_predictor(source) if with_predictor is None else with_predictor):
            networks = networks._replace(predictor=None, actions=None)
        if self.mask_index is not None:
            networks = networks._replace(mask_index=self.mask_index)
        return source._replace(networks=networks)

    def missing_packages(self) -> list[str]:
        """Packages that are needed and not installed."""
        return [package for package in (self.library, *self.needs) if find_spec(package) is None]


# ---------------------------------------------------------------------- reasons


def not_plain(encoder: Encoder) -> str | None:
    """Why an encoder is no plain Vision Transformer, the only kind that other libraries have; None if it is one."""
    if not isinstance(encoder, VisionTransformer):
        return f"its encoder is a {type(encoder).__name__}, not a VisionTransformer"
    if isinstance(encoder, DenseVisionTransformer):
        return "no other library has a class for V-JEPA 2.1 (two patch embeddings, norms of several levels)"
    if isinstance(encoder, CausalVisionTransformer):
        return "no other library has a class for LeVJEPA's causal encoder"
    return None if plain_blocks(encoder.blocks) else OTHER_BLOCKS


def plain_blocks(blocks: Iterable[nn.Module]) -> bool:
    """Whether all blocks have softmax attention and a GELU MLP."""
    return all(type(block) is Block and type(block.mlp) is MLP for block in blocks)


def encoder_only(networks: Networks) -> str | None:
    """Why networks are more than an encoder without a probe; None if they are not."""
    return "it has no place for a predictor: leave out --with_predictor" if networks.predictor is not None else None


def other_rotation(library: str, encoder: VisionTransformer) -> str:
    """Why rotary positions other than those of V-JEPA 2 cannot be written."""
    return (
        f"{library} have positions RoPE(layout: tiled, theta: 10000), not {encoder.positions}; no weights make one of "
        "the other (train with positions: {class_path: RoPE, init_args: {layout: tiled}})"
    )


# ---------------------------------------------------------------------- texts of model cards


def section(code: str, notes: str) -> str:
    """Lines of Python as Markdown, with notes below."""
    return f"```python\n{code}\n```\n\n{notes}"


def size_step(source: Source) -> str:
    """Which input sizes an encoder can take: ``multiples of 16 pixels``."""
    encoder = source.networks.encoder
    frames = f" and of {encoder.tubelet_size} frames" if encoder.num_frames > 1 else ""
    return f"multiples of {encoder.patch_size} pixels{frames}"


def input_layout(source: Source) -> str:
    """Type and axes of the inputs."""
    layout = "(B, C, T, H, W)" if source.networks.encoder.num_frames > 1 else "(B, C, H, W)"
    return f"float32 {layout}, see preprocessing.json"
