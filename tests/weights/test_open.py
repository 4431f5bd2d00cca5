from __future__ import annotations

import json
import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import save_file
from torch import Tensor

import jepa_lightning as jl
from jepa_lightning import weights
from jepa_lightning.export.formats import FORMATS
from jepa_lightning.export.source import Source
from jepa_lightning.loading import build
from jepa_lightning.weights import Networks, Weights, is_hub_name
from jepa_lightning.weights.description import describe_encoder, describe_predictor
from jepa_lightning.weights.huggingface import HuggingFace
from jepa_lightning.weights.meta import Meta
from jepa_lightning.weights.meta_probes import MetaProbe
from jepa_lightning.weights.ours import CONFIG_KEY, Own
from jepa_lightning.weights.safetensors_file import Safetensors
from jepa_lightning.weights.timm import Timm

Writer = Callable[[Networks, Path], Path]
SCHEDULE = {"class_path": "jepa_lightning.schedules.Constant", "init_args": {"value": 0.5}}


def into_folder(write: Callable[[Source, Path], None], networks: Networks, path: Path) -> Path:
    path.mkdir()
    write(Source(path, networks, "All rights reserved."), path)
    return path


def of_ours(networks: Networks, path: Path, method: str = "IJEPA", **more: Any) -> Path:
    """A checkpoint whose target encoder and predictor these are; the context encoder is another one."""
    encoder = describe_encoder(networks.encoder)  # type: ignore[arg-type]
    predictor = describe_predictor(networks.predictor)  # type: ignore[arg-type]
    arguments = {"encoder": encoder, "predictor": predictor, "lr": SCHEDULE, "weight_decay": SCHEDULE}
    config = {"class_path": f"jepa_lightning.{method}", "init_args": {**arguments, "momentum": SCHEDULE, **more}}
    module: Any = build(config)
    module.predictor.load_state_dict(networks.predictor.state_dict())  # type: ignore[union-attr]
    name = "target_encoder" if "target_encoder" in dict(module.named_children()) else "encoder"
    module.get_submodule(name).load_state_dict(networks.encoder.state_dict())
    data = {
        "class_path": "jepa_lightning.data.ImageDataModule",
        "init_args": {"normalization": [[0.1, 0.2, 0.3], [0.4, 0.5, 0.6]]},
    }
    text = yaml.safe_dump({"model": config, "data": data})
    torch.save({"state_dict": module.state_dict(), CONFIG_KEY: text, "global_step": 3, "epoch": 1}, path)
    return path


def of_meta(networks: Networks, path: Path, prefix: str = "module.") -> Path:
    """A checkpoint whose target encoder and predictor these are; the context encoder is twice the target."""
    target = {f"{prefix}{name}": tensor for name, tensor in networks.encoder.state_dict().items()}
    predictor = {f"{prefix}{name}": x for name, x in networks.predictor.state_dict().items()}  # type: ignore[union-attr]
    context = {name: tensor if name.endswith("pos_embed") else 2 * tensor for name, tensor in target.items()}
    torch.save({"encoder": context, "predictor": predictor, "target_encoder": target, "epoch": 3}, path)
    return path


WRITERS: dict[str, tuple[type[Weights], Writer]] = {
    "ours": (Own, of_ours),
    "meta": (Meta, of_meta),
    "huggingface": (HuggingFace, partial(into_folder, FORMATS["huggingface"].write)),
    "timm": (Timm, partial(into_folder, FORMATS["timm"].write)),
    "safetensors": (Safetensors, partial(into_folder, FORMATS["safetensors"].write)),
}


@pytest.fixture
def networks(image_source: Any) -> Networks:
    return image_source(predictor=True, embed_dim=192, num_heads=3, mlp_ratio=0.5).networks  # a published width


@pytest.mark.parametrize("name", WRITERS)
def test_one_door_for_all_formats(name: str, networks: Networks, tmp_path: Path) -> None:
    kind, write = WRITERS[name]
    bare = networks if name in ("ours", "meta", "safetensors") else networks._replace(predictor=None)
    path = write(bare, tmp_path / name)
    assert type(weights.open(path)) is kind
    encoder, images = jl.load_encoder(path), torch.randn(2, 3, 16, 16)
    torch.testing.assert_close(encoder(images), networks.encoder(images), rtol=0, atol=1e-5)
    torch.testing.assert_close(dict(encoder.state_dict()), dict(networks.encoder.state_dict()), rtol=0, atol=1e-6)
    assert not any(parameter.requires_grad for parameter in encoder.parameters())
    assert not encoder.training
    assert (encoder.embed_dim, encoder.grid, encoder.img_size) == (192, (1, 2, 2), (16, 16))
    wanted = encoder.preprocess.preprocessing
    mean = wanted.mean
    assert mean == pytest.approx((0.1, 0.2, 0.3) if name == "ours" else (0.485, 0.456, 0.406))
    made = encoder.preprocess(torch.zeros(20, 30, 3, dtype=torch.uint8))
    assert made.shape == (3, 16, 16)
    assert made[:, 0, 0].tolist() == pytest.approx([-m / s for m, s in zip(mean, wanted.std, strict=True)], abs=1e-6)


@pytest.mark.parametrize("name", WRITERS)
def test_every_format_says_its_tensors_and_its_family(name: str, networks: Networks, tmp_path: Path) -> None:
    bare = networks if name in ("ours", "meta", "safetensors") else networks._replace(predictor=None)
    opened = weights.open(WRITERS[name][1](bare, tmp_path / name))
    states, tensors = opened.states(), opened.tensors()
    assert {"encoder", "target_encoder"} <= set(states)
    assert ("predictor" in states) == (bare.predictor is not None)
    torch.testing.assert_close(
        states["target_encoder"]["norm.weight"], networks.encoder.state_dict()["norm.weight"], rtol=0, atol=1e-6
    )
    assert tensors["target_encoder.norm.weight"] is not None
    assert opened.family == ("IJEPA" if name == "ours" else "I-JEPA")


@pytest.mark.parametrize("name", ["ours", "meta"])
def test_the_branch_that_is_asked_for_is_given(name: str, networks: Networks, tmp_path: Path) -> None:
    opened = weights.open(WRITERS[name][1](networks, tmp_path / "a.pt"))
    states = opened.states()
    for branch, network in (("target", "target_encoder"), ("context", "encoder")):
        found = opened.networks(branch, predictor=True)  # type: ignore[arg-type]
        assert found.branch == branch
        assert torch.equal(found.encoder.state_dict()["norm.weight"], states[network]["norm.weight"].float())
        assert found.predictor is not None
        assert torch.equal(found.predictor.predictor_proj.weight, networks.predictor.predictor_proj.weight)  # type: ignore[union-attr]
    assert opened.networks().predictor is None
    assert not torch.equal(states["encoder"]["norm.weight"], states["target_encoder"]["norm.weight"])


def test_without_an_ema_the_encoder_is_the_target(networks: Networks, tmp_path: Path) -> None:
    path = of_ours(networks, tmp_path / "a.ckpt", momentum=None)
    assert not any(name.startswith("target_encoder.") for name in torch.load(path)["state_dict"])
    assert torch.equal(jl.load_encoder(path).norm.weight, networks.encoder.norm.weight)  # type: ignore[attr-defined]


def test_an_ema_that_is_missing_is_not_replaced_by_the_encoder(networks: Networks, tmp_path: Path) -> None:
    path = of_ours(networks, tmp_path / "a.ckpt")
    content = torch.load(path, weights_only=True)
    content["state_dict"] = {k: v for k, v in content["state_dict"].items() if not k.startswith("target_encoder.")}
    torch.save(content, path)
    with pytest.raises(ValueError, match=r"a.ckpt: target_encoder does not fit: missing pos_embed; missing "):
        jl.load_encoder(path)


@pytest.mark.parametrize(("name", "file"), [("timm", "model.safetensors"), ("huggingface", "model.safetensors")])
def test_a_file_in_a_folder_means_the_folder(name: str, file: str, networks: Networks, tmp_path: Path) -> None:
    folder = WRITERS[name][1](networks._replace(predictor=None), tmp_path / name)
    assert type(weights.open(folder / file)) is WRITERS[name][0]
    images = torch.randn(1, 3, 16, 16)
    torch.testing.assert_close(jl.load_encoder(folder / file)(images), networks.encoder(images), rtol=0, atol=1e-5)


def test_a_state_dict_of_timm_is_read_too(networks: Networks, tmp_path: Path) -> None:
    torch.save(dict(networks.encoder.state_dict()), tmp_path / "timm.pth")
    assert type(weights.open(tmp_path / "timm.pth")) is Timm
    assert jl.load_encoder(tmp_path / "timm.pth").num_heads == 3


@pytest.mark.parametrize(("layers", "blocks"), [(0, [0]), (-1, [1]), ([0, 1], [0, 1]), ((-2,), [0])])
def test_tokens_of_other_blocks(layers: Any, blocks: list[int], networks: Networks, tmp_path: Path) -> None:
    encoder, images = jl.load_encoder(of_meta(networks, tmp_path / "a.pt")), torch.randn(2, 3, 16, 16)
    both = encoder(images, layers=[0, 1])
    expected = [both[number] for number in blocks]
    found = encoder(images, layers=layers)
    if isinstance(layers, int):
        assert isinstance(found, Tensor)
        assert torch.equal(found, expected[0])
    else:
        assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
    assert torch.equal(encoder(images, layers=-1), encoder(images))
    with pytest.raises(ValueError, match="use numbers from 0 to 1"):
        encoder(images, layers=2)


# ---------------------------------------------------------------------- what can be said


def test_heads_can_be_given_where_no_tensor_shows_them(image_source: Any, tmp_path: Path) -> None:
    source = image_source(predictor=True)  # 24 wide, which was never published
    path = of_meta(source.networks, tmp_path / "a.pt")
    with pytest.raises(ValueError, match=r"embed_dim 24 is no published size: give num_heads=.*--model.overrides"):
        jl.load_encoder(path)
    images = torch.randn(2, 3, 16, 16)
    assert torch.equal(jl.load_encoder(path, num_heads=3)(images), source.networks.encoder(images))


@pytest.mark.parametrize(
    ("name", "what"), [("ours", "num_heads"), ("safetensors", "num_heads"), ("timm", "num_frames")]
)
def test_what_a_file_says_itself_cannot_be_given(name: str, what: str, networks: Networks, tmp_path: Path) -> None:
    path = WRITERS[name][1](networks, tmp_path / name)
    with pytest.raises(TypeError, match=rf"{name}.*{what} cannot be given"):
        jl.load_encoder(path, **{what: 3})


# ---------------------------------------------------------------------- what is of no format


def content(path: Path, **values: Any) -> Path:
    torch.save(values, path)
    return path


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (
            {"state_dict": {}, "pytorch-lightning_version": "1.9"},
            "by another project with PyTorch Lightning 1.9. Build",
        ),
        ({"state_dict": {}}, r"other.ckpt holds no configuration of jepa_lightning: .* by another project"),
        ({"model": {}, "epoch": 1}, "is a checkpoint of no known format; it holds epoch, model. Known are"),
        ({}, "is a checkpoint of no known format; it holds nothing"),
        ({"encoder": 3}, "is a checkpoint of no known format; it holds encoder"),
        ({"predictor": {"a": torch.zeros(1)}}, "is no JEPA checkpoint in Meta's format: it has no encoder, target_enc"),
        ({"encoder": {"a": [1]}}, r"encoder holds a list \(a\), not only tensors with names"),
        ({"encoder": {3: torch.zeros(1)}}, r"encoder holds a int \(3\)"),
    ],
)
def test_checkpoints_of_other_projects_are_refused_with_what_is_in_them(
    values: dict[str, Any], message: str, tmp_path: Path
) -> None:
    path = content(tmp_path / "other.ckpt", **values)
    with pytest.raises(ValueError, match=message):
        jl.load_encoder(path)


def test_damage_in_a_configuration_is_told(networks: Networks, tmp_path: Path) -> None:
    path = of_ours(networks, tmp_path / "a.ckpt")
    values = torch.load(path, weights_only=True)
    for damaged in ("model: [", "data: {}", "3", ""):
        with pytest.raises(ValueError, match=r"a.ckpt: the configuration in it is damaged"):
            jl.load_encoder(content(path, **{**values, CONFIG_KEY: damaged}))


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({}, "is a folder, not a checkpoint: give a file in it"),
        (
            {".metadata": ""},
            "is a checkpoint in several parts .FSDP., whose index is a pickle .* or make one file of it: python -m",
        ),
        ({"config.json": "{"}, "config.json is no valid JSON"),
        ({"config.json": "[]"}, "config.json is neither transformers'"),
        ({"config.json": '{"model_type": "bert"}', "model.safetensors": None}, "model_type 'bert' is no JEPA"),
        ({"config.json": '{"model_type": "ijepa"}'}, "has neither model.safetensors nor"),
        ({"config.json": '{"architecture": "vit"}'}, "no such file: .* with model.safetensors"),
        ({"config.json": '{"encoder": {}, "branch": "target"}'}, "no such checkpoint: .*model.safetensors"),
    ],
)
def test_folders_that_are_not_whole_are_refused(files: dict[str, str | None], message: str, tmp_path: Path) -> None:
    for name, text in files.items():
        if text is None:
            save_file({"a": torch.zeros(1)}, tmp_path / name)
        else:
            (tmp_path / name).write_text(text)
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        jl.load_encoder(tmp_path)


def test_safetensors_without_a_network_are_refused(tmp_path: Path) -> None:
    save_file({"features": torch.zeros(3, 4), "index": torch.zeros(3)}, tmp_path / "features.safetensors")
    with pytest.raises(ValueError, match=r"is a checkpoint of no known format; it holds features, index\."):
        jl.load_encoder(tmp_path / "features.safetensors")


@pytest.mark.parametrize("name", ["timm", "huggingface", "safetensors"])
@pytest.mark.parametrize("damage", ["length", "beyond", "shape", "cut", "empty", "integers"])
def test_headers_that_lie_are_refused(name: str, damage: str, networks: Networks, tmp_path: Path) -> None:
    folder = WRITERS[name][1](networks._replace(predictor=None), tmp_path / name)
    path = folder / "model.safetensors"
    raw = path.read_bytes()
    length = int.from_bytes(raw[:8], "little")
    header = json.loads(raw[8 : 8 + length])
    entry = header[
        next(key for key in header if key.endswith("fc1.weight") or key.endswith("intermediate.dense.weight"))
    ]
    if damage == "beyond":
        entry["data_offsets"][1] += 10**12
    elif damage == "shape":
        entry["shape"][0] *= 1000
    elif damage == "integers":
        entry["dtype"] = "I32"
    text = json.dumps(header).encode()
    whole = len(text).to_bytes(8, "little") + text + raw[8 + length :]
    written = {"length": (10**15).to_bytes(8, "little") + raw[8:], "cut": raw[: len(raw) // 2], "empty": b""}
    path.write_bytes(written.get(damage, whole))
    message = (
        r"fc1.weight is torch.int32 .*, expected torch.float32" if damage == "integers" else "not a whole safetensors"
    )
    with pytest.raises(ValueError, match=message):
        jl.load_encoder(folder)


def test_probes_are_no_encoder(tmp_path: Path) -> None:
    probe = {"pooler.query_tokens": torch.zeros(1, 1, 16), "linear.weight": torch.zeros(3, 16)}
    path = content(tmp_path / "probe.pt", classifiers=[probe])
    assert type(weights.open(path)) is MetaProbe
    with pytest.raises(
        ValueError,
        match=r"probe.pt holds attentive probes, not an encoder: `jepa validate --config attentive_probe.yaml",
    ):
        jl.load_encoder(path)


# ---------------------------------------------------------------------- the hub


@pytest.mark.parametrize(
    ("name", "is_one"),
    [
        ("facebook/ijepa_vith14_1k", True), ("facebook/vjepa2-vitl-fpc64-256", True), ("a/b.1", True),
        ("a.ckpt", False), ("runs/last.ckpt", False), ("/a/b", False), ("a/b/c", False), ("../b", False),
        ("./b", False),
        ("a/b.pth.tar", False), ("a/..", False),
    ],
)  # fmt: skip
def test_names_on_the_hub_are_told_from_paths(name: str, is_one: bool) -> None:
    assert is_hub_name(name) == is_one


def test_a_name_on_the_hub_is_downloaded_unless_there_is_such_a_folder(
    networks: Networks, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("huggingface_hub")
    folder, asked = into_folder(FORMATS["huggingface"].write, networks._replace(predictor=None), tmp_path / "model"), []

    def download(name: str, **options: Any) -> str:
        asked.append((name, options["allow_patterns"]))
        return str(folder)

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    assert jl.load_encoder("someone/model").embed_dim == 192
    assert asked == [("someone/model", ["*.json", "*.safetensors"])]
    (tmp_path / "someone").mkdir()
    folder.rename(tmp_path / "someone" / "model")
    assert jl.load_encoder("someone/model").embed_dim == 192
    assert len(asked) == 1


def test_without_a_network_the_name_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(name: str, **_: Any) -> str:
        raise OSError("cannot reach the hub\nand a long story")

    pytest.importorskip("huggingface_hub")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("huggingface_hub.snapshot_download", offline)
    message = re.escape("no such folder: someone/model, and it cannot be downloaded (cannot reach the hub): without a ")
    with pytest.raises(FileNotFoundError, match=f"^{message}"):
        jl.load_encoder("someone/model")
