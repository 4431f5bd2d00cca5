"""A small convolutional encoder that says where things are: one token for a whole image."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from jepa_lightning.masking.padded import Padded
from jepa_lightning.models.layers import NORM_EPS
from jepa_lightning.models.positions import Grid
from jepa_lightning.models.vision_transformer import Encoder, pair


class KeypointEncoder(Encoder):
    """Convolutions, then the expected row and column of each feature map, and an MLP to one vector.

    The expectation over softmax(map) is the spatial soft-argmax of Finn et al. 2016, "Deep Spatial Autoencoders for
    Visuomotor Learning", arXiv 1509.06113, equation 2. A small thing is found in a few hundred steps by it, where a
    Linear layer on the flattened map first learns everything that is larger. Beside the places the MLP reads the mean
    of each map, so that it also knows how much of something there is.

    Args:
        img_size: Side of the square input in pixels, or (height, width).
        embed_dim: Numbers of the output vector.
        in_chans: Input channels.
        widths: Channels of the convolutions: one of 5 x 5 that halves the resolution, then some of 3 x 3.
        hidden_dim: Width of the MLP.
        num_heads: Attention heads that a Transformer predictor takes, unless told otherwise.
    """

    def __init__(
        self,
        img_size: int | tuple[int, int] = 32,
        embed_dim: int = 32,
        in_chans: int = 3,
        widths: Sequence[int] = (16, 16, 32),
        hidden_dim: int = 256,
        num_heads: int = 1,
    ) -> None:
        super().__init__()
        if not widths:
            raise ValueError("widths has one number for each convolution: give at least 1")
        self.img_size, self.embed_dim, self.num_heads = pair(img_size), embed_dim, num_heads
        self.patch_size, self.grid = self.img_size[0], (1, 1, 1)
        layers: list[nn.Module] = []
        for number, (before, after) in enumerate(pairwise((in_chans, *widths))):
            kernel, stride = (5, 2) if number == 0 else (3, 1)
            layers += [nn.Conv2d(before, after, kernel, stride, kernel // 2), nn.SiLU()]
        self.convolutions = nn.Sequential(*layers[:-1])
        self.sharpness = nn.Parameter(torch.ones(widths[-1]))
        self.head = nn.Sequential(
            nn.Linear(3 * widths[-1], hidden_dim), nn.LayerNorm(hidden_dim, eps=NORM_EPS), nn.SiLU(),
            nn.Linear(hidden_dim, embed_dim),
        )  # fmt: skip

    def grid_of(self, inputs: Tensor) -> Grid:
        """One token for an image of any size.

        Raises:
            ValueError: If it is given clips.
        """
        if inputs.ndim != 4:
            raise ValueError(
                f"KeypointEncoder takes images (B, C, H, W), not a clip of shape {tuple(inputs.shape)}: "
                "use a VisionTransformer with num_frames"
            )
        return (1, 1, 1)

    def forward(
        self, inputs: Float[Tensor, "batch channels *size"], context: Int[Tensor, "batch k"] | Padded | None = None
    ) -> Float[Tensor, "batch tokens dim"]:
        """The vector of each image, (B, 1, D).

        Raises:
            ValueError: If a context is given, or clips.
        """
        if context is not None:
            raise ValueError(
                "KeypointEncoder cannot leave tokens out: a method with masks needs a VisionTransformer as its encoder"
            )
        self.grid_of(inputs)
        maps = self.convolutions(inputs)  # (B, K, H', W')
        places = expected_places(maps * self.sharpness[:, None, None])
        return self.head(torch.cat([places, maps.mean(dim=(2, 3))], dim=1)).unsqueeze(1)


def expected_places(maps: Float[Tensor, "batch maps height width"]) -> Float[Tensor, "batch places"]:
    """Columns, then rows, from -1 to 1, averaged with the weights softmax(map), (B, 2 K)."""
    weights = maps.flatten(2).softmax(dim=-1).unflatten(2, maps.shape[2:])
    height, width = maps.shape[2:]
    columns, rows = (torch.linspace(-1.0, 1.0, n, device=maps.device, dtype=maps.dtype) for n in (width, height))
    return torch.cat([(weights.sum(dim=2) * columns).sum(dim=-1), (weights.sum(dim=3) * rows).sum(dim=-1)], dim=1)
