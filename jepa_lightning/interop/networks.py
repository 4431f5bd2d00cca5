"""What comes out of a file of any format: plain networks, and what is known about them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeVar

import torch
from torch import Tensor, nn

from jepa_lightning.models import Encoder, Predictor, VisionTransformer
from jepa_lightning.models.pooling import AttentiveClassifier
from jepa_lightning.untrusted import own

Module = TypeVar("Module", bound=nn.Module)
Branch = Literal["target", "context"]
MARGIN = 256 / 224
"""Of the papers: how much larger an image is made than what is cut out of it."""
LARGEST_DEPTH = 1000
"""Blocks of a network."""
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class Preprocessing(NamedTuple):
    """What is done to an image or a frame before the encoder sees it.

    Attributes:
        size: Height and width of the result.
        mean: Of each channel, for values from 0 to 1.
        std: Likewise.
        shorter_side: What the shorter side of ``size`` is before the centre is cut out, in pixels; None where both
            sides are resized to ``size`` and nothing is cut off.
    """

    size: tuple[int, int]
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD
    shorter_side: int | None = None

    @property
    def covered(self) -> tuple[int, int]:
        """Height and width that a resized image covers: one of them exactly, before the centre is cut out of it."""
        if self.shorter_side is None:
            return self.size
        usual = self.shorter_side == round(min(self.size) * MARGIN)
        margin = MARGIN if usual else self.shorter_side / min(self.size)
        return (round(self.size[0] * margin), round(self.size[1] * margin))


class Networks(NamedTuple):
    """The networks of a file.

    Attributes:
        encoder: One of the two encoders of a training.
        branch: Which one: ``target`` is the EMA, ``context`` the one that the optimizer trained.
        preprocessing: As the file says it, else as the papers have it.
        predictor: If the file has one.
        classifier: An attentive probe, if the file has one.
        labels: Names of its classes.
        mask_index: Which of the predictor's mask tokens the other library uses.
    """

    encoder: Encoder
    branch: Branch
    preprocessing: Preprocessing
    predictor: Predictor | None = None
    classifier: AttentiveClassifier | None = None
    labels: tuple[str, ...] = ()
    mask_index: int = 0


def papers_preprocessing(size: tuple[int, int]) -> Preprocessing:
    """Of the papers and of our evaluation: 256/224 of the size, the centre, statistics of ImageNet."""
    return Preprocessing(size, shorter_side=round(min(size) * MARGIN))


def family(encoder: Encoder) -> str:
    """``I-JEPA``, ``V-JEPA`` or ``V-JEPA 2``, by what the encoder has; anything else is its class."""
    if not isinstance(encoder, VisionTransformer):
        return type(encoder).__name__
    if encoder.pos_embed is None:
        return "V-JEPA 2"
    return "V-JEPA" if encoder.num_frames > 1 else "I-JEPA"


def mlp_ratio(hidden: int, dim: int) -> float:
    """The ratio whose int(dim * ratio) is ``hidden``, in spite of rounding (48/11 * 1408)."""
    ratio = hidden / dim
    return ratio if int(dim * ratio) == hidden else (hidden + 0.5) / dim


def filled(
    path: Path, name: str, build: Callable[[], Module], state: dict[str, Tensor], device: str = "meta"
) -> Module:
    """A frozen network on the CPU whose tensors are those of ``state``, in float32.

    Args:
        path: Where they come from, for messages.
        name: Of the network, likewise.
        build: Makes the network.
        state: All of its tensors, under our names; it is emptied, so that none is in memory twice.
        device: Where to build: ``meta`` spares the initial weights their memory and time; ``cpu`` suits networks that
            look at their tensors while they are built.

    Raises:
        ValueError: If one is missing, unexpected or of the wrong shape.
    """
    with torch.device(device), describing(path):
        network = build()
    check(path, name, network.state_dict(), state)
    outside = {key for key, _ in network.named_buffers(remove_duplicate=False)} - set(network.state_dict())
    if outside and device == "meta":  # what is not in the file has to be made
        network = build()
    network.load_state_dict({key: own(state.pop(key)) for key in list(state)}, assign=True)
    return network.requires_grad_(False).eval()


@contextmanager
def describing(path: Path) -> Iterator[None]:
    """Name the file whenever sizes that stand in it make no network.

    Raises:
        ValueError: In place of whatever was raised.
    """
    try:
        yield
    except (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
        if isinstance(error, ValueError) and str(path) in str(error):
            raise
        reason = str(error).splitlines()[0][:200] if str(error) else type(error).__name__
        raise ValueError(
            f"{path} describes a network that cannot be built ({reason}): check what was given (num_heads, img_size), "
            "or copy it again"
        ) from error


def check_depth(path: Path, *depths: Any) -> None:
    """That a file does not ask for more blocks than any network has: each takes time, whatever its size.

    Raises:
        ValueError: If it does.
    """
    for depth in depths:
        if isinstance(depth, int) and depth > LARGEST_DEPTH:
            raise ValueError(f"{path} describes a network of {depth:,} blocks, which none has: copy it again")


def check(path: Path, name: str, expected: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> None:
    """That tensors have the expected names, shapes and kinds of numbers.

    Raises:
        ValueError: If one is missing, unexpected, of the wrong shape or no plain tensor of such numbers.
    """
    problems = [f"missing {key}" for key in expected if key not in state]
    problems += [f"unexpected {key}" for key in state if key not in expected]
    problems += [
        f"{key} is {list(state[key].shape)}, expected {list(tensor.shape)}"
        for key, tensor in expected.items()
        if key in state and state[key].shape != tensor.shape
    ]
    problems += [
        f"{key} is {state[key].dtype} ({state[key].layout}), expected {tensor.dtype}"
        for key, tensor in expected.items()
        if key in state
        and (state[key].is_floating_point() != tensor.is_floating_point() or state[key].layout != torch.strided)
    ]
    if problems:
        shown = "; ".join(problems[:5]) + (f" and {len(problems) - 5} more" if len(problems) > 5 else "")
        raise ValueError(f"{path}: {name} does not fit: {shown}")
