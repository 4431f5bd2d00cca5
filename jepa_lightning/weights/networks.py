"""The networks that come out of a file of any format, built only after their sizes agree with its tensors."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeVar

import torch
from torch import Tensor, nn

from jepa_lightning.models import (
    ActionPredictor,
    CausalVisionTransformer,
    DenseVisionTransformer,
    Encoder,
    Predictor,
    VisionTransformer,
)
from jepa_lightning.models.pooling import AttentiveClassifier
from jepa_lightning.preprocessing import Preprocessing
from jepa_lightning.weights.file import File
from jepa_lightning.weights.policy import CheckpointError, DoesNotFit, Unreadable

Module = TypeVar("Module", bound=nn.Module)
Branch = Literal["target", "context"]
LARGEST_DEPTH = 1000
"""Blocks of a network."""


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
        out_layers: Blocks whose tokens the probe reads together; None for the last one's.
        actions: A predictor conditioned on actions (V-JEPA 2-AC), if the file has one.
    """

    encoder: Encoder
    branch: Branch
    preprocessing: Preprocessing
    predictor: Predictor | None = None
    classifier: AttentiveClassifier | None = None
    labels: tuple[str, ...] = ()
    mask_index: int = 0
    out_layers: tuple[int, ...] | None = None
    actions: ActionPredictor | None = None

    def with_predictor(self, predictor: Predictor | ActionPredictor) -> Networks:
        """The same networks and a predictor of either kind."""
        if isinstance(predictor, ActionPredictor):
            return self._replace(actions=predictor)
        return self._replace(predictor=predictor)


def family(encoder: Encoder) -> str:
    """``I-JEPA``, ``V-JEPA`` and so on up to ``LeVJEPA``, by what the encoder has; anything else is its class."""
    if not isinstance(encoder, VisionTransformer):
        return type(encoder).__name__
    if isinstance(encoder, CausalVisionTransformer):
        return "LeVJEPA"
    if encoder.pos_embed is None:
        return "V-JEPA 2.1" if isinstance(encoder, DenseVisionTransformer) else "V-JEPA 2"
    return "V-JEPA" if encoder.num_frames > 1 else "I-JEPA"


def mlp_ratio(hidden: int, dim: int) -> float:
    """The ratio whose int(dim * ratio) is ``hidden``, in spite of rounding (48/11 * 1408)."""
    ratio = hidden / dim
    return ratio if int(dim * ratio) == hidden else (hidden + 0.5) / dim


def filled(file: File, name: str, build: Callable[[], Module], state: Mapping[str, Tensor]) -> Module:
    """A frozen network on the CPU whose tensors are those of ``state``, in float32.

    It is built without memory first: what does not fit the tensors of the file is refused before anything is allocated.

    Args:
        file: Where the tensors come from.
        name: Of the network, for messages.
        build: Makes the network.
        state: All of its tensors, under our names.

    Raises:
        Unreadable: If a tensor is damaged.
        DoesNotFit: If one is missing, unexpected, of the wrong shape or kind, or not finite.
    """
    network = outlined(file.path, build)
    check(file.path, name, network.state_dict(), state)
    outside = {key for key, _ in network.named_buffers(remove_duplicate=False)} - set(network.state_dict())
    if outside or any(not tensor.is_meta for tensor in network.state_dict().values()):
        network = build()  # it has tensors that are not in the file
    network.load_state_dict({key: file.take(f"{name}.{key}", state[key]) for key in state}, assign=True)
    return network.requires_grad_(False).eval()


def outlined(path: Path, build: Callable[[], Module]) -> Module:
    """A network whose tensors have shapes and no memory.

    Args:
        path: The file that describes it, for messages.
        build: Makes the network.

    Raises:
        DoesNotFit: If it cannot be built.
    """
    with torch.device("meta"), describing(path), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Initializing zero-element tensors")  # the comparison tells more
        return build()


@contextmanager
def describing(path: Path) -> Iterator[None]:
    """Name the file where sizes in it make no network.

    Raises:
        DoesNotFit: In place of what was raised.
    """
    try:
        yield
    except CheckpointError:
        raise
    except (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
        reason = str(error).splitlines()[0][:200] if str(error) else type(error).__name__
        raise DoesNotFit(
            f"{path} describes a network that cannot be built ({reason}): check what was given (num_heads, img_size), "
            "or copy it again"
        ) from error


def check_depth(path: Path, *depths: Any) -> None:
    """Check that a file does not ask for more blocks than any network has: each takes time, whatever its size.

    Raises:
        Unreadable: If it does.
    """
    for depth in depths:
        if isinstance(depth, int) and depth > LARGEST_DEPTH:
            raise Unreadable(f"{path} describes a network of {depth:,} blocks, which none has: copy it again")


def check(path: Path, name: str, expected: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> None:
    """Check that tensors have the expected names, shapes and kinds of numbers.

    Raises:
        DoesNotFit: If one is missing, unexpected, of the wrong shape or no plain tensor of such numbers.
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
        raise DoesNotFit(f"{path}: {name} does not fit: {shown}")
