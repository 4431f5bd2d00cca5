from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from jsonargparse import ArgumentParser

from jepa_lightning.masking import Blocks, Grid, MaskSampler, MultiBlock3D, RandomTubes

SHORT, LONG = Blocks(8, (0.15, 0.15)), Blocks(2, (0.7, 0.7))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_blocks": 0}, "num_blocks must be at least 1, got 0"),
        ({"spatial_scale": (0.0, 0.5)}, r"spatial_scale must be \[smallest, largest\] in \(0, 1\], got \[0.0, 0.5\]"),
        ({"spatial_scale": (0.7, 0.15)}, "spatial_scale must be"),
        ({"temporal_scale": (0.5, 1.5)}, "temporal_scale must be"),
        ({"aspect_ratio": (0.0, 1.0)}, "aspect_ratio must be"),
        ({"aspect_ratio": (1.5, 0.75)}, "aspect_ratio must be"),
        ({"max_temporal_keep": 0.0}, "max_temporal_keep must be"),
        ({"max_temporal_keep": 1.1}, "max_temporal_keep must be"),
        ({"max_keep": 0}, "max_keep must be at least 1 or null, got 0"),
    ],
)
def test_settings_out_of_range_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Blocks(**settings)


@pytest.mark.parametrize("grid", [0, (0, 14), (0, 14, 14), (8, -1, 14)])
@pytest.mark.parametrize("sampler", [MultiBlock3D, RandomTubes])
def test_a_grid_without_tokens_is_refused(sampler: Callable[[Any], MaskSampler], grid: Any) -> None:
    with pytest.raises(ValueError, match="at least one token along time, height and width, got"):
        sampler(grid)


class Holder:
    def __init__(self, masks: Callable[[Grid], MaskSampler]) -> None:
        self.masks = masks


@pytest.mark.parametrize(
    ("init_args", "families"),
    [
        ({}, (SHORT, LONG)),
        (
            {"families": [{"num_blocks": 3, "spatial_scale": [0.2, 0.2], "max_keep": 40}]},
            (Blocks(3, (0.2, 0.2), max_keep=40),),
        ),
        ({"families": [{"class_path": "jepa_lightning.masking.Blocks", "init_args": {"num_blocks": 3}}]}, (Blocks(3),)),
    ],
)
def test_families_come_from_yaml_and_survive_being_written(
    init_args: dict[str, Any], families: tuple[Blocks, ...]
) -> None:
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(Holder, "data")
    given = {"data": {"masks": {"class_path": "jepa_lightning.masking.MultiBlock3D", "init_args": init_args}}}
    config = parser.parse_object(given)
    for parsed in (config, parser.parse_string(parser.dump(config))):
        sampler = parser.instantiate_classes(parsed).data.masks((2, 8, 8))
        assert isinstance(sampler, MultiBlock3D)
        assert sampler.families == families
