"""What evaluation does to an image or a video, as one function: for people with a file and an encoder."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, UInt8
from PIL import Image
from torch import Tensor
from torchvision.transforms import v2
from torchvision.transforms.v2 import InterpolationMode

from jepa_lightning.data.clips import ClipSampler
from jepa_lightning.data.decode import PyAVDecoder
from jepa_lightning.data.sources import EXTENSIONS, read_image
from jepa_lightning.data.transforms import IMAGENET_MEAN, IMAGENET_STD
from jepa_lightning.data.video_sources import STILL_EXTENSIONS

Frames = UInt8[Tensor, "time height width 3"]


class Normalization(NamedTuple):
    """Mean and standard deviation of each channel, for values from 0 to 1.

    Attributes:
        mean: One number for each channel.
        std: Likewise.
    """

    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD

    def __call__(self, inputs: Tensor) -> Float[Tensor, "channels *size"]:
        """uint8, or float from 0 to 1, (C, H, W) or (C, T, H, W), to what an encoder takes."""
        values = inputs.float() / 255.0 if inputs.dtype == torch.uint8 else inputs
        mean, std = (torch.tensor(v, device=values.device).view(-1, *[1] * (values.ndim - 1)) for v in self)
        return (values - mean) / std


class Preprocess:
    """Makes an input of an image, a video, or the path of one: the evaluation of the papers.

    The shorter side is resized, the centre cut out, the channels normalised. Of a video file the clip in the middle is
    taken, of an array of frames as many as there have to be, evenly spread. An image is repeated where a clip is
    wanted, and of a video one frame is taken where an image is wanted.

    Args:
        size: Height and width of the result in pixels.
        num_frames: Frames of a clip; 1 for images.
        normalization: Mean and standard deviation of each channel.
        shorter_side: Pixels that the shorter side has before the centre is cut out; null for 256/224 of the size.
        cut: False resizes both sides to the size instead, with nothing cut off.
        fps: Frames in a second of a clip that is read from a file.
    """

    def __init__(
        self,
        size: tuple[int, int],
        num_frames: int = 1,
        normalization: Normalization | None = None,
        shorter_side: int | None = None,
        cut: bool = True,
        fps: float = 8.0,
    ) -> None:
        self.size, self.num_frames, self.normalization = size, num_frames, normalization or Normalization()
        usual = shorter_side in (None, round(min(size) * 256 / 224))
        self.margin, self.cut = 256 / 224 if usual or not shorter_side else shorter_side / min(size), cut
        self.clips = ClipSampler(num_frames, fps=fps)

    def __call__(self, source: Any) -> Float[Tensor, "channels *size"]:
        """One input, without batch axis: (3, H, W), or (3, T, H, W) for an encoder of clips.

        Args:
            source: A PIL image; the path of an image or a video; uint8 values (H, W, 3) or (T, H, W, 3), as an array or
                a tensor.

        Raises:
            FileNotFoundError: No such file.
            ValueError: If it is nothing of that, or cannot be decoded.
        """
        content = self._read(source)
        if isinstance(content, Image.Image):
            image = v2.functional.pil_to_tensor(self._cut(content, (content.height, content.width)))
            clip = image.unsqueeze(1).expand(-1, self.num_frames, -1, -1)
        else:
            chosen = torch.linspace(0, len(content) - 1, self.num_frames).round().long()
            if self.num_frames == 1:
                chosen = torch.tensor([len(content) // 2])
            frames = content[chosen].permute(0, 3, 1, 2)
            clip = self._cut(frames, (frames.shape[-2], frames.shape[-1])).transpose(0, 1)
        return self.normalization(clip if self.num_frames > 1 else clip[:, 0])

    def _read(self, source: Any) -> Image.Image | Frames:
        """An image, or all frames that there are to choose from."""
        if isinstance(source, str | Path):
            path = Path(source).expanduser()
            if not path.is_file():
                raise FileNotFoundError(f"no such file: {path}")
            if path.suffix.lower() in (EXTENSIONS if self.num_frames == 1 else STILL_EXTENSIONS):
                return read_image(path)
            with PyAVDecoder().open(path) as video:
                return video.frames(self.clips.sample(video)[0])
        if isinstance(source, Image.Image):
            return source.convert("RGB")
        values = torch.from_numpy(source) if isinstance(source, np.ndarray) else source
        if not isinstance(values, Tensor) or values.dtype != torch.uint8 or values.shape[-1:] != (3,):
            found = f"{values.dtype} {list(values.shape)}" if isinstance(values, Tensor) else type(source).__name__
            raise ValueError(f"give a PIL image, a path, or uint8 values (H, W, 3) or (T, H, W, 3), not {found}")
        if values.ndim == 3:
            return Image.fromarray(values.numpy())
        if values.ndim != 4 or not len(values):
            raise ValueError(f"frames are (T, H, W, 3) with T of at least 1, not {list(values.shape)}")
        return values

    def _cut(self, image: Any, size: tuple[int, int]) -> Any:
        """Resize and cut out the centre; the same steps as the evaluation of the data modules."""
        if not self.cut:
            return _resized(image, list(self.size))
        least = [round(side * self.margin) for side in self.size]
        scale = max(new / old for new, old in zip(least, size, strict=True))
        resized = [max(side, round(old * scale)) for side, old in zip(self.size, size, strict=True)]
        return v2.functional.center_crop(_resized(image, resized), list(self.size))


def _resized(image: Any, size: list[int]) -> Any:
    return v2.functional.resize(image, size, interpolation=InterpolationMode.BILINEAR, antialias=True)
