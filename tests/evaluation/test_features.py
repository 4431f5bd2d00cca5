from __future__ import annotations

import torch
from torch import Tensor

from jepa_lightning.evaluation.features import extract
from jepa_lightning.masking import MaskedBatch


def encode(inputs: Tensor) -> Tensor:
    """Two tokens of each sample, its number and the next."""
    return torch.stack([inputs, inputs + 1], dim=1).unsqueeze(-1)


def test_tokens_are_averaged_and_files_that_could_not_be_decoded_left_out() -> None:
    index = torch.tensor([5, -1, 2])
    loader = [MaskedBatch(torch.tensor([1.0, 2.0, 3.0]), (), torch.tensor([7, -1, 9]), index)]
    features = extract(encode, lambda inputs: 2 * inputs, loader, torch.device("cpu"), "")
    assert features.x.tolist() == [[2.5], [6.5]]
    assert features.y.tolist() == [7, 9]


def test_samples_that_do_not_tell_which_they_are_are_all_taken() -> None:
    loader = [MaskedBatch(torch.tensor([1.0, 2.0]), (), torch.tensor([7, 8])) for _ in range(2)]
    features = extract(encode, lambda inputs: inputs, loader, torch.device("cpu"), "")
    assert features.y.tolist() == [7, 8, 7, 8]
