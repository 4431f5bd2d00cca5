"""What class each pixel has, read off frozen tokens: a linear head, nearest neighbours, and the score mIoU.

The resolution at which labels are compared is part of the protocol: the same model reads 41.8 or 47.7 % mIoU at labels
of 100 or 448 pixels (valeoai/Franca, issue 2). Here it is that of the labels that are given.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

Head = TypeVar("Head", bound=nn.Module)
IGNORED = -1
"""Label of a pixel that does not count."""


def confusion(
    predicted: Int[Tensor, "*pixels"], labels: Int[Tensor, "*pixels"], classes: int
) -> Int[Tensor, "classes classes"]:
    """How often each class (row) was taken for each class (column), without the pixels that do not count.

    Matrices of batches add up, so that memory does not grow with the data set.

    Raises:
        ValueError: If there is a label beyond the classes.
    """
    kept = labels != IGNORED
    labels, predicted = labels[kept].long(), predicted[kept].long()
    if len(labels) and (int(labels.min()) < 0 or int(labels.max()) >= classes):
        raise ValueError(f"labels go from {int(labels.min())} to {int(labels.max())}: {classes} classes go from 0 on")
    return torch.bincount(labels * classes + predicted, minlength=classes**2).reshape(classes, classes)


class IoU(NamedTuple):
    """Overlap of predicted and true regions.

    Attributes:
        mean: Over the classes that occur, from 0 to 1; not a number if none does.
        classes: Of each class; not a number if it occurs neither in the labels nor in the predictions.
    """

    mean: float
    classes: list[float]


def intersection_over_union(matrix: Int[Tensor, "classes classes"]) -> IoU:
    """Pixels that are rightly of a class over those that are of it in the labels or in the prediction (VOC, ADE20K)."""
    right = matrix.diagonal().double()
    each = right / (matrix.sum(dim=0) + matrix.sum(dim=1) - right)  # 0 / 0 is not a number
    return IoU(float(each.nanmean()), each.tolist())


def upsampled(maps: Float[Tensor, "batch h w channels"], size: tuple[int, int]) -> Float[Tensor, "batch channels H W"]:
    """Maps of tokens at the resolution of pixels, bilinear."""
    return F.interpolate(maps.permute(0, 3, 1, 2).float(), size=size, mode="bilinear", align_corners=False)


class LinearHead(nn.Module):
    """BatchNorm and a 1x1 convolution, on each token alone (the linear protocol of DINOv3).

    Args:
        dim: Channels of the tokens.
        outputs: Classes, or bins of depth.
    """

    def __init__(self, dim: int, outputs: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(dim)
        self.linear = nn.Linear(dim, outputs)
        nn.init.normal_(self.linear.weight, std=0.01)
        nn.init.zeros_(self.linear.bias)

    def forward(self, tokens: Float[Tensor, "batch h w dim"]) -> Float[Tensor, "batch h w outputs"]:
        """A score of every output for each token."""
        flat = tokens.flatten(0, 2).float()
        return self.linear(self.norm(flat)).unflatten(0, tokens.shape[:3])


class Recipe(NamedTuple):
    """How a head is trained.

    Attributes:
        steps: Optimizer steps (DINOv3: 40,000 of 16 images).
        batch_size: Inputs in a step.
        lr: Highest learning rate; warm-up over ``warmup`` of the steps, then a cosine to 0.
        weight_decay: Of AdamW.
        warmup: Fraction of the steps.
        seed: Of batches and initial weights.
    """

    steps: int = 1000
    batch_size: int = 16
    lr: float = 1e-3
    weight_decay: float = 1e-3
    warmup: float = 0.0375
    seed: int = 0

    def rate(self, step: int) -> float:
        """Learning rate of a step, from 0, over the highest."""
        warmup = int(self.warmup * self.steps)
        if step < warmup:
            return (step + 1) / warmup
        return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, self.steps - warmup)))


class HeadFit:
    """Trains a head on one batch after another, so that memory does not grow with the data set.

    Args:
        build: Makes the head; its initial weights follow from the seed.
        error: Loss of the head on tokens (B, h, w, D) and labels (B, H, W), or None where no pixel counts.
        recipe: How it is trained.
        clip: Largest norm of the gradient; None for any.
    """

    def __init__(
        self,
        build: Callable[[], Head],
        error: Callable[[Any, Tensor, Tensor], Tensor | None],
        recipe: Recipe,
        clip: float | None = None,
    ) -> None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(recipe.seed)
            self.head = build().train()
        self.error, self.recipe, self.clip, self.done = error, recipe, clip, 0
        self.optimizer = torch.optim.AdamW(self.head.parameters(), recipe.lr, weight_decay=recipe.weight_decay)

    def step(self, tokens: Float[Tensor, "batch h w dim"], labels: Tensor) -> None:
        """One step of the optimizer."""
        self.optimizer.param_groups[0]["lr"] = self.recipe.lr * self.recipe.rate(self.done)
        self.done += 1
        if (error := self.error(self.head, tokens, labels)) is None:
            return
        error.backward()
        if self.clip is not None:
            nn.utils.clip_grad_norm_(self.head.parameters(), self.clip)
        self.optimizer.step()
        self.optimizer.zero_grad()


def pixel_cross_entropy(
    head: nn.Module, tokens: Float[Tensor, "batch h w dim"], labels: Int[Tensor, "batch H W"]
) -> Tensor | None:
    """Cross-entropy at the resolution of the labels; None where no pixel counts."""
    if not (labels != IGNORED).any():
        return None
    logits = upsampled(head(tokens), (labels.shape[1], labels.shape[2]))
    return F.cross_entropy(logits, labels.long(), ignore_index=IGNORED)


@torch.no_grad()
def segment(head: nn.Module, tokens: Float[Tensor, "batch h w dim"], size: tuple[int, int]) -> Int[Tensor, "batch H W"]:
    """The class of each pixel of a batch."""
    return upsampled(head(tokens), size).argmax(dim=1)


def token_shares(labels: Int[Tensor, "batch H W"], grid: tuple[int, int], classes: int) -> Float[Tensor, "batch h w c"]:
    """Fraction of the pixels of each token that each class has; 0 for all where no pixel counts.

    Raises:
        ValueError: If the grid does not divide the labels.
    """
    height, width = labels.shape[1:]
    if height % grid[0] or width % grid[1]:
        raise ValueError(f"labels of {height}x{width} pixels cannot be cut into {grid[0]}x{grid[1]} tokens")
    known = (labels != IGNORED).unsqueeze(-1)
    each = F.one_hot(labels.clamp(min=0).long(), classes) * known
    boxes = each.unflatten(2, (grid[1], -1)).unflatten(1, (grid[0], -1)).sum(dim=(2, 4)).float()
    return boxes / boxes.sum(dim=-1, keepdim=True).clamp(min=1)


@torch.no_grad()
def knn_segment(
    bank: Float[Tensor, "m dim"],
    shares: Float[Tensor, "m classes"],
    tokens: Float[Tensor, "batch h w dim"],
    size: tuple[int, int],
    k: int = 30,
    temperature: float = 0.02,
) -> Int[Tensor, "batch H W"]:
    """The class of each pixel by the training tokens that are most alike; nothing is trained.

    Args:
        bank: Tokens of training inputs.
        shares: Which classes they show, see token_shares.
        tokens: Tokens of a batch.
        size: Height and width of the result.
        k: Neighbours of each token.
        temperature: Of the weights exp(cosine / temperature) of the neighbours.
    """
    similarity = F.normalize(tokens.float(), dim=-1) @ F.normalize(bank.float(), dim=-1).T
    nearest, index = similarity.topk(min(k, len(bank)), dim=-1)
    weights = (nearest / temperature).softmax(dim=-1)
    return upsampled((weights.unsqueeze(-1) * shares[index]).sum(dim=-2), size).argmax(dim=1)
