"""Which class each pixel of the embedded scenes and clips has: drawn again by the generator that wrote the files.

Nothing is stored: a scene or clip follows from its split and its number, which is the name of its file.
"""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from jepa_lightning.data import embedded, moving_digits

OPAQUE = 0.5
"""Opacity of the digit from which a pixel is its."""


def scene_labels(split: str, number: int, size: int = 64) -> Int[Tensor, "size size"]:
    """Label of each pixel of a scene of DigitScenes: 0 for the background, 1 + the digit elsewhere.

    Args:
        split: ``train``, ``val`` or ``test``.
        number: Of the scene: ``00123.jpg`` has 123.
        size: Side of the scenes in pixels.
    """
    digits, labels, photographs = embedded.parts(split)
    random = np.random.default_rng([embedded.VERSION, list(embedded.COUNTS).index(split), number])
    digit = int(random.integers(len(digits)))
    _, mask = embedded.render_with_mask(digits[digit], photographs, size, random)
    opaque = torch.from_numpy(np.array(mask)) > 255 * OPAQUE
    return opaque * (1 + int(labels[digit]))


def clip_labels(
    split: str, number: int, size: int = 64, style: moving_digits.Style = moving_digits.CLUTTERED
) -> Int[Tensor, "frames size size"]:
    """Label of each pixel of each frame of a clip of MovingDigits: 0 for the background, 1 + the digit elsewhere.

    Args:
        split: ``train``, ``val`` or ``test``.
        number: Of the clip: ``00123.mp4`` has 123.
        size: Side of the frames in pixels.
        style: PLAIN or CLUTTERED, as the source was made.
    """
    digits, labels, photographs = embedded.parts(split)
    random = np.random.default_rng([moving_digits.VERSION, list(moving_digits.COUNTS).index(split), number])
    digit, motion = int(random.integers(len(digits))), str(random.choice(list(moving_digits.MOTIONS)))
    _, masks = moving_digits.render_with_mask(digits[digit], photographs, motion, size, random, style)
    return (torch.from_numpy(masks) > OPAQUE) * (1 + int(labels[digit]))
