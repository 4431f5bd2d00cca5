"""Numeric options that make no sense are refused by the constructor that takes them, in one line."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from jepa_lightning import callbacks
from jepa_lightning.data.sources import Folder
from jepa_lightning.data.video_sources import VideoList
from jepa_lightning.models.layers import Attention
from jepa_lightning.models.pooling import AttentiveClassifier


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: callbacks.Pictures(images=-1), "images -1: use at least 1"),
        (lambda: callbacks.Pictures(side=0), "side 0: use at least 1"),
        (lambda: callbacks.Pictures(every_n_epochs=-1), "every_n_epochs -1: use at least 0"),
        (lambda: callbacks.Probe(max_train=-1), "max_train -1: use at least 1"),
        (lambda: callbacks.Probe(every_n_epochs=-1), "every_n_epochs -1: use at least 0"),
        (lambda: callbacks.Monitor(flush_every_n_steps=0), "flush_every_n_steps 0: use at least 1"),
        (lambda: callbacks.FeatureWriter(keep_every_s=-1.0), r"keep_every_s -1\.0: use at least 0"),
        (lambda: callbacks.Health(every_n_steps=-1), "every_n_steps -1: use at least 0"),
        (lambda: callbacks.Alarm(every_n_steps=-1), "every_n_steps -1: use at least 0"),
        (lambda: Folder("photos", holdout=2.0), r"holdout 2\.0: use 0\.0 to 1\.0"),
        (lambda: Folder("photos", holdout=float("nan")), r"holdout nan: use 0\.0 to 1\.0"),
        (lambda: VideoList("list.csv", holdout=-0.1), r"holdout -0\.1: use 0\.0 to 1\.0"),
        (lambda: Attention(32, 0), "num_heads 0: use at least 1"),
        (lambda: AttentiveClassifier(32, 0), "num_classes 0: use at least 1"),
    ],
)
def test_an_option_out_of_its_range_is_named_with_the_range(make: Callable[[], Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()
