from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

import jepa_lightning as jl
from jepa_lightning.masking import MaskedBatch, TokenMasks
from jepa_lightning.methods import Distillation
from jepa_lightning.models import Predictor, VisionTransformer
from jepa_lightning.schedules import Constant

CheckpointFactory = Callable[..., str]


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory, save_checkpoint: CheckpointFactory) -> str:
    return save_checkpoint(tmp_path_factory.mktemp("teacher") / "t.ckpt", embed_dim=32, depth=2, num_heads=4)


def student(teacher: str | None, teacher_dim: int = 32, **options: Any) -> Distillation:
    encoder = VisionTransformer(16, 8, embed_dim=16, depth=1, num_heads=2, init_std=None)
    narrow = partial(Predictor, embed_dim=12, depth=1, num_heads=2)
    return Distillation(
        encoder, narrow, teacher_dim, Constant(1e-3), Constant(0.0), Constant(0.9), teacher=teacher, **options
    )


def batch() -> MaskedBatch:
    targets = torch.tensor([[[1], [2]], [[0], [3]]])
    return MaskedBatch(torch.randn(2, 3, 16, 16), (TokenMasks(torch.tensor([[0, 3], [1, 2]]), targets),))


def test_the_loss_is_that_of_the_equation(teacher: str) -> None:
    made, given = student(teacher, visible_weight=0.3, loss_exp=2.0), batch()
    targets = F.layer_norm(jl.load_encoder(teacher)(given.inputs), (32,))
    (masks,) = given.masks
    context = made.encoder(given.inputs, masks.context)
    predicted = made.masked_head(made.predictor(context, masks.context, masks.targets, 0, (1, 2, 2)))
    masked, visible = [], []
    for sample in range(2):
        for block in range(2):
            number = int(masks.targets[sample, block, 0])
            masked.append((predicted[sample, block, 0] - targets[sample, number]).square() / 2)
        for place, number in enumerate(masks.context[sample].tolist()):
            error = made.visible_head(context[sample, place]) - targets[sample, number]
            visible.append(error.square() / 2)
    expected = torch.stack(masked).mean() + 0.3 * torch.stack(visible).mean()
    torch.testing.assert_close(made.losses(given)["loss"], expected)


def test_the_teacher_is_neither_trained_nor_saved(teacher: str) -> None:
    made = student(teacher)
    made.losses(batch())["loss"].backward()
    assert made._teacher is not None
    assert all(p.grad is None and not p.requires_grad for p in made._teacher[0].parameters())
    trained = {p for group in made.adamw().param_groups for p in group["params"]}
    assert all(p.grad is not None for p in trained)
    assert {name.split(".")[0] for name in made.state_dict()} == {
        "encoder", "target_encoder", "predictor", "masked_head", "visible_head"
    }  # fmt: skip


def test_tokens_of_a_teacher_with_another_grid_are_resampled(
    tmp_path: Path, save_checkpoint: CheckpointFactory
) -> None:
    fine = save_checkpoint(tmp_path / "fine.ckpt", embed_dim=32, depth=1, num_heads=4, patch_size=4)
    inputs = torch.randn(2, 3, 16, 16)
    maps = jl.load_encoder(fine)(inputs).unflatten(1, (4, 4))
    expected = maps.unflatten(2, (2, 2)).unflatten(1, (2, 2)).mean(dim=(2, 4)).flatten(1, 2)  # halves of 2 x 2 tokens
    found = student(fine).features(inputs, (1, 2, 2))
    torch.testing.assert_close(found, F.layer_norm(expected, (32,)), rtol=1e-4, atol=1e-4)


def test_a_missing_teacher_and_one_of_another_width_are_named(teacher: str) -> None:
    with pytest.raises(ValueError, match=r"give --model\.teacher CHECKPOINT"):
        student(None).losses(batch())
    with pytest.raises(ValueError, match="tokens of 32 channels: set teacher_dim to that, not 8"):
        student(teacher, teacher_dim=8)
