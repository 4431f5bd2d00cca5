"""The networks of a checkpoint for export, what is known about them, and the functions that they compute."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from jepa_lightning.masking import gather_tokens
from jepa_lightning.models import ActionPredictor, Encoder, Predictor
from jepa_lightning.models.pooling import AttentiveClassifier
from jepa_lightning.weights.base import Progress
from jepa_lightning.weights.networks import Networks, family


class Source(NamedTuple):
    """A checkpoint to be exported.

    Attributes:
        path: Where it came from.
        networks: The encoder of the branch that was asked for; predictor and probe if they go out too.
        licence: Licence of the weights.
        other: The encoder of the other branch, if the checkpoint has it.
        config: The configuration of the training, if the checkpoint is ours; empty otherwise.
        progress: Finished steps and epochs.
    """

    path: Path
    networks: Networks
    licence: str
    other: Encoder | None = None
    config: Mapping[str, Any] = MappingProxyType({})
    progress: Progress = Progress()

    @property
    def arguments(self) -> dict[str, Any]:
        """Constructor arguments of the method that was trained."""
        return self.config.get("model", {}).get("init_args") or {}

    @property
    def encoder_config(self) -> dict[str, Any] | None:
        """The ``encoder`` section of the configuration."""
        return self.arguments.get("encoder")

    @property
    def predictor(self) -> str | None:
        """The class of the training's predictor, also of one that is not among the networks."""
        described = self.arguments.get("predictor") or {}
        return str(described["class_path"]).split(".")[-1] if "class_path" in described else None

    @property
    def kind(self) -> str:
        """``I-JEPA``, ``V-JEPA``, ...: what was trained, or what the tensors look like."""
        method = self.config.get("model", {}).get("class_path")
        if method:
            return str(method).split(".")[-1]
        return "V-JEPA 2-AC" if self.networks.actions is not None else family(self.networks.encoder)

    def shape(self, batch: int) -> tuple[int, ...]:
        """Of a batch of inputs as the encoder was built for: (B, C, H, W), or (B, C, T, H, W) for clips."""
        encoder = self.networks.encoder
        weight = encoder.state_dict().get("patch_embed.proj.weight")
        channels = getattr(encoder, "in_chans", 3) if weight is None else weight.shape[1]
        frames = (encoder.num_frames,) if encoder.num_frames > 1 else ()
        return (batch, channels, *frames, *encoder.img_size)


class Functions(NamedTuple):
    """What a set of networks computes, ours or those of another library.

    Attributes:
        encode: Inputs -> tokens (B, N, D).
        classify: Inputs -> logits of the probe (B, classes).
        predict: (tokens of the whole input (B, N, D), context (B, Nc), targets (B, Nt)) -> predicted (B, Nt, D).
        read: Inputs -> the tokens that ``predict`` takes; None if they are those of ``encode``.
    """

    encode: Callable[[Tensor], Tensor] | None = None
    classify: Callable[[Tensor], Tensor] | None = None
    predict: Callable[[Tensor, Tensor, Tensor], Tensor] | None = None
    read: Callable[[Tensor], Tensor] | None = None


class Classify(nn.Module):
    """A frozen encoder with a probe: inputs -> logits."""

    def __init__(
        self, encoder: Encoder, classifier: AttentiveClassifier, out_layers: tuple[int, ...] | None = None
    ) -> None:
        super().__init__()
        self.encoder, self.classifier, self.out_layers = encoder, classifier, out_layers

    def forward(self, inputs: Tensor) -> Tensor:
        """(B, classes)."""
        if self.out_layers is None:
            return self.classifier(self.encoder(inputs))
        return self.classifier(torch.cat(self.encoder(inputs, layers=self.out_layers), dim=1))


class Predict(nn.Module):
    """A predictor for one block of targets, with one of its mask tokens."""

    def __init__(self, predictor: Predictor, mask_index: int = 0) -> None:
        super().__init__()
        self.predictor, self.mask_index = predictor, mask_index

    def forward(self, context_tokens: Tensor, context: Tensor, targets: Tensor) -> Tensor:
        """(B, Nc, D), (B, Nc), (B, Nt) -> (B, Nt, D)."""
        return self.predictor(context_tokens, context, targets.unsqueeze(1), self.mask_index)[:, 0]


def functions_of(networks: Networks) -> Functions:
    """What our networks compute, with the mask token that the other library uses."""
    predictor, classifier = networks.predictor, networks.classifier
    actions = None if networks.actions is None else acting(networks.actions)
    return Functions(
        networks.encoder,
        None if classifier is None else Classify(networks.encoder, classifier, networks.out_layers),
        actions if predictor is None else gathering(Predict(predictor, networks.mask_index)),
        None if predictor is None else partial(predictor.reads, networks.encoder),
    )


def acting(predictor: ActionPredictor) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    """A predictor that reads actions, for tokens of a whole clip and the same random actions every time."""

    def predict(tokens: Tensor, context: Tensor, targets: Tensor) -> Tensor:
        steps = tokens.shape[1] // (predictor.grid[0] * predictor.grid[1])
        layers = (predictor.action_encoder, predictor.state_encoder, predictor.extrinsics_encoder)
        generator = torch.Generator().manual_seed(0)
        given = [
            None if layer is None else torch.randn(len(tokens), steps, layer.in_features, generator=generator)
            for layer in layers
        ]
        return predictor(tokens, *given)

    return predict


def gathering(predict: Callable[[Tensor, Tensor, Tensor], Tensor]) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    """The same for tokens of the whole input, of which the context is taken."""
    return lambda tokens, context, targets: predict(gather_tokens(tokens, context), context, targets)
