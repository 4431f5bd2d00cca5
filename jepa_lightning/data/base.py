"""What every data module shares: loaders that resume, masks from the model's grid, normalisation on the device."""

from __future__ import annotations

import os
from abc import abstractmethod
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from lightning import LightningDataModule
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Subset
from tqdm import tqdm

from jepa_lightning import distributed, preprocessing
from jepa_lightning.data.sampler import Draw, EpochSampler, ResumableLoader, Shares
from jepa_lightning.data.workers import own_cores, start_worker
from jepa_lightning.masking import MaskCollator, MaskedBatch, MaskSampler, Sample, seeded
from jepa_lightning.masking.sampler import Grid
from jepa_lightning.preprocessing import IMAGENET_MEAN, Preprocessing, default_normalization
from jepa_lightning.ranges import within

MaskFactory = Callable[[Grid], MaskSampler]
Classes = list[str] | list[list[str]]
Collator = Callable[[Sequence[Sample]], MaskedBatch]


class JEPADataModule(LightningDataModule):
    """Emits MaskedBatches for training and validation, and clean batches for probes.

    Subclasses say how to make a data set for a split; everything about loaders is here.

    Args:
        mask_factory: Builds the mask sampler for a token grid; None for batches without masks. (Not called masks: the
            command line would take the lack of a default here for null, and prefer it to a subclass's default.)
        batch_size: Samples in a batch of one process.
        num_workers: Loader processes; null for one less than this process has cores.
        seed: Key of shuffles, crops and masks; null for the seed of the run (``seed_everything``).
        img_size: Side of the inputs in pixels, or (height, width); null for what the model was built for.
        patch_size: Side of a patch in pixels; null for the model's.
        mean: Mean of each channel, for values from 0 to 1; null for what suits the model's number of channels.
        std: Standard deviation of each channel, likewise.
    """

    group = ""
    """Where the arguments for what the model says stand in the configuration, for messages."""

    def __init__(
        self,
        mask_factory: MaskFactory | None,
        batch_size: int,
        num_workers: int | None,
        seed: int | None,
        img_size: int | tuple[int, int] | None,
        patch_size: int | None,
        mean: tuple[float, ...] | None,
        std: tuple[float, ...] | None,
    ) -> None:
        super().__init__()
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}")
        self.masks, self.batch_size = mask_factory, batch_size
        within(0, None, num_workers=num_workers)
        self._workers = num_workers
        self.seed = int(os.environ.get("PL_GLOBAL_SEED", "0")) if seed is None else seed
        self.img_size, self.patch_size = img_size, patch_size
        within(-1e6, 1e6, mean=mean)
        within(1e-6, 1e6, std=std)  # 0 makes infinite pixels
        self._mean, self._std = mean, std
        self._encoder: Any = None

    @property
    def num_workers(self) -> int:
        """Loader processes of this process."""
        return max(0, self.cores - 1) if self._workers is None else self._workers

    @num_workers.setter
    def num_workers(self, number: int) -> None:
        self._workers = number

    @property
    def cores(self) -> int:
        """Cores that this process may use, beside the others of its training on this machine."""
        return own_cores(self.trainer.num_devices if self.trainer else None)

    @property
    def mean(self) -> tuple[float, ...]:
        """Mean of each channel, for values from 0 to 1."""
        return default_normalization(self.channels())[0] if self._mean is None else tuple(self._mean)

    @property
    def std(self) -> tuple[float, ...]:
        """Standard deviation of each channel."""
        return default_normalization(self.channels())[1] if self._std is None else tuple(self._std)

    @abstractmethod
    def dataset(self, split: str, augment: bool) -> Dataset[Any]:
        """The samples of a split, as training or as evaluation sees them; raises FileNotFoundError without one."""

    @property
    @abstractmethod
    def classes(self) -> Classes:
        """Names of the classes, fewer than two if the data cannot be probed; with several labels a list for each."""

    @property
    def title(self) -> str:
        """Name of the data set, for tables and reports."""
        return type(self).__name__

    @property
    def label_names(self) -> tuple[str, ...]:
        """What the labels are, if a sample has several: ``labels`` of a batch are then (B, L). Empty for one label."""
        return ()

    def names(self, index: Sequence[int]) -> list[str]:
        """Names of samples of ``predict_dataloader``, for result files."""
        return [str(i) for i in index]

    def size(self) -> tuple[int, int]:
        """Height and width of the inputs in pixels.

        Raises:
            ValueError: If it was not given and there is no model to ask.
        """
        size = self._of_the_model("img_size") if self.img_size is None else self.img_size
        return (size, size) if isinstance(size, int) else (size[0], size[1])

    def grid(self) -> Grid:
        """Tokens of these inputs along time, height and width.

        Raises:
            ValueError: If the patch size does not divide the inputs.
        """
        patch_size = self._of_the_model("patch_size") if self.patch_size is None else self.patch_size
        height, width = self.size()
        if height % patch_size or width % patch_size:
            name = f"data.{self.group}img_size"
            raise ValueError(f"{name} {height}x{width} is not divisible by the model's patch_size {patch_size}")
        return (1, height // patch_size, width // patch_size)

    @property
    def preprocessing(self) -> Preprocessing:
        """What evaluation does to a picture or a frame of these data.

        Raises:
            ValueError: If the size was not given and there is no model to ask.
        """
        return Preprocessing(self.size(), mean=self.mean, std=self.std)

    def channels(self) -> int:
        """Channels of the inputs: the model's, or without one as many as there are means, or three."""
        found = getattr(self._network(), "in_chans", None)
        return int(found) if found is not None else len(self._mean or IMAGENET_MEAN)

    def check_channels(self) -> None:
        """Compare the number of channels of the model with those of mean and standard deviation.

        Raises:
            ValueError: If they differ.
        """
        channels = self.channels()
        for name, values in (("mean", self.mean), ("std", self.std)):
            if len(values) != channels:
                raise ValueError(
                    f"{name} of data.{self.group or 'normalization '}has {len(values)} values, the model takes "
                    f"{channels} channels (in_chans of the encoder): give {channels} values, or leave it out"
                )

    def sampler(self) -> MaskSampler | None:
        """The mask sampler for the token grid of these inputs; None if there are no masks."""
        return None if self.masks is None else self.masks(self.grid())

    def attach(self, encoder: Any) -> None:
        """Take the sizes that were not given from this encoder; without it, from the model that is trained."""
        self._encoder = encoder

    def _model(self) -> Any:
        return None if self.trainer is None else self.trainer.lightning_module

    def _network(self) -> Any:
        return getattr(self._model(), "encoder", None) if self._encoder is None else self._encoder

    def _of_the_model(self, name: str) -> Any:
        encoder = self._network()
        if encoder is None:
            raise ValueError(f"{type(self).__name__} has no model to take {name} from: give {self.group}{name}=")
        return getattr(encoder, name)

    # ------------------------------------------------------------------ loaders

    def train_dataloader(self) -> ResumableLoader:
        """Shuffled, augmented, masked; goes on where a checkpoint left off."""
        cached = self._cached("train")
        dataset: Any = self.dataset("train", augment=True) if cached is None else cached
        workers = self.num_workers if cached is None else 0
        sampler = EpochSampler(len(dataset), self.batch_size, self.seed, self.shares())
        if len(sampler) < self.batch_size:
            raise ValueError(
                f"the training split has {sampler.size} samples, {len(sampler)} for each of {sampler.num_replicas} "
                f"processes, fewer than one batch of {self.batch_size}: set --data.batch_size to at most {len(sampler)}"
            )
        options = {**self._loader_options(self.sampler(), workers), "persistent_workers": workers > 0}
        return ResumableLoader(dataset, sampler=sampler, drop_last=True, **options)

    def shares(self) -> Shares | None:
        """How often an epoch draws from which part of the training split; None for every sample once."""
        return None

    def _cached(self, split: str) -> Dataset[Any] | None:
        """Features that the model has computed once, in place of the samples of a split: its ``cached[split]``."""
        found: dict[str, Dataset[Any]] = getattr(self._model(), "cached", {})
        return found.get(split)

    def val_dataloader(self) -> DataLoader[Any] | list[Any]:
        """Held-out samples, clean, with the same masks every time; nothing if there are none."""
        return self._evaluation_loader("val")

    def test_dataloader(self) -> DataLoader[Any] | list[Any]:
        """The test split."""
        return self._evaluation_loader("test")

    def probe_dataloader(self, split: str, most: int | None = None) -> DataLoader[Any] | None:
        """This process's share of a split, clean and without masks, for evaluation; None if there is no such split.

        Args:
            split: ``train``, ``val`` or ``test``.
            most: At most that many samples, chosen once for all runs with the same seed.
        """
        return self._probe_loader(partial(self.dataset, split, augment=False), split, most)

    def random_views(self, samples: int, count: int) -> Tensor:
        """Random views of a few training samples, as training would draw them, uint8 (samples, count, C, ...).

        The same ones whenever they are asked for; each process has samples of its own.
        """
        dataset = self.dataset("train", augment=True)
        order = torch.randperm(len(dataset), generator=seeded("views", self.seed)).tolist()  # type: ignore[arg-type]
        most = min(samples, len(order) // distributed.world_size())  # as many in every process
        mine = order[distributed.rank() :: distributed.world_size()][:most] or order[:1]
        shown = tqdm(mine, desc="views for LiDAR", delay=2, leave=False, disable=distributed.rank() > 0)
        rows = [[dataset[Draw(index, epoch=-1 - view)].inputs for view in range(count)] for index in shown]
        return torch.stack([torch.stack(row) for row in rows])

    def _probe_loader(self, make: Callable[[], Dataset[Any]], split: str, most: int | None) -> DataLoader[Any] | None:
        try:
            dataset = make()
        except FileNotFoundError:
            if split == "train":
                raise
            return None
        if len(dataset) == 0:  # type: ignore[arg-type]
            return None
        order = torch.randperm(len(dataset), generator=seeded("probe", split, self.seed))[:most].tolist()  # type: ignore[arg-type]
        # A process without a sample of its own takes one from another: features need at least one row.
        mine = order[distributed.rank() :: distributed.world_size()] or order[:1]
        return DataLoader(Subset(dataset, sorted(mine)), shuffle=False, **self._loader_options(None))

    def evaluation_dataset(self, split: str) -> Dataset[Any]:
        """The samples of a split as the loss on held-out data sees them; raises FileNotFoundError without one."""
        return self.dataset(split, augment=False)

    def _evaluation_loader(self, split: str) -> DataLoader[Any] | list[Any]:
        cached = self._cached(split)
        try:
            dataset = self.evaluation_dataset(split) if cached is None else cached
        except FileNotFoundError as error:
            if split == "test":
                raise
            rank_zero_warn(f"no validation: {error}")
            return []
        if len(dataset) == 0:  # type: ignore[arg-type]
            return []
        # Always the same order, but not by class: the first batches of a split stand for the whole.
        order = torch.randperm(len(dataset), generator=seeded("order", split, self.seed)).tolist()  # type: ignore[arg-type]
        options = self._loader_options(self.sampler(), self.num_workers if cached is None else 0)
        return DataLoader(Subset(dataset, order), shuffle=False, **options)

    def _loader_options(self, masks: MaskSampler | None, workers: int | None = None) -> dict[str, Any]:
        workers = self.num_workers if workers is None else workers
        return {
            "batch_size": self.batch_size,
            "num_workers": workers,
            "persistent_workers": workers > 0 and masks is not None,
            "pin_memory": torch.cuda.is_available(),
            "collate_fn": self.collator(masks),
            "worker_init_fn": start_worker,
            "generator": seeded("workers", self.seed),  # or every iteration would draw from the global one
        }

    def collator(self, masks: MaskSampler | None) -> Collator:
        """Makes batches of samples, with masks if there is a sampler for them."""
        return MaskCollator(masks, self.seed)

    # ------------------------------------------------------------------ on the device

    def normalize(self, inputs: Tensor) -> Tensor:
        """uint8 images (B, C, H, W) or clips (B, [K,] C, T, H, W) to normalised float; float is taken as it is."""
        if inputs.dtype != torch.uint8:
            return inputs
        return preprocessing.normalize(inputs, self.mean, self.std, _channels(inputs))

    def denormalize(self, inputs: Tensor) -> Tensor:
        """Normalised float back to values from 0 to 1, for pictures."""
        return preprocessing.denormalize(inputs, self.mean, self.std, _channels(inputs))

    def on_after_batch_transfer(self, batch: MaskedBatch, dataloader_idx: int) -> MaskedBatch:
        """Lightning's hook: pixels travel as uint8 and become floats on the device."""
        views = tuple(self.normalize(v.flatten(0, 1)).unflatten(0, v.shape[:2]) for v in batch.views)
        return batch._replace(inputs=self.normalize(batch.inputs), views=views)


def _channels(inputs: Tensor) -> int:
    """The axis of the channels of a batch; several clips of a video stand before it."""
    return 2 if inputs.ndim == 6 else 1
