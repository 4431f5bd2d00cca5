"""V-JEPA 2-AC: predict features of the next frame from frames, actions and states so far; the encoder is frozen.

Assran et al., "V-JEPA 2", arXiv 2506.09985, section 3. With features z_t = LN(f(x_t)) of each frame alone, actions a_t
between frames, states s_t and the block-causal predictor g, ẑ_t+1 = LN(g(z_1 a_1 s_1, ..., z_t a_t s_t)),

    teacher forcing = mean over t = 2..T, tokens and channels of |ẑ_t - z_t|
    roll-out        = mean over t = 2..k+1, tokens and channels of |z̃_t - z_t|, with z̃_t+1 = LN(g(z_1, z̃_2, ..., z̃_t))
    loss            = teacher forcing + roll-out,

where gradients pass through all z̃, states and actions are those of the data, and k = ``auto_steps``.

| | paper | official code | here |
|---|---|---|---|
| encoder | frozen V-JEPA 2 | target encoder; an online encoder is there, and never runs | one, frozen |
| a frame | alone | repeated to fill a tubelet | the same; an encoder of images takes it as it is |
| features | layer-normalised | without affine, eps 1e-5, also of predictions (``normalize_reps``) | the same |
| attention mask | block-causal | a table for 512 frames, 4.4 GB | none: steps attend one after the other |
| roll-out | 2 steps | ``auto_steps`` 2 | the same |
| extrinsics | not used | a layer that is always there | the same (``extrinsics_dim: null`` leaves it out) |
| positions | 3-D RoPE | angles and pairs do not match | as the encoder's: ``tiled`` for the released weights |
| state | pose and gripper, 7 numbers | 7 | any size, or none |
| GradScaler | - | also with bfloat16 | none with bfloat16 |
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from jepa_lightning.methods.base import JEPA
from jepa_lightning.methods.groups import OptimizerFactory
from jepa_lightning.models import Encoder
from jepa_lightning.models.action_predictor import ActionPredictor
from jepa_lightning.schedules import Schedule
from jepa_lightning.trajectory import Trajectory


class VJEPA2AC(JEPA):
    """The action-conditioned world model of V-JEPA 2 (Assran et al. 2025) on a frozen encoder.

    Give the encoder its weights with ``--init_from``, from any checkpoint of a pretraining.

    Args:
        encoder: The network that makes features of frames; it is not trained.
        predictor: Builds the predictor for an encoder, so that sizes are said once.
        lr: Learning rate by optimizer step.
        weight_decay: Weight decay by optimizer step; biases, norms and other vectors are never decayed.
        auto_steps: Steps of the roll-out.
        loss_exp: p of the distance mean(|prediction - target|^p) / p.
        betas: The two decay rates of AdamW.
        ipe_scale: Length of the schedules over the length of the training; above 1 they are not finished.
        compile: Compile the networks with torch.compile; the first steps then take minutes.
        optimizer: Makes the optimizer, for example jepa_lightning.muon.Muon; null for AdamW with ``betas``.

    Raises:
        ValueError: If there is no step in the roll-out.
    """

    def __init__(
        self, encoder: Encoder, predictor: Callable[[Encoder], ActionPredictor], lr: Schedule, weight_decay: Schedule,
        *, auto_steps: int = 2, loss_exp: float = 1.0, betas: tuple[float, float] = (0.9, 0.999),
        ipe_scale: float = 1.0, compile: bool = False, optimizer: OptimizerFactory | None = None,
    ) -> None:  # fmt: skip
        super().__init__(encoder, lr, weight_decay, None, betas, ipe_scale, compile, optimizer=optimizer)
        if auto_steps < 1:
            raise ValueError(f"auto_steps is the number of steps of the roll-out: use at least 1, not {auto_steps}")
        self.encoder.requires_grad_(False).eval()
        self.predictor = predictor(encoder)
        del self.observers  # they look at masked tokens, and there are none
        self.auto_steps, self.loss_exp = auto_steps, loss_exp

    def losses(self, batch: Trajectory) -> dict[str, Tensor]:
        """``{"loss", "teacher_forcing", "rollout"}``.

        Raises:
            ValueError: If a trajectory is too short for the roll-out.
        """
        if batch.frames.shape[2] <= self.auto_steps:
            raise ValueError(
                f"trajectories of {batch.frames.shape[2]} frames are too short for a roll-out of {self.auto_steps} "
                "steps: set --data.num_frames to more, or --model.auto_steps to less"
            )
        grid = self.encoder.grid_of(batch.frames[:, :, 0])[1:]
        size = grid[0] * grid[1]
        features = self.features(batch.frames)  # (B, T N, D)

        def predict(sequence: Tensor, steps: int) -> Tensor:
            states, extrinsics = (x if x is None else x[:, :steps] for x in (batch.states, batch.extrinsics))
            return self.normalized(self.predictor(sequence, batch.actions[:, :steps], states, extrinsics, grid))

        forced = predict(features[:, :-size], batch.actions.shape[1])
        rolled = forced[:, :size]
        for steps in range(2, self.auto_steps + 1):
            following = predict(torch.cat([features[:, :size], rolled], dim=1), steps)
            rolled = torch.cat([rolled, following[:, -size:]], dim=1)
        parts = {"teacher_forcing": self.distance(forced, features[:, size:])}
        parts["rollout"] = self.distance(rolled, features[:, size : size + rolled.shape[1]])
        return {"loss": parts["teacher_forcing"] + parts["rollout"], **parts}

    def features(self, frames: Float[Tensor, "batch channels time height width"]) -> Float[Tensor, "batch tokens dim"]:
        """Normalised features of each frame alone, one frame after the other, (B, T N, D), without gradient."""
        tokens = self.targets_of(frames.transpose(1, 2).flatten(0, 1))  # (B T, N, D)
        return self.normalized(tokens).unflatten(0, (len(frames), -1)).flatten(1, 2)

    def normalized(self, tokens: Float[Tensor, "batch tokens dim"]) -> Float[Tensor, "batch tokens dim"]:
        """Layer norm without affine: what predictions and targets are compared in, and what a roll-out goes on with."""
        return F.layer_norm(tokens, (self.embed_dim,))

    def distance(self, predicted: Tensor, target: Tensor) -> Tensor:
        """mean(|predicted - target|^p) / p."""
        return (predicted - target).abs().pow(self.loss_exp).mean() / self.loss_exp

    def encode(self, inputs: Float[Tensor, "batch channels *size"]) -> Float[Tensor, "batch tokens dim"]:
        """Tokens of images (B, C, H, W), or of each frame of a clip (B, C, T, H, W), without gradient."""
        if inputs.ndim == 4:
            return super().encode(inputs)
        return super().encode(inputs.transpose(1, 2).flatten(0, 1)).unflatten(0, (len(inputs), -1)).flatten(1, 2)
