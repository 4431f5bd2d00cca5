"""Features of a frozen encoder over a loader."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor
from tqdm import tqdm

from jepa_lightning.distributed import gather_rows, rank
from jepa_lightning.metrics import NotFinite, finite


class Features(NamedTuple):
    """Pooled features and their labels.

    Attributes:
        x: Mean of the tokens of each sample, (N, D), float32.
        y: Class indices (N,), -1 where unknown; (N, L) where each sample has L labels.
    """

    x: Float[Tensor, "samples dim"]
    y: Int[Tensor, "samples *labels"]

    def labelled(self) -> Features:
        """Only the samples with a label."""
        known = self.y >= 0
        return Features(self.x[known], self.y[known])

    def task(self, number: int) -> Features:
        """With one of several labels."""
        return Features(self.x, self.y[:, number])


def exact(x: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """Convert to float64, on the CPU where the device has no float64 (Apple's)."""
    return (x.cpu() if x.device.type == "mps" else x).double()


def accuracy(predicted: Int[Tensor, " samples"], y: Int[Tensor, " samples"]) -> float:
    """Fraction of the samples whose class was predicted."""
    return float((predicted == y.to(predicted.device)).double().mean())


def features_of(
    encode: Callable[[Tensor], Tensor], data: Any, split: str, device: torch.device, title: str, most: int | None = None
) -> Features | None:
    """Features of a split of a data module, clean; None if it has no such split.

    Args:
        encode: (B, C, ...) -> (B, N, D).
        data: A JEPADataModule.
        split: ``train``, ``val`` or ``test``.
        device: Where to compute.
        title: Name of the encoder, for the progress bar.
        most: At most that many samples, the same for every encoder.
    """
    loader = data.probe_dataloader(split, most)
    if loader is None:
        return None
    return extract(encode, data.normalize, loader, device, f"{title}: {split} features")


@torch.no_grad()
def extract(
    encode: Callable[[Tensor], Tensor],
    prepare: Callable[[Tensor], Tensor],
    loader: Any,
    device: torch.device,
    title: str,
) -> Features:
    """Average-pooled tokens of every sample; each process encodes a part of the samples, all get the features of all.

    Args:
        encode: (B, C, ...) -> (B, N, D).
        prepare: Normalises a batch on the device.
        loader: Yields MaskedBatches in a fixed order.
        device: Where to compute.
        title: Shown by the progress bar.

    Raises:
        NotFinite: If features are NaN or infinite.
    """
    rows, labels = [], []
    for batch in tqdm(loader, desc=title, leave=False, disable=rank() > 0 or None, unit="batch"):
        kept = slice(None) if batch.index is None else batch.index >= 0  # not files that could not be decoded
        tokens = encode(prepare(batch.inputs[kept].to(device, non_blocking=True)))
        rows.append(tokens.mean(dim=1).float())
        labels.append(batch.labels[kept].to(device))
    features = gather_rows(torch.cat(rows))
    try:
        finite(features)
    except NotFinite as error:
        raise NotFinite(f"{title}: {error}") from None
    return Features(features, gather_rows(torch.cat(labels)))
