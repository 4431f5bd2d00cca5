"""The Vision Transformer of the JEPA papers: no class token, fixed positions, masking by leaving tokens out."""

from __future__ import annotations

from abc import ABC, abstractmethod

from jaxtyping import Float, Int
from torch import Tensor, nn

from jepa_lightning.masking.tokens import gather_tokens
from jepa_lightning.models.layers import NORM_EPS, Block, init_weights
from jepa_lightning.models.positions import Grid, fit_positions, sincos_2d


class Encoder(nn.Module, ABC):
    """What a method asks of an encoder; subclass it to bring your own.

    Attributes:
        embed_dim: Channels of each output token, D.
        num_heads: Attention heads (a predictor takes as many, unless told otherwise).
        img_size: Height and width in pixels that it is built for.
        patch_size: Side of a patch in pixels.
        grid: Tokens along time, height and width at ``img_size``.
    """

    embed_dim: int
    num_heads: int
    img_size: tuple[int, int]
    patch_size: int
    grid: Grid

    @abstractmethod
    def forward(
        self, inputs: Float[Tensor, "batch channels *size"], context: Int[Tensor, "batch k"] | None = None
    ) -> Float[Tensor, "batch tokens dim"]:
        """Tokens of the whole input, or only of the patches that ``context`` names (nothing else is read)."""

    @abstractmethod
    def grid_of(self, inputs: Tensor) -> Grid:
        """The token grid of an input of any size."""


def pair(size: int | tuple[int, int]) -> tuple[int, int]:
    """``14 -> (14, 14)``."""
    return (size, size) if isinstance(size, int) else (size[0], size[1])


def token_grid(height: int, width: int, patch_size: int) -> Grid:
    """The grid that an image is cut into.

    Raises:
        ValueError: If the patch size does not divide the image.
    """
    if height % patch_size or width % patch_size:
        raise ValueError(
            f"a {height}x{width} image cannot be cut into {patch_size}x{patch_size} patches: "
            f"use a size divisible by patch_size {patch_size}"
        )
    return (1, height // patch_size, width // patch_size)


class PatchEmbed(nn.Module):
    """Cut into patches and project each to one token, in raster order."""

    def __init__(self, patch_size: int, in_chans: int, embed_dim: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(in_chans, embed_dim, kernel_size=patch_size, stride=patch_size)

    def forward(self, inputs: Float[Tensor, "batch channels h w"]) -> Float[Tensor, "batch tokens dim"]:
        """(B, C, H, W) -> (B, N, D)."""
        return self.proj(inputs).flatten(2).transpose(1, 2)


class VisionTransformer(Encoder):
    """ViT with fixed sine-cosine positions; parameter names as in Meta's and timm's files.

    Args:
        img_size: Side of the square input in pixels, or (height, width). Other sizes work, positions are resampled.
        patch_size: Side of a patch in pixels.
        in_chans: Input channels.
        embed_dim: Channels of each token.
        depth: Number of Transformer blocks.
        num_heads: Attention heads of each block.
        mlp_ratio: Hidden width of the MLP over ``embed_dim``.
        init_std: Standard deviation of the initial Linear weights; null for Xavier (better for small models).
        patch_init_std: The same for the patch projection; null for 0.02 as the papers. The norm of content
            against position in the first tokens follows from it: see configs/ijepa.yaml.
        depth_rescale: Divide the output projections of block i by sqrt(2 i) at initialisation.
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
    ) -> None:
        super().__init__()
        self.embed_dim, self.num_heads, self.patch_size = embed_dim, num_heads, patch_size
        self.img_size = pair(img_size)
        self.grid = token_grid(*self.img_size, patch_size)
        self.patch_embed = PatchEmbed(patch_size, in_chans, embed_dim)
        self.pos_embed: Tensor
        self.register_buffer("pos_embed", sincos_2d(*self.grid[1:], embed_dim))
        self.blocks = nn.ModuleList(Block(embed_dim, num_heads, mlp_ratio) for _ in range(depth))
        self.norm = nn.LayerNorm(embed_dim, eps=NORM_EPS)
        init_weights(self, init_std, depth_rescale)
        nn.init.normal_(self.patch_embed.proj.weight, std=0.02 if patch_init_std is None else patch_init_std)
        nn.init.zeros_(self.patch_embed.proj.bias)  # type: ignore[arg-type]  # Conv2d(bias=True)

    def grid_of(self, inputs: Tensor) -> Grid:
        """The token grid of an image batch (B, C, H, W).

        Raises:
            ValueError: If the patch size does not divide the image.
        """
        return token_grid(inputs.shape[-2], inputs.shape[-1], self.patch_size)

    def forward(
        self, inputs: Float[Tensor, "batch channels h w"], context: Int[Tensor, "batch k"] | None = None
    ) -> Float[Tensor, "batch tokens dim"]:
        """Tokens of the whole image, or only those of the context: (B, N, D) or (B, Nc, D)."""
        x = self.patch_embed(inputs) + fit_positions(self.pos_embed, self.grid, self.grid_of(inputs))
        if context is not None:
            x = gather_tokens(x, context)
        for block in self.blocks:
            x = block(x)
        return self.norm(x)


SIZES: dict[str, dict[str, float]] = {
    "tiny": {"embed_dim": 192, "depth": 12, "num_heads": 3},
    "small": {"embed_dim": 384, "depth": 12, "num_heads": 6},
    "base": {"embed_dim": 768, "depth": 12, "num_heads": 12},
    "large": {"embed_dim": 1024, "depth": 24, "num_heads": 16},
    "huge": {"embed_dim": 1280, "depth": 32, "num_heads": 16},
    "giant": {"embed_dim": 1408, "depth": 40, "num_heads": 16, "mlp_ratio": 48 / 11},
}
"""Constructor arguments of the published sizes: ``VisionTransformer(patch_size=14, **SIZES["huge"])``."""
