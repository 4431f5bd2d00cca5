"""The narrow Transformer that predicts the target tokens from the context tokens (I-JEPA section 3)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from jepa_lightning.masking.padded import Padded, known, longest
from jepa_lightning.models.layers import NORM_EPS, BlockOptions, SharedContext, Trunk, init_weights
from jepa_lightning.models.packing import Packing
from jepa_lightning.models.positions import Grid
from jepa_lightning.models.vision_transformer import Encoder
from jepa_lightning.ranges import at_least


@dataclass(frozen=True)
class TargetNoise:
    """V-JEPA's "diffusion" variant: noised true targets in place of mask tokens; no released model uses it.

    For each sample one t in 0 .. steps - 1 and x <- sqrt(a_t) layer_norm(x) + sqrt(1 - a_t) noise, where a is the
    running product of 1 - beta.

    Args:
        first: beta in the first step.
        last: beta in the last step.
        steps: Number of steps.
    """

    first: float = 0.5
    last: float = 1.0
    steps: int = 1000

    def __call__(self, x: Float[Tensor, "batch *tokens dim"]) -> Float[Tensor, "batch *tokens dim"]:
        """Tokens with noise, the same amount in all tokens of a sample."""
        kept = (1.0 - torch.linspace(self.first, self.last, self.steps, device=x.device)).cumprod(0)
        kept = kept[torch.randint(self.steps, (len(x),), device=x.device)].reshape(-1, *[1] * (x.ndim - 1))
        return kept.sqrt() * F.layer_norm(x, x.shape[-1:]) + (1.0 - kept).sqrt() * torch.randn_like(x)


class Predictor(nn.Module):
    """Context tokens and positioned mask tokens in, predicted target tokens out.

    Each target block is a sequence of its own, [context, mask tokens of the block]: blocks never see each other.

    Args:
        encoder: The encoder whose tokens it reads and predicts; only its sizes and its kind of positions are taken.
        embed_dim: Width of the predictor; narrower than the encoder, which makes it a bottleneck.
        depth: Number of Transformer blocks; with EnergyBlocks of steps down the energy.
        num_heads: Attention heads; null for as many as the encoder has.
        mlp_ratio: Hidden width of the MLP over ``embed_dim``; with EnergyBlocks memories of the Hopfield network.
        init_std: Standard deviation of the initial Linear weights; null for Xavier.
        depth_rescale: Divide the output projections of block i by sqrt(2 i) at initialisation.
        num_mask_tokens: Learned mask tokens, one for each family of masks (V-JEPA: 2); null for one that serves all
            (I-JEPA).
        mask_token_std: Standard deviation of the initial mask tokens (V-JEPA: 0).
        blocks: SwiGLU, drop path, activation checkpointing; or EnergyBlocks in place of the Transformer.
        target_noise: Predict from noised true targets in place of mask tokens.
        shared_context: Send the context through the blocks once for all blocks of targets, not once for each: targets
            attend to the context and their own block, the context to itself alone. Not the function of the papers, in
            which the context attends to the mask tokens; faster where there are several blocks.

    Raises:
        ValueError: If ``shared_context`` is to be used with other blocks than Transformer blocks.
    """

    def __init__(
        self,
        encoder: Encoder,
        embed_dim: int = 384,
        depth: int = 12,
        num_heads: int | None = None,
        mlp_ratio: float = 4.0,
        init_std: float | None = 0.02,
        depth_rescale: bool = False,
        num_mask_tokens: int | None = None,
        mask_token_std: float = 0.02,
        blocks: BlockOptions | Trunk | None = None,
        target_noise: TargetNoise | None = None,
        shared_context: bool = False,
    ) -> None:
        super().__init__()
        if num_mask_tokens is not None and num_mask_tokens < 1:
            raise ValueError(f"num_mask_tokens must be at least 1, got {num_mask_tokens}; null for one that serves all")
        at_least(1, embed_dim=embed_dim, num_heads=num_heads)
        at_least(0, depth=depth)
        self.grid, self.positions, self.target_noise = encoder.grid, encoder.positions, target_noise
        self.num_heads, self.depth = encoder.num_heads if num_heads is None else num_heads, depth
        self.embed_dim, self.input_dim = embed_dim, encoder.embed_dim
        self.options: Trunk = blocks or BlockOptions()
        if shared_context and not isinstance(self.options, BlockOptions):
            raise ValueError(f"shared_context needs Transformer blocks, not {type(self.options).__name__}")
        self.shared_context = shared_context
        self.predictor_embed: nn.Module = nn.Linear(encoder.embed_dim, embed_dim)
        if target_noise is None and num_mask_tokens is None:
            self.mask_token = nn.Parameter(torch.empty(1, 1, embed_dim))
        elif target_noise is None:
            tokens = [nn.Parameter(torch.empty(1, 1, embed_dim)) for _ in range(num_mask_tokens or 0)]
            self.mask_tokens = nn.ParameterList(tokens)
        self.predictor_pos_embed: Tensor | None
        self.register_buffer("predictor_pos_embed", self.positions.table(self.grid, embed_dim))
        self.predictor_blocks = self.options.build(depth, embed_dim, self.num_heads, mlp_ratio)
        self.predictor_norm = nn.LayerNorm(embed_dim, eps=NORM_EPS)
        self.predictor_proj = nn.Linear(embed_dim, encoder.embed_dim)
        init_weights(self, init_std, depth_rescale)
        for name, parameter in self.named_parameters():
            if name.startswith("mask_token"):
                nn.init.normal_(parameter, std=mask_token_std)

    def forward(
        self,
        context_tokens: Float[Tensor, "batch nc dim"],
        context: Int[Tensor, "batch nc"] | Padded,
        targets: Int[Tensor, "batch m nt"] | Padded,
        mask_index: int = 0,
        grid: Grid | None = None,
        true_targets: Float[Tensor, "batch m nt dim"] | None = None,
    ) -> Float[Tensor, "batch m nt dim"]:
        """Predict the tokens at ``targets`` from those at ``context``.

        Args:
            context_tokens: Output of the context encoder.
            context: Where these tokens are in the grid; with Padded those of padding are not read.
            targets: Where to predict, M blocks for each sample; with Padded the result has zeros where there is no
                token.
            mask_index: Which family of masks this is: its mask token is used, modulo the number of mask tokens.
            grid: The grid that the indices refer to, if the input had another size than the encoder was built for.
            true_targets: What is to be predicted; only read with ``target_noise``.
        """
        context, targets = alike(context, targets)
        packed = context.pack(context_tokens) if isinstance(context, Padded) else context_tokens
        asked = self.asked(mask_index, true_targets)
        predicted, _ = self.run(self.predictor_embed(packed), asked, context, targets, grid)
        predicted = self.predictor_proj(self.predictor_norm(predicted))
        return targets.pad(predicted) if isinstance(targets, Padded) else predicted

    def reads(
        self, encoder: Encoder, inputs: Float[Tensor, "batch channels *size"], context: Tensor | Padded | None = None
    ) -> Float[Tensor, "batch tokens dim"]:
        """What it reads of an encoder, of all tokens or of the context: the tokens of the last block, (B, Nc, D)."""
        return encoder(inputs, context)

    def run(
        self,
        shown: Float[Tensor, "*context dim"],
        asked: Float[Tensor, "#batch #m #nt dim"],
        context: Int[Tensor, "batch nc"] | Padded,
        targets: Int[Tensor, "batch m nt"] | Padded,
        grid: Grid | None = None,
    ) -> tuple[Float[Tensor, "*targets dim"], Float[Tensor, "*contexts dim"]]:
        """Place tokens of the predictor's width in the grid and send them through the blocks.

        Args:
            shown: Of the context, (B, Nc, Dp), or its tokens alone, (total, Dp), if that is Padded.
            asked: Where to predict; broadcasts to (B, M, Nt, Dp).
            context: Where these tokens are in the grid.
            targets: Where to predict; Padded if the context is, see ``alike``.
            grid: The grid that the indices refer to; None for that of the encoder.

        Returns:
            Tokens at the targets, (B, M, Nt, Dp), and at the context, which each block of targets sees, (B, M, Nc, Dp).
            With Padded lists of tokens, (total, Dp), those of the context once for each block, block after block.
        """
        grid = grid or self.grid
        if isinstance(context, Padded) and isinstance(targets, Padded):
            if self.shared_context:
                raise ValueError("shared_context needs masks of one size in a batch: set --data.masks.per_sample false")
            return self._packed(shown, asked, context, targets, grid)
        assert isinstance(context, Tensor)
        assert isinstance(targets, Tensor)
        batch, blocks, count = targets.shape
        if (table := self._table(grid)) is not None:
            shown, asked = shown + F.embedding(context, table), asked + F.embedding(targets, table)
        asked = asked.expand(batch, blocks, count, -1)
        if self.shared_context:
            return self._shared(shown, asked, context, targets, grid)
        shown = shown.unsqueeze(1).expand(-1, blocks, -1, -1)
        x = torch.cat([shown, asked], dim=2).flatten(0, 1)  # (B * M, Nc + Nt, Dp)
        index = torch.cat([context.unsqueeze(1).expand(-1, blocks, -1), targets], dim=2).flatten(0, 1)
        rotation = self.positions.rotation(index, grid, x.shape[-1] // self.num_heads)
        (x,) = self.options.run(self.predictor_blocks, x, rotation)
        x = x.unflatten(0, (batch, blocks))
        return x[:, :, -count:], x[:, :, :-count]

    def _shared(
        self,
        shown: Float[Tensor, "batch nc dim"],
        asked: Float[Tensor, "batch m nt dim"],
        context: Int[Tensor, "batch nc"],
        targets: Int[Tensor, "batch m nt"],
        grid: Grid,
    ) -> tuple[Float[Tensor, "batch m nt dim"], Float[Tensor, "batch m nc dim"]]:
        """One sequence for each sample: its context, then all its blocks of targets."""
        assert isinstance(self.options, BlockOptions)
        (blocks, count), length = targets.shape[1:], context.shape[1]
        x = torch.cat([shown, asked.flatten(1, 2)], dim=1)  # (B, Nc + M * Nt, Dp)
        index = torch.cat([context, targets.flatten(1)], dim=1)
        rotation = self.positions.rotation(index, grid, x.shape[-1] // self.num_heads)
        (x,) = self.options.run(self.predictor_blocks, x, rotation, shared=SharedContext(length, blocks))
        seen = x[:, :length].unsqueeze(1).expand(-1, blocks, -1, -1)
        return x[:, length:].unflatten(1, (blocks, count)), seen

    def _packed(
        self, shown: Tensor, asked: Tensor, context: Padded, targets: Padded, grid: Grid
    ) -> tuple[Float[Tensor, "targets dim"], Float[Tensor, "contexts dim"]]:
        """The same where sequences differ in length: a list of all context tokens, M times, then of all targets."""
        batch, blocks, count = targets.indices.shape
        length = targets.longest or _longest(context, targets)
        asked = targets.pack(asked.expand(batch, blocks, count, -1))  # (T, Dp)
        if (table := self._table(grid)) is not None:
            shown, asked = shown + F.embedding(context.tokens, table), asked + F.embedding(targets.tokens, table)
        x = torch.cat([shown.repeat(blocks, 1), asked]).unsqueeze(0)
        sample = context.places // context.indices.shape[1]
        block = torch.arange(blocks, device=x.device).unsqueeze(1)
        first = (sample * blocks + block) * length + context.columns  # (M, C): the copies in (B * M, length)
        row = targets.places // count
        second = row * length + context.counts[row // blocks] + targets.columns  # behind the context of their sample
        packing = Packing.of(torch.cat([first.flatten(), second]), batch * blocks, length)
        index = torch.cat([context.tokens.repeat(blocks), targets.tokens])
        index = index.new_zeros(batch * blocks * length).index_copy_(0, packing.places, index)
        rotation = self.positions.rotation(index.view(-1, length), grid, x.shape[-1] // self.num_heads)
        (x,) = self.options.run(self.predictor_blocks, x, rotation, packing)
        return x[0, first.numel() :], x[0, : first.numel()]

    def _table(self, grid: Grid) -> Float[Tensor, "tokens dim"] | None:
        """The positions that are added to tokens, or None."""
        if self.predictor_pos_embed is None:
            return None
        return self.positions.fit(self.predictor_pos_embed, self.grid, grid)[0]

    def diagnostics(self) -> dict[str, Tensor]:
        """Scalars to log about the last pass in training: nothing of a Transformer, energies of EnergyBlocks."""
        return self.options.diagnostics(self.predictor_blocks)

    def asked(self, mask_index: int, true_targets: Tensor | None) -> Tensor:
        """What stands where tokens are to be predicted, before positions: broadcasts to (B, M, Nt, Dp)."""
        if self.target_noise is not None:
            if true_targets is None:
                raise ValueError("a predictor with target_noise needs true_targets")
            return self.target_noise(self.predictor_embed(true_targets))
        if hasattr(self, "mask_token"):
            return self.mask_token.unsqueeze(0)
        return self.mask_tokens[mask_index % len(self.mask_tokens)].unsqueeze(0)


def _longest(context: Padded, targets: Padded) -> int:
    """A length that is enough for every sequence: the true one where it can be found without waiting for a device."""
    if targets.indices.device.type == "cpu" and not torch.compiler.is_compiling():
        return longest(context.indices, targets.indices)
    return context.indices.shape[1] + targets.indices.shape[2]


def alike(
    context: Int[Tensor, "batch nc"] | Padded, targets: Int[Tensor, "batch m nt"] | Padded
) -> tuple[Int[Tensor, "batch nc"] | Padded, Int[Tensor, "batch m nt"] | Padded]:
    """Both as plain indices, or both as Padded if one of them holds padding."""
    context, targets = known(context), known(targets)
    if isinstance(context, Padded) or isinstance(targets, Padded):
        return _as_padded(context), _as_padded(targets)
    return context, targets


def _as_padded(index: Int[Tensor, "batch *k"] | Padded) -> Padded:
    """All tokens, where nothing is padded."""
    return index if isinstance(index, Padded) else Padded(index, torch.arange(index.numel(), device=index.device))
