"""What reading images and videos has in common: a file that cannot be decoded costs one warning, not the run."""

from __future__ import annotations

import json
import tempfile
import uuid
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.utilities import rank_zero_warn
from torch import Generator, Tensor
from torch.utils.data import DataLoader, Dataset, Subset, get_worker_info

from jepa_lightning import distributed
from jepa_lightning.data.base import Classes, JEPADataModule
from jepa_lightning.data.files import printable
from jepa_lightning.data.image_files import ChannelError
from jepa_lightning.data.sampler import Draw
from jepa_lightning.data.sources import Label, Listing, Source, Split
from jepa_lightning.data.transforms import Views
from jepa_lightning.masking import MaskedBatch, Sample, seeded
from jepa_lightning.preprocessing import Preprocessing

LINE = ",\n  "
FEW = 30
"""Held-out samples below which accuracies are warned of."""
WARNED = "warning"
"""Marks lines about files that could be read."""
SHOWN = 30
"""Most files that the last message names."""


class Unreadable:
    """What could not be decoded, in any process: workers are others, so it is told through a file."""

    def __init__(self) -> None:
        self.path = Path(tempfile.gettempdir()) / f"jepa-unreadable-{uuid.uuid4().hex}"

    def note(self, listing: Listing, index: int, error: Exception) -> None:
        """Add one line."""
        reason = printable(" ".join(f"{type(error).__name__}: {error}".split("\n")))
        with self.path.open("a") as report:  # in JSON, for names with line breaks or bytes that are no text
            report.write(json.dumps([listing.key(index), listing.name(index), reason]) + "\n")

    def warn(self, listing: Listing, index: int, message: str) -> None:
        """Add what a library said about a file that it could read."""
        line = [listing.key(index), listing.name(index), printable(" ".join(message.split())), WARNED]
        with self.path.open("a") as report:
            report.write(json.dumps(line) + "\n")

    def reasons(self) -> dict[str, tuple[str, str]]:
        """Name and first error of each file, by its key, sorted."""
        return self._lines([])

    def warnings(self) -> dict[str, tuple[str, str]]:
        """Name and first warning of each file that could be read, likewise."""
        return self._lines([WARNED])

    def _lines(self, kind: list[str]) -> dict[str, tuple[str, str]]:
        if not self.path.exists():
            return {}
        lines = [json.loads(line) for line in self.path.read_text().splitlines()]
        found = {key: (name, said) for key, name, said, *rest in reversed(lines) if rest == kind}
        return dict(sorted(found.items()))

    def names(self) -> list[str]:
        """Names of the files."""
        return [name for name, _ in self.reasons().values()]

    def clear(self) -> None:
        """Forget."""
        self.path.unlink(missing_ok=True)


@contextmanager
def recorded() -> Iterator[list[warnings.WarningMessage]]:
    """What libraries warn of meanwhile, in a worker, whose own words would come once from each of them.

    Elsewhere nothing is taken: filters of warnings belong to all threads of a process.
    """
    if get_worker_info() is None:
        yield []
        return
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        yield said


class ReadingDataset(Dataset[Sample], ABC):
    """Decodes and transforms samples; subclasses say how.

    Args:
        listing: The samples.
        seed: Part of the key of every draw.
        replace: Give the next readable sample in place of an unreadable one (training); otherwise a black one with
            label and index -1, which evaluation leaves out.
        report: Where unreadable samples are noted; null for one of its own.
    """

    def __init__(self, listing: Listing, seed: int, replace: bool, report: Unreadable | None = None) -> None:
        self.listing, self.seed, self.replace = listing, seed, replace
        self.report = report or Unreadable()
        reasons = self.report.reasons().items()
        self._late = {key for key, (_, reason) in reasons if reason.startswith(TimeoutError.__name__)}
        self._warned: set[int] = set()

    @abstractmethod
    def read(self, index: int, generator: Generator) -> Any:
        """Decode a sample; whatever is raised here means that it cannot be read.

        Args:
            index: Position in the listing.
            generator: Follows from (seed, epoch, index).
        """

    @abstractmethod
    def view(self, content: Any) -> Tensor | Views:
        """Transform what was read into uint8 inputs; may draw from PyTorch's global generator."""

    @abstractmethod
    def blank(self) -> Any:
        """Something black of the kind that ``read`` gives."""

    def generators(self, *key: int) -> tuple[Generator, Generator]:
        """Sources of randomness for reading, and for what comes after: the same one continues what reading drew."""
        return seeded("clip", *key), seeded("crop", *key)

    def _read(self, index: int, generator: Generator) -> Any:
        """Read a sample; one that took too long is not waited for again, and warnings are counted."""
        if self._late and self.listing.key(index) in self._late:
            raise TimeoutError("took too long before")
        try:
            with recorded() as said:
                content = self.read(index, generator)
        except TimeoutError:
            self._late.add(self.listing.key(index))
            raise
        if said and index not in self._warned:
            self._warned.add(index)
            self.report.warn(self.listing, index, str(said[0].message))
        return content

    def __len__(self) -> int:
        return len(self.listing)

    def __getitem__(self, draw: Draw | int) -> Sample:
        """The sample, with randomness that follows from (seed, epoch, index)."""
        index, epoch, step, turn = draw if isinstance(draw, Draw) else Draw(draw)
        key = (self.seed, epoch, index, turn) if turn else (self.seed, epoch, index)
        reason = ""
        for position in range(len(self)):
            chosen = (index + position) % len(self)
            reading, later = self.generators(*key)
            try:
                content = self._read(chosen, reading)
            except Exception as error:  # decoders raise whatever they like
                self.report.note(self.listing, chosen, error)
                if not self.replace:
                    return _sample(self.view(self.blank()), self._unknown(), -1, epoch, step, turn)
                reason = f"{self.listing.name(chosen)} ({type(error).__name__}: {error})"
                continue
            before = torch.get_rng_state()  # fork_rng does the same, and takes longer
            try:
                torch.set_rng_state(later.get_state())
                return _sample(self.view(content), self.listing.labels[chosen], chosen, epoch, step, turn)
            finally:
                torch.set_rng_state(before)
        raise ValueError(f"none of the {len(self)} samples could be decoded, the last: {reason}")

    def _unknown(self) -> Label:
        return (-1,) * len(self.listing.label_names) or -1

    def unreadable(self) -> list[str]:
        """Names of the files that could not be decoded so far, in any process."""
        return self.report.names()


class ReadingDataModule(JEPADataModule):
    """A data module over a source, which says what could not be read and what cannot be probed.

    Args:
        source: Where samples come from.
        options: Arguments of JEPADataModule.
    """

    kind: str
    """Of a sample, for messages."""
    transform: Callable[[tuple[int, int]], Any]
    """Builds the training transform for a height and width."""

    def __init__(self, source: Source[Listing], **options: Any) -> None:
        super().__init__(**options)
        self.source, self.report = source, Unreadable()
        self.finished: Callable[[], Collection[int]] = tuple
        """Says which samples prediction may leave out; asked when it begins."""
        self._listings: dict[Split, Listing] = {}
        self._told = False

    @abstractmethod
    def dataset(self, split: str, augment: bool) -> ReadingDataset:
        """The samples of a split, as training or as evaluation sees them; raises FileNotFoundError without one."""

    @abstractmethod
    def check(self, listing: Listing, index: int) -> None:
        """Decode a sample; raises whatever the decoder raises."""

    @property
    def title(self) -> str:
        """Name of the source."""
        return self.source.title

    @property
    def preprocessing(self) -> Preprocessing:
        """What evaluation does to a picture or a frame: the training transform says how much of it is kept."""
        crop_pct, background = self.transform(self.size()).crop_pct, self.source.background
        return super().preprocessing._replace(crop_pct=crop_pct, background=background)

    def listing(self, split: Split) -> Listing:
        """The samples of a split, listed once."""
        if split not in self._listings:
            listing = self._listings[split] = self.source.split(split)
            if split == "val" and 0 < len(listing) < FEW:
                rank_zero_warn(
                    f"only {len(listing)} held-out {self.kind}s: one of them is {1 / len(listing):.0%} of an accuracy; "
                    "add some, or hold out a larger fraction (--data.source.holdout)"
                )
        return self._listings[split]

    def prepare_data(self) -> None:
        """Download or render, in one process of each machine."""
        self.source.prepare()

    def setup(self, stage: str) -> None:
        """Fail now rather than in a worker if nothing can be read, and say what cannot be probed."""
        self.check_channels()
        if stage == "predict":
            return
        listing = self.listing("train")
        self._check_any(listing)
        seen = _labels_seen(listing)
        if not any(seen):
            rank_zero_warn(
                f"the {self.kind}s have no labels (no class folders, none in a list): training works, linear and k-NN "
                "probes do not"
            )
        elif not listing.label_names and len(seen[0]) == 1:
            only = listing.classes[seen[0].pop()]
            rank_zero_warn(
                f"all {self.kind}s are of one class, {only!r}: training works, linear and k-NN probes do not"
            )

    def _check_any(self, listing: Listing) -> None:
        reason = ""
        for index in range(len(listing)):
            try:
                return self.check(listing, index)
            except ChannelError:
                self.report.clear()
                raise
            except Exception as error:  # decoders raise whatever they like
                self.report.note(listing, index, error)
                reason = reason or f"{listing.name(index)} ({type(error).__name__}: {error})"
        self.report.clear()
        raise ValueError(f"none of the {len(listing)} {self.kind}s can be decoded, for example {reason}")

    @property
    def classes(self) -> Classes:
        """Names of the classes; with several labels a list for each."""
        listing = self.listing("train")
        if listing.label_names:
            return [list(names) for names in listing.classes]
        return [str(name) for name in listing.classes]

    @property
    def label_names(self) -> tuple[str, ...]:
        """What the labels are, if a sample has several."""
        return self.listing("train").label_names

    def names(self, index: Sequence[int]) -> list[str]:
        """Names of samples of ``predict_dataloader``, for result files."""
        listing = self.listing("all")
        return [listing.name(i) for i in index]

    def predict_dataloader(self) -> DataLoader[Any]:
        """Every sample of the source that is not finished, clean, in order, without masks."""
        dataset = self.dataset("all", augment=False)
        finished = sorted(set(self.finished()) & set(range(len(dataset))))
        left = set(range(len(dataset))) - set(finished)
        left |= set(finished[: max(0, distributed.world_size() - len(left))])  # a process without any would wait
        return DataLoader(Subset(dataset, sorted(left)), shuffle=False, **self._loader_options(None))

    def on_after_batch_transfer(self, batch: MaskedBatch, dataloader_idx: int) -> MaskedBatch:
        """Normalise on the device, and say when the first file could not be decoded."""
        if not self._told and (reasons := self.report.reasons()):
            self._told = True
            name, reason = next(iter(reasons.values()))
            rank_zero_warn(
                f"cannot decode {name} ({reason}): skipped, as every such file; their number is told at the end"
            )
        return super().on_after_batch_transfer(batch, dataloader_idx)

    def teardown(self, stage: str) -> None:
        """Count and name the files that were skipped."""
        reasons = list(self.report.reasons().values())
        if len(reasons) > 1:  # a single one was told when it was met
            shown = [f"{name} ({reason[:160]})" for name, reason in reasons[:SHOWN]]
            more = f" and {len(reasons) - SHOWN} more" if len(reasons) > SHOWN else ""
            # Every process tells what it met: others have other files.
            warnings.warn(
                f"{len(reasons)} files could not be decoded and were skipped: {LINE.join(shown)}{more}", stacklevel=1
            )
        if said := list(self.report.warnings().values()):
            name, message = said[0]
            warnings.warn(f"{len(said)} files were read with warnings, for example {name} ({message})", stacklevel=1)
        self.report.clear()
        self._told = False

    def unreadable(self) -> list[str]:
        """Names of all files that could not be decoded so far."""
        return self.report.names()


def _sample(made: Tensor | Views, label: Label, index: int, epoch: int, step: int, turn: int) -> Sample:
    """What a transform made of a sample, as the collator takes it."""
    inputs, views = (made.inputs, made.views) if isinstance(made, Views) else (made, ())
    return Sample(inputs, label, index, epoch, step, views, turn)


def _labels_seen(listing: Listing) -> list[set[int]]:
    """The known values of each label."""
    labels: Sequence[Any] = listing.labels
    if not listing.label_names:
        return [{label for label in labels if label >= 0}]
    return [{label[i] for label in labels if label[i] >= 0} for i in range(len(listing.label_names))]
