"""The attentive probe: a small head with attention on a frozen encoder.

V-JEPA (arXiv 2404.08471, section 4.3) pools the tokens with one cross-attention layer, V-JEPA 2 (arXiv 2506.09985,
section 4) puts three self-attention layers before it. Several heads, one for each learning rate and weight decay, are
trained in parallel on one pass of the encoder; each has its own parameters, moments and gradient clipping, as if
trained alone.

| | official code | here |
|---|---|---|
| accuracy | running mean of batch means, padded samples counted | each sample counted once |
| reported | best head on the evaluation split | the same (`val/top1`); `jepa test` takes the best of val |
| validation clips | at random places, shuffled | the same clips every time |
| weight decay | V-JEPA: weights; V-JEPA 2: everything | weights |
| precision | float16 | `trainer.precision` |
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
from jaxtyping import Float
from torch import Tensor, nn

from jepa_lightning import weights
from jepa_lightning.models.pooling import AttentiveClassifier
from jepa_lightning.probing.frozen import FrozenProbe, grid_of
from jepa_lightning.schedules import Schedule
from jepa_lightning.weights import Branch, Hints


class AttentiveProbe(FrozenProbe):
    """Attentive classifiers on a frozen encoder; works on images and clips, with one label or several.

    Inputs may be (B, K, C, T, H, W), K clips and views of each video: a video's prediction is then the mean of the
    probabilities over what is predicted separately.

    Args:
        checkpoint: The pretrained model, in any format that ``load_encoder`` reads.
        branch: Which of its encoders: ``target`` (EMA, as the papers) or ``context``.
        out_layers: Blocks, from 0, whose tokens are read together; null for the last one's.
        depth: Layers of a head (V-JEPA 1, V-JEPA 2: 4).
        num_heads: Attention heads of a head.
        lr: Highest learning rates of the grid.
        weight_decay: Weight decays of the grid; there is one head for each pair.
        lr_schedule: Factor of the learning rates by optimizer step; null for a cosine to 0.
        weight_decay_schedule: Factor of the weight decays by optimizer step; null for 1.
        attend_across_clips: Give a head the tokens of all clips of a video in one sequence.
        overrides: Sizes of the encoder that the checkpoint does not say: num_heads, img_size, num_frames.
    """

    def __init__(
        self,
        checkpoint: str,
        branch: Branch = "target",
        out_layers: Sequence[int] | None = None,
        depth: int = 1,
        num_heads: int = 16,
        lr: Sequence[float] = (1e-3,),
        weight_decay: Sequence[float] = (0.01,),
        lr_schedule: Schedule | None = None,
        weight_decay_schedule: Schedule | None = None,
        attend_across_clips: bool = False,
        overrides: Hints | None = None,
    ) -> None:
        encoder = weights.open(checkpoint).networks(branch, hints=overrides).encoder
        super().__init__(checkpoint, encoder, grid_of(lr, weight_decay), lr_schedule, weight_decay_schedule)
        self.out_layers = None if out_layers is None else list(out_layers)
        self.depth, self.num_heads = depth, num_heads
        self.attend_across_clips = attend_across_clips

    def new_heads(self, outputs: int) -> list[nn.Module]:
        """One for each point of the grid, all with the same initial weights."""
        first = AttentiveClassifier(self.encoder.embed_dim, outputs, self.num_heads, self.depth)
        heads: list[nn.Module] = []
        for _ in self.grid:
            heads.append(AttentiveClassifier(self.encoder.embed_dim, outputs, self.num_heads, self.depth))
            heads[-1].load_state_dict(first.state_dict())
        return heads

    def groups(self) -> dict[tuple[str, str], list[int]]:
        """All heads are alternatives."""
        return {("attentive probe", "trained"): list(range(len(self.heads)))}

    def settings(self) -> str:
        """What a checkpoint with other heads is told to give."""
        made = f"lr and weight_decay make {len(self.heads)} of depth {self.depth}"
        return f"{made}: give the lr, weight_decay and depth"

    @torch.no_grad()
    def encode(self, inputs: Float[Tensor, "batch channels *size"]) -> Float[Tensor, "batch tokens dim"]:
        """Tokens of the frozen encoder; those of several blocks one after the other."""
        if self.out_layers is None:
            return super().encode(inputs)
        return torch.cat(self.encoder(inputs, layers=self.out_layers), dim=1)

    def tokens(self, inputs: Tensor) -> Tensor:
        """(B, V, N, D): the sequences of each sample that are classified separately."""
        if inputs.ndim < 6:
            return self.encode(inputs).unsqueeze(1)
        batch, count = inputs.shape[:2]
        passes = [self.encode(clips) for clips in inputs.flatten(0, 1).split(batch)]  # all at once may not fit
        tokens = torch.cat(passes).unflatten(0, (batch, count))  # (B, clips * views, N, D)
        if not self.attend_across_clips:
            return tokens
        # In training a clip has one view; in evaluation all views of a clip stand before those of the next.
        views = 1 if self.training else int(getattr(cast(Any, self.trainer).datamodule, "views", 1))
        return tokens.unflatten(1, (-1, views)).transpose(1, 2).flatten(2, 3)  # (B, views, clips * N, D)
