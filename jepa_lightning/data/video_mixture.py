"""Several sources of clips in one, drawn from by weight."""

from __future__ import annotations

import bisect
from collections.abc import Sequence
from itertools import accumulate

from jepa_lightning.data.sources import Label, Split
from jepa_lightning.data.video import Decoder, Video
from jepa_lightning.data.video_sources import Videos, VideoSource


class MixedVideos(Videos):
    """Several lists, one after the other. Classes of the same name are the same class.

    Args:
        parts: The lists.
        like: The lists that say what the labels and the classes are called: labels of a list whose labels have other
            names than those of the first one are unknown.
        weights: How often training draws from each part; None to see every video once an epoch.
    """

    def __init__(self, parts: Sequence[Videos], like: Sequence[Videos], weights: Sequence[float] | None = None) -> None:
        self.parts, self.starts = list(parts), [0, *accumulate(len(part) for part in parts)]
        self.label_names = like[0].label_names
        columns = zip(*(_columns(part) for part in like if part.label_names == self.label_names), strict=True)
        united = [list(dict.fromkeys(name for names in column for name in names)) for column in columns]
        self.classes = united if self.label_names else united[0]
        self.labels = [label for part in parts for label in self._labels(part, united)]
        if weights is not None or any(part.shares for part in parts):
            self.shares = []
            for part, weight in zip(parts, weights or [len(part) for part in parts], strict=True):
                shares = part.shares or [(len(part), 1.0)]
                total = sum(share for _, share in shares)
                self.shares += [(size, weight * share / total) for size, share in shares]

    def _labels(self, part: Videos, united: list[list[str]]) -> list[Label]:
        if part.label_names != self.label_names:
            return [(-1,) * len(self.label_names) or -1] * len(part)
        numbers = [{name: number for number, name in enumerate(names)} for names in united]
        maps = [
            {old: new.get(name, -1) for old, name in enumerate(names)} | {-1: -1}
            for new, names in zip(numbers, _columns(part), strict=True)
        ]
        if not self.label_names:
            return [maps[0][label] for label in part.labels]
        return [tuple(new[old] for new, old in zip(maps, label, strict=True)) for label in part.labels]

    def _find(self, index: int) -> tuple[Videos, int]:
        part = bisect.bisect_right(self.starts, index) - 1
        return self.parts[part], index - self.starts[part]

    def open(self, index: int, decoder: Decoder) -> Video:
        """Open a video of the part it is in."""
        part, within = self._find(index)
        return part.open(within, decoder)

    def name(self, index: int) -> str:
        """Its name in its part."""
        part, within = self._find(index)
        return part.name(within)

    def key(self, index: int) -> str:
        """What tells it from all others."""
        part, within = self._find(index)
        return part.key(within)


def _columns(videos: Videos) -> list[list[str]]:
    """Names of the classes of each label."""
    columns = videos.classes if videos.label_names else [videos.classes]
    return [[str(name) for name in names] for names in columns]


class Mixture(VideoSource):
    """Several sources in one, drawn from by weight.

    Training draws with replacement: a source by its weight, then any of its videos. Evaluation and prediction see
    every video of every source that has the split. Videos of a source whose labels are named otherwise than those of
    the first source have none.

    Args:
        sources: The sources.
        weights: How often each is drawn from, relative to the others; null to see every video once an epoch.
    """

    def __init__(self, sources: list[VideoSource], weights: list[float] | None = None) -> None:
        if not sources:
            raise ValueError("a mixture needs at least one source, got none")
        if weights is not None and (len(weights) != len(sources) or min(weights) <= 0):
            raise ValueError(f"weights must be {len(sources)} positive numbers, one for each source, got {weights}")
        self.sources, self.weights = sources, weights

    @property
    def title(self) -> str:
        """The names of all sources."""
        return " + ".join(source.title for source in self.sources)

    def prepare(self) -> None:
        """Whatever the sources need."""
        for source in self.sources:
            source.prepare()

    def split(self, split: Split) -> MixedVideos:
        """The videos of a split."""
        train = [source.split("train") for source in self.sources]
        if split == "train":
            return MixedVideos(train, train, self.weights)
        parts, missing = [], []
        for source in self.sources:
            try:
                parts.append(source.split(split))
            except FileNotFoundError as error:
                missing.append(str(error))
        if not parts:
            raise FileNotFoundError("; ".join(missing))
        return MixedVideos(parts, train)
