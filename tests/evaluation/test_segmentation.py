from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torchmetrics.classification import MulticlassJaccardIndex

from jepa_lightning.evaluation.segmentation import (
    IGNORED,
    HeadFit,
    LinearHead,
    Recipe,
    confusion,
    intersection_over_union,
    knn_segment,
    pixel_cross_entropy,
    segment,
    token_shares,
)


def fit_segmentation(tokens: torch.Tensor, labels: torch.Tensor, classes: int, recipe: Recipe) -> LinearHead:
    generator = torch.Generator().manual_seed(0)
    fit = HeadFit(lambda: LinearHead(tokens.shape[-1], classes), pixel_cross_entropy, recipe)
    for _ in range(recipe.steps):
        chosen = torch.randint(len(tokens), (recipe.batch_size,), generator=generator)
        fit.step(tokens[chosen], labels[chosen])
    return fit.head.eval()


def test_miou_is_that_of_torchmetrics_and_batches_add_up() -> None:
    predicted, labels = torch.randint(4, (6, 9, 7)), torch.randint(-1, 4, (6, 9, 7))
    parts = [confusion(p, t, 5) for p, t in zip(predicted.split(2), labels.split(2), strict=True)]
    found = intersection_over_union(torch.stack(parts).sum(dim=0))
    for average, ours in (("macro", torch.tensor(found.mean)), ("none", torch.tensor(found.classes[:4]))):
        theirs = MulticlassJaccardIndex(4, average=average, ignore_index=-1)(predicted, labels)
        torch.testing.assert_close(ours.float(), theirs, rtol=0, atol=1e-6)
    assert math.isnan(found.classes[4])  # it occurs nowhere


def test_a_class_that_is_only_predicted_or_only_there_counts_as_missed() -> None:
    found = intersection_over_union(confusion(torch.tensor([0, 0, 2, 2]), torch.tensor([0, 0, 1, 1]), 3))
    assert found.classes == [1.0, 0.0, 0.0]
    assert found.mean == pytest.approx(1 / 3)


def test_pixels_that_do_not_count_are_left_out_and_labels_beyond_the_classes_refused() -> None:
    assert confusion(torch.tensor([0, 1]), torch.tensor([IGNORED, 1]), 2).tolist() == [[0, 0], [0, 1]]
    assert math.isnan(intersection_over_union(confusion(torch.tensor([0]), torch.tensor([IGNORED]), 2)).mean)
    with pytest.raises(ValueError, match="from 1 to 7: 2 classes"):
        confusion(torch.tensor([0, 1]), torch.tensor([1, 7]), 2)


def test_shares_of_tokens_equal_a_naive_count() -> None:
    labels = torch.randint(-1, 3, (2, 6, 8))
    found = token_shares(labels, (2, 4), 3)
    for b in range(2):
        for row in range(2):
            for column in range(4):
                box = labels[b, 3 * row : 3 * row + 3, 2 * column : 2 * column + 2]
                counts = torch.tensor([int((box == k).sum()) for k in range(3)])
                torch.testing.assert_close(found[b, row, column], counts / max(1, int(counts.sum())))
    with pytest.raises(ValueError, match="6x8 pixels cannot be cut into 4x4"):
        token_shares(labels, (4, 4), 3)


def toy(count: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Tokens that show the class of their pixels, in noise, on a scale of their own."""
    generator = torch.Generator().manual_seed(seed)
    classes = torch.randint(3, (count, 4, 4), generator=generator)
    tokens = F.one_hot(classes, 8).float() + 0.1 * torch.randn(count, 4, 4, 8, generator=generator)
    return 100 * tokens + 7, classes.repeat_interleave(8, dim=1).repeat_interleave(8, dim=2)


def test_a_linear_head_and_neighbours_read_what_tokens_show() -> None:
    (tokens, labels), (held_out, truth) = toy(24, 0), toy(8, 1)
    head = fit_segmentation(tokens, labels, 3, Recipe(steps=150, lr=3e-2))
    size = (32, 32)
    shares = token_shares(labels, (4, 4), 3)
    by_neighbours = knn_segment(tokens.flatten(0, 2), shares.flatten(0, 2), held_out, size)
    for predicted in (segment(head, held_out, size), by_neighbours):
        matrix = confusion(predicted, truth, 3)
        assert intersection_over_union(matrix).mean > 0.7  # bilinear maps round the corners of tokens
        assert (predicted[:, 4::8, 4::8] == truth[:, 4::8, 4::8]).float().mean() > 0.97


def test_the_head_is_a_batch_norm_and_a_1x1_convolution_whose_maps_are_made_larger() -> None:
    head, tokens = LinearHead(5, 3).eval(), torch.randn(2, 3, 4, 5)
    nn.init.normal_(head.norm.weight)
    convolution = nn.Conv2d(5, 3, 1)
    convolution.load_state_dict({"weight": head.linear.weight[:, :, None, None], "bias": head.linear.bias})
    norm = nn.BatchNorm2d(5).eval()
    norm.load_state_dict(head.norm.state_dict())
    maps = convolution(norm(tokens.permute(0, 3, 1, 2)))
    expected = F.interpolate(maps, size=(12, 16), mode="bilinear").argmax(dim=1)
    assert torch.equal(segment(head, tokens, (12, 16)), expected)


def test_training_is_the_same_every_time_and_leaves_the_generator_alone() -> None:
    tokens, labels = toy(6, 0)
    state = torch.get_rng_state()
    one, other = (fit_segmentation(tokens, labels, 3, Recipe(steps=5)) for _ in range(2))
    assert torch.equal(state, torch.get_rng_state())
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))


def test_pixels_that_do_not_count_do_not_train() -> None:
    tokens, labels = toy(6, 0)
    labels[:, :, 16:] = IGNORED
    other = tokens.clone()
    one = fit_segmentation(tokens, labels, 3, Recipe(steps=3))
    two = fit_segmentation(other, labels, 3, Recipe(steps=3))
    assert torch.equal(one.linear.weight, two.linear.weight)
    silent = fit_segmentation(tokens, torch.full_like(labels, IGNORED), 3, Recipe(steps=3, weight_decay=0.0))
    fresh = fit_segmentation(tokens, labels, 3, Recipe(steps=0))
    assert torch.equal(silent.linear.weight, fresh.linear.weight)


def test_neighbours_equal_a_naive_loop() -> None:
    bank, shares, tokens = torch.randn(20, 4), torch.rand(20, 3), torch.randn(1, 2, 2, 4)
    found = knn_segment(bank, shares, tokens, (2, 2), k=3, temperature=0.5)
    for row in range(2):
        for column in range(2):
            cosines = [float(F.cosine_similarity(tokens[0, row, column], b, dim=0)) for b in bank]
            best = sorted(range(20), key=lambda i: -cosines[i])[:3]
            votes = sum(math.exp(cosines[i] / 0.5) * shares[i] for i in best)
            assert isinstance(votes, torch.Tensor)
            assert int(found[0, row, column]) == int(votes.argmax())


def test_the_rate_warms_up_and_ends_near_0() -> None:
    rates = [Recipe(steps=40, warmup=0.25).rate(step) for step in range(40)]
    assert rates[:11] == pytest.approx([0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0, 1.0])
    assert rates[25] == pytest.approx(0.5)
    assert rates[-1] < 0.01
