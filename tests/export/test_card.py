from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from jepa_lightning.export.card import preprocessing, write_card
from jepa_lightning.export.formats import FORMATS
from jepa_lightning.export.parity import Comparison, Parity
from jepa_lightning.export.source import Source
from jepa_lightning.preprocessing import Preprocessing
from jepa_lightning.weights import Progress

PARITY = Parity("timm 1.0", [Comparison("tokens", "images", (2, 4, 24), 3e-7, 4.0)])
CONFIG = {"seed_everything": 3, "model": {"class_path": "IJEPA"}, "data": {"class_path": "X"}, "trainer": {"secret": 1}}


@pytest.fixture(autouse=True)
def nothing_beside_the_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # the checkpoint of these sources has no folder


def card(source: Source, folder: Path, to: str = "timm") -> str:
    folder.mkdir(exist_ok=True)
    write_card(source, FORMATS[to], PARITY, folder)
    return (folder / "README.md").read_text()


def test_a_card_says_what_it_is_how_to_feed_it_how_it_was_made_and_checked(image_source: Any, tmp_path: Path) -> None:
    text = card(image_source()._replace(config=CONFIG, progress=Progress(step=1200)), tmp_path)
    assert "# IJEPA as a timm model" in text
    assert "from `some.ckpt` after 1,200 optimizer steps. It holds the target encoder" in text
    assert "| patch size | 8 |" in text
    assert "resize until it covers 18x18, and cut out the central 16x16 (bilinear, antialiased)" in text
    assert "Reloaded in timm 1.0" in text
    assert "3.0e-07" in text
    assert "seed_everything: 3" in text
    assert "secret" not in text
    assert text.rstrip().endswith("All rights reserved.")


def test_the_head_is_what_the_hub_reads(image_source: Any, clip_source: Any, tmp_path: Path) -> None:
    def head(source: Source, to: str) -> dict[str, Any]:
        return yaml.safe_load(card(source, tmp_path, to).split("---")[1])

    assert head(image_source(), "timm")["library_name"] == "timm"
    assert head(image_source(), "huggingface")["pipeline_tag"] == "image-feature-extraction"
    assert head(clip_source(classes=3), "huggingface")["pipeline_tag"] == "video-classification"
    assert set(head(clip_source(), "onnx")) == {"tags"}


def test_networks_beside_the_encoder_are_said(clip_source: Any, tmp_path: Path) -> None:
    text = card(clip_source(predictor=True, classes=3), tmp_path, "huggingface")
    assert "which the papers evaluate) and a predictor and an attentive probe." in text
    assert "| frames in a token | 2 |" in text


def test_preprocessing_is_there_for_programs(image_source: Any, clip_source: Any, tmp_path: Path) -> None:
    source = image_source()
    card(source, tmp_path)
    found = json.loads((tmp_path / "preprocessing.json").read_text())
    assert found == preprocessing(source)
    assert found["resize"]["until_it_covers"] == [18, 18]
    assert (found["center_crop"], found["layout"]) == ([16, 16], "B,C,H,W")
    assert preprocessing(clip_source())["frames"] == 4
    squashed = source._replace(networks=source.networks._replace(preprocessing=Preprocessing((16, 24), crop_pct=None)))
    found = preprocessing(squashed)
    assert (found["resize"]["size"], found["center_crop"]) == ([16, 24], None)
    assert "resize both sides to 16x24" in card(squashed, tmp_path)


def test_results_of_the_checkpoint_stand_in_the_card(image_source: Any, tmp_path: Path) -> None:
    (tmp_path / "validation.md").write_text("# Probes\n\n| linear probe | 0.75 |\n\n## Protocol\n")
    assert "| linear probe | 0.75 |" in card(image_source()._replace(path=tmp_path / "some.ckpt"), tmp_path / "out")


def test_which_encoder_it_holds_is_said(image_source: Any, tmp_path: Path) -> None:
    source: Source = image_source()
    alone = {"model": {"class_path": "LeJEPA", "init_args": {"momentum": None}}}
    assert "It holds the target encoder (the EMA" in card(source._replace(config=CONFIG), tmp_path)
    assert "It holds the encoder (there was one, without an EMA)." in card(source._replace(config=alone), tmp_path)
    both = source._replace(other=source.networks.encoder)
    assert "It holds both encoders." in card(both, tmp_path, "meta")


def test_without_results_and_configuration_there_are_no_such_sections(image_source: Any, tmp_path: Path) -> None:
    text = card(image_source(), tmp_path)
    assert "## Results" not in text
    assert "## Training" not in text
