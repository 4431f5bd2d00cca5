from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from jepa_lightning.explore.items import Item
from jepa_lightning.explore.subject import Subject
from jepa_lightning.models import Predictor, VisionTransformer

SubjectFactory = Callable[..., Subject]
ItemFactory = Callable[..., list[Item]]


@pytest.fixture
def subject(tiny_encoder: Callable[..., VisionTransformer]) -> SubjectFactory:
    def build(predictor: bool = True, **sizes: int) -> Subject:
        encoder, context = tiny_encoder(**sizes).eval(), tiny_encoder(**sizes).eval()
        made = Predictor(encoder, embed_dim=16, depth=1, init_std=None).eval() if predictor else None
        return Subject(encoder, context, made, (0.5,) * 3, (0.25,) * 3)

    return build


@pytest.fixture
def items() -> ItemFactory:
    def build(count: int = 3, frames: int = 1) -> list[Item]:
        pixels = torch.randint(256, (count, 3, frames, 32, 32), dtype=torch.uint8)
        return [Item(clip, f"sample {n}", (str(n % 2),)) for n, clip in enumerate(pixels)]

    return build
