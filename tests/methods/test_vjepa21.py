from __future__ import annotations

from collections.abc import Callable
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lightning import Trainer
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader

from jepa_lightning.masking import MaskedBatch, TokenMasks
from jepa_lightning.masking.tokens import places_of
from jepa_lightning.methods import VJEPA21
from jepa_lightning.methods.vjepa21 import nearness
from jepa_lightning.models import DensePredictor, DenseVisionTransformer
from jepa_lightning.schedules import Constant, Ramp

GRID = (2, 4, 4)


def make(predictor: dict[str, Any] | None = None, **options: Any) -> VJEPA21:
    encoder = DenseVisionTransformer(32, 8, 3, 24, 4, 2, init_std=None, num_frames=4)
    narrow = {"embed_dim": 16, "depth": 1, "num_heads": 2, "init_std": None, "num_mask_tokens": 3, **(predictor or {})}
    module = VJEPA21(
        encoder, partial(DensePredictor, **narrow), Constant(1e-3), Constant(0.04), Constant(0.9), **options
    )
    for parameter in module.encoder.parameters():  # so that encoder and target encoder differ
        parameter.data += 0.05 * torch.randn_like(parameter)
    return module


def batch(image: bool = False, size: int = 2, blocks: int = 1) -> MaskedBatch:
    count = 16 if image else 32
    masks = []
    for shown in (count // 2, count // 4):
        order = torch.rand(size, count).argsort(dim=1)
        targets = order[:, shown : shown + 4 * blocks].unflatten(1, (blocks, 4))
        masks.append(TokenMasks(order[:, :shown], targets))
    return MaskedBatch(torch.randn(size, 3, 32, 32) if image else torch.randn(size, 3, 4, 32, 32), tuple(masks))


def naive_weight(context: Tensor, targets: Tensor, grid: tuple[int, int, int]) -> Tensor:
    rows = []
    for token in context.tolist():
        places = [[t // (grid[1] * grid[2]), t // grid[2] % grid[1], t % grid[2]] for t in (token, *targets.tolist())]
        rows.append(min(sum((a - b) ** 2 for a, b in zip(places[0], p, strict=True)) for p in places[1:]) ** 0.5)
    return 1 / torch.tensor(rows).sqrt()


def test_visible_tokens_count_by_their_distance_to_the_nearest_target_of_their_block() -> None:
    masks = batch(blocks=3).families()[0]
    found = nearness(masks, GRID)
    for sample in range(2):
        for block in range(3):
            expected = naive_weight(masks.context[sample], masks.targets[sample, block], GRID)
            torch.testing.assert_close(found[sample, block], expected, rtol=0, atol=1e-6)


def test_padding_is_nobodys_neighbour() -> None:
    masks = TokenMasks(torch.tensor([[0, 5, -1]]), torch.tensor([[[31, 10, -1]]]))
    padded = MaskedBatch(torch.empty(1), (masks,), places=(places_of(masks),)).families()[0]
    expected = naive_weight(torch.tensor([0, 5]), torch.tensor([31, 10]), GRID)
    torch.testing.assert_close(nearness(padded, GRID)[0, 0, :2], expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("image", [False, True])
def test_the_loss_is_that_of_the_equations(image: bool) -> None:
    module, data = make(context_weight=0.3, loss_exp=2.0), batch(image)
    encoder, grid = module.encoder, module.encoder.grid_of(data.inputs)
    levels = [
        (level - level.mean(-1, keepdim=True)) / (level.var(-1, correction=0, keepdim=True) + 1e-5).sqrt()
        for level in module.target_encoder(data.inputs, layers=encoder.levels)
    ]
    h, on_masked, on_visible = torch.cat(levels, dim=-1), [], []
    for context, targets in data.masks:
        tokens = torch.cat(encoder(data.inputs, context, layers=encoder.levels), dim=-1)
        asked, shown = module.predictor(tokens, context, targets, 0, grid, image=image, with_context=True)
        for b in range(2):
            on_masked.append(((asked[b, 0] - h[b, targets[b, 0]]) ** 2 / 2).mean())
            error = ((shown[b, 0] - h[b, context[b]]) ** 2 / 2).mean(dim=-1)
            on_visible.append((error * naive_weight(context[b], targets[b, 0], grid)).mean())
    losses = module.losses(data)
    masked, visible = torch.stack(on_masked).mean(), torch.stack(on_visible).mean()
    torch.testing.assert_close(losses["prediction"], masked, rtol=0, atol=1e-5)
    torch.testing.assert_close(losses["context"], visible, rtol=0, atol=1e-5)
    torch.testing.assert_close(losses["loss"], masked + 0.3 * visible, rtol=0, atol=1e-5)


@pytest.mark.parametrize("image", [False, True])
def test_samples_with_different_numbers_of_tokens_count_as_each_alone(image: bool) -> None:
    module, data = make(), batch(image, blocks=2)
    context, targets = (index.clone() for index in data.masks[0])
    context[1, 5:], targets[0, 1, 2:], targets[1, 0, 3:] = -1, -1, -1
    losses = module.losses(data._replace(masks=(TokenMasks(context, targets),)))
    parts = []
    for b, kept, counts in ((0, context.shape[1], (4, 2)), (1, 5, (3, 4))):
        for block, count in enumerate(counts):
            alone = TokenMasks(context[b : b + 1, :kept], targets[b : b + 1, block : block + 1, :count])
            parts.append(module.losses(MaskedBatch(data.inputs[b : b + 1], (alone,))))
    for name in ("prediction", "context"):
        torch.testing.assert_close(losses[name], torch.stack([part[name] for part in parts]).mean(), rtol=0, atol=1e-5)


@pytest.mark.parametrize("image", [False, True])
def test_gradients_reach_what_is_trained_and_nothing_else(image: bool) -> None:
    module = make()
    module.setup("fit")
    module.losses(batch(image))["loss"].backward()
    other = "video" if image else "img"
    for name, parameter in module.named_parameters():
        mine = "patch_embed_img" in name if other == "img" else "patch_embed." in name
        unused = (
            "target" in name or f"{other}_mod" in name or mine or "mask_tokens.1" in name or "mask_tokens.2" in name
        )
        assert (parameter.grad is None) == unused, name


@pytest.mark.parametrize("size", [1, 2])
def test_it_trains_on_clips_and_images_in_turn_also_one_by_one(
    size: int, quiet_trainer: Callable[..., Trainer]
) -> None:
    module, data = make(), [batch(False, size), batch(True, size)]
    before = [module.losses(b)["loss"].item() for b in data]
    trainer = quiet_trainer(max_epochs=30)
    trainer.fit(module, DataLoader(data, batch_size=None))  # type: ignore[arg-type]
    after = [module.losses(b)["loss"].item() for b in data]
    assert all(b < 0.85 * a for a, b in zip(before, after, strict=True)), (before, after)


def test_the_weight_of_visible_tokens_follows_its_schedule_in_training_and_is_the_last_one_elsewhere(
    quiet_trainer: Callable[..., Trainer],
) -> None:
    module, seen = make(context_weight=Ramp(0.5, first_epoch=1, last_epoch=3)), []
    assert module.weight_of_context() == 0.5
    original = module.weight_of_context
    module.weight_of_context = lambda: seen.append(original()) or seen[-1]  # type: ignore[method-assign]
    trainer = quiet_trainer(max_epochs=4, num_sanity_val_steps=0)
    data: Any = [batch(), batch()]
    trainer.fit(module, DataLoader(data, batch_size=None), DataLoader(data, batch_size=None))
    training = [0, 0, 0, 0.125, 0.25, 0.375, 0.5, 0.5]
    validation = [[0.5] * 2 for _ in range(4)]
    expected = [w for epoch in range(4) for w in (*training[2 * epoch : 2 * epoch + 2], *validation[epoch])]
    assert seen == pytest.approx(expected)


def test_a_distilled_predictor_is_refused_with_both_widths() -> None:
    module = make({"levels": 1, "target_dim": 40})
    with pytest.raises(ValueError, match=r"40 channels of a teacher.* 24"):
        module.losses(batch())


def test_one_level_alone_is_trained_too() -> None:
    module = make({"levels": 1})
    losses = module.losses(batch())
    assert losses["loss"].isfinite()
    assert module.features(batch().inputs).shape == (2, 32, 24)


def test_ddp_that_waits_for_every_gradient_is_refused_with_the_remedy(quiet_trainer: Callable[..., Trainer]) -> None:
    module = make()
    waiting = object.__new__(DistributedDataParallel)
    object.__setattr__(waiting, "find_unused_parameters", False)
    module._trainer = SimpleNamespace(strategy=SimpleNamespace(model=waiting))  # type: ignore[assignment]
    with pytest.raises(ValueError, match="ddp_find_unused_parameters_true"):
        module.on_train_batch_start(batch(), 0)
