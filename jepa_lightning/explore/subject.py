"""The networks that are looked at, and what they say of one input; plain tensors in, plain tensors out."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import wraps
from threading import Thread, current_thread
from typing import Any, Concatenate, NamedTuple, ParamSpec, TypeVar

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor

from jepa_lightning.masking import Grid
from jepa_lightning.models import DensePredictor, Encoder, Predictor, target_tokens
from jepa_lightning.models.attention_maps import attention_maps

Pixels = UInt8[Tensor, "3 time height width"]
"""One image (time 1) or clip."""


P = ParamSpec("P")
R = TypeVar("R")


def in_turn(method: Callable[Concatenate[Subject, P], R]) -> Callable[Concatenate[Subject, P], R]:
    """Run a method in the one thread of its Subject.

    Every thread that computes brings OpenMP threads of its own. Those of a server's threads would spin for each other,
    for minutes on few cores.
    """

    @wraps(method)
    def asked(self: Subject, /, *args: P.args, **kwargs: P.kwargs) -> R:
        if current_thread() is self._thread:  # one answer needs another
            return method(self, *args, **kwargs)
        return self._worker.submit(method, self, *args, **kwargs).result()

    return asked


class Expectation(NamedTuple):
    """What the predictor expects where it sees nothing.

    Attributes:
        targets: Indices of the hidden tokens, (K,).
        predicted: Predicted features, (K, D).
        seen: Features of the target encoder there, layer-normalised as in training, (K, D).
        surprise: Mean squared difference over the channels, (K,).
        against_mean: The same if the mean feature of the input were predicted everywhere, (K,).
    """

    targets: Tensor
    predicted: Tensor
    seen: Tensor
    surprise: Tensor
    against_mean: Tensor


class Subject:
    """Networks of a checkpoint; asked from several threads they run one after the other.

    Args:
        encoder: The encoder that is looked at (the target encoder of a JEPA).
        context_encoder: The one that the predictor reads; the same where a checkpoint has only one.
        predictor: None where a checkpoint has none.
        mean: Of each channel, for values from 0 to 1.
        std: Likewise.
        target_layers: Of how many last blocks the targets of the training were made, None for all.
    """

    def __init__(
        self,
        encoder: Encoder,
        context_encoder: Encoder,
        predictor: Predictor | None,
        mean: tuple[float, ...],
        std: tuple[float, ...],
        target_layers: int | None = 1,
    ) -> None:
        self.encoder, self.context_encoder, self.predictor = encoder, context_encoder, predictor
        self.target_layers = target_layers or self.depth
        self._thread: Thread | None = None
        self._worker = ThreadPoolExecutor(1, "subject", self._begin)
        self.mean, self.std = torch.tensor(mean).view(1, -1, 1, 1, 1), torch.tensor(std).view(1, -1, 1, 1, 1)

    def _begin(self) -> None:
        self._thread = current_thread()

    @property
    def depth(self) -> int:
        """Number of layers that can be looked at; 1 for a network without Transformer blocks."""
        return int(getattr(self.encoder, "depth", 1))

    def inputs(self, pixels: Pixels) -> Float[Tensor, "1 3 *size"]:
        """Normalised, with a batch axis; an image loses its time axis."""
        clip = (pixels.unsqueeze(0).float() / 255.0 - self.mean) / self.std
        clip = clip.to(next(self.encoder.parameters()).device)
        return clip if self.encoder.num_frames > 1 else clip[:, :, 0]

    def grid(self, pixels: Pixels) -> Grid:
        """Tokens along time, height and width."""
        return self.encoder.grid_of(self.inputs(pixels))

    def patches(self, pixels: Pixels) -> UInt8[Tensor, "tokens 3 side side"]:
        """The patches of an input in raster order; of a tubelet its first frame."""
        side = self.encoder.patch_size
        frames = pixels[:, :: self.encoder.tubelet_size]  # (3, T', H, W)
        channels, steps, height, width = frames.shape
        boxes = frames.reshape(channels, steps, height // side, side, width // side, side)
        return boxes.permute(1, 2, 4, 0, 3, 5).reshape(-1, channels, side, side)

    @in_turn
    @torch.no_grad()
    def tokens(self, pixels: Pixels, layer: int = -1) -> Float[Tensor, "tokens dim"]:
        """Features of every patch after a layer, which is ignored where there is only one."""
        return self.encoder(self.inputs(pixels), **self._at(layer))[0].float().cpu()

    @in_turn
    @torch.no_grad()
    def targets(self, pixels: Pixels) -> Float[Tensor, "tokens dim"]:
        """What the predictor was trained to predict, layer-normalised."""
        if isinstance(self.predictor, DensePredictor):
            tokens = self.predictor.reads(self.encoder, self.inputs(pixels))[0].float().cpu()
        else:
            tokens = target_tokens(self.encoder, self.inputs(pixels), self.target_layers)[0].float().cpu()
        levels = tokens.unflatten(-1, (-1, self.encoder.embed_dim))
        return F.layer_norm(levels, levels.shape[-1:]).flatten(-2)

    def attention(self, pixels: Pixels, layer: int = -1) -> Float[Tensor, "heads tokens tokens"]:
        """Softmax attention of a layer; row i says what token i attends to.

        Raises:
            ValueError: If the network has no softmax attention.
        """
        return self.look(pixels, layer)[0]

    @in_turn
    @torch.no_grad()
    def look(
        self, pixels: Pixels, layer: int = -1
    ) -> tuple[Float[Tensor, "heads tokens tokens"], Float[Tensor, "tokens dim"]]:
        """Attention and tokens of a layer, from one pass.

        Raises:
            ValueError: If the network has no softmax attention.
        """
        found: list[Tensor] = []
        hook = self.encoder.register_forward_hook(lambda _, args, output: found.append(output))
        try:
            (maps,) = attention_maps(self.encoder, self.inputs(pixels), blocks=(layer,), **self._at(layer))
        finally:
            hook.remove()
        return maps[0].cpu(), found[0][0].float().cpu()

    def _at(self, layer: int) -> dict[str, Any]:
        return {} if self.depth == 1 else {"layers": layer}

    @in_turn
    @torch.no_grad()
    def expect(self, pixels: Pixels, hidden: Bool[Tensor, " tokens"]) -> Expectation:
        """Hide some tokens and predict them from all others.

        Raises:
            ValueError: If there is no predictor, or nothing or everything is hidden.
        """
        if self.predictor is None:
            raise ValueError(
                "this checkpoint has no predictor, so nothing can be predicted: choose one of a pretraining"
            )
        if not hidden.any() or hidden.all():
            raise ValueError("hide some patches, and leave some: draw a box, click patches, or sample a mask")
        inputs = self.inputs(pixels)
        places = hidden.to(inputs.device)
        context, targets = (~places).nonzero().T, places.nonzero().T  # (1, Nc), (1, K)
        family = 0 if hidden.float().mean() < 0.5 else 1  # V-JEPA: short masks, then long ones
        features = self.targets(pixels)
        shown = self.predictor.reads(self.context_encoder, inputs, context)
        found = self.predictor(shown, context, targets.unsqueeze(1), family, self.grid(pixels))[0, 0]
        predicted, seen = found.float().cpu(), features[targets[0].cpu()]
        surprise, against_mean = ((p - seen).square().mean(dim=1) for p in (predicted, features.mean(dim=0)))
        return Expectation(targets[0].cpu(), predicted, seen, surprise, against_mean)

    def surprise(self, pixels: Pixels) -> Float[Tensor, " tokens"]:
        """Surprise at every patch: each quarter of the picture is hidden once, in all frames, and predicted.

        Raises:
            ValueError: If there is no predictor, or the picture has a single row or column of patches.
        """
        steps, rows, columns = self.grid(pixels)
        below, right = torch.arange(rows) >= rows // 2, torch.arange(columns) >= columns // 2
        quarter = (2 * below.long()[:, None] + right.long()).expand(steps, -1, -1).flatten()  # (N,)
        found = torch.zeros(len(quarter))
        for number in quarter.unique():
            expected = self.expect(pixels, quarter == number)
            found[expected.targets] = expected.surprise
        return found


def similarity(tokens: Float[Tensor, "tokens dim"], patch: int) -> Float[Tensor, " tokens"]:
    """Cosine similarity of every token to one of them."""
    unit = F.normalize(tokens, dim=1)
    return unit @ unit[patch]


def perplexity(attention: Float[Tensor, "*batch keys"]) -> Float[Tensor, "*batch"]:
    """exp(entropy): to how many tokens a row of attention spreads, from 1 to all."""
    return torch.special.entr(attention).sum(dim=-1).exp()


class Rows(NamedTuple):
    """Patches side by side with what is known of them.

    Attributes:
        features: Target features, of length 1, (M, D).
        patches: As they are seen, (M, 3, p, p).
        owner: Numbers of the inputs that they are of, (M,).
    """

    features: Float[Tensor, "m dim"]
    patches: UInt8[Tensor, "m 3 side side"]
    owner: Int[Tensor, " m"]


class Bank:
    """Patches of many inputs with their target features, to show a feature as the patch that has the like.

    Args:
        subject: Where features come from.
        inputs: Whose patches they are; encoded by ``grow``.
    """

    def __init__(self, subject: Subject, inputs: list[Pixels]) -> None:
        self.subject, self.inputs, self.count = subject, inputs, 0
        self.rows: Rows | None = None
        """Replaced as a whole: another thread may be reading."""

    def grow(self, seconds: float) -> None:
        """Encode as many more inputs as fit into the time, but at least two; nothing once all are there."""
        if self.count == len(self.inputs):
            return
        end, number = time.monotonic() + seconds, self.count
        parts = [] if self.rows is None else [self.rows]
        while number < len(self.inputs) and (number < self.count + 2 or time.monotonic() < end):
            pixels = self.inputs[number]
            features = F.normalize(self.subject.targets(pixels), dim=1)
            parts.append(Rows(features, self.subject.patches(pixels), torch.full((len(features),), number)))
            number += 1
        self.rows, self.count = Rows(*map(torch.cat, zip(*parts, strict=True))), number

    def nearest(
        self, features: Float[Tensor, "k dim"], count: int = 1, without: int | None = None
    ) -> UInt8[Tensor, "k count 3 side side"]:
        """The patches whose features have the largest cosine similarity, best first.

        Args:
            features: What is looked for.
            count: How many patches for each.
            without: Number of an input whose own patches do not count.

        Raises:
            ValueError: If nothing is encoded yet.
        """
        rows = self.rows
        if rows is None:
            raise ValueError("an empty bank has no nearest patch: let it grow first")
        likeness = F.normalize(features, dim=1) @ rows.features.T  # (k, M)
        if without is not None:
            likeness = likeness.masked_fill(rows.owner == without, -torch.inf)
        return rows.patches[likeness.topk(min(count, likeness.shape[1]), dim=1).indices]
