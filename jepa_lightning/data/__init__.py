"""LightningDataModules and the sources they read."""

from jepa_lightning.data.alternating import ImageTurns, VideoImageDataModule
from jepa_lightning.data.base import JEPADataModule
from jepa_lightning.data.clips import ClipSampler
from jepa_lightning.data.decode import Decoder, PyAVDecoder, TorchCodecDecoder
from jepa_lightning.data.embedded import DigitScenes
from jepa_lightning.data.images import ImageDataModule, ImageDataset
from jepa_lightning.data.moving_digits import MovingDigits
from jepa_lightning.data.multi_crop import MultiCrop, MultiCropClip, Photometric
from jepa_lightning.data.preprocess import Preprocess
from jepa_lightning.data.sources import Folder, Images, ImageSource, Torchvision
from jepa_lightning.data.trajectories import EpisodeFolder, TrajectoryDataModule, TrajectorySource
from jepa_lightning.data.transforms import CleanTransform, PretrainTransform, TrainTransform, Views
from jepa_lightning.data.two_rooms import TwoRoomsEpisodes
from jepa_lightning.data.video_mixture import Mixture
from jepa_lightning.data.video_sources import StillImages, VideoFolder, VideoList, Videos, VideoSource
from jepa_lightning.data.video_transforms import CleanClipTransform, PretrainClipTransform, TrainClipTransform
from jepa_lightning.data.videos import ClipFormat, VideoDataModule, VideoDataset, VideoReader
from jepa_lightning.trajectory import Trajectory

__all__ = [
    "CleanClipTransform",
    "CleanTransform",
    "ClipFormat",
    "ClipSampler",
    "Decoder",
    "DigitScenes",
    "EpisodeFolder",
    "Folder",
    "ImageDataModule",
    "ImageDataset",
    "ImageSource",
    "ImageTurns",
    "Images",
    "JEPADataModule",
    "Mixture",
    "MovingDigits",
    "MultiCrop",
    "MultiCropClip",
    "Photometric",
    "Preprocess",
    "PretrainClipTransform",
    "PretrainTransform",
    "PyAVDecoder",
    "StillImages",
    "TorchCodecDecoder",
    "Torchvision",
    "TrainClipTransform",
    "TrainTransform",
    "Trajectory",
    "TrajectoryDataModule",
    "TrajectorySource",
    "TwoRoomsEpisodes",
    "VideoDataModule",
    "VideoDataset",
    "VideoFolder",
    "VideoImageDataModule",
    "VideoList",
    "VideoReader",
    "VideoSource",
    "Videos",
    "Views",
]
