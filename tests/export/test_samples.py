from __future__ import annotations

from typing import Any

import torch

from jepa_lightning.export.samples import samples


def test_there_are_random_numbers_and_real_images_of_the_size_of_the_encoder(image_source: Any) -> None:
    found = samples(image_source(img_size=(32, 48)), batch=3)
    assert list(found) == ["random", "images"]
    assert all(batch.shape == (3, 3, 32, 48) for batch in found.values())


def test_clips_move(clip_source: Any) -> None:
    clips = samples(clip_source(img_size=32, num_frames=32))["clips"]
    assert clips.shape == (2, 3, 32, 32, 32)  # more frames than are drawn: they start again
    assert (clips[:, :, 0] - clips[:, :, 1]).abs().max() > 0.1


def test_images_are_normalised_as_the_encoder_expects(image_source: Any) -> None:
    source = image_source(img_size=32)
    wanted = source.networks.preprocessing
    plain = wanted._replace(mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
    pixels = samples(source._replace(networks=source.networks._replace(preprocessing=plain)))["images"]
    assert 0 <= pixels.min() < pixels.max() <= 1
    assert pixels.std() > 0.05
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (wanted.mean, wanted.std))
    torch.testing.assert_close(samples(source)["images"], (pixels - mean) / std)


def test_they_are_the_same_every_time(image_source: Any) -> None:
    first, second = samples(image_source()), samples(image_source())
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_what_is_not_rgb_has_random_numbers_only(image_source: Any) -> None:
    found = samples(image_source(in_chans=2))
    assert {name: tuple(batch.shape) for name, batch in found.items()} == {"random": (2, 2, 16, 16)}
