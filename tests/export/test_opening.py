from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from jepa_lightning import weights
from jepa_lightning.export.meta import Meta
from jepa_lightning.export.opening import open_source as opened
from jepa_lightning.export.source import Source, functions_of
from jepa_lightning.export.timm import Timm
from jepa_lightning.loading import build
from jepa_lightning.preprocessing import Preprocessing
from jepa_lightning.probing import AttentiveProbe
from jepa_lightning.weights import Hints, Progress
from jepa_lightning.weights.ours import CONFIG_KEY

Content = dict[str, Any]
SCHEDULE = {"class_path": "jepa_lightning.schedules.Constant", "init_args": {"value": 0.5}}
ENCODER = {
    "class_path": "jepa_lightning.models.VisionTransformer",
    "init_args": {"img_size": 16, "patch_size": 8, "embed_dim": 24, "depth": 2, "num_heads": 3},
}
PREDICTOR = {"class_path": "jepa_lightning.models.Predictor", "init_args": {"embed_dim": 12, "depth": 1}}
DATA = {
    "class_path": "jepa_lightning.data.ImageDataModule",
    "init_args": {"normalization": [[0.1, 0.2, 0.3], [0.4, 0.5, 0.6]]},
}


def open_source(path: Path, branch: weights.Branch = "target", **options: Any) -> Source:
    return opened(weights.open(path), branch, **options)


def write(path: Path, model: Content, module: Any) -> Path:
    text = yaml.safe_dump({"model": model, "data": DATA})
    torch.save({"state_dict": module.state_dict(), CONFIG_KEY: text, "global_step": 12, "epoch": 1}, path)
    return path


@pytest.fixture
def pretrained(tmp_path: Path) -> tuple[Path, Any]:
    """A checkpoint of ours, and what it was made of; the two encoders differ."""
    arguments = {"encoder": ENCODER, "predictor": PREDICTOR, "lr": SCHEDULE, "weight_decay": SCHEDULE}
    model = {"class_path": "jepa_lightning.IJEPA", "init_args": {**arguments, "momentum": SCHEDULE}}
    module: Any = build(model)
    for parameter in module.target_encoder.parameters():
        parameter.data += 0.1
    return write(tmp_path / "last.ckpt", model, module), module


@pytest.fixture
def probe(pretrained: tuple[Path, Any], tmp_path: Path) -> Callable[..., tuple[Path, AttentiveProbe]]:
    def make(tasks: list[tuple[str, int]], **options: Any) -> tuple[Path, AttentiveProbe]:
        arguments = {"checkpoint": str(pretrained[0]), "num_heads": 3, "lr": [0.1, 0.2, 0.3], **options}
        module = AttentiveProbe(**arguments)
        module._build(tasks)
        for parameter in module.heads.parameters():
            torch.nn.init.normal_(parameter, std=0.3)
        module.best.fill_(2)
        return write(
            tmp_path / "probe.ckpt", {"class_path": "jepa_lightning.AttentiveProbe", "init_args": arguments}, module
        ), module

    return make


@pytest.mark.parametrize("branch", ["target", "context"])
def test_a_checkpoint_of_ours_gives_the_branch_its_predictor_and_what_is_known(
    pretrained: tuple[Path, Any], branch: Any
) -> None:
    path, module = pretrained
    source = open_source(path, branch)
    expected = module.target_encoder if branch == "target" else module.encoder
    images = torch.randn(source.shape(2))
    assert torch.equal(source.networks.encoder(images), expected(images))
    assert source.networks.branch == branch
    assert source.networks.predictor is not None
    assert source.networks.preprocessing == Preprocessing((16, 16), mean=(0.1, 0.2, 0.3), std=(0.4, 0.5, 0.6))
    assert (source.kind, source.progress.step, source.other) == ("IJEPA", 12, None)
    assert source.config["data"] == DATA
    assert "as whoever trained them decides" in source.licence


def test_both_encoders_are_read_where_both_are_needed(pretrained: tuple[Path, Any]) -> None:
    path, module = pretrained
    source, images = open_source(path, both=True), torch.randn(1, 3, 16, 16)
    assert source.other is not None
    assert torch.equal(source.other(images), module.encoder(images))


def test_a_predictor_of_something_else_than_tokens_is_left(tmp_path: Path) -> None:
    predictor = {"class_path": "jepa_lightning.models.affine_predictor.AffineMLP"}
    arguments = {"encoder": ENCODER, "predictor": predictor, "lr": SCHEDULE, "weight_decay": SCHEDULE}
    model = {"class_path": "jepa_lightning.methods.SaccadeJEPA", "init_args": {**arguments, "momentum": SCHEDULE}}
    source = open_source(write(tmp_path / "saccade.ckpt", model, build(model)))
    assert source.networks.predictor is None
    assert source.kind == "SaccadeJEPA"


def test_the_best_head_of_a_probe_goes_out_on_its_encoder(
    probe: Callable[..., tuple[Path, AttentiveProbe]], pretrained: tuple[Path, Any]
) -> None:
    path, module = probe([("", 4)])
    source, images = open_source(path), torch.randn(2, 3, 16, 16)
    classify = functions_of(source.networks).classify
    assert classify is not None
    expected = module.heads[2](pretrained[1].target_encoder(images))
    torch.testing.assert_close(classify(images), expected)
    assert source.kind == "AttentiveProbe"
    with pytest.raises(ValueError, match="one label, which has no name: leave out --task digit"):
        open_source(path, task="digit")


def test_a_probe_of_several_blocks_reads_these(probe: Callable[..., tuple[Path, AttentiveProbe]]) -> None:
    path, module = probe([("", 4)], out_layers=[1, 0])
    source, images = open_source(path), torch.randn(2, 3, 16, 16)
    classify = functions_of(source.networks).classify
    assert classify is not None
    torch.testing.assert_close(classify(images), module.heads[2](module.encode(images)))
    assert source.networks.out_layers == (1, 0)


@pytest.mark.parametrize(("task", "rows"), [("digit", slice(0, 3)), ("motion", slice(3, 5))])
def test_of_several_labels_one_is_chosen(
    probe: Callable[..., tuple[Path, AttentiveProbe]], task: str, rows: slice
) -> None:
    path, module = probe([("digit", 3), ("motion", 2)])
    with pytest.raises(ValueError, match="classifies digit, motion: choose one of them with --task"):
        open_source(path)
    source, images = open_source(path, task=task), torch.randn(2, 3, 16, 16)
    classify = functions_of(source.networks).classify
    assert classify is not None
    torch.testing.assert_close(classify(images), module.heads[2](module.encode(images))[:, rows])


def test_a_probe_of_several_clips_at_once_is_refused(probe: Callable[..., tuple[Path, AttentiveProbe]]) -> None:
    with pytest.raises(ValueError, match="attend_across_clips reads several clips at once, exports read one"):
        open_source(probe([("", 4)], attend_across_clips=True)[0])


def test_a_task_is_for_probes(pretrained: tuple[Path, Any]) -> None:
    with pytest.raises(ValueError, match=r"last.ckpt is no probe: leave out --task digit"):
        open_source(pretrained[0], task="digit")


def test_foreign_files_say_their_licence_and_epochs(image_source: Any, clip_source: Any, tmp_path: Path) -> None:
    source = image_source(predictor=True)._replace(progress=Progress(epoch=7))
    Meta().write(source, tmp_path)
    found = open_source(tmp_path / "checkpoint.pth.tar", both=True, hints=Hints(num_heads=3))
    assert (found.kind, found.progress.epoch) == ("I-JEPA", 7)
    assert found.networks.predictor is not None
    assert found.other is not None
    assert "CC BY-NC 4.0" in found.licence
    Timm().write(source, tmp_path)
    found = open_source(tmp_path / "model.safetensors", both=True)
    assert found.other is None
    assert "CC BY-NC 4.0" in found.licence
    Meta().write(clip_source(predictor=True), tmp_path)
    hints = Hints(num_heads=3, predictor_num_heads=2, img_size=(16, 16), num_frames=4)
    assert "MIT" in open_source(tmp_path / "checkpoint.pth.tar", hints=hints).licence
