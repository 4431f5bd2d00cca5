from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from jepa_lightning.data import Folder, ImageDataModule, Mixture, PyAVDecoder, StillImages, VideoFolder, VideoList
from jepa_lightning.data.sampler import Draw, EpochSampler
from jepa_lightning.data.sources import Images, ImageSource, Split
from jepa_lightning.data.video_sources import FileVideos, Still, Videos, VideoSource

VideoFactory = Callable[..., Path]


class Named(VideoSource):
    """Files that are not there, by split, with labels."""

    def __init__(self, classes: list, label_names: tuple[str, ...] = (), **splits: list) -> None:
        self.classes, self.label_names, self.splits = classes, label_names, splits

    def split(self, split: Split) -> FileVideos:
        if split not in self.splits:
            raise FileNotFoundError(f"no {split}")
        labels = self.splits[split]
        files = [f"{split}{number}.mp4" for number in range(len(labels))]
        return FileVideos(Path("/nowhere"), files, labels, self.classes, self.label_names)


def write(path: Path, content: str = "") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content)
    return path


def names(videos: Videos) -> list[str]:
    return [videos.name(index) for index in range(len(videos))]


# ---------------------------------------------------------------------- folders


def test_folders_of_videos_have_the_layouts_of_folders_of_images(tmp_path: Path) -> None:
    for name in ("train/run/1.mp4", "train/walk/deep/2.MKV", "val/walk/3.webm", "train/notes.txt"):
        write(tmp_path / name)
    train, val = VideoFolder(str(tmp_path)).split("train"), VideoFolder(str(tmp_path)).split("val")
    assert names(train) == ["run/1.mp4", "walk/deep/2.MKV"]
    assert (train.labels, val.labels) == ([0, 1], [1])
    assert train.classes == ["run", "walk"]
    with pytest.raises(FileNotFoundError, match="no test split"):
        VideoFolder(str(tmp_path)).split("test")
    flat = tmp_path / "train" / "run"
    assert VideoFolder(str(flat)).split("train").labels == [-1]


def test_missing_and_empty_folders_say_what_was_looked_for(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no such folder: .*nowhere \(set --data.root to a folder of videos\)"):
        VideoFolder(str(tmp_path / "nowhere")).split("train")
    with pytest.raises(FileNotFoundError, match=r"no video files in .*\.mp4"):
        VideoFolder(str(tmp_path)).split("train")


def test_an_image_in_a_folder_stands_still(tmp_path: Path, make_video: VideoFactory) -> None:
    make_video("a.mp4", count=3)
    pixels = torch.randint(256, (6, 9, 3), dtype=torch.uint8)
    Image.fromarray(pixels.numpy()).save(tmp_path / "b.PNG")
    videos = VideoFolder(str(tmp_path)).split("all")
    assert names(videos) == ["a.mp4", "b.PNG"]
    with videos.open(0, PyAVDecoder()) as video:
        assert not isinstance(video, Still)
        assert video.info.frames == 3
    with videos.open(1, PyAVDecoder()) as video:
        assert (video.info.height, video.info.width) == (6, 9)
        assert len(video.times()) == video.info.frames == 1
        assert torch.equal(video.frames([0, 0, 0]), pixels.expand(3, -1, -1, -1))


# ---------------------------------------------------------------------- lists


def test_a_list_is_read_as_the_official_code_reads_it(tmp_path: Path) -> None:
    listed = write(tmp_path / "train.csv", "/data/a.mp4 3\n\nb/c.mp4 0\r\n")
    videos = VideoList(str(listed), holdout=0.0, val=str(listed)).split("train")
    assert names(videos) == ["/data/a.mp4", str(tmp_path / "b/c.mp4")]
    assert videos.labels == [3, 0]
    assert videos.classes == ["0", "1", "2", "3"]


@pytest.mark.parametrize(
    ("line", "name", "label"),
    [
        ("a b.mp4 7", "a b.mp4", 7),
        ("a b.mp4", "a b.mp4", -1),
        ("a.mp4", "a.mp4", -1),
        ("a.mp4 -1", "a.mp4", -1),
        ("a b.mp4::7", "a b.mp4", 7),
        ('"a b.mp4" 7', "a b.mp4", 7),
        ('"a b.mp4"', "a b.mp4", -1),
        ("a.mp4\t7", "a.mp4", 7),
        ("zH3x_9Q 5", "zH3x_9Q", 5),
        ("picture.JPEG 2", "picture.JPEG", 2),
    ],
)
def test_lines_of_a_list(tmp_path: Path, line: str, name: str, label: int) -> None:
    listed = write(tmp_path / "list.txt", f"{line}\n")
    videos = VideoList(str(listed)).split("all")
    assert names(videos) == [str(tmp_path / name)]
    assert videos.labels == [label]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("a.mp4 cat", r"list.csv, line 2: label 'cat' is no integer; write `path label`"),
        ("a.mp4 1.5", r"list.csv, line 2: label '1.5' is no integer"),
        ("a.mp4::", None),
        ("a.mp4,3", r"list.csv, line 2: 'a.mp4,3' is separated by a comma; write `path label`"),
    ],
)
def test_a_line_that_cannot_be_understood_is_named(tmp_path: Path, line: str, message: str | None) -> None:
    listed = write(tmp_path / "list.csv", f"fine.mp4 0\n{line}\n")
    if message is None:
        assert VideoList(str(listed)).split("all").labels == [0, -1]
    else:
        with pytest.raises(ValueError, match=message):
            VideoList(str(listed)).split("train")


def test_an_array_of_paths_is_a_list_without_labels(tmp_path: Path) -> None:
    np.save(tmp_path / "list.npy", np.array(["a.mp4", "/data/b.mp4"]))
    videos = VideoList(str(tmp_path / "list.npy")).split("all")
    assert names(videos) == [str(tmp_path / "a.mp4"), "/data/b.mp4"]
    assert videos.labels == [-1, -1]
    np.save(tmp_path / "bad.npy", np.array(["a.mp4", None], dtype=object))
    with pytest.raises(ValueError, match=r"bad.npy is no array of strings: save np.array\(paths, dtype=str\)"):
        VideoList(str(tmp_path / "bad.npy")).split("train")


def test_only_a_line_feed_ends_a_line_of_a_list_and_names_may_be_any_bytes(tmp_path: Path) -> None:
    listed = tmp_path / "list.csv"
    listed.write_bytes("a\u2028b.mp4 1\r\n".encode() + b"caf\xe9.mp4 2\nx\ry.mp4 0")
    videos = VideoList(str(listed)).split("all")
    assert [Path(name).name for name in videos.files] == ["a\u2028b.mp4", "caf\udce9.mp4", "x\ry.mp4"]
    assert videos.labels == [1, 2, 0]
    assert [Path(name).name for name in names(videos)] == ["a\\u2028b.mp4", "caf\\udce9.mp4", "x\\ry.mp4"]
    assert len(VideoList(str(listed)).split("train")) == 2


def test_several_lists_are_one_split_and_share_their_classes(tmp_path: Path) -> None:
    one, two = write(tmp_path / "one.csv", "a.mp4 0"), write(tmp_path / "deep" / "two.csv", "a.mp4 2")
    val = write(tmp_path / "val.csv", "c.mp4 4")
    source = VideoList([str(one), str(two)], val=str(val))
    assert names(source.split("train")) == [str(tmp_path / "a.mp4"), str(tmp_path / "deep" / "a.mp4")]
    assert source.split("val").labels == [4]
    assert len(source.split("all")) == 3
    assert all(source.split(split).classes == ["0", "1", "2", "3", "4"] for split in ("train", "val"))  # type: ignore[arg-type]
    with pytest.raises(FileNotFoundError, match=r"no list of test videos: set --data.source.test"):
        source.split("test")


def test_without_a_list_for_validation_some_are_held_out_wherever_the_list_lies(tmp_path: Path) -> None:
    content = "".join(f"{number}.mp4 {number % 3}\n" for number in range(100))
    held = []
    for folder in ("one", "two"):
        source = VideoList(str(write(tmp_path / folder / "list.csv", content)))
        train, val = source.split("train"), source.split("val")
        assert not set(names(train)) & set(names(val))
        assert len(train) + len(val) == 100
        held.append([Path(name).name for name in names(val)])
    assert held[0] == held[1]
    assert 3 <= len(held[0]) <= 25


def test_missing_and_empty_lists_are_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no such list of videos: .*nowhere.csv"):
        VideoList(str(tmp_path / "nowhere.csv")).split("train")
    with pytest.raises(FileNotFoundError, match=r"no videos in .*empty.csv"):
        VideoList(str(write(tmp_path / "empty.csv", "\n"))).split("train")


# ---------------------------------------------------------------------- images


class Squares(ImageSource):
    """Three images of one colour."""

    def __init__(self) -> None:
        self.prepared = False

    def prepare(self) -> None:
        self.prepared = True

    def split(self, split: Split) -> Images:
        class Colours(Images):
            labels, classes = [0, 1, 0], ["red", "blue"]

            def image(self, index: int) -> Image.Image:
                return Image.new("RGB", (12, 10), self.classes[self.labels[index]])

            def name(self, index: int) -> str:
                return f"square{index}"

        return Colours()


def test_images_of_any_source_are_clips_in_which_nothing_moves() -> None:
    source = StillImages(images := Squares())
    source.prepare()
    assert images.prepared
    videos = source.split("train")
    assert (videos.labels, videos.classes, videos.name(1)) == ([0, 1, 0], ["red", "blue"], "square1")
    with videos.open(1, PyAVDecoder()) as video:
        assert video.frames([0] * 4).shape == (4, 10, 12, 3)
        assert video.frames([0] * 4).reshape(-1, 3).unique(dim=0).tolist() == [[0, 0, 255]]


def test_a_folder_of_images_can_be_shown_as_clips(image_folder: Path) -> None:
    videos = StillImages(Folder(str(image_folder))).split("val")
    with videos.open(0, PyAVDecoder()) as video:
        assert video.frames([0, 0]).shape == (2, 40, 40, 3)


# ---------------------------------------------------------------------- mixtures


def test_classes_of_the_same_name_are_the_same_class_in_every_split() -> None:
    one = Named(["cat", "dog"], train=[0, 1, -1], val=[1])
    two = Named(["dog", "eel"], train=[0, 1], test=[1, 0])
    mixture = Mixture([one, two])
    train = mixture.split("train")
    assert train.classes == ["cat", "dog", "eel"]
    assert train.labels == [0, 1, -1, 1, 2]
    assert names(train) == ["train0.mp4", "train1.mp4", "train2.mp4", "train0.mp4", "train1.mp4"]
    assert mixture.split("val").labels == [1]
    test = mixture.split("test")  # only the second source has one
    assert (test.classes, test.labels) == (train.classes, [2, 1])


def test_labels_of_other_names_are_unknown() -> None:
    digits = Named([["0", "1"], ["up", "down"]], ("digit", "motion"), train=[(1, 0), (-1, 1)])
    mixed = Mixture([digits, StillImages(Squares())]).split("train")
    assert mixed.label_names == ("digit", "motion")
    assert mixed.labels == [(1, 0), (-1, 1), (-1, -1), (-1, -1), (-1, -1)]
    assert mixed.classes == [["0", "1"], ["up", "down"]]
    other = Mixture([StillImages(Squares()), digits]).split("train")
    assert other.labels == [0, 1, 0, -1, -1]
    with mixed.open(3, PyAVDecoder()) as video:
        assert video.frames([0])[0, 0, 0].tolist() == [0, 0, 255]
    assert mixed.name(4) == "square2"


def test_a_split_that_no_source_has_names_what_is_missing() -> None:
    with pytest.raises(FileNotFoundError, match="no val; no val"):
        Mixture([Named(["a"], train=[0]), Named(["a"], train=[0])]).split("val")
    with pytest.raises(FileNotFoundError, match="no train"):
        Mixture([Named(["a"], train=[0]), Named(["a"], val=[0])]).split("train")


def test_a_mixture_prepares_its_sources() -> None:
    Mixture([StillImages(images := Squares())]).prepare()
    assert images.prepared


@pytest.mark.parametrize("weights", [[1.0], [1.0, 0.0], [1.0, 2.0, 3.0]])
def test_weights_must_fit_the_sources(weights: list[float]) -> None:
    with pytest.raises(ValueError, match="weights must be 2 positive numbers"):
        Mixture([Named(["a"], train=[0]), Named(["a"], train=[0])], weights)
    with pytest.raises(ValueError, match="at least one source"):
        Mixture([])


def order(sampler: EpochSampler, epoch: int) -> list[Draw]:
    sampler.set_epoch(epoch)
    return list(sampler)


def test_sources_are_drawn_by_weight_with_replacement() -> None:
    small, large = Named(["a"], train=[0] * 10), Named(["a"], train=[0] * 4000)
    videos = Mixture([small, large], [3.0, 1.0]).split("train")
    assert videos.shares == [(10, 3.0), (4000, 1.0)]
    draws = order(EpochSampler(len(videos), 8, 0, videos.shares), 0)
    assert len(draws) == 4010
    indices = np.array([draw.index for draw in draws])
    assert abs((indices < 10).mean() - 0.75) < 0.03
    counts = np.bincount(indices[indices < 10], minlength=10)
    assert counts.min() > 200  # three hundred each
    assert indices[indices >= 10].mean() == pytest.approx(10 + 2000, abs=120)
    assert indices.max() < 4010
    assert len({(draw.index, draw.turn) for draw in draws}) == len(draws)  # the same video is cropped anew each time


def test_weighted_draws_repeat_with_the_seed_and_the_epoch_and_go_on_where_they_stopped() -> None:
    shares = [(5, 1.0), (20, 2.0)]
    first = order(EpochSampler(25, 4, 0, shares), 3)
    assert first == order(EpochSampler(25, 4, 0, shares), 3)
    assert first != order(EpochSampler(25, 4, 0, shares), 4)
    assert first != order(EpochSampler(25, 4, 1, shares), 3)
    resumed = EpochSampler(25, 4, 0, shares)
    resumed.resume(3, 2)
    assert order(resumed, 3) == first[8:]


def test_ranks_share_the_draws_of_an_epoch_between_them(monkeypatch: pytest.MonkeyPatch) -> None:
    shares = [(5, 1.0), (21, 2.0)]
    whole = [(draw.index, draw.turn) for draw in order(EpochSampler(26, 4, 0, shares), 1)]
    parts = []
    for rank in range(2):
        monkeypatch.setattr("jepa_lightning.distributed.rank", lambda rank=rank: rank)
        monkeypatch.setattr("jepa_lightning.distributed.world_size", lambda: 2)
        parts.append([(draw.index, draw.turn) for draw in order(EpochSampler(26, 4, 0, shares), 1)])
    assert parts[0] != parts[1]
    assert [draw for pair in zip(*parts, strict=True) for draw in pair] == whole


def test_a_mixture_within_a_mixture_keeps_its_weights() -> None:
    inner = Mixture([Named(["a"], train=[0] * 2), Named(["a"], train=[0] * 3)], [3.0, 1.0])
    outer = Mixture([inner, Named(["a"], train=[0] * 4)], [8.0, 1.0]).split("train")
    assert outer.shares == [(2, 6.0), (3, 2.0), (4, 1.0)]
    assert Mixture([Named(["a"], train=[0])]).split("train").shares is None


def test_a_source_has_a_name_for_tables(tmp_path: Path) -> None:
    photos, clips = Folder(str(tmp_path / "photos")), VideoFolder(str(tmp_path / "clips/"))
    assert photos.title == "photos (Folder)"
    assert StillImages(photos).title == "photos (Folder), as clips"
    assert Mixture([clips, VideoList("lists/ssv2.csv")]).title == "clips (VideoFolder) + ssv2.csv (VideoList)"
    assert ImageDataModule(source=photos).title == "photos (Folder)"
    assert ImageDataModule().title == "DigitScenes"
