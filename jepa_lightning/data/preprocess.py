"""What evaluation does to an image or a video, as one function: for people with a file and an encoder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, UInt8
from PIL import Image
from torch import Tensor
from torchvision.transforms.v2 import functional as F

from jepa_lightning.data.clips import ClipSampler
from jepa_lightning.data.decode import PyAVDecoder
from jepa_lightning.data.image_files import EXTENSIONS, read_image, to_rgb
from jepa_lightning.data.video_sources import STILL_EXTENSIONS
from jepa_lightning.preprocessing import Preprocessing

Frames = UInt8[Tensor, "time height width 3"]


class Preprocess:
    """Makes an input of an image, a video, or the path of one, as evaluation does.

    Of a video file the clip in the middle is taken, of an array of frames as many as needed, evenly spread. An image is
    repeated where a clip is wanted, and of a video one frame is taken where an image is wanted.

    Args:
        preprocessing: Size, crop and normalisation of the input.
        num_frames: Frames of a clip; 1 for images.
        fps: Frames per second of a clip that is read from a file.
    """

    def __init__(self, preprocessing: Preprocessing, num_frames: int = 1, fps: float = 8.0) -> None:
        self.preprocessing, self.num_frames = preprocessing, num_frames
        self.clips = ClipSampler(num_frames, fps=fps)

    def __call__(self, source: Any) -> Float[Tensor, "channels *size"]:
        """One input, without batch axis: (3, H, W), or (3, T, H, W) for an encoder of clips.

        Args:
            source: A PIL image; the path of an image or a video; uint8 values (H, W, 3) or (T, H, W, 3), as an array or
                a tensor.

        Raises:
            FileNotFoundError: No such file.
            ValueError: If it is none of these, or cannot be decoded.
        """
        content = self._read(source)
        if isinstance(content, Image.Image):
            image = F.pil_to_tensor(self.preprocessing.crop(content))
            clip = image.unsqueeze(1).expand(-1, self.num_frames, -1, -1)
        else:
            chosen = torch.linspace(0, len(content) - 1, self.num_frames).round().long()
            if self.num_frames == 1:
                chosen = torch.tensor([len(content) // 2])
            clip = self.preprocessing.crop(content[chosen].permute(0, 3, 1, 2)).transpose(0, 1)
        return self.preprocessing.normalize(clip if self.num_frames > 1 else clip[:, 0])

    def _read(self, source: Any) -> Image.Image | Frames:
        """An image, or all frames that there are to choose from."""
        if isinstance(source, str | Path):
            path = Path(source).expanduser()
            if not path.exists():
                raise FileNotFoundError(f"no such file: {path}")
            if path.suffix.lower() in (EXTENSIONS if self.num_frames == 1 else STILL_EXTENSIONS):
                return read_image(path, self.preprocessing.background)
            with PyAVDecoder().open(path) as video:
                return video.frames(self.clips.sample(video)[0])
        if isinstance(source, Image.Image):
            return to_rgb(source, self.preprocessing.background)
        values = torch.from_numpy(source) if isinstance(source, np.ndarray) else source
        if not isinstance(values, Tensor) or values.dtype != torch.uint8 or values.shape[-1:] != (3,):
            found = f"{values.dtype} {list(values.shape)}" if isinstance(values, Tensor) else type(source).__name__
            raise ValueError(f"give a PIL image, a path, or uint8 values (H, W, 3) or (T, H, W, 3), not {found}")
        if values.ndim == 3:
            return Image.fromarray(values.numpy())
        if values.ndim != 4 or not len(values):
            raise ValueError(f"frames are (T, H, W, 3) with T of at least 1, not {list(values.shape)}")
        return values
