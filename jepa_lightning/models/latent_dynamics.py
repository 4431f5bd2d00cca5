"""The small networks of a world model whose state is one vector: dynamics, inverse dynamics, temporal distance."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from jepa_lightning.models.layers import NORM_EPS
from jepa_lightning.models.vision_transformer import Encoder


def mlp(widths: Sequence[int]) -> nn.Sequential:
    """Linear layers with LayerNorm and SiLU between them."""
    layers: list[nn.Module] = []
    for before, after in pairwise(widths):
        layers += [nn.Linear(before, after), nn.LayerNorm(after, eps=NORM_EPS), nn.SiLU()]
    return nn.Sequential(*layers[:-2])


class LatentDynamics(nn.Module):
    """The next vector of a world model: ``z + mlp(z, action)``.

    Args:
        encoder: Its vectors are read and predicted; only its width is taken.
        action_dim: Numbers of an action.
        hidden_dim: Width of the hidden layers.
        depth: Number of hidden layers.
    """

    def __init__(self, encoder: Encoder, action_dim: int = 2, hidden_dim: int = 256, depth: int = 2) -> None:
        super().__init__()
        self.action_dim = action_dim
        self.layers = mlp([encoder.embed_dim + action_dim, *[hidden_dim] * depth, encoder.embed_dim])

    def forward(
        self, z: Float[Tensor, "*batch dim"], action: Float[Tensor, "*batch action"]
    ) -> Float[Tensor, "*batch dim"]:
        """The vector after an action."""
        return z + self.layers(torch.cat([z, action], dim=-1))


class InverseDynamics(nn.Module):
    """The action between two vectors, one step apart.

    Args:
        encoder: Its vectors are read; only its width is taken.
        action_dim: Numbers of an action.
        hidden_dim: Width of the hidden layers.
        depth: Number of hidden layers.
        weight: Weight of this term in the loss of a method.
    """

    def __init__(
        self, encoder: Encoder, action_dim: int = 2, hidden_dim: int = 256, depth: int = 1, weight: float = 10.0
    ) -> None:
        super().__init__()
        self.weight = weight
        self.layers = mlp([2 * encoder.embed_dim, *[hidden_dim] * depth, action_dim])

    def forward(
        self, z: Float[Tensor, "*batch dim"], following: Float[Tensor, "*batch dim"]
    ) -> Float[Tensor, "*batch action"]:
        """The action that leads from the first to the second."""
        return self.layers(torch.cat([z, following], dim=-1))


class TemporalDistance(nn.Module):
    """Number of steps from one vector to another: a quasimetric, so the triangle inequality always holds.

    With an embedding u = mlp(z) in G groups of K numbers,

        d(z, z') = mean over g of max over k of relu(u_gk - u'_gk).

    It is 0 from a vector to itself, never negative, and may differ from the way back. One group can be any quasimetric
    of finitely many points; several groups are easier to train (Wang and Isola 2022, "Improved Representation of
    Asymmetrical Distances with Interval Quasimetric Embeddings", arXiv 2211.15120, compares such heads).

    Args:
        encoder: Its vectors are read; only its width is taken.
        hidden_dim: Width of the hidden layers.
        depth: Number of hidden layers.
        groups: G.
        group_size: K.
        weight: Weight of this term in the loss of a method.
        constraint: Weight of steps that cost more than 1.
        far: Distance in steps above which vectors are hardly pushed apart any more.
    """

    def __init__(
        self, encoder: Encoder, hidden_dim: int = 256, depth: int = 2, groups: int = 8, group_size: int = 16,
        weight: float = 1.0, constraint: float = 10.0, far: float = 60.0,
    ) -> None:  # fmt: skip
        super().__init__()
        self.weight, self.constraint, self.far = weight, constraint, far
        self.groups, self.group_size = groups, group_size
        self.layers = mlp([encoder.embed_dim, *[hidden_dim] * depth, groups * group_size])

    def forward(self, z: Float[Tensor, "*batch dim"], goal: Float[Tensor, "*batch dim"]) -> Float[Tensor, "*#batch"]:
        """Steps from each vector to its goal."""
        return self.between(self.layers(z), self.layers(goal))

    def between(self, u: Float[Tensor, "*#batch n"], goal: Float[Tensor, "*#batch n"]) -> Float[Tensor, "*#batch"]:
        """The same of embeddings."""
        return (u - goal).relu().unflatten(-1, (self.groups, self.group_size)).amax(dim=-1).mean(dim=-1)

    def loss(
        self, window: Float[Tensor, "batch time dim"], goals: Float[Tensor, "batch goals dim"]
    ) -> Float[Tensor, ""]:
        """No step costs more than 1; apart from that, all is far (Wang et al. 2023, arXiv 2304.01203).

        Args:
            window: Vectors one step apart.
            goals: Other vectors of the same episode.
        """
        u, v = self.layers(window), self.layers(goals)
        steps = self.between(u[:, :-1], u[:, 1:])
        pairs = self.between(u[:, :, None], v[:, None])  # (B, T, goals)
        pushed = F.softplus(self.far - pairs, beta=0.1).mean() / self.far
        return self.constraint * (steps - 1.0).relu().square().mean() + pushed
