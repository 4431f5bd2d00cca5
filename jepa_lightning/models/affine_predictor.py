"""The predictor of Saccade-JEPA: an MLP that is told how the view moved."""

from __future__ import annotations

from itertools import pairwise

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from jepa_lightning.models.affine import CODE_DIM
from jepa_lightning.models.layers import init_weights
from jepa_lightning.models.vision_transformer import Encoder


class AffineMLP(nn.Module):
    """Linear layers with GELU between them: ``g(c + e(code))``, e a Linear layer of its own.

    Args:
        encoder: The encoder whose features it reads and predicts; only its width is taken.
        depth: Number of Linear layers, each with weights of its own.
        hidden_dim: Width between them; null for the width of the encoder.

    Raises:
        ValueError: If there is no layer.
    """

    def __init__(self, encoder: Encoder, depth: int = 3, hidden_dim: int | None = None) -> None:
        super().__init__()
        if depth < 1:
            raise ValueError(f"depth is the number of Linear layers: use at least 1, not {depth}")
        ends, hidden = encoder.embed_dim, hidden_dim or encoder.embed_dim
        widths = [ends, *[hidden] * (depth - 1), ends]
        self.code_embed = nn.Linear(CODE_DIM, ends)
        self.layers = nn.ModuleList(nn.Linear(before, after) for before, after in pairwise(widths))
        init_weights(self, std=None)

    def forward(
        self, features: Float[Tensor, "batch dim"], code: Float[Tensor, "batch code"]
    ) -> Float[Tensor, "batch dim"]:
        """Predict the features of a view after a movement.

        Args:
            features: Mean of the tokens of a view, or an earlier prediction.
            code: Code of the movement, see ``affine_code``.
        """
        x = features + self.code_embed(F.gelu(code))
        for number, layer in enumerate(self.layers):
            x = layer(x if number == 0 else F.gelu(x))
        return x
