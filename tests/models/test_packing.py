from __future__ import annotations

import subprocess
import sys

import torch

from jepa_lightning.models.packing import Packing

PLACES = torch.tensor([0, 1, 2, 5, 10, 11, 12, 13, 14])
"""Sequences of 3, 1 and 5 tokens in a table of 3 x 5."""


def test_the_table_holds_the_sequences_with_zeros_behind_them() -> None:
    packing, x = Packing.of(PLACES, 3, 5), torch.randn(1, 9, 4)
    table = packing.pad(x)
    for row, sequence in zip(table, x[0].split((3, 1, 5)), strict=True):
        assert torch.equal(row[: len(sequence)], sequence)
        assert not row[len(sequence) :].any()
    assert packing.keep.sum(dim=(1, 2, 3)).tolist() == [3, 1, 5]


def test_packing_undoes_padding_and_padding_gets_no_gradient() -> None:
    packing, x = Packing.of(PLACES, 3, 5), torch.randn(1, 9, 4)
    assert torch.equal(packing.pack(packing.pad(x)), x)
    table, weights = torch.randn(3, 5, 4, requires_grad=True), torch.randn(1, 9, 4)
    (gradient,) = torch.autograd.grad((packing.pack(table) * weights).sum(), table)
    assert torch.equal(gradient, packing.pad(weights))


def test_a_number_of_each_sequence_is_spread_over_its_tokens() -> None:
    spread = Packing.of(PLACES, 3, 5).spread(torch.tensor([7.0, 8.0, 9.0]).view(3, 1, 1))
    assert spread.shape == (1, 9, 1)
    assert spread.flatten().tolist() == [7.0] * 3 + [8.0] + [9.0] * 5


COMPILE = """
import torch
from jepa_lightning.masking import MultiBlock, padded
from jepa_lightning.models import EnergyBlocks, Predictor, RoPE, VisionTransformer

torch.manual_seed(0)
encoder = VisionTransformer(32, 8, 3, 24, 1, 2, positions=RoPE())
predictor = Predictor(encoder, 16, 1, blocks=EnergyBlocks())
whole = [torch.compile(network, backend="eager", fullgraph=True, dynamic=True) for network in (encoder, predictor)]
images, sampler = torch.randn(4, 3, 32, 32), MultiBlock(4, min_keep=1, per_sample=True)
for seed in range(2):  # lengths differ from batch to batch
    (masks,) = sampler.sample(4, torch.Generator().manual_seed(seed))
    context, targets = padded(masks.context), padded(masks.targets)
    assert not isinstance(context, torch.Tensor) and not isinstance(targets, torch.Tensor)
    tokens = encoder(images, masks.context)
    predicted = predictor(tokens, *masks)
    torch.testing.assert_close(whole[0](images, context), tokens, rtol=0, atol=1e-6)
    torch.testing.assert_close(whole[1](tokens, context, targets), predicted, rtol=0, atol=1e-6)
plain = torch.tensor([[3, 1]]).repeat(4, 1)
torch.testing.assert_close(whole[0](images, plain), encoder(images, plain))
plain[2, 1] = -1
try:
    whole[0](images, plain)
except RuntimeError as error:
    assert "padding" in str(error), error
else:
    raise SystemExit("padding was overlooked")
"""


def test_networks_compile_without_a_break_in_the_graph_and_refuse_padding_that_they_cannot_see() -> None:
    # In a process of its own, because torch.compile cannot follow the checks of shapes that are made under pytest.
    done = subprocess.run([sys.executable, "-c", COMPILE], capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
