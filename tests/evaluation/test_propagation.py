from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from jepa_lightning.evaluation.propagation import Propagation, boundary, contour, j_and_f, propagate, region
from jepa_lightning.evaluation.segmentation import token_shares


def square(top: int, left: int, side: int = 8, size: int = 32) -> Tensor:
    mask = torch.zeros(size, size, dtype=torch.bool)
    mask[top : top + side, left : left + side] = True
    return mask


def naive_boundary(mask: Tensor) -> Tensor:
    height, width = mask.shape
    found = torch.zeros_like(mask)
    for y in range(height):
        for x in range(width):
            below, right = min(y + 1, height - 1), min(x + 1, width - 1)
            found[y, x] = any(mask[y, x] != mask[at] for at in ((y, right), (below, x), (below, right)))
    return found


def naive_contour(one: Tensor, other: Tensor) -> float:
    ours, theirs = (naive_boundary(mask).nonzero().tolist() for mask in (one, other))
    if not ours or not theirs:
        return float(bool(ours) == bool(theirs))
    radius = math.ceil(0.008 * math.hypot(*one.shape))
    precision, recall = (
        sum(any(math.dist(p, q) <= radius for q in second) for p in first) / len(first)
        for first, second in ((ours, theirs), (theirs, ours))
    )
    return 2 * precision * recall / (precision + recall) if precision + recall else 0.0


@pytest.mark.parametrize("seed", range(4))
def test_boundaries_and_f_equal_a_naive_loop(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    blobs = F.interpolate(torch.rand(2, 1, 5, 6, generator=generator), size=(40, 48), mode="bilinear")[:, 0] > 0.55
    assert torch.equal(boundary(blobs[0]), naive_boundary(blobs[0]))
    assert contour(blobs[0], blobs[1]) == pytest.approx(naive_contour(blobs[0], blobs[1]))


def test_j_and_f_of_masks_made_by_hand() -> None:
    mask, empty = square(4, 4), torch.zeros(32, 32, dtype=torch.bool)
    assert (region(mask, mask), contour(mask, mask)) == (1.0, 1.0)
    assert region(square(4, 8), mask) == pytest.approx(32 / 96)
    assert contour(square(4, 5), mask) == 1.0  # one pixel is within the tolerance
    assert contour(square(4, 20), mask) == 0.0
    assert (region(empty, empty), contour(empty, empty)) == (1.0, 1.0)
    assert (region(mask, empty), contour(mask, empty), contour(empty, mask)) == (0.0, 0.0, 0.0)


def test_a_clip_is_scored_over_objects_and_frames_without_the_first_and_the_last() -> None:
    true = torch.stack([square(4, 4) * 1 + square(20, 20) * 2] * 4)
    predicted = true.clone()
    predicted[0] = predicted[3] = 0  # do not count
    predicted[1] = square(4, 4) * 1  # loses the second object
    assert j_and_f(predicted, true, 2).tolist() == [[1.0, 1.0], [0.5, 0.5]]  # J and F of each object
    assert j_and_f(true[:2], true[:2], 2).tolist() == [[1.0, 1.0], [1.0, 1.0]]


def naive_propagation(tokens: Tensor, first: Tensor, objects: int, options: Propagation) -> Tensor:
    steps, height, width, _ = tokens.shape
    maps = {0: token_shares(first[None], (height, width), objects + 1)[0]}
    for t in range(1, steps):
        maps[t] = torch.zeros(height, width, objects + 1)
        for y in range(height):
            for x in range(width):
                found = [
                    (float(F.cosine_similarity(tokens[t, y, x], tokens[s, v, u], dim=0)), maps[s][v, u])
                    for s in sorted({0, *range(max(0, t - options.last), t)})
                    for v in range(height) for u in range(width)
                    if max(abs(v - y), abs(u - x)) <= options.radius
                ]  # fmt: skip
                best = sorted(found, key=lambda pair: -pair[0])[: options.k]
                weights = [math.exp(cosine / options.temperature) for cosine, _ in best]
                maps[t][y, x] = sum(w * label for w, (_, label) in zip(weights, best, strict=True)) / sum(weights)
    shares = torch.stack([maps[t] for t in range(steps)]).permute(0, 3, 1, 2)
    large = F.interpolate(shares, size=tuple(first.shape), mode="bilinear")
    for t in range(steps):
        for number in range(objects + 1):
            if float(large[t, number].max()) > 0:
                large[t, number] -= large[t, number].min()
                large[t, number] /= large[t, number].max().clamp(min=1e-12)
    return large.argmax(dim=1)


def test_labels_are_carried_as_in_a_naive_loop() -> None:
    tokens, first = torch.randn(4, 3, 4, 6), torch.randint(3, (12, 16))
    options = Propagation(last=2, radius=1, k=3, temperature=0.2)
    found = propagate(tokens, first, 2, options)
    assert torch.equal(found, naive_propagation(tokens, first, 2, options))


def test_an_object_that_tokens_show_is_followed() -> None:
    clip = torch.stack([square(4 * t, 4 * t, side=12) for t in range(5)]).long()
    shares = token_shares(clip, (8, 8), 2)
    tokens = torch.cat([shares, 0.05 * torch.randn(5, 8, 8, 6)], dim=-1)
    found = propagate(tokens, clip[0], 1)
    still = clip[:1].expand(5, -1, -1)
    assert float(j_and_f(found, clip, 1).sum()) > float(j_and_f(still, clip, 1).sum()) + 0.5
