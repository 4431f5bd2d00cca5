"""timm's files of I-JEPA: ``vit_*_ijepa``, Vision Transformers without class token, mean-pooled.

timm takes the *context* encoder out of Meta's checkpoints. Tensors have the same names as here. A file says nothing of
the attention heads: they follow from a ``config.json`` beside it, from a published width, or are given.
"""

from __future__ import annotations

import logging
from functools import partial
from typing import Any, cast

from torch import Tensor

from jepa_lightning.models import Encoder, VisionTransformer
from jepa_lightning.preprocessing import Preprocessing
from jepa_lightning.weights.base import Hints, OneEncoder, States
from jepa_lightning.weights.file import File, read
from jepa_lightning.weights.meta_sizes import HEADS, depth_of, heads_of, side_of, tensor_of
from jepa_lightning.weights.networks import Branch, Networks, describing, filled, mlp_ratio, outlined
from jepa_lightning.weights.policy import DoesNotFit
from jepa_lightning.weights.safetensors_file import BRANCH

FILES = ("model.safetensors", "pytorch_model.bin")
FIRST = "patch_embed.proj.weight"


class Timm(OneEncoder):
    """A file of tensors, or a folder with one beside its ``config.json``."""

    format = "file in timm's format"
    takes = ("num_heads", "img_size")

    def __init__(self, file: File) -> None:
        super().__init__(file)
        self._config = file.config if "architecture" in file.config else {}
        if file.path.is_dir():
            names = [name for name in FILES if (file.path / name).is_file()]
            if not names:
                raise FileNotFoundError(f"no such file: {file.path} with {' or '.join(FILES)}")
            self.file = read(file.path / names[0])
        self._state = self.file.content
        if not all(isinstance(tensor, Tensor) for tensor in self._state.values()):
            raise DoesNotFit(f"{self.file.path} is no state dict of timm: it holds more than tensors")

    @classmethod
    def claims(cls, file: File) -> bool:
        """Whether it has the tensors of a Vision Transformer, or the folder the configuration of timm."""
        return "architecture" in file.config if file.path.is_dir() else FIRST in file.content

    def _build(self, hints: Hints) -> partial[VisionTransformer]:
        """What builds the encoder: sizes by the tensors, by the configuration, and as given."""
        path, state, said = self.file.path, self._state, self._config.get("model_args", {})
        with describing(path):
            projection = tensor_of(path, "encoder", state, FIRST, 4)
            dim, patch_size = projection.shape[0], projection.shape[-1]
            tokens = tensor_of(path, "encoder", state, "pos_embed", 3).shape[1]
            hidden = tensor_of(path, "encoder", state, "blocks.0.mlp.fc1.weight", 2).shape[0]
            return partial(
                VisionTransformer,
                img_size=hints.img_size or _size(said.get("img_size")) or side_of(path, tokens, patch_size),
                patch_size=patch_size,
                in_chans=projection.shape[1],
                embed_dim=dim,
                depth=depth_of(state, "blocks"),
                num_heads=hints.num_heads or said.get("num_heads") or heads_of(path, dim, HEADS),
                mlp_ratio=mlp_ratio(hidden, dim),
            )

    def _networks(self, branch: Branch, predictor: bool, hints: Hints) -> Networks:
        encoder = filled(self.file, "encoder", self._build(hints), self._state)
        held = cast(Branch, self.file.metadata.get(BRANCH, "context"))
        if held == "context":
            logging.getLogger(__name__).info(
                "%s holds the context encoder, as timm's I-JEPA do; the papers evaluate the target", self.path
            )
        return Networks(encoder, held, _preprocessing(self._config.get("pretrained_cfg"), encoder.img_size))

    def outline(self, hints: Hints | None = None) -> Encoder | None:
        """The encoder without its weights."""
        return outlined(self.path, self._build(self.hints((hints or Hints()).given)))

    def states(self) -> States:
        """The encoder under both names."""
        return {name: dict(self._state) for name in ("encoder", "target_encoder")}

    @property
    def family(self) -> str:
        """The only one that timm has."""
        return "I-JEPA"


def _size(size: Any) -> tuple[int, int] | None:
    return (size, size) if isinstance(size, int) else (int(size[0]), int(size[1])) if size else None


def _preprocessing(config: dict[str, Any] | None, size: tuple[int, int]) -> Preprocessing:
    if not config or "mean" not in config:
        return Preprocessing(size)
    wanted = Preprocessing(size, mean=tuple(config["mean"]), std=tuple(config["std"]))
    if config.get("crop_mode", "center") == "squash":
        return wanted.with_shorter_side(None)
    return wanted.with_shorter_side(int(min(size) / config.get("crop_pct", 0.875)))  # timm rounds down as well
