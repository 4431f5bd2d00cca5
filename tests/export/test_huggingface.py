"""Live parity with transformers at random weights, from our networks to theirs."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from PIL import Image
from torch import Tensor

from jepa_lightning import weights
from jepa_lightning.data.preprocess import Preprocess
from jepa_lightning.export.huggingface import HuggingFace
from jepa_lightning.export.source import Source
from jepa_lightning.masking import gather_tokens
from jepa_lightning.preprocessing import Preprocessing
from jepa_lightning.weights import Networks

transformers.utils.logging.disable_progress_bar()

Opener = Callable[[Networks], Any]


def load_huggingface(folder: Path) -> Networks:
    return weights.open(folder).networks(predictor=True)


def write(networks: Networks, folder: Path) -> None:
    HuggingFace().write(Source(Path("some.ckpt"), networks, "All rights reserved."), folder)


@pytest.fixture
def opened(tmp_path: Path) -> Opener:
    """What transformers makes of our files; it must use every tensor and miss none."""

    def open_there(networks: Networks) -> Any:
        write(networks, tmp_path)
        kind = json.loads((tmp_path / "config.json").read_text())["architectures"][0]
        model, about = getattr(transformers, kind).from_pretrained(tmp_path, output_loading_info=True)
        assert not any(about.values()), about
        return model.eval()

    return open_there


def close(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("sizes", [{}, {"img_size": (16, 24)}, {"mlp_ratio": 4.0, "depth": 1}, {"in_chans": 1}])
def test_an_ijepa_of_ours_gives_the_same_tokens_there(opened: Opener, image_source: Any, sizes: dict[str, Any]) -> None:
    source: Source = image_source(**sizes)
    theirs, images = opened(source.networks), torch.randn(source.shape(2))
    close(theirs(images).last_hidden_state, source.networks.encoder(images))


def test_a_vjepa2_of_ours_gives_the_same_tokens_and_predictions_there(opened: Opener, clip_source: Any) -> None:
    networks: Networks = clip_source(predictor=True).networks
    theirs, clips = opened(networks), torch.randn(2, 3, 4, 16, 16)
    context, targets = torch.tensor([[0, 2, 7], [1, 4, 5]]), torch.tensor([[6, 3], [0, 7]])
    output = theirs(clips.transpose(1, 2), context_mask=[context], target_mask=[targets])
    tokens = networks.encoder(clips)
    close(output.last_hidden_state, tokens)
    assert networks.predictor is not None
    predicted = networks.predictor(gather_tokens(tokens, context), context, targets.unsqueeze(1), 1)
    close(output.predictor_output.last_hidden_state, predicted[:, 0])


@pytest.mark.parametrize("depth", [1, 3])
def test_a_probe_of_ours_gives_the_same_logits_there_and_the_tokens_are_those_of_the_encoder(
    opened: Opener, clip_source: Any, depth: int
) -> None:
    networks: Networks = clip_source(classes=5, depth=depth, predictor=True).networks
    theirs, clips = opened(networks), torch.randn(2, 3, 4, 16, 16)
    tokens = networks.encoder(clips)
    assert networks.classifier is not None
    close(theirs(clips.transpose(1, 2)).logits, networks.classifier(tokens))
    close(theirs.vjepa2(clips.transpose(1, 2), skip_predictor=True).last_hidden_state, tokens)
    assert theirs.config.layer_norm_eps == 1e-5  # as in Meta's probes, though the encoder has 1e-6


def test_without_a_predictor_one_without_layers_stands_in_its_place_and_predicts_zeros(
    opened: Opener, clip_source: Any, tmp_path: Path
) -> None:
    networks: Networks = clip_source().networks
    theirs, clips = opened(networks), torch.randn(1, 3, 4, 16, 16)
    output = theirs(clips.transpose(1, 2))
    close(output.last_hidden_state, networks.encoder(clips))
    assert not output.predictor_output.last_hidden_state.any()
    assert load_huggingface(tmp_path).predictor is None


@pytest.mark.parametrize("classes", [0, 5])
def test_there_and_back_gives_the_same_state(clip_source: Any, tmp_path: Path, classes: int) -> None:
    networks: Networks = clip_source(predictor=True, classes=classes).networks
    write(networks, tmp_path)
    back = load_huggingface(tmp_path)
    for before, after in zip(networks, back, strict=True):
        if isinstance(before, torch.nn.Module):
            state = after.state_dict()
            assert set(state) == set(before.state_dict())
            for name, tensor in before.state_dict().items():
                torch.testing.assert_close(state[name], tensor, rtol=1e-6, atol=1e-7)
    assert (back.branch, back.preprocessing.size) == (networks.branch, networks.preprocessing.size)


def test_names_of_classes_travel(clip_source: Any, opened: Opener, tmp_path: Path) -> None:
    networks = clip_source(classes=3).networks._replace(labels=("up", "down", "left"))
    assert opened(networks).config.id2label == {0: "up", 1: "down", 2: "left"}
    assert load_huggingface(tmp_path).labels == ("up", "down", "left")


# ---------------------------------------------------------------------- preprocessing


def picture(height: int = 100, width: int = 100) -> Image.Image:
    rows, columns = np.mgrid[:height, :width]
    values = np.stack([rows * 255 / height, columns * 255 / width, (rows + columns) % 256], axis=2)
    return Image.fromarray(values.astype(np.uint8))


def processed(networks: Networks) -> Callable[[Any], Tensor]:
    return Preprocess(networks.preprocessing, networks.encoder.num_frames)


@pytest.mark.parametrize("img_size", [32, (32, 56)])  # of an odd margin they cut off half on the other side
def test_the_processor_of_images_does_what_our_evaluation_does(
    image_source: Any, tmp_path: Path, img_size: Any
) -> None:
    networks: Networks = image_source(img_size=img_size).networks
    networks = networks._replace(preprocessing=networks.preprocessing._replace(mean=(0.1, 0.2, 0.3), std=(1.0, 2, 3)))
    write(networks, tmp_path)
    processor = transformers.AutoImageProcessor.from_pretrained(tmp_path)
    theirs = processor(picture(), return_tensors="pt")["pixel_values"][0]
    assert theirs.shape == (3, *networks.encoder.img_size)
    assert (theirs - processed(networks)(picture())).abs().max() < 2.1 / 255  # they round elsewhere
    assert load_huggingface(tmp_path).preprocessing == networks.preprocessing


def test_the_processor_of_clips_does_what_our_evaluation_does(clip_source: Any, tmp_path: Path) -> None:
    networks: Networks = clip_source().networks
    write(networks, tmp_path)
    processor = transformers.AutoVideoProcessor.from_pretrained(tmp_path)
    frames = np.stack([np.asarray(picture())] * 4)
    theirs = processor(frames, return_tensors="pt")["pixel_values_videos"][0].transpose(0, 1)
    assert theirs.shape == (3, 4, 16, 16)
    assert (theirs - processed(networks)(frames)).abs().max() < 2.1 / 255 / 0.22


def test_both_sides_are_resized_where_nothing_is_cut_off(image_source: Any, tmp_path: Path) -> None:
    networks = image_source(img_size=32).networks._replace(preprocessing=Preprocessing((32, 32), crop_pct=None))
    write(networks, tmp_path)
    processor = transformers.AutoImageProcessor.from_pretrained(tmp_path)
    assert processor(picture(64, 100), return_tensors="pt")["pixel_values"].shape == (1, 3, 32, 32)
    assert load_huggingface(tmp_path).preprocessing.shorter_side is None
