"""ConvNeXt (Liu et al. 2022, arXiv 2201.03545) in any size, with the parameter names of timm."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from jepa_lightning.masking.padded import Padded
from jepa_lightning.models.layers import MLP, NORM_EPS, DropPath, init_weights
from jepa_lightning.models.positions import Grid
from jepa_lightning.models.vision_transformer import Encoder, pair, token_grid


class ChannelNorm(nn.LayerNorm):
    """LayerNorm over the channels of a map."""

    def forward(self, input: Float[Tensor, "batch dim h w"]) -> Float[Tensor, "batch dim h w"]:
        """Each place on its own."""
        return super().forward(input.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class ConvBlock(nn.Module):
    """``x += gamma * mlp(norm(depthwise 7x7 convolution of x))``."""

    def __init__(self, dim: int, layer_scale: float | None, drop_path: float) -> None:
        super().__init__()
        self.conv_dw = nn.Conv2d(dim, dim, kernel_size=7, padding=3, groups=dim)
        self.norm = nn.LayerNorm(dim, eps=NORM_EPS)
        self.mlp = MLP(dim, 4 * dim)
        self.gamma = None if layer_scale is None else nn.Parameter(torch.full((dim,), layer_scale))
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Float[Tensor, "batch dim h w"]) -> Float[Tensor, "batch dim h w"]:
        """One residual layer."""
        branch = self.mlp(self.norm(self.conv_dw(x).permute(0, 2, 3, 1)))  # (B, H, W, D)
        branch = (branch if self.gamma is None else self.gamma * branch).permute(0, 3, 1, 2)
        return x + self.drop_path(branch.flatten(1, 2)).unflatten(1, branch.shape[1:3])


class Stage(nn.Module):
    """Half the resolution (except the first stage), then blocks."""

    def __init__(self, before: int, dim: int, layer_scale: float | None, rates: Sequence[float], halve: bool) -> None:
        super().__init__()
        steps = [ChannelNorm(before, eps=NORM_EPS), nn.Conv2d(before, dim, kernel_size=2, stride=2)]
        self.downsample = nn.Sequential(*steps) if halve else nn.Identity()
        self.blocks = nn.ModuleList(ConvBlock(dim, layer_scale, rate) for rate in rates)

    def forward(self, x: Float[Tensor, "batch before h w"]) -> Float[Tensor, "batch dim rows columns"]:
        """A map of ``dim`` channels."""
        x = self.downsample(x)
        for block in self.blocks:
            x = block(x)
        return x


class ConvNeXt(Encoder):
    """A convolutional encoder: the places of its last map, after a LayerNorm, are the tokens.

    The published sizes are widths (96, 192, 384, 768) with depths (3, 3, 9, 3) (tiny, 28 M parameters), (3, 3, 27, 3)
    (small), and wider. With a few narrow stages it trains on a CPU.

    Args:
        img_size: Side of the square input in pixels, or (height, width); other sizes work too.
        in_chans: Input channels.
        widths: Channels of each stage; the last is the width of the tokens.
        depths: Blocks of each stage.
        stem: Side of the patches of the first convolution in pixels; each later stage halves the resolution, so a
            token covers ``stem * 2 ** (stages - 1)`` pixels.
        num_heads: Attention heads that a Transformer predictor takes, unless told otherwise.
        init_std: Standard deviation of the initial weights (paper: 0.02); null for Xavier in Linear layers and
            PyTorch's default in convolutions, which suits small models.
        layer_scale: Initial factor of each residual branch (paper: 1e-6); null for none.
        drop_path: Fraction of samples that lose the last residual branch; it grows linearly from 0 in the first.
    """

    def __init__(
        self,
        img_size: int | tuple[int, int] = 224,
        in_chans: int = 3,
        widths: Sequence[int] = (96, 192, 384, 768),
        depths: Sequence[int] = (3, 3, 9, 3),
        stem: int = 4,
        num_heads: int = 1,
        init_std: float | None = 0.02,
        layer_scale: float | None = 1e-6,
        drop_path: float = 0.0,
    ) -> None:
        super().__init__()
        if len(widths) != len(depths) or not widths:
            raise ValueError(f"widths {list(widths)} and depths {list(depths)}: give one of each for every stage")
        self.img_size, self.num_heads, self.embed_dim = pair(img_size), num_heads, widths[-1]
        self.in_chans = in_chans
        self.patch_size = stem * 2 ** (len(widths) - 1)
        self.grid = token_grid(*self.img_size, self.patch_size)
        rates = [drop_path * i / max(1, sum(depths) - 1) for i in range(sum(depths))]
        convolution = nn.Conv2d(in_chans, widths[0], kernel_size=stem, stride=stem)
        self.stem = nn.Sequential(convolution, ChannelNorm(widths[0], eps=NORM_EPS))
        stages = []
        for number, (dim, depth) in enumerate(zip(widths, depths, strict=True)):
            own, rates = rates[:depth], rates[depth:]
            stages.append(Stage(widths[max(0, number - 1)], dim, layer_scale, own, halve=number > 0))
        self.stages = nn.Sequential(*stages)
        self.norm = nn.LayerNorm(self.embed_dim, eps=NORM_EPS)
        init_weights(self, init_std)
        for layer in self.modules():
            if isinstance(layer, nn.Conv2d) and init_std is not None:
                nn.init.normal_(layer.weight, std=init_std)
                nn.init.zeros_(layer.bias)  # type: ignore[arg-type]

    def grid_of(self, inputs: Tensor) -> Grid:
        """The token grid of images (B, C, H, W).

        Raises:
            ValueError: If the stride of the network does not divide the image, or it is given clips.
        """
        if inputs.ndim != 4:
            raise ValueError(
                f"ConvNeXt takes images (B, C, H, W), not a clip of shape {tuple(inputs.shape)}: "
                "use a VisionTransformer with num_frames"
            )
        return token_grid(inputs.shape[-2], inputs.shape[-1], self.patch_size)

    def forward(
        self, inputs: Float[Tensor, "batch channels *size"], context: Int[Tensor, "batch k"] | Padded | None = None
    ) -> Float[Tensor, "batch tokens dim"]:
        """Tokens of the whole image, in raster order.

        Raises:
            ValueError: If a context is given, or the stride of the network does not divide the image.
        """
        if context is not None:
            raise ValueError(
                "ConvNeXt cannot leave tokens out: a method with masks needs a VisionTransformer as its encoder"
            )
        self.grid_of(inputs)
        return self.norm(self.stages(self.stem(inputs)).flatten(2).transpose(1, 2))
