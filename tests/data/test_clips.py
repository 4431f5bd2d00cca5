from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from jepa_lightning.data.clips import ClipSampler, official_clips
from jepa_lightning.data.decode import PyAVDecoder, Video, VideoError, VideoInfo

Golden = Callable[[str], dict[str, Any]]


class Known(Video):
    """A video of which only the times are known."""

    path = "known.mp4"

    def __init__(self, times: Sequence[float], fps: float) -> None:
        self.shown = np.asarray(times, dtype=np.float64)
        self.info = VideoInfo(len(times), fps, len(times) / fps, 48, 80)

    def times(self) -> np.ndarray:
        return self.shown

    def frames(self, index: Sequence[int]) -> Tensor:
        raise AssertionError("choosing frames decodes nothing")


def video(frames: int, fps: float = 30.0) -> Known:
    return Known(np.arange(frames) / fps, fps)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


# ---------------------------------------------------------------------- as the official code

ARGUMENTS = {"frames_per_clip": "num_frames", "allow_clip_overlap": "allow_overlap"}


def golden_cases() -> list[tuple[str, int]]:
    return [("vjepa", number) for number in range(14)] + [("vjepa2", number) for number in range(19)]


@pytest.mark.parametrize(("family", "number"), golden_cases())
def test_compat_takes_the_frames_of_the_official_code(family: str, number: int, golden: Golden) -> None:
    case = golden("frame_indices.json")[family][number]
    given = {ARGUMENTS.get(name, name): value for name, value in case["arguments"].items()}
    at_random, reject = given.pop("random_clip_sampling"), given.pop("filter_short_videos", False)
    if "duration" in given:  # which wins there
        given["frame_step"] = None
    sampler = ClipSampler(**{"allow_overlap": False, **given}, short="reject" if reject else "hold", compat=True)
    known = video(case["video_frames"], case["video_fps"])
    if "clips" not in case:
        assert case.get("rejected") or case["error"] == "AssertionError"
        with pytest.raises(VideoError, match=r"known\.mp4 has .*: (remove it|set compat to false)"):
            sampler.sample(known)
    elif at_random:  # its numbers are NumPy's
        draw = np.random.RandomState(case["numpy_random_seed"]).randint
        arguments = (known.info.frames, 4, sampler.num_frames, sampler.num_clips, sampler.allow_overlap)
        assert official_clips(*arguments, draw) == case["clips"]
        assert sampler.sample(known, generator()) != case["clips"]
    else:
        assert sampler.sample(known) == case["clips"]


def test_every_official_case_is_among_them(golden: Golden) -> None:
    counts = {family: len(cases) for family, cases in golden("frame_indices.json").items() if family != "about"}
    assert golden_cases() == [(family, number) for family, count in counts.items() for number in range(count)]


def test_compat_draws_from_the_generator_it_is_given() -> None:
    sampler = ClipSampler(frame_step=4, compat=True)
    drawn = [sampler.sample(video(300), generator(seed))[0] for seed in range(200)]
    assert drawn[3] == sampler.sample(video(300), generator(3))[0]
    first = [clip[0] for clip in drawn]
    assert min(first) < 20
    assert max(first) > 215
    assert all(clip[-1] < 300 for clip in drawn)


# ---------------------------------------------------------------------- what holds for every clip

WAYS: list[dict[str, Any]] = [{"frame_step": 4}, {"frame_step": 1}, {"fps": 4.0}, {"fps": 7.5}, {"duration": 3.0}]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("short", ["loop", "hold"])
@pytest.mark.parametrize("overlap", [True, False])
@pytest.mark.parametrize("compat", [True, False])
def test_every_position_is_a_frame_of_the_video(way: dict[str, Any], short: Any, overlap: bool, compat: bool) -> None:
    random = np.random.default_rng(0)
    for frames in [1, 2, 3, 17, 61, 64, 65, 301]:
        known = Known(np.cumsum(random.uniform(0.01, 0.08, frames)), fps=25.0)
        known.shown -= known.shown[0]
        for num_clips in (1, 2, 3, 8):
            sampler = ClipSampler(16, num_clips, **way, allow_overlap=overlap, short=short, compat=compat)
            for source in (None, generator(frames), generator(num_clips)):
                clips = np.array(sampler.sample(known, source))
                assert clips.shape == (num_clips, 16)
                assert clips.min() >= 0
                assert clips.max() < frames


@pytest.mark.parametrize("way", WAYS)
def test_chance_comes_from_the_generator_alone(way: dict[str, Any]) -> None:
    sampler, known = ClipSampler(8, 2, **way), video(500)
    assert sampler.sample(known, generator(1)) == sampler.sample(known, generator(1))
    assert sampler.sample(known, generator(1)) != sampler.sample(known, generator(2))
    assert sampler.sample(known) == sampler.sample(known)
    before = torch.get_rng_state()
    sampler.sample(known, generator())
    assert torch.equal(before, torch.get_rng_state())


# ---------------------------------------------------------------------- steps


def test_steps_are_exactly_as_long_as_asked_for() -> None:
    for seed in range(50):
        for clip in ClipSampler(16, 3, frame_step=4).sample(video(300), generator(seed)):
            assert np.diff(clip).tolist() == [4] * 15


def test_every_start_is_equally_likely() -> None:
    sampler = ClipSampler(4, frame_step=2)  # 7 of 12 frames: 6 starts
    starts = [sampler.sample(video(12), generator(seed))[0][0] for seed in range(1200)]
    counts = np.bincount(starts, minlength=6)
    assert len(counts) == 6
    assert counts.min() > 140


def test_clips_stay_in_their_parts() -> None:
    for seed in range(50):
        clips = np.array(ClipSampler(16, 3, frame_step=4).sample(video(300), generator(seed)))
        for part, clip in enumerate(clips):
            assert 100 * part <= clip.min() <= clip.max() < 100 * (part + 1)
            seconds = ClipSampler(16, 3, fps=7.5).sample(video(300), generator(seed))[part]
            assert 100 * part <= min(seconds) <= max(seconds) <= 100 * (part + 1)


def test_evaluation_takes_the_middle_of_each_part() -> None:
    assert ClipSampler(16, frame_step=4).sample(video(300)) == [list(range(120, 184, 4))]
    assert ClipSampler(2, 3, frame_step=9).sample(video(90)) == [[10, 19], [40, 49], [70, 79]]
    assert ClipSampler(3, fps=1.0).sample(video(300)) == [[119, 149, 179]]
    assert ClipSampler(1, frame_step=4).sample(video(1)) == [[0]]


def test_clips_overlap_where_their_parts_are_too_short() -> None:
    spread = ClipSampler(16, 8, frame_step=4)
    clips = spread.sample(video(300))
    assert [clip[0] for clip in clips] == [0, 34, 68, 102, 136, 170, 204, 239]
    assert clips[-1][-1] == 299
    assert all(np.diff(clip).tolist() == [4] * 15 for clip in clips)
    for seed in range(20):
        drawn = spread.sample(video(300), generator(seed))
        assert all(np.diff(clip).tolist() == [4] * 15 for clip in drawn)
        assert [clip[0] for clip in drawn] == sorted(clip[0] for clip in drawn)
    apart = ClipSampler(16, 8, frame_step=4, allow_overlap=False).sample(video(300))
    assert [clip[:11] for clip in apart[:1]] == [[0, 4, 8, 12, 16, 20, 24, 28, 32, 36, 3]]  # a part has 37 frames


# ---------------------------------------------------------------------- seconds


def test_frames_nearest_to_their_time_are_taken_at_any_rate() -> None:
    for fps in (2.0, 3.0, 12.0, 23.976, 29.97, 60.0, 120.0):
        known = video(int(20 * fps), fps)
        for seed in (None, 0, 1):
            (clip,) = ClipSampler(16, fps=4.0).sample(known, None if seed is None else generator(seed))
            times = known.shown[clip]
            assert np.abs(np.diff(times) - 0.25).max() <= 1 / fps + 1e-9
            # Errors do not add up: the whole clip is as long as it should be.
            assert abs(times[-1] - times[0] - 3.75) <= 1 / fps + 1e-9


def test_a_video_slower_than_the_rate_repeats_its_frames() -> None:
    (clip,) = ClipSampler(16, fps=4.0).sample(video(120, fps=3.0))
    assert set(np.diff(clip).tolist()) == {0, 1}
    assert len(set(clip)) == 12  # 3.75 seconds of it


def test_uneven_frames_are_taken_by_time_and_not_by_number() -> None:
    times = np.concatenate([np.arange(100) / 100, 1 + np.arange(50) / 10])  # one fast second, five slow ones
    (clip,) = ClipSampler(12, fps=2.0).sample(Known(times, fps=25.0))
    chosen = times[clip]
    assert np.abs(np.diff(chosen) - 0.5).max() <= 0.1 + 1e-9
    for target, position in zip(chosen[0] + 0.5 * np.arange(12), clip, strict=True):
        assert abs(times[position] - target) <= 0.1 + 1e-9


def test_a_duration_is_shared_by_the_frames() -> None:
    assert ClipSampler(16, duration=4.0).sample(video(400)) == ClipSampler(16, fps=4.0).sample(video(400))


# ---------------------------------------------------------------------- short videos


def test_short_videos_loop_hold_or_are_rejected() -> None:
    assert ClipSampler(8, frame_step=4, short="loop").sample(video(10)) == [[0, 4, 8, 2, 6, 0, 4, 8]]
    assert ClipSampler(8, frame_step=4, short="hold").sample(video(10)) == [[0, 4, 8, 9, 9, 9, 9, 9]]
    assert ClipSampler(8, fps=1.0, short="loop").sample(video(12, fps=3.0)) == [[0, 3, 6, 9, 0, 3, 6, 9]]
    assert ClipSampler(8, fps=1.0, short="hold").sample(video(12, fps=3.0)) == [[0, 3, 6, 9, 11, 11, 11, 11]]
    with pytest.raises(VideoError, match=r"known\.mp4 has 10 frames for a clip of 29: .* set short to loop or hold"):
        ClipSampler(8, frame_step=4, short="reject").sample(video(10))
    with pytest.raises(VideoError, match=r"known\.mp4 has 4 seconds for a clip of 7\.333"):
        ClipSampler(8, fps=1.0, short="reject").sample(video(12, fps=3.0))


def test_a_video_just_long_enough_is_not_short() -> None:
    for way, frames in (({"frame_step": 4}, 61), ({"fps": 7.5}, 61), ({"fps": 4.0}, 114)):
        (clip,) = ClipSampler(16, **way, short="reject").sample(video(frames), generator())
        assert (clip[0], clip[-1]) == (0, 60 if frames == 61 else clip[-1])
        with pytest.raises(VideoError):
            ClipSampler(16, **way, short="reject").sample(video(frames - 1 - (frames == 114)))


def test_one_frame_makes_a_clip() -> None:
    for way in WAYS:
        assert ClipSampler(4, 2, **way).sample(video(1)) == [[0] * 4] * 2
        assert ClipSampler(4, 2, **way, short="hold").sample(video(1), generator()) == [[0] * 4] * 2


@pytest.mark.parametrize("wrong", [
    {}, {"frame_step": 4, "fps": 4.0}, {"frame_step": 0}, {"fps": 0.0}, {"duration": -1.0},
    {"frame_step": 2, "num_frames": 0}, {"fps": 2.0, "num_clips": 0},
])  # fmt: skip
def test_wrong_settings_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"frame_step|num_frames|num_clips|fps|duration"):
        ClipSampler(**wrong)


# ---------------------------------------------------------------------- on files


@pytest.mark.parametrize("settings", [{"fps": 30}, {"fps": 3}, {"fps": 60}, {"times": [i * i * 3 for i in range(40)]}])
@pytest.mark.parametrize("way", [{"frame_step": 2}, {"fps": 5.0}, {"duration": 1.0}])
def test_clips_of_files_have_their_shape_and_their_frames_in_order(
    settings: dict[str, Any], way: dict[str, Any], make_video: Callable[..., Path], read_numbers: Any
) -> None:
    with PyAVDecoder().open(make_video(**settings)) as opened:
        for source in (None, generator()):
            for clip in ClipSampler(8, 2, **way, short="hold").sample(opened, source):
                frames = opened.frames(clip)
                assert frames.shape == (8, 48, 80, 3)
                assert read_numbers(frames) == clip == sorted(clip)
