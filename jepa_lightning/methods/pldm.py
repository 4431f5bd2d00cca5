"""PLDM: a world model of one vector, trained from pixels and actions alone, and a distance to plan with.

Sobal et al. 2025, "Learning from Reward-Free Offline Data: A Case for Planning with Latent Dynamics Models", arXiv
2502.14819. With z_t = f(x_t), actions a_t, and the roll-out z̃_0 = z_0, z̃_t+1 = g(z̃_t, a_t) over a window of frames,

    prediction      = mean over t of |z̃_t - z_t|^2                      both branches get gradients
    regularizer     = variance and covariance of z_t over the batch      (or SIGReg): no collapse
    time similarity = mean over t of |z_t+1 - z_t|^2
    inverse         = mean over t of |h(z_t, z_t+1) - a_t|^2
    loss            = prediction + regularizer + b time similarity + c inverse + distance.

The Euclidean distance of two vectors is not the time from one to the other: a wall may be between them. So a
quasimetric d(z, z') learns the number of steps of the shortest way (Wang et al. 2023, "Optimal Goal-Reaching
Reinforcement Learning via Quasimetric Learning", arXiv 2304.01203). One step costs at most 1, and apart from that
all is pushed apart:

    distance = mean over t of relu(d(z_t, z_t+1) - 1)^2 * constraint + mean over pairs of softplus(far - d(z, z')),

of frames of one episode. Ways that were taken in different pieces are joined by the triangle inequality, so that random
walks teach shortest ways.

| | paper | official code | here | why |
|---|---|---|---|---|
| encoder | convolutions | Impala, 65 pixels | convolutions and a soft-argmax, 32 pixels | minutes on a CPU |
| vector | - | 512 (paper), 32 (eb_jepa) | 32 | - |
| dynamics | GRU or convolutions | GRU, 2 layers | residual MLP | the state is in one frame |
| time similarity, inverse | 12, 1 | 12, 1 | 1, 10 | on few steps the dot is forgotten: docs/two-rooms.md |
| covariance | / D(D - 1) | the same | / D, VICReg's | one term for all methods |
| planning cost | sum of Euclidean distances | the same | learned temporal distance | 47 % with the true simulator |
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from jepa_lightning.distributed import rank
from jepa_lightning.losses import Regularizer
from jepa_lightning.masking import seeded
from jepa_lightning.methods.base import JEPA
from jepa_lightning.models import Encoder, InverseDynamics, LatentDynamics, TemporalDistance
from jepa_lightning.schedules import Schedule
from jepa_lightning.trajectory import Trajectory


class PLDM(JEPA):
    """A world model trained from pixels (Sobal et al. 2025) with a learned temporal distance (Wang et al. 2023).

    It is a world model for jepa_lightning.planning: ``encode`` and ``step``, and ``temporal_distance`` for the cost.

    Args:
        encoder: Makes one vector of a frame, for example KeypointEncoder; of several tokens the mean is taken.
        dynamics: Builds the network that predicts the next vector, for an encoder, so that sizes are said once.
        lr: Learning rate by optimizer step.
        weight_decay: Weight decay by optimizer step; biases, norms and other vectors are never decayed.
        regularizer: The term against collapse: VarianceCovariance or SIGReg.
        inverse: Builds the network of inverse dynamics, which has the weight of its term; null for no such term.
        distance: Builds the temporal distance, which has the weight of its term; null for no such term.
        time_similarity: Weight of the term; 0 for none.
        window: Frames of a roll-out, drawn from a piece.
        goals: Frames of a piece, at any time, that distances are measured to.

    Raises:
        ValueError: If a roll-out has fewer than two frames, or there is no goal.
    """

    def __init__(
        self, encoder: Encoder, dynamics: Callable[[Encoder], LatentDynamics], lr: Schedule, weight_decay: Schedule,
        regularizer: Regularizer, inverse: Callable[[Encoder], InverseDynamics] | None = None,
        distance: Callable[[Encoder], TemporalDistance] | None = None, time_similarity: float = 1.0, window: int = 16,
        goals: int = 8,
    ) -> None:  # fmt: skip
        super().__init__(encoder, lr, weight_decay, None, regularizer=regularizer, stop_gradient=False)
        if window < 2 or goals < 1:
            raise ValueError(f"window must be at least 2 frames and goals at least 1, got {window} and {goals}")
        self.dynamics = dynamics(encoder)
        self.inverse = None if inverse is None else inverse(encoder)
        self.distance = None if distance is None else distance(encoder)
        del self.observers  # they look at masked tokens, and there are none
        self.time_similarity, self.window, self.goals = time_similarity, window, goals

    def losses(self, batch: Trajectory) -> dict[str, Tensor]:
        """``{"loss", "prediction", ...}``: each term without its weight.

        Raises:
            ValueError: If a piece is shorter than a roll-out.
        """
        index = self.times(len(batch.frames), batch.frames.shape[2]).to(batch.frames.device)  # (B, W + goals)
        rows = torch.arange(len(index), device=index.device)[:, None]
        frames = batch.frames.transpose(1, 2)[rows, index]  # (B, W + goals, C, H, W)
        z = self.encoder(frames.flatten(0, 1)).mean(dim=1).unflatten(0, index.shape)
        window, actions = z[:, : self.window], batch.actions[rows, index[:, : self.window - 1]]
        prediction = (self.roll_out(window[:, 0], actions) - window[:, 1:]).square().mean()
        loss, parts = prediction, {"prediction": prediction}
        terms = {"time_similarity": (self.time_similarity, (window[:, 1:] - window[:, :-1]).square().mean())}
        terms |= self.regularizer.terms(z.transpose(0, 1), self.draw)  # type: ignore[union-attr]  # it is required
        if self.inverse is not None:
            found = self.inverse(window[:, :-1], window[:, 1:])
            terms["inverse"] = (self.inverse.weight, (found - actions).square().mean())
        if self.distance is not None:
            terms["distance"] = (
                self.distance.weight,
                self.distance.loss(window.detach(), z[:, self.window :].detach()),
            )
        for name, (weight, value) in terms.items():
            loss, parts = loss + weight * value, {**parts, name: value.detach()}
        return {"loss": loss, **parts}

    def times(self, batch: int, frames: int) -> Int[Tensor, "batch times"]:
        """Frames of each piece: a window in a row, then goals at any time; they follow from the step alone.

        Raises:
            ValueError: If the pieces are shorter than the window.
        """
        if frames < self.window:
            raise ValueError(
                f"pieces of {frames} frames are too short for roll-outs of {self.window}: set --data.num_frames to "
                "more, or --model.window to less"
            )
        generator = seeded("times", self.draw, rank())
        start = torch.randint(frames - self.window + 1, (batch, 1), generator=generator)
        goals = torch.randint(frames, (batch, self.goals), generator=generator)
        return torch.cat([start + torch.arange(self.window), goals], dim=1)

    def roll_out(
        self, z: Float[Tensor, "batch dim"], actions: Float[Tensor, "batch steps action"]
    ) -> Float[Tensor, "batch steps dim"]:
        """The vectors after each action, each predicted from the one predicted before."""
        found = []
        for action in actions.unbind(dim=1):
            z = self.dynamics(z, action)
            found.append(z)
        return torch.stack(found, dim=1)

    def encode(self, inputs: Float[Tensor, "batch channels *size"]) -> Float[Tensor, "batch tokens dim"]:
        """One vector of images (B, 1, D), or one of each frame of a clip (B, T, D), without gradient."""
        frames = inputs if inputs.ndim == 4 else inputs.transpose(1, 2).flatten(0, 1)
        z = super().encode(frames).mean(dim=1)
        return z.unflatten(0, (len(inputs), -1))

    def step(
        self, state: Float[Tensor, "batch tokens dim"], action: Float[Tensor, "batch action"]
    ) -> Float[Tensor, "batch tokens dim"]:
        """The vector after an action, for planning."""
        return self.dynamics(state, action.unsqueeze(1).to(state))

    def temporal_distance(
        self, reached: Float[Tensor, "*batch 1 dim"], goal: Float[Tensor, "*batch 1 dim"]
    ) -> Float[Tensor, "*batch"]:
        """Steps from each vector to its goal: a cost for planning.

        Raises:
            ValueError: If the model was trained without it.
        """
        if self.distance is None:
            raise ValueError(
                "this world model has no temporal distance: train it with --model.distance TemporalDistance"
            )
        return self.distance(reached, goal).squeeze(-1)
