"""The Energy Transformer: tokens that descend one energy, in place of a stack of blocks.

Hoover et al., "Energy Transformer", NeurIPS 2023, arXiv 2302.07253. With g = norm(x) and, in each head, q = Wq g and
k = Wk g, the energy of the tokens i of a sequence is that of attention (equation 3) and of a Hopfield network
(equation 5), and every step moves them along its negative gradient with respect to g (equation 6):

    E = - sum over heads and i of log(sum over j of exp(beta q_i k_j)) / beta  -  sum over i of L(Xi g_i),
    x <- x - alpha dE/dg.

L(h) is |relu(h)|^2 / 2 or log(sum of exp(beta h)) / beta. All steps share their weights. There are no values, no output
projection and no MLP: keys answer queries, queries answer keys, and memories answer tokens. The gradient is written
out here, so that training differentiates it once more as it would any other layer:

    - dE/dq_i = sum over j of A_ij k_j,   - dE/dk_j = sum over i of A_ij q_i,   A = softmax over j of beta q_i k_j.

As the norm has one scale for all channels, its Jacobian is symmetric and has no negative eigenvalue, so that small
steps never raise the energy. Tokens of padding are in no sum.

| | paper | LumenPallidium/energy_transformer | here |
|---|---|---|---|
| self term j = i | left out | counted | counted (`attend_to_self: false`: left out) |
| beta of attention | fixed, 1 / sqrt(head_dim) | learned for each head, the same at first | learned by its logarithm |
| scale of the norm | one for all channels | one for each | one for all, learned by its logarithm |
| beta of the relu memories | - | learned; it scales Xi | none |
| gradient | automatic | automatic (jacrev) | closed form |
| step | alpha 0.1, 12 steps | alpha 0.1, 12 steps; Energy I-JEPA 6 | `alpha`, `depth` of the network |
| initial weights | N(0, 0.002) | N(0, 0.002) | `init_std` of the network |
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, cast

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from jepa_lightning.models.layers import Trunk, layer_numbers
from jepa_lightning.models.packing import Packing
from jepa_lightning.models.positions import Rotation, rotate, rotate_back


class EnergyLayerNorm(nn.Module):
    """Layer norm with one scale for all channels, gamma > 0, and a shift of each: the gradient of a convex function."""

    def __init__(self, dim: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.eps = eps
        self.log_gamma = nn.Parameter(torch.zeros(1))
        self.delta = nn.Parameter(torch.zeros(dim))

    def forward(self, x: Float[Tensor, "*batch dim"]) -> Float[Tensor, "*batch dim"]:
        """Of each token on its own."""
        return self.log_gamma.exp() * F.layer_norm(x, x.shape[-1:], eps=self.eps) + self.delta


class EnergyAttention(nn.Module):
    """``- sum over heads and queries of logsumexp over keys of beta q k, over beta``."""

    def __init__(self, dim: int, num_heads: int, attend_to_self: bool = True) -> None:
        super().__init__()
        if dim % num_heads:
            raise ValueError(f"embed_dim {dim} is not divisible by num_heads {num_heads}")
        self.num_heads, self.attend_to_self = num_heads, attend_to_self
        self.qk = nn.Linear(dim, 2 * dim, bias=False)
        self.log_beta = nn.Parameter(torch.full((num_heads,), -0.5 * math.log(dim // num_heads)))

    def forward(
        self,
        g: Float[Tensor, "batch tokens dim"],
        rotation: Rotation | None = None,
        packing: Packing | None = None,
        measured: bool = False,
    ) -> tuple[Float[Tensor, "batch tokens dim"], Float[Tensor, ""] | None]:
        """The negative gradient of the energy with respect to ``g``, and the energy if it is to be ``measured``.

        Args:
            g: Normalised tokens, sequences of one length or a packed list.
            rotation: How queries and keys are rotated; with packing that of the padded table.
            packing: Which sequences the list holds.
            measured: Whether the energy is wanted, without gradient.
        """
        q, k, scores, alone = self._scores(g, rotation, packing)
        weights = scores.softmax(dim=-1)
        # Of the largest score: a pass over the weights costs less than logsumexp.
        free = scores.detach().amax(dim=-1) - weights.detach().amax(dim=-1).log() if measured else None
        if alone is not None:
            weights = weights.masked_fill(alone, 0.0)
        to_q, to_k = weights @ k, weights.transpose(-2, -1) @ q
        if rotation is not None:
            to_q, to_k = rotate_back(to_q, rotation), rotate_back(to_k, rotation)
        pulls = torch.stack([to_q, to_k]).permute(1, 3, 0, 2, 4).flatten(2)  # (B, N, 2 D)
        force = F.linear(pulls if packing is None else packing.pack(pulls), self.qk.weight.t())
        return force, None if free is None else self._energy(free, alone, packing).detach()

    def _scores(
        self, g: Tensor, rotation: Rotation | None, packing: Packing | None
    ) -> tuple[Tensor, Tensor, Tensor, Bool[Tensor, "batch 1 tokens 1"] | None]:
        """Queries and keys (B, heads, N, head_dim), beta q k where allowed, and which queries have no key at all."""
        qk = self.qk(g) if packing is None else packing.pad(self.qk(g))
        qk = qk.unflatten(2, (2, self.num_heads, -1))
        q, k = qk.permute(2, 0, 3, 1, 4).unbind(0)
        if rotation is not None:
            q, k = rotate(q, rotation), rotate(k, rotation)
        scores = (self.log_beta.exp().view(-1, 1, 1) * q) @ k.transpose(-2, -1)
        allowed = None if packing is None else packing.keep
        alone = None
        if not self.attend_to_self:
            others = ~torch.eye(q.shape[2], dtype=torch.bool, device=q.device)
            allowed = others[None, None] if allowed is None else allowed & others
            alone = ~allowed.any(dim=-1, keepdim=True)  # the only token of its sequence
            allowed = allowed | alone
        if allowed is not None:
            scores = scores.masked_fill(~allowed, -torch.inf)
        return q, k, scores, alone

    def _energy(
        self, free: Float[Tensor, "batch heads tokens"], alone: Tensor | None, packing: Packing | None
    ) -> Float[Tensor, ""]:
        free = free / self.log_beta.exp().unsqueeze(-1)
        if alone is not None:
            free = free.masked_fill(alone.squeeze(-1), 0.0)
        if packing is not None:
            free = free * packing.keep.squeeze(1)
        return -free.sum()


class HopfieldNetwork(nn.Module, ABC):
    """``- sum over tokens of L(Xi g)``: a memory that looks at one token at a time.

    Args:
        dim: Channels of a token.
        memories: Patterns that are stored, rows of Xi.
    """

    def __init__(self, dim: int, memories: int) -> None:
        super().__init__()
        self.xi = nn.Linear(dim, memories, bias=False)

    def forward(
        self, g: Float[Tensor, "batch tokens dim"], measured: bool = False
    ) -> tuple[Float[Tensor, "batch tokens dim"], Float[Tensor, ""] | None]:
        """The negative gradient of the energy with respect to ``g``, and the energy if it is to be ``measured``."""
        hidden = self.xi(g)
        force = F.linear(self.answer(hidden), self.xi.weight.t())
        return force, -self.lagrangian(hidden.detach()).detach() if measured else None

    @abstractmethod
    def lagrangian(self, hidden: Float[Tensor, "batch tokens memories"]) -> Float[Tensor, ""]:
        """L, summed over tokens."""

    @abstractmethod
    def answer(self, hidden: Float[Tensor, "batch tokens memories"]) -> Float[Tensor, "batch tokens memories"]:
        """The gradient of L: how strongly each memory answers."""


class ReLUHopfield(HopfieldNetwork):
    """``L = |relu(h)|^2 / 2``: many memories answer."""

    def lagrangian(self, hidden: Float[Tensor, "batch tokens memories"]) -> Float[Tensor, ""]:
        """See above."""
        return 0.5 * torch.linalg.vector_norm(hidden.relu().float()).square()

    def answer(self, hidden: Float[Tensor, "batch tokens memories"]) -> Float[Tensor, "batch tokens memories"]:
        """``relu(h)``."""
        return hidden.relu()


class SoftmaxHopfield(HopfieldNetwork):
    """``L = logsumexp(beta h) / beta``: the best matching memories answer, fewer the larger beta (at first 0.01)."""

    def __init__(self, dim: int, memories: int) -> None:
        super().__init__(dim, memories)
        self.log_beta = nn.Parameter(torch.full((1,), math.log(0.01)))

    def lagrangian(self, hidden: Float[Tensor, "batch tokens memories"]) -> Float[Tensor, ""]:
        """See above."""
        beta = self.log_beta.exp()
        return (beta * hidden.float()).logsumexp(dim=-1).sum() / beta.squeeze()

    def answer(self, hidden: Float[Tensor, "batch tokens memories"]) -> Float[Tensor, "batch tokens memories"]:
        """``softmax(beta h)``."""
        return (self.log_beta.exp() * hidden).softmax(dim=-1)


@dataclass(frozen=True)
class EnergyBlocks(Trunk):
    """An Energy Transformer in place of Transformer blocks: ``depth`` of the network is then the number of steps.

    The energy before each step is logged, as the mean over tokens: `train/encoder_energy_0` and so on.

    Args:
        alpha: How far a step goes along the gradient.
        hopfield: The memory: with ``relu`` many patterns answer a token, with ``softmax`` the best matching ones.
        attend_to_self: Let a token attend to itself as well; the paper leaves it out.
        checkpoint_activations: Compute each step again in the backward pass instead of keeping its activations.

    Raises:
        ValueError: If ``alpha`` is not positive.
    """

    alpha: float = 0.1
    hopfield: Literal["relu", "softmax"] = "relu"
    attend_to_self: bool = True
    checkpoint_activations: bool = False

    def __post_init__(self) -> None:
        """Refuse a step that climbs or stands still."""
        if self.alpha <= 0.0:
            raise ValueError(f"alpha is the length of a step down the energy: it must be above 0, not {self.alpha}")

    def build(self, depth: int, dim: int, num_heads: int, mlp_ratio: float) -> nn.ModuleList:
        """One block for all steps, with ``mlp_ratio * dim`` memories."""
        memory = {"relu": ReLUHopfield, "softmax": SoftmaxHopfield}[self.hopfield](dim, int(dim * mlp_ratio))
        attention = EnergyAttention(dim, num_heads, self.attend_to_self)
        return nn.ModuleList([EnergyTransformer(EnergyLayerNorm(dim), attention, memory, self.alpha, depth)])

    def run(
        self,
        blocks: nn.ModuleList,
        x: Float[Tensor, "batch tokens dim"],
        rotation: Rotation | None = None,
        packing: Packing | None = None,
        layers: Sequence[int] | None = None,
    ) -> list[Float[Tensor, "batch tokens dim"]]:
        """All steps; the energies are measured in training only."""
        block = cast(EnergyTransformer, blocks[0])
        numbers = layer_numbers(layers, block.steps)
        again = self.checkpoint_activations and blocks.training and torch.is_grad_enabled()
        kept: dict[int, Tensor] = {}
        energies = []
        for number in range(block.steps):
            arguments = (x, rotation, packing, blocks.training)
            x, energy = checkpoint(block, *arguments, use_reentrant=False) if again else block(*arguments)
            energies.append(energy)
            if number in numbers:
                kept[number] = x
        if blocks.training:
            block.energies = torch.stack(energies) / x[..., 0].numel()
        return [kept[number] for number in numbers]

    def diagnostics(self, blocks: nn.ModuleList) -> dict[str, Tensor]:
        """Energy of a token before each step, averaged over all tokens of the last pass in training."""
        energies = cast(EnergyTransformer, blocks[0]).energies
        return {} if energies is None else {f"energy_{step}": value for step, value in enumerate(energies)}


class EnergyTransformer(nn.Module):
    """One step down the energy, and how many there are.

    Attributes:
        energies: Energy of a token before each step of the last pass in training, (steps,); None before there was one.
    """

    def __init__(
        self, norm: EnergyLayerNorm, attn: EnergyAttention, hopfield: HopfieldNetwork, alpha: float, steps: int
    ) -> None:
        super().__init__()
        if steps < 1:
            raise ValueError(f"an energy transformer needs at least one step, but depth is {steps}: set depth")
        self.norm, self.attn, self.hopfield = norm, attn, hopfield
        self.alpha, self.steps = alpha, steps
        self.energies: Tensor | None = None

    def forward(
        self,
        x: Float[Tensor, "batch tokens dim"],
        rotation: Rotation | None = None,
        packing: Packing | None = None,
        measured: bool = False,
    ) -> tuple[Float[Tensor, "batch tokens dim"], Float[Tensor, ""] | None]:
        """The tokens after the step, and their energy before it, if it is to be ``measured``."""
        g = self.norm(x)
        attended, first = self.attn(g, rotation, packing, measured)
        recalled, second = self.hopfield(g, measured)
        return x + self.alpha * (attended + recalled), None if first is None else first + second
