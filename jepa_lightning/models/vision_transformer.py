"""The Vision Transformer of the JEPA papers, for images and clips: no class token, masking by leaving tokens out."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from jepa_lightning.masking.padded import Padded, known
from jepa_lightning.masking.tokens import rows_of
from jepa_lightning.models.layers import NORM_EPS, BlockOptions, Trunk, init_weights
from jepa_lightning.models.packing import Packing
from jepa_lightning.models.positions import Grid, Positions, SinCos2D, SinCos3D
from jepa_lightning.ranges import at_least


class Encoder(nn.Module, ABC):
    """What a method asks of an encoder; subclass it to bring your own.

    Attributes:
        embed_dim: Channels of each output token, D.
        num_heads: Attention heads; the default of a predictor.
        img_size: Height and width in pixels that it is built for.
        patch_size: Side of a patch in pixels.
        grid: Tokens along time, height and width at ``img_size`` and ``num_frames``.
        num_frames: Frames of a clip that it is built for; 1 for images.
        tubelet_size: Frames that one token covers.
        positions: How positions enter the tokens; a predictor does the same.
        depth: Number of layers whose tokens ``encoder(inputs, layers=...)`` gives; 1 if it knows only its output.
        normalize: Normalises uint8 values, or values from 0 to 1, as its training did; None where that is not known.
        preprocess: Makes a normalised input without batch axis, (C, H, W) or (C, T, H, W), of an image, a video or a
            path; None until ``load_encoder`` sets it.
    """

    embed_dim: int
    num_heads: int
    img_size: tuple[int, int]
    patch_size: int
    grid: Grid
    num_frames: int = 1
    tubelet_size: int = 1
    positions: Positions = SinCos2D()
    depth: int = 1
    normalize: Callable[[Tensor], Tensor] | None = None
    preprocess: Callable[[Any], Tensor] | None = None

    @abstractmethod
    def forward(
        self, inputs: Float[Tensor, "batch channels *size"], context: Int[Tensor, "batch k"] | Padded | None = None
    ) -> Float[Tensor, "batch tokens dim"]:
        """Tokens of the whole input, or only of the patches that ``context`` names (nothing else is read).

        With Padded, samples with different numbers of tokens, the result has zeros where there is no token.
        """

    def summary(
        self, inputs: Float[Tensor, "batch channels *size"], context: Int[Tensor, "batch k"] | None = None
    ) -> Float[Tensor, "batch dim"]:
        """One vector for each input: the mean of its tokens, unless a subclass has a class token."""
        return self(inputs, context).mean(dim=1)

    @abstractmethod
    def grid_of(self, inputs: Tensor) -> Grid:
        """The token grid of an input of any size."""


def pair(size: int | tuple[int, int]) -> tuple[int, int]:
    """``14 -> (14, 14)``."""
    return (size, size) if isinstance(size, int) else (size[0], size[1])


def token_grid(height: int, width: int, patch_size: int, frames: int = 1, tubelet_size: int = 1) -> Grid:
    """The grid that an image or a clip is cut into.

    Raises:
        ValueError: If the patch size does not divide the image, or the tubelet size the number of frames.
    """
    if height % patch_size or width % patch_size:
        raise ValueError(
            f"a {height}x{width} image cannot be cut into {patch_size}x{patch_size} patches: "
            f"use a size divisible by patch_size {patch_size}"
        )
    if frames % tubelet_size:
        raise ValueError(
            f"a clip of {frames} frames cannot be cut into tubelets of {tubelet_size}: "
            f"use a number of frames divisible by tubelet_size {tubelet_size}"
        )
    return (frames // tubelet_size, height // patch_size, width // patch_size)


class PatchEmbed(nn.Module):
    """Cut into patches and project each to one token, in raster order."""

    def __init__(self, patch_size: int, in_chans: int, embed_dim: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(in_chans, embed_dim, kernel_size=patch_size, stride=patch_size)

    def forward(
        self, inputs: Float[Tensor, "batch channels h w"], rows: Int[Tensor, " total"] | None = None
    ) -> Float[Tensor, "*tokens dim"]:
        """(B, C, H, W) -> (B, N, D), or of these B N tokens only ``rows``, (total, D)."""
        tokens = self.proj(inputs).flatten(2).transpose(1, 2)
        return tokens if rows is None else tokens.flatten(0, 1).index_select(0, rows)


class TubeletEmbed(nn.Module):
    """Cut a clip into tubelets, boxes of time x height x width, and project each to one token, in raster order."""

    def __init__(self, tubelet_size: int, patch_size: int, in_chans: int, embed_dim: int) -> None:
        super().__init__()
        box = (tubelet_size, patch_size, patch_size)
        self.proj = nn.Conv3d(in_chans, embed_dim, kernel_size=box, stride=box)

    def forward(
        self, inputs: Float[Tensor, "batch channels t h w"], rows: Int[Tensor, " total"] | None = None
    ) -> Float[Tensor, "*tokens dim"]:
        """(B, C, T, H, W) -> (B, N, D), or of these B N tokens only ``rows``, (total, D), and nothing else is computed.

        Token d * (H' W') + h * W' + w. V-JEPA shows its encoder a tenth to a third of a clip.
        """
        if rows is None:
            return self.proj(inputs).flatten(2).transpose(1, 2)
        frames, height, width = self.proj.kernel_size
        boxes = inputs.unflatten(4, (-1, width)).unflatten(3, (-1, height)).unflatten(2, (-1, frames))
        boxes = boxes.permute(0, 2, 4, 6, 1, 3, 5, 7)  # (B, T', H', W', C, t, p, p), a view
        shown = boxes[torch.unravel_index(rows, boxes.shape[:4])]
        return F.linear(shown.flatten(1), self.proj.weight.flatten(1), self.proj.bias)


class VisionTransformer(Encoder):
    """ViT for images and clips; parameter names as in Meta's and timm's files.

    With ``num_frames`` above 1 it takes clips (B, C, T, H, W) of any length that the tubelet size divides; an image
    (B, C, H, W) is then one tubelet of equal frames.

    Args:
        img_size: Side of the square input in pixels, or (height, width). Other sizes work, positions are resampled.
        patch_size: Side of a patch in pixels.
        in_chans: Input channels.
        embed_dim: Channels of each token.
        depth: Number of Transformer blocks; with EnergyBlocks of steps down the energy.
        num_heads: Attention heads of each block.
        mlp_ratio: Hidden width of the MLP over ``embed_dim``; with EnergyBlocks memories of the Hopfield network.
        init_std: Standard deviation of the initial Linear weights; null for Xavier (better for small models).
        patch_init_std: The same for the patch projection; null for 0.02 as the papers. The norm of content
            against position in the first tokens follows from it: see configs/ijepa.yaml.
        depth_rescale: Divide the output projections of block i by sqrt(2 i) at initialisation.
        num_frames: Frames of a clip; 1 for an image encoder.
        tubelet_size: Frames that one token covers (V-JEPA: 2).
        positions: SinCos2D (I-JEPA), SinCos3D (V-JEPA) or RoPE (V-JEPA 2); null for the first on images and the
            second on clips.
        blocks: SwiGLU, drop path, activation checkpointing; or EnergyBlocks in place of the Transformer.
    """

    def __init__(
        self,
        img_size: int | tuple[int, int] = 224,
        patch_size: int = 16,
        in_chans: int = 3,
        embed_dim: int = 768,
        depth: int = 12,
        num_heads: int = 12,
        mlp_ratio: float = 4.0,
        init_std: float | None = 0.02,
        patch_init_std: float | None = None,
        depth_rescale: bool = False,
        num_frames: int = 1,
        tubelet_size: int = 1,
        positions: Positions | None = None,
        blocks: BlockOptions | Trunk | None = None,
    ) -> None:
        super().__init__()
        at_least(1, img_size=img_size, patch_size=patch_size, in_chans=in_chans, embed_dim=embed_dim, depth=depth)
        at_least(1, num_heads=num_heads, num_frames=num_frames, tubelet_size=tubelet_size)
        self.embed_dim, self.num_heads, self.patch_size, self.depth = embed_dim, num_heads, patch_size, depth
        self.in_chans, self.num_frames, self.tubelet_size = in_chans, num_frames, tubelet_size
        self.img_size = pair(img_size)
        self.grid = token_grid(*self.img_size, patch_size, num_frames, tubelet_size)
        self.positions = positions or (SinCos3D() if num_frames > 1 else SinCos2D())
        self.options: Trunk = blocks or BlockOptions()
        self.patch_embed: nn.Module = (
            TubeletEmbed(tubelet_size, patch_size, in_chans, embed_dim)
            if num_frames > 1
            else PatchEmbed(patch_size, in_chans, embed_dim)
        )
        self.pos_embed: Tensor | None
        self.register_buffer("pos_embed", self.positions.table(self.grid, embed_dim))
        self.blocks = self.options.build(depth, embed_dim, num_heads, mlp_ratio)
        self.norm = nn.LayerNorm(embed_dim, eps=NORM_EPS)
        init_weights(self, init_std, depth_rescale)
        projection = self.patch_embed.get_submodule("proj")
        nn.init.normal_(projection.weight, std=0.02 if patch_init_std is None else patch_init_std)  # type: ignore[arg-type]
        nn.init.zeros_(projection.bias)  # type: ignore[arg-type]

    def grid_of(self, inputs: Tensor) -> Grid:
        """The token grid of images (B, C, H, W) or clips (B, C, T, H, W).

        Raises:
            ValueError: If patches or tubelets do not divide the input, or an image encoder is given a clip.
        """
        if inputs.ndim == 5 and self.num_frames == 1:
            raise ValueError(
                f"an image encoder (num_frames 1) was given a clip of shape {tuple(inputs.shape)}: "
                "set num_frames and tubelet_size of the encoder"
            )
        frames = inputs.shape[2] if inputs.ndim == 5 else self.tubelet_size
        return token_grid(inputs.shape[-2], inputs.shape[-1], self.patch_size, frames, self.tubelet_size)

    def forward(
        self,
        inputs: Float[Tensor, "batch channels *size"],
        context: Int[Tensor, "batch k"] | Padded | None = None,
        layers: int | Sequence[int] | None = None,
    ) -> Any:
        """Tokens of the whole input, (B, N, D), or only those of the context, (B, Nc, D).

        Args:
            inputs: Images (B, C, H, W) or clips (B, C, T, H, W).
            context: The tokens to compute, (B, Nc); attention sees no others. With Padded the result has zeros
                where there is no token.
            layers: The block whose tokens are wanted in place of the last one's, from 0; -1 is the last. Of several
                numbers the result is a list. All tokens pass through the final norm.

        Raises:
            ValueError: If there is no such block, or patches or tubelets do not divide the input.
        """
        grid = self.grid_of(inputs)
        table = None if self.pos_embed is None else self.positions.fit(self.pos_embed, self.grid, grid)  # (1, N, D)
        packing = None
        if context is None:
            x = self.embed(inputs)
            index = torch.arange(x.shape[1], device=x.device).unsqueeze(0)
            x = x if table is None else x + table
        else:
            context, count = known(context), math.prod(grid)
            rows = rows_of(context, count)
            x = self.embed(inputs, rows)
            x = x if table is None else x + table[0].index_select(0, rows % count)
            if isinstance(context, Padded):
                index = context.indices.clamp(min=0)
                x, packing = x.unsqueeze(0), Packing.of(context.places, *index.shape)
            else:
                x, index = x.reshape(*context.shape, self.embed_dim), context
        rotation = self.positions.rotation(index, grid, self.embed_dim // self.num_heads)
        numbers = [layers] if isinstance(layers, int) else layers
        outputs = self.normed(self.options.run(self.blocks, x, rotation, packing, numbers), numbers)
        if isinstance(context, Padded):
            outputs = [context.pad(output[0]) for output in outputs]
        return outputs[0] if layers is None or isinstance(layers, int) else outputs

    def embed(
        self, inputs: Float[Tensor, "batch channels *size"], rows: Int[Tensor, " total"] | None = None
    ) -> Float[Tensor, "*tokens dim"]:
        """Tokens before positions, (B, N, D), or of these B N tokens only ``rows``, (total, D)."""
        if self.num_frames > 1 and inputs.ndim == 4:
            inputs = inputs.unsqueeze(2).expand(-1, -1, self.tubelet_size, -1, -1)
        return self.patch_embed(inputs, rows)

    def normed(self, outputs: Sequence[Tensor], layers: Sequence[int] | None) -> list[Tensor]:
        """Apply the final norm to the tokens after these blocks; None stands for the last block alone."""
        return [self.norm(tokens) for tokens in outputs]

    def diagnostics(self) -> dict[str, Tensor]:
        """Scalars to log about the last pass in training: nothing of a Transformer, energies of EnergyBlocks."""
        return self.options.diagnostics(self.blocks)


SIZES: dict[str, dict[str, float]] = {
    "tiny": {"embed_dim": 192, "depth": 12, "num_heads": 3},
    "small": {"embed_dim": 384, "depth": 12, "num_heads": 6},
    "base": {"embed_dim": 768, "depth": 12, "num_heads": 12},
    "large": {"embed_dim": 1024, "depth": 24, "num_heads": 16},
    "huge": {"embed_dim": 1280, "depth": 32, "num_heads": 16},
    "giant": {"embed_dim": 1408, "depth": 40, "num_heads": 16, "mlp_ratio": 48 / 11},
    "giant_xformers": {"embed_dim": 1408, "depth": 40, "num_heads": 22, "mlp_ratio": 48 / 11},  # V-JEPA 2's giant
}
"""Constructor arguments of the published sizes: ``VisionTransformer(patch_size=14, **SIZES["huge"])``."""
