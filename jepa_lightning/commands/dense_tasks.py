"""The tasks of `jepa dense`, each for all encoders at once, so that every sample is read once."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from jepa_lightning.commands import dense_pictures as pictures
from jepa_lightning.commands.dense_setup import Outcome, Reader, Setup
from jepa_lightning.data.dense import Labelled, resized_frames, resized_labels
from jepa_lightning.evaluation.correspondence import matched_points, within
from jepa_lightning.evaluation.depth import DEPTH_CLIP, DEPTH_RECIPE, DepthHead, depth_error, depth_sums
from jepa_lightning.evaluation.propagation import Propagation, j_and_f, propagate
from jepa_lightning.evaluation.ratios import Ratios
from jepa_lightning.evaluation.results import RMSE, Result
from jepa_lightning.evaluation.segmentation import (
    HeadFit,
    LinearHead,
    Recipe,
    confusion,
    knn_segment,
    pixel_cross_entropy,
    segment,
    token_shares,
)
from jepa_lightning.masking import seeded

BANK = 10_000
"""Training tokens among which neighbours are looked for."""
SHOWN = 6
"""Samples in the picture."""
POINTS, CROP = 8, (0.5, 0.8)
"""Points of a picture that are looked for in another view of it; side of that view over the picture's."""
LINEAR, NEAREST = "mIoU, linear head", "mIoU, nearest neighbours"


class Bank:
    """Training tokens and the classes that they show, the same number of each batch."""

    def __init__(self, each: int, seed: int) -> None:
        self.each, self.generator = each, seeded("bank", seed)
        self.tokens: list[Tensor] = []
        self.shares: list[Tensor] = []

    def add(self, tokens: Tensor, shares: Tensor) -> None:
        """Keep some of the tokens."""
        flat = tokens.flatten(0, 2)
        chosen = torch.randperm(len(flat), generator=self.generator)[: self.each].to(flat.device)
        self.tokens.append(flat[chosen])
        self.shares.append(shares.flatten(0, 2)[chosen])


class SegmentationFit(NamedTuple):
    """A linear head of an encoder and training tokens of it with the classes that they show."""

    head: HeadFit
    bank: Bank


def segmentation(setup: Setup) -> Outcome:
    """A linear head and nearest neighbours on the tokens; mIoU and IoU of each class.

    Raises:
        ValueError: If the data have no classes.
    """
    names, recipe, k = setup.source.classes, setup.recipe(Recipe()), setup.k or 30
    if not names:
        raise ValueError(f"{setup.source.title} has no classes of pixels: use --data LabelFolder --data.root FOLDER")
    fits = _fit_segmentation(setup, recipe, len(names))
    banks = [(torch.cat(fit.bank.tokens), torch.cat(fit.bank.shares)) for fit in fits]
    scores: list[dict[str, Ratios]] = [{LINEAR: Ratios(), NEAREST: Ratios()} for _ in setup.readers]
    shown: list[pictures.Row] = []
    for number, sample in enumerate(setup.reported()):
        frames, labels = setup.frames([sample]), setup.labels(sample).to(setup.device)
        size, predicted = (labels.shape[-2], labels.shape[-1]), []
        for reader, fit, bank, score in zip(setup.readers, fits, banks, scores, strict=True):
            tokens = reader.of_frames(frames)
            maps = {LINEAR: segment(fit.head.head.eval(), tokens, size), NEAREST: knn_segment(*bank, tokens, size, k)}
            for name, found in maps.items():
                matrix = confusion(found, labels, len(names))
                right = matrix.diagonal()
                score[name].add(right, matrix.sum(dim=0) + matrix.sum(dim=1) - right)
            predicted.append(maps[LINEAR][0])
        if len(shown) < SHOWN and setup.is_shown(number, SHOWN):
            shown.append(pictures.Row(sample.frames[0], labels[0], predicted))
    sentences = [
        f"Linear head: BatchNorm and a 1x1 convolution, cross-entropy at the size of the inputs, {_said(recipe)}.",
        f"Nearest neighbours: {k} of {BANK:,} training tokens, cosine, weights exp(cosine / 0.02).",
        _resolution(setup) + " mIoU: over all pixels of the split, mean of the classes that occur.",
    ]
    picture = pictures.classes(shown, [reader.name for reader in setup.readers])
    return Outcome(_means(setup, scores), sentences, "IoU in %", picture, _of_classes(setup, scores))


def _fit_segmentation(setup: Setup, recipe: Recipe, classes: int) -> list[SegmentationFit]:
    fits: list[SegmentationFit] = []
    for frames, labels in setup.training():
        shares: dict[tuple[int, int], Tensor] = {}
        for number, reader in enumerate(setup.readers):
            tokens = reader.of_frames(frames)
            if len(fits) == number:
                head = partial(_head, LinearHead, setup.device, tokens.shape[-1], classes)
                fit = HeadFit(head, pixel_cross_entropy, recipe)
                fits.append(SegmentationFit(fit, Bank(-(-BANK // setup.steps), setup.seed)))
            if reader.grid not in shares:
                shares[reader.grid] = token_shares(labels, reader.grid, classes)
            fits[number].head.step(tokens, labels)
            fits[number].bank.add(tokens, shares[reader.grid])
    return fits


def _means(setup: Setup, scores: Sequence[dict[str, Ratios]]) -> list[Result]:
    fitted = len(setup.train or ())
    pairs = list(zip(setup.readers, scores, strict=True))
    return [setup.result(name, reader, score[name], fitted) for name in (LINEAR, NEAREST) for reader, score in pairs]


def _of_classes(setup: Setup, scores: Sequence[dict[str, Ratios]]) -> list[Result]:
    """IoU of each class; none where a class occurs neither in the labels nor in the predictions."""
    found, place = [], (setup.source.title, setup.report.split)
    for reader, score in zip(setup.readers, scores, strict=True):
        for name in (LINEAR, NEAREST):
            for label, value in zip(setup.source.classes, score[name].columns(), strict=True):
                values = () if math.isnan(value) else (value,)
                found.append(Result(name.replace("mIoU", "IoU"), label, reader.name, values, 0, {}, *place))
    return found


def depth(setup: Setup) -> Outcome:
    """A linear head over bins of depth; RMSE and delta 1.

    Raises:
        ValueError: If the data have no depth.
    """
    recipe, (near, far) = setup.recipe(DEPTH_RECIPE), setup.source.depth_range
    fits = _fit_depth(setup, recipe)
    errors, close = [Ratios(torch.sqrt) for _ in setup.readers], [Ratios() for _ in setup.readers]
    shown: list[pictures.Row] = []
    for number, sample in enumerate(setup.reported()):
        frames, true = setup.frames([sample]), setup.source.depth_of(setup.labels(sample)).to(setup.device)
        predicted = []
        for place, (reader, fit) in enumerate(zip(setup.readers, fits, strict=True)):
            with torch.no_grad():
                found = fit.head.eval()(reader.of_frames(frames), true.shape[-2:])
            sums = depth_sums(found, true)
            pixels = torch.tensor([sums.pixels])
            errors[place].add(torch.tensor([sums.squares]), pixels)
            close[place].add(torch.tensor([sums.close]), pixels)
            predicted.append(found[0])
        if len(shown) < SHOWN and setup.is_shown(number, SHOWN):
            shown.append(pictures.Row(sample.frames[0], true[0], predicted))
    fitted = len(setup.train or ())
    results = [setup.result(RMSE, r, score, fitted) for r, score in zip(setup.readers, errors, strict=True)]
    results += [setup.result("delta 1", r, score, fitted) for r, score in zip(setup.readers, close, strict=True)]
    sentences = [
        f"Linear head: BatchNorm and a 1x1 convolution to 256 bins of depth from {near:g} to {far:g}, scale-invariant "
        f"loss, {_said(recipe)}.",
        _resolution(setup) + " RMSE: in the unit of the labels, over all pixels; delta 1: fraction within 1.25.",
        *([] if setup.source.depth else ["The embedded data have no distances: 1 is the digit, 2 what is behind it."]),
    ]
    picture = pictures.depths(shown, [reader.name for reader in setup.readers], (near, far))
    return Outcome(results, sentences, "RMSE in the unit of the labels, delta 1 in %", picture)


def _fit_depth(setup: Setup, recipe: Recipe) -> list[HeadFit]:
    fits: list[HeadFit] = []
    for frames, labels in setup.training():
        true = setup.source.depth_of(labels)
        for number, reader in enumerate(setup.readers):
            tokens = reader.of_frames(frames)
            if len(fits) == number:
                head = partial(_head, DepthHead, setup.device, tokens.shape[-1], *setup.source.depth_range)
                fits.append(HeadFit(head, depth_error, recipe, DEPTH_CLIP))
            fits[number].step(tokens, true)
    return fits


def correspondence(setup: Setup) -> Outcome:
    """The most alike token of another frame, or of another view of an image; PCK."""
    scores: list[Ratios] = [Ratios() for _ in setup.readers]
    shown: list[pictures.Match] = []
    tracked = False
    for number, sample in enumerate(setup.reported()):
        frames, points, tracked = _frames_with_points(setup, sample, number)
        pairs, found_by = range(1, len(points)), []
        for reader, score in zip(setup.readers, scores, strict=True):
            maps = _maps_of(reader, frames, tracked)
            found = [matched_points(maps[0], maps[t], points[0], setup.size, setup.size) for t in pairs]
            hits = torch.stack([within(found[t - 1], points[t], setup.size, setup.alpha) for t in pairs])
            score.add(hits.sum()[None], torch.tensor([hits.numel()]))
            found_by.append(found[-1])
        if len(shown) < SHOWN and setup.is_shown(number, SHOWN):
            shown.append(pictures.Match(frames[0, 0], frames[0, -1], points[0], points[-1], found_by))
    results = [setup.result(f"PCK@{setup.alpha:g}", r, s) for r, s in zip(setup.readers, scores, strict=True)]
    where = (
        "Points on the object in the first frame are looked for in every other frame"
        if tracked
        else f"{POINTS} points are looked for in a crop of {CROP[0]:g} to {CROP[1]:g} of the side of the picture"
    )
    sentences = [
        f"{where}: the middle of the most alike token (cosine); found within {setup.alpha:g} of the longer side."
    ]
    return Outcome(results, sentences, "PCK in %", pictures.matches(shown, [reader.name for reader in setup.readers]))


def _frames_with_points(setup: Setup, sample: Labelled, number: int) -> tuple[Tensor, Tensor, bool]:
    """Frames (1, T, 3, H, W), points in each (T, K, 2) in pixels of the inputs, and whether the data know them."""
    frames = setup.frames([sample])
    if sample.points is not None:
        height, width = sample.frames.shape[-2:]
        return frames, sample.points * torch.tensor([setup.size[1] / width, setup.size[0] / height]), True
    view, points = _other_view(sample, setup.size, seeded("view", setup.seed, number))
    return torch.stack([frames[0, 0], view.to(setup.device)])[None], points, False


def propagation(setup: Setup) -> Outcome:
    """Labels of the first frame carried through a clip; J, F and their mean.

    Raises:
        ValueError: If the data have no clips.
    """
    if not setup.source.clips:
        raise ValueError(f"{setup.source.title} has images: use --data DAVIS --data.root FOLDER, or EmbeddedClips")
    options = Propagation() if setup.k is None else Propagation(k=setup.k)
    scores = [{name: Ratios() for name in ("J&F", "J", "F")} for _ in setup.readers]
    shown: list[pictures.Strip] = []
    for number, sample in enumerate(setup.reported()):
        frames, (objects, count) = setup.frames([sample]), _objects(setup.labels(sample))
        if not count:
            setup.report.left_out[sample.name] = f"{sample.name} has no object in its first frame"
            continue
        carried = []
        for reader, score in zip(setup.readers, scores, strict=True):
            tokens, first = reader.tokens(frames)[0].cpu(), resized_labels(objects[:1], setup.size)[0]
            found = propagate(tokens, first, count, options, (objects.shape[-2], objects.shape[-1]))
            found = found.repeat_interleave(-(-len(objects) // len(found)), dim=0)[: len(objects)]
            region, contour = j_and_f(found, objects, count).sum(dim=0)[:, None]
            for name, total in (("J&F", (region + contour) / 2), ("J", region), ("F", contour)):
                score[name].add(total, torch.tensor([count]))
            carried.append(found)
        if not shown or (len(shown) < SHOWN // 2 and setup.is_shown(number, SHOWN // 2)):
            shown.append(pictures.Strip(sample.frames, objects, carried))
    if not shown:
        raise ValueError(setup.report.nothing())
    results = [
        setup.result(name, reader, score[name])
        for name in scores[0]
        for reader, score in zip(setup.readers, scores, strict=True)
    ]
    sentences = [
        f"Labels of the first frame, on its tokens, go to later ones: {options.k} most alike tokens of the first and "
        f"the last {options.last} steps within {options.radius} tokens, weights exp(cosine / {options.temperature:g}).",
        _resolution(setup) + " J and F: means over the objects, and over frames but the first and the last.",
    ]
    return Outcome(results, sentences, "J and F in %", pictures.strips(shown, [r.name for r in setup.readers]))


def _objects(labels: Tensor) -> tuple[Tensor, int]:
    """Numbers from 1 for the objects of the first frame, 0 for all else."""
    known = [value for value in labels[0].unique().tolist() if value > 0]
    found = torch.zeros_like(labels)
    for number, value in enumerate(known, start=1):
        found[labels == value] = number
    return found, len(known)


def _maps_of(reader: Reader, frames: Tensor, clip: bool) -> list[Tensor]:
    """Tokens of each frame, of a clip with those around it, of two views each alone."""
    if clip:
        return list(reader.of_frames(frames).cpu())
    return [reader.of_frames(frames[:, t : t + 1])[0].cpu() for t in range(frames.shape[1])]


def _other_view(sample: Labelled, size: tuple[int, int], generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """A crop of an image at the size of the inputs, and points in the whole picture and in it, (2, K, 2)."""
    height, width = sample.frames.shape[-2:]
    part = float(torch.empty(()).uniform_(*CROP, generator=generator))
    rows, columns = round(part * height), round(part * width)
    top = int(torch.randint(height - rows + 1, (1,), generator=generator))
    left = int(torch.randint(width - columns + 1, (1,), generator=generator))
    crop = sample.frames[0, :, top : top + rows, left : left + columns]
    inside = sample.labels[0, top : top + rows, left : left + columns]
    places = (inside > 0).nonzero() if not inside.is_floating_point() else torch.empty(0, 2)
    if len(places) < POINTS:  # nothing is labelled here: anywhere
        places = torch.cartesian_prod(torch.arange(rows), torch.arange(columns))
    chosen = places[torch.randperm(len(places), generator=generator)[:POINTS]].flip(1) + 0.5
    scale = torch.tensor([size[1], size[0]])
    whole = (chosen + torch.tensor([left, top])) / torch.tensor([width, height]) * scale
    return resized_frames(crop[None], size)[0], torch.stack([whole, chosen / torch.tensor([columns, rows]) * scale])


def _head(kind: Callable[..., torch.nn.Module], device: torch.device, *sizes: Any) -> torch.nn.Module:
    return kind(*sizes).to(device)


def _said(recipe: Recipe) -> str:
    return (
        f"AdamW {recipe.lr:g}, weight decay {recipe.weight_decay:g}, {recipe.steps:,} steps of {recipe.batch_size}, "
        f"warm-up over {100 * recipe.warmup:g} %, then a cosine to 0 (DINOv3: 40,000 steps of 16, of classes at "
        "0.001 and of depth at 0.0003)"
    )


def _resolution(setup: Setup) -> str:
    sizes = (
        "their own resolution" if setup.label_size is None else f"{setup.label_size[0]}x{setup.label_size[1]} pixels"
    )
    return f"Labels are compared at {sizes}."
