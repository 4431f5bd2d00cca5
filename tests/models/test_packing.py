from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from jepa_lightning.models import BlockOptions, RoPE
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


def test_a_list_is_sorted_by_length_and_a_table_of_each_length_has_no_padding() -> None:
    places = torch.tensor([0, 1, 2, 5, 10, 11, 12, 15])  # of 3, 1, 3 and 1 tokens
    x = torch.randn(1, 8, 4)
    found = Packing.of(places, 4, 5).by_length()
    assert found is not None
    packing, order = found
    assert packing.runs == ((2, 1), (2, 3))
    ones, threes = packing.tables(x[:, order])
    assert torch.equal(ones, x[0, [3, 7]].unsqueeze(1))
    assert torch.equal(threes, torch.stack([x[0, :3], x[0, 4:7]]))
    assert torch.equal(packing.pad(x[:, order]), Packing.of(places, 4, 5).pad(x))


@pytest.mark.parametrize("rotary", [False, True])
def test_attention_by_length_equals_attention_to_a_padded_table_also_in_gradient(rotary: bool) -> None:
    options, packing = BlockOptions(), Packing.of(PLACES, 3, 5)
    blocks, x = options.build(2, 24, 3, 2.0), torch.randn(1, 9, 24, requires_grad=True)
    rotation = RoPE().rotation(torch.randint(16, (3, 5)), (1, 4, 4), 8) if rotary else None
    by_length, padded = options.run(blocks, x, rotation, packing=packing)[0], x
    for block in blocks:
        padded = block(padded, rotation, packing)
    torch.testing.assert_close(by_length, padded, rtol=0, atol=1e-5)
    weights, inputs = torch.randn(x.shape), [x, *blocks.parameters()]
    gradients = [torch.autograd.grad((y * weights).sum(), inputs) for y in (by_length, padded)]
    for a, b in zip(*gradients, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


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
