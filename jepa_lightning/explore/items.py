"""The images and clips that the page shows: samples of a data set, and files that are dropped in."""

from __future__ import annotations

import io
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from tqdm import tqdm

from jepa_lightning.data import JEPADataModule
from jepa_lightning.data.image_files import read_image
from jepa_lightning.data.preprocess import Preprocess
from jepa_lightning.data.video_sources import STILL_EXTENSIONS, VIDEO_EXTENSIONS
from jepa_lightning.explore.subject import Pixels
from jepa_lightning.models import Encoder
from jepa_lightning.preprocessing import Preprocessing


class Item(NamedTuple):
    """One image or clip.

    Attributes:
        pixels: uint8 (3, T, H, W), T = 1 for an image; of the size that the network takes.
        name: Shown to people.
        labels: Names of its classes, if they are known.
    """

    pixels: Pixels
    name: str
    labels: tuple[str, ...] = ()

    def title(self) -> str:
        """One line."""
        return f"{self.name}: {', '.join(self.labels)}" if self.labels else self.name


def of_data(data: JEPADataModule, count: int) -> list[Item]:
    """Clean samples of the validation split, or of the training split where there is none.

    Args:
        data: The data module.
        count: At most that many, spread over the split.

    Raises:
        ValueError: If they are no colour pictures.
    """
    if (channels := data.channels()) != 3:
        raise ValueError(f"the page shows colour pictures, and this model takes {channels} channels: use jepa predict")
    data.prepare_data()
    loader = data.probe_dataloader("val", count) or data.probe_dataloader("train", count)
    items: list[Item] = []
    for batch in tqdm(loader, desc="reading samples", unit="batch", leave=False):
        for position, inputs in enumerate(batch.inputs):
            if batch.index is not None and batch.index[position] < 0:  # a file that could not be decoded
                continue
            values = inputs if inputs.dtype == torch.uint8 else data.denormalize(inputs.unsqueeze(0))[0]
            labels = () if batch.labels is None else _names(data.classes, batch.labels[position])
            items.append(Item(to_pixels(values), f"sample {len(items)}", labels))
    return items


def to_pixels(values: torch.Tensor) -> Pixels:
    """An image or a clip, uint8 or from 0 to 1, as uint8 with an axis of time; of several clips the first."""
    clip = values.unsqueeze(1) if values.ndim == 3 else values[0] if values.ndim == 5 else values
    return clip if clip.dtype == torch.uint8 else (clip.clamp(0, 1) * 255).round().to(torch.uint8)


def _names(classes: Sequence[Any], labels: torch.Tensor) -> tuple[str, ...]:
    lists = classes if labels.ndim else [classes]
    pairs = zip(lists, labels.reshape(-1).tolist(), strict=False)
    return tuple(str(names[label]) for names, label in pairs if 0 <= label < len(names))


def dropped(name: str, content: bytes, encoder: Encoder) -> Item:
    """A file that somebody dropped on the page, prepared as the evaluation prepares images and videos.

    Raises:
        ValueError: If it is no image or video, too large, or damaged.
    """
    plain = Preprocessing(encoder.img_size, mean=(0.0,) * 3, std=(1.0,) * 3)
    preprocess = Preprocess(plain, encoder.num_frames)
    suffix = Path(name).suffix.lower()
    try:
        if suffix in VIDEO_EXTENSIONS:
            with tempfile.TemporaryDirectory() as folder:  # decoders read files
                path = Path(folder) / f"dropped{suffix}"
                path.write_bytes(content)
                clip = preprocess(path)
        else:
            clip = preprocess(read_image(io.BytesIO(content)))
    except Exception as error:  # decoders raise whatever they like
        known = ", ".join(sorted(STILL_EXTENSIONS | VIDEO_EXTENSIONS))
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(f"{name} cannot be read as an image or a video ({reason}): drop one of {known}") from error
    return Item(to_pixels(clip), name)
