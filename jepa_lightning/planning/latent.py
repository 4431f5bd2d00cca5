"""A frozen encoder with an action-conditioned predictor as a world model (V-JEPA 2-AC)."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from jepa_lightning.models import ActionPredictor, Encoder
from jepa_lightning.models.action_predictor import Memory


class RollOut(NamedTuple):
    """Where a roll-out is.

    Attributes:
        features: Of the frame, layer-normalised, (B, N, D).
        pose: State of the robot, (B, S); None where the predictor reads none.
        memory: What the predictor keeps of earlier steps; None at the beginning.
    """

    features: Float[Tensor, "batch tokens dim"]
    pose: Float[Tensor, "batch state"] | None = None
    memory: Memory | None = None


class PredictorWorld:
    """Rolls out features with the keys and values of earlier steps kept, so that each step is computed once.

    Args:
        encoder: Makes the features of a frame.
        predictor: Predicts those of the next.
        advance: What the state is after an action, for example planning.pose.advance; None for no state.
    """

    def __init__(
        self,
        encoder: Encoder,
        predictor: ActionPredictor,
        advance: Callable[[Tensor, Tensor], Tensor] | None = None,
    ) -> None:
        self.encoder, self.predictor, self.advance = encoder, predictor, advance

    def encode(
        self,
        observation: Float[Tensor, "batch channels height width"],
        pose: Float[Tensor, "batch state"] | None = None,
    ) -> RollOut:
        """The state at a frame."""
        tokens = self.encoder(observation)
        return RollOut(F.layer_norm(tokens, tokens.shape[-1:]), pose)

    def step(self, state: RollOut, action: Float[Tensor, "batch action"]) -> RollOut:
        """The state after an action."""
        pose = None if state.pose is None else state.pose.unsqueeze(1)
        tokens, memory = self.predictor.advance(state.features, action.unsqueeze(1), pose, memory=state.memory)
        following = state.pose if state.pose is None or self.advance is None else self.advance(state.pose, action)
        return RollOut(F.layer_norm(tokens, tokens.shape[-1:]), following, memory)
