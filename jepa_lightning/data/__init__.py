"""LightningDataModules and the sources they read."""

from jepa_lightning.data.base import JEPADataModule
from jepa_lightning.data.embedded import DigitScenes
from jepa_lightning.data.images import ImageDataModule, ImageDataset
from jepa_lightning.data.sources import Folder, Images, ImageSource, Torchvision
from jepa_lightning.data.transforms import CleanTransform, PretrainTransform

__all__ = [
    "CleanTransform",
    "DigitScenes",
    "Folder",
    "ImageDataModule",
    "ImageDataset",
    "ImageSource",
    "Images",
    "JEPADataModule",
    "PretrainTransform",
    "Torchvision",
]
