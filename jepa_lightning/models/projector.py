"""The MLP between an encoder and a loss on whole samples, thrown away after training (SimCLR, VICReg, LeJEPA)."""

from __future__ import annotations

from itertools import pairwise
from typing import cast

from jaxtyping import Float
from torch import Tensor, nn

from jepa_lightning.distributed import sum_over_processes, world_size
from jepa_lightning.models.vision_transformer import Encoder


class BatchNorm(nn.BatchNorm1d):
    """BatchNorm whose batch is that of all processes together, on any device.

    PyTorch's SyncBatchNorm does the same on GPUs only, and takes it for granted that somebody converts the module.
    """

    def forward(self, x: Float[Tensor, "samples dim"]) -> Float[Tensor, "samples dim"]:
        """Normalise each channel with the statistics of the batch; in eval mode with the running ones."""
        if not self.training or world_size() == 1:
            return super().forward(x)
        rows = x.float()
        count = sum_over_processes(rows.new_tensor(len(rows)))
        mean = sum_over_processes(rows.sum(dim=0)) / count
        variance = sum_over_processes((rows - mean).square().sum(dim=0)) / count
        self._keep(mean.detach(), variance.detach() * count / (count - 1))
        return ((rows - mean) * (variance + self.eps).rsqrt() * self.weight + self.bias).to(x.dtype)

    def _keep(self, mean: Tensor, variance: Tensor) -> None:
        """Move the running statistics, as PyTorch does."""
        weight = self.momentum or 0.1
        for running, new in ((self.running_mean, mean), (self.running_var, variance)):
            cast(Tensor, running).lerp_(new, weight)
        cast(Tensor, self.num_batches_tracked).add_(1)


class Projector(nn.Module):
    """Linear layers with BatchNorm and ReLU between them, right under DDP.

    Args:
        encoder: The encoder whose features it reads; only its width is taken.
        hidden_dim: Width of the hidden layers.
        out_dim: Width of the result.
        hidden_layers: Number of hidden layers.
    """

    def __init__(self, encoder: Encoder, hidden_dim: int = 2048, out_dim: int = 64, hidden_layers: int = 2) -> None:
        super().__init__()
        widths = [encoder.embed_dim, *[hidden_dim] * hidden_layers]
        layers: list[nn.Module] = []
        for before, after in pairwise(widths):
            layers += [nn.Linear(before, after, bias=False), BatchNorm(after), nn.ReLU()]  # the norm takes a bias away
        self.layers = nn.Sequential(*layers, nn.Linear(widths[-1], out_dim))

    def forward(self, features: Float[Tensor, "*sets samples dim"]) -> Float[Tensor, "*sets samples out"]:
        """Project features of samples; all of them together are the batch that is normalised."""
        rows = features.flatten(0, -2)
        return self.layers(rows).unflatten(0, features.shape[:-1])
