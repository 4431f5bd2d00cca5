"""Checkpoints of strangers: a real one whose description or tensors somebody has changed.

Whatever is in it, reading it takes less than two seconds, imports nothing, writes nothing, and names the problem.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

import jepa_lightning as jl
import jepa_lightning.cli  # so that no test waits for it
from jepa_lightning import weights
from jepa_lightning.commands.inspect import main as inspect
from jepa_lightning.weights import DoesNotFit, NotTrusted, Unreadable
from jepa_lightning.weights.ours import CONFIG_KEY, Own

Config = dict[str, Any]
Content = dict[str, Any]
Door = Callable[[Path], Any]
WRITTEN = ("here/probe.ckpt", "here/encoder.ckpt")
EVIL = "from pathlib import Path\nPath(__file__).with_name('imported').touch()\ndef f(*_): ...\nclass S: ...\n"


def networks(path: Path) -> Any:
    return weights.open(path).networks(predictor=True)


def inspected(path: Path) -> None:
    inspect([str(path)])


ALL: tuple[Door, ...] = (weights.open, networks, jl.load, jl.load_encoder, inspected)
BUILDING: tuple[Door, ...] = (networks, jl.load, jl.load_encoder, inspected)
"""What looks at the sizes of networks."""
READING: tuple[Door, ...] = (networks, jl.load, jl.load_encoder)
"""What looks at tensors; `jepa inspect` does not."""


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, save_checkpoint: Callable[..., str]) -> Content:
    """A checkpoint of a training, with the state of its optimizer."""
    path = save_checkpoint(tmp_path_factory.mktemp("whole") / "a.ckpt", depth=1)
    content: Content = torch.load(path, weights_only=True)
    moments = {number: {"step": torch.tensor(7.0), "exp_avg": torch.randn(16, 16)} for number in range(3)}
    return {**content, "optimizer_states": [{"state": moments, "param_groups": []}]}


@pytest.fixture(autouse=True)
def evil(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A module that leaves a trace when it is imported; at the end nothing was imported, and nothing written."""
    for name in ("evil", "here", "home"):
        (tmp_path / name).mkdir()
    (tmp_path / "evil" / "evilmod.py").write_text(EVIL)
    (tmp_path / "here" / "evil.yaml").write_text("class_path: evilmod.S\n")
    monkeypatch.syspath_prepend(str(tmp_path / "evil"))
    monkeypatch.chdir(tmp_path / "here")
    for name in ("HOME", "XDG_CACHE_HOME", "TORCH_HOME", "HF_HOME"):
        monkeypatch.setenv(name, str(tmp_path / "home"))
    yield tmp_path / "evil"
    files = {file.relative_to(tmp_path).as_posix() for file in tmp_path.rglob("*") if file.is_file()}
    assert files <= {"evil/evilmod.py", "here/evil.yaml", "stranger.ckpt", *WRITTEN}
    assert "evilmod" not in sys.modules


@pytest.fixture
def stranger(whole: Content, tmp_path: Path) -> Callable[..., Path]:
    """Writes the checkpoint with another text or other sections as its configuration, and with other content."""

    def write(change: Callable[[Config], Any] | str = lambda config: None, **content: Any) -> Path:
        config: Config = yaml.safe_load(whole[CONFIG_KEY])
        text = change if isinstance(change, str) else None
        if not isinstance(change, str):
            change(config)
            text = yaml.safe_dump(config)
        torch.save({**whole, CONFIG_KEY: text, **content}, tmp_path / "stranger.ckpt")
        return tmp_path / "stranger.ckpt"

    return write


def refused(path: Path, doors: tuple[Door, ...], error: type[Exception], message: str) -> None:
    for door in doors:
        begin = time.process_time()
        with pytest.raises(error, match=message) as found:
            door(path)
        assert time.process_time() - begin < 2, door
        assert str(path) in str(found.value)
        assert len(str(found.value)) < 1000
        assert "Given value" not in str(found.value)  # jsonargparse's last line, which says nothing


def model(config: Config) -> Config:
    arguments: Config = config["model"]["init_args"]
    return arguments


def sizes(config: Config) -> Config:
    arguments: Config = model(config)["encoder"]["init_args"]
    return arguments


def setting(**values: Any) -> Callable[[Config], None]:
    """Other arguments of the method."""
    return lambda config: model(config).update(values)


def sized(**values: Any) -> Callable[[Config], None]:
    """Other sizes of the encoder."""
    return lambda config: sizes(config).update(values)


def of_data(**values: Any) -> Callable[[Config], None]:
    return lambda config: config["data"]["init_args"].update(values)


def a(kind: Any, /, **arguments: Any) -> Config:
    """The description of an object of a class."""
    return {"class_path": kind, "init_args": arguments}


def test_the_checkpoint_itself_is_in_order(stranger: Callable[..., Path]) -> None:
    for door in ALL:
        door(stranger())


# ---------------------------------------------------------------------- code in the description


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (setting(predictor="evilmod.f"), "model.predictor is the text 'evilmod.f' where a class is described"),
        (setting(encoder="/x/enc.yaml"), "model.encoder is the text '/x/enc.yaml'"),
        (setting(encoder="evil.yaml"), "model.encoder is the text 'evil.yaml'"),
        (setting(lr="evilmod.f"), "model.lr is the text"),
        (setting(optimizer="os.system"), "model.optimizer is the text"),
        (sized(positions="evilmod.S"), "model.encoder.positions is the text"),
        (setting(regularizer=a("evilmod.S")), "model.regularizer is of the class evilmod.S"),
        (
            of_data(source=a("evilmod.S")),
            "data.source is of the class evilmod.S, .* nothing was imported. .*--trust evil",
        ),
        (of_data(masks="evilmod.f"), "data.masks is the text 'evilmod.f'"),
        (of_data(source="evil.yaml"), "data.source is the text 'evil.yaml'"),
        (of_data(transform=a("evilmod.f")), "data.transform is of the class evilmod.f"),
        (lambda config: config.update(data=a("evilmod.S")), "data is of the class evilmod.S"),
        (lambda config: config.update(model=a("evilmod.S")), "model is of the class evilmod.S"),
        (lambda config: config["model"].update(class_path=["evilmod.S"]), "model is of the class"),
        (setting(encoder=a(None)), "model.encoder is of the class None"),
        *[
            (setting(encoder=a(name, args="touch x")), f"model.encoder is of the class {name}, which is not of jepa_l")
            for name in ("subprocess.Popen", "os.system", "builtins.eval", "torch.load", "eval")
        ],
        (setting(optimizer=a("torch.hub.load")), "model.optimizer is of the class torch.hub.load"),
        (setting(encoder=a("jepa_lightning_evil.S")), "model.encoder is of the class jepa_lightning_evil.S"),
        (
            setting(encoder=a("jepa_lightning.models.backbones.TimmBackbone", name="hf-hub:a/b")),
            "encoder.name is 'hf-hub",
        ),
    ],
)
def test_code_that_is_not_ours_is_refused_by_its_place(
    change: Callable[[Config], Any], message: str, stranger: Callable[..., Path]
) -> None:
    refused(stranger(change), ALL, NotTrusted, message)


@pytest.mark.parametrize(
    "name",
    [
        "jepa_lightning.loading.torch.load", "jepa_lightning.weights.torch_file.os.system",
        "jepa_lightning.commands.messages.import_module", "jepa_lightning.loading.Path",
        "jepa_lightning.weights.file.torch.save", "jepa_lightning.no.Such", "jepa_lightning", "jepa_lightning..S",
        "jepa_lightning.\0", "jepa_lightning." + "a." * 100_000 + "S", "jepa_lightning.models.__builtins__",
        "jepa_lightning.__version__", "jepa_lightning.cli.main", "torch.optim.sys.exit", "torch.optim.adam.Any",
    ],
)  # fmt: skip
def test_what_our_package_imports_from_elsewhere_is_not_ours(name: str, stranger: Callable[..., Path]) -> None:
    message = "model.encoder is of the class .* not in this version|a value of 200,016 characters"
    refused(stranger(setting(encoder=a(name))), ALL, Unreadable, message)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            setting(predictor=a("jepa_lightning.trainer.RunTrainer")),
            r"predictor is of .*\.RunTrainer, but Predictor goes there",
        ),
        (setting(predictor=a("jepa_lightning.checkpoint_io.AtomicCheckpointIO")), "but Predictor goes there"),
        (setting(predictor=a("jepa_lightning.PretrainedEncoder", checkpoint="/x")), "model.predictor is of the class"),
        (setting(predictor=a("jepa_lightning.data.DigitScenes", cache="/x")), "but Predictor goes there"),
        (setting(predictor=a("torch.optim.SGD")), "but Predictor goes there"),
        (setting(encoder=a("jepa_lightning.weights.Meta")), "but Encoder goes there"),
        (setting(encoder=a("jepa_lightning.Predictor")), "but Encoder goes there"),
        (setting(optimizer=a("jepa_lightning.Predictor")), "but LayerDecay or Optimizer goes there"),
        (setting(ipe_scale=a("jepa_lightning.trainer.RunTrainer")), "but no class goes there"),
        (
            setting(unknown=a("jepa_lightning.trainer.RunTrainer")),
            "model has the option unknown, which its class does not have",
        ),
        (
            setting(betas=[0.9, a("jepa_lightning.trainer.RunTrainer")]),
            r"model.betas\[1\] .* but no class goes there",
        ),
        (
            setting(
                encoder=a("jepa_lightning.models.backbones.TimmBackbone", options={"x": a("jepa_lightning.IJEPA")})
            ),
            "encoder.options.x is of the class jepa_lightning.IJEPA, but no class goes there",
        ),
        (of_data(transform=a("jepa_lightning.trainer.RunTrainer")), "but TrainTransform goes there"),
    ],
)
def test_a_class_of_ours_goes_only_where_its_objects_go(
    change: Callable[[Config], Any], message: str, stranger: Callable[..., Path]
) -> None:
    refused(stranger(change), ALL, Unreadable, message)


def test_a_model_that_is_no_method_is_refused_when_it_is_built(stranger: Callable[..., Path]) -> None:
    for kind in (
        "jepa_lightning.trainer.RunTrainer",
        "jepa_lightning.data.ImageDataModule",
        "jepa_lightning.Predictor",
    ):
        path = stranger(lambda config, kind=kind: config.update(model=a(kind)))
        refused(path, (jl.load,), DoesNotFit, "cannot build what")


def test_optimizers_of_pytorch_are_no_strangers(stranger: Callable[..., Path]) -> None:
    for door in ALL:
        door(stranger(setting(optimizer=a("torch.optim.SGD", lr=0.1, momentum=0.9))))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda config: config.update(data="evil.yaml"), "the configuration in it is damaged"),
        (lambda config: config.update(data=["evilmod.f"]), "the configuration in it is damaged"),
        (lambda config: config.update(model="evilmod.S"), "the configuration in it is damaged"),
        (lambda config: config["model"].update(init_args="evil.yaml"), "a class has class_path and init_args alone"),
        (lambda config: config["model"].update(dict_kwargs={"x": 1}), "model has .*dict_kwargs"),
        (lambda config: model(config)["encoder"].update(dict_kwargs={"x": 1}), "model.encoder has .*dict_kwargs"),
        (lambda config: config["data"].update(dict_kwargs={"x": 1}), "data has .*dict_kwargs"),
    ],
)
def test_descriptions_have_one_form(
    change: Callable[[Config], Any], message: str, stranger: Callable[..., Path]
) -> None:
    refused(stranger(change), ALL, Unreadable, message)


# ---------------------------------------------------------------------- text that is no configuration

LAUGHS = "a0: &a0 [x, x]\n" + "".join(
    f"a{n}: &a{n} [*a{n - 1}, *a{n - 1}, *a{n - 1}, *a{n - 1}, *a{n - 1}]\n" for n in range(1, 30)
)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (f"{LAUGHS}model: *a29\n", "more than 100,000 values"),
        ("model: &m {encoder: *m}\n", "an alias of itself"),
        ("model: &m [[[*m]]]\n", "an alias of itself"),
        ("model: " + "[" * 10_000 + "]" * 10_000, "50 levels|damaged .ScannerError"),
        ("model: " + "{a: " * 10_000 + "1" + "}" * 10_000, "50 levels"),
        ("[" * 10_000, "50 levels|damaged .ScannerError"),
        ("- " * 10_000 + "a", "50 levels"),
        (f"model: {{a: {'x' * 2 * 2**20}}}\n", "2,0.. characters|2,097,1.. characters"),
        ("model: [" + "1," * 400_000 + "1]", "more than 100,000 values"),
        ("model: !!python/object/apply:os.system ['touch x']\n", "damaged .ConstructorError"),
        ("model: !!python/name:evilmod.f\n", "damaged .ConstructorError"),
        ("model: !!python/module:evilmod\n", "damaged .ConstructorError"),
        ("!!python/object/new:evilmod.S {}\n", "damaged .ConstructorError"),
        ("model: {a: " + "9" * 100_000 + "}\n", "a value of 100,000 characters"),
        ("model: {a: 2000-99-99}\n", "damaged .ValueError"),
        ("model: {{a: 1}: 2}\n", "damaged .ConstructorError"),
        ("model: {}\n---\nmodel: {}\n", "damaged .ComposerError"),
        ("model: \x00", "damaged .ReaderError|damaged .ScannerError"),
        ("", "damaged"),
    ],
)  # fmt: skip
def test_text_that_is_no_configuration_is_refused(text: str, message: str, stranger: Callable[..., Path]) -> None:
    refused(stranger(text), ALL, Unreadable, message)


@pytest.mark.parametrize("text", [b"model: {}", 3, None, ["model: {}"], {"model": {}}, torch.zeros(3)])
def test_a_configuration_that_is_no_text_is_refused(text: Any, stranger: Callable[..., Path]) -> None:
    refused(stranger(**{CONFIG_KEY: text}), ALL, Unreadable, "the configuration in it is damaged")


# ---------------------------------------------------------------------- sizes that no tensor has


@pytest.mark.parametrize(
    "change",
    [
        sized(depth=10**9), sized(depth=1001), sized(depth=-(10**9)), sized(embed_dim=3_000_000), sized(img_size=10**9),
        sized(img_size=[10**9, 16]), sized(img_size=1e9), sized(img_size=float("nan")), sized(num_heads=10**9),
        sized(num_heads=float("inf")), sized(mlp_ratio=1e12), sized(in_chans=10**8), sized(num_frames=10**9),
        sized(img_size=[16] * 2000), sized(patch_size=10**7), setting(target_layers=10**9),
        setting(betas=[0.5] * 3000), sized(img_size=65_536, patch_size=1, embed_dim=1),
        sized(num_frames=60_000, tubelet_size=1, img_size=4096),
        lambda config: model(config)["predictor"]["init_args"].update(depth=10**6),
        lambda config: model(config)["predictor"]["init_args"].update(num_mask_tokens=10**7),
    ],
)  # fmt: skip
def test_sizes_that_no_tensor_has_are_refused_before_anything_is_built(
    change: Callable[[Config], Any], stranger: Callable[..., Path]
) -> None:
    path = stranger(change)
    refused(path, (networks, jl.load), DoesNotFit, "has no tensors of that size|has no positions for that many")


@pytest.mark.parametrize(
    "change",
    [
        *(sized(num_heads=heads) for heads in (0, -1, -(10**4), 3, 17, "two", None, [2], 2.5)),
        *(sized(depth=depth) for depth in (0, -1, 2, 100)),
        *(sized(embed_dim=dim) for dim in (0, -16, 32, "wide", None)),
        *(sized(patch_size=size) for size in (0, -8, 7, 4, 16)),
        *(sized(img_size=size) for size in (0, -16, 24, "large", [16], [16, 16, 16], [])),
        *(sized(in_chans=count) for count in (0, -1, 1)),
        *(sized(mlp_ratio=ratio) for ratio in (0, -4.0, 1e-9, 8.0)),
        sized(num_frames=0), sized(num_frames=4, tubelet_size=0), lambda config: sizes(config).clear(),
    ],
)  # fmt: skip
def test_sizes_that_make_no_network_of_these_tensors_are_refused(
    change: Callable[[Config], Any], stranger: Callable[..., Path]
) -> None:
    refused(stranger(change), (networks, jl.load, jl.load_encoder), DoesNotFit, "stranger.ckpt")


@pytest.mark.parametrize("key", ["unknown", 3, None, "a\x1b[2Jb"])
def test_options_that_a_class_does_not_have_are_refused(key: Any, stranger: Callable[..., Path]) -> None:
    path = stranger(lambda config: sizes(config).update({key: 4}))
    refused(path, ALL, Unreadable, r"model\.encoder has the option .*, which its class does not have in this version")


# ---------------------------------------------------------------------- tensors


def changed(state: Content, name: str, change: Callable[[torch.Tensor], Any]) -> Content:
    return {**state, name: change(state[name].clone())}


@pytest.mark.parametrize("network", ["encoder", "target_encoder", "predictor"])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_weights_that_are_not_finite_are_refused_unless_that_is_allowed(
    network: str, value: float, whole: Content, stranger: Callable[..., Path]
) -> None:
    name = f"{network}.{'predictor_norm' if network == 'predictor' else 'norm'}.weight"

    def spoil(tensor: torch.Tensor) -> torch.Tensor:
        tensor[3] = value
        return tensor

    path = stranger(state_dict=changed(whole["state_dict"], name, spoil))
    message = rf"{name} has 1 of \d+ values that are infinite or not a number: .*--allow_non_finite"
    refused(path, (jl.load,) if network == "encoder" else (jl.load, networks), DoesNotFit, message)
    found = jl.load(path, allow_non_finite=True).state_dict()[name]
    torch.testing.assert_close(float(found[3]), value, equal_nan=True)
    with weights.trusting(allow_non_finite=True):
        networks(path)


@pytest.mark.parametrize(
    "change",
    [
        lambda t: t.long(), lambda t: t.bool(), lambda t: t.to(torch.complex64), lambda t: t.to_sparse(),
        lambda t: t[:5], lambda t: t.reshape(1, -1), lambda t: torch.empty(16, device="meta"), lambda t: t.tolist(),
        lambda t: None, lambda t: torch.empty(0),
        lambda t: {"a": t},
    ],
)  # fmt: skip
def test_tensors_of_another_kind_are_refused(
    change: Callable[[torch.Tensor], Any], whole: Content, stranger: Callable[..., Path]
) -> None:
    state = changed(whole["state_dict"], "target_encoder.norm.weight", change)
    refused(stranger(state_dict=state), READING, weights.CheckpointError, "norm.weight|not a PyTorch checkpoint")


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16, torch.float64])
def test_other_floating_point_numbers_become_float32(
    kind: torch.dtype, whole: Content, stranger: Callable[..., Path]
) -> None:
    state = {name: tensor.to(kind) for name, tensor in whole["state_dict"].items()}
    path, name = stranger(state_dict=state), "norm.weight"
    for found in (jl.load(path).target_encoder, jl.load_encoder(path)):
        assert found.state_dict()[name].dtype == torch.float32
        assert torch.equal(found.state_dict()[name], state[f"target_encoder.{name}"].float())


@pytest.mark.parametrize(
    "state", [{}, {3: torch.zeros(1)}, {"a": torch.zeros(1)}, {"encoder": torch.zeros(1)}, {"encoder.": torch.zeros(1)}]
)
def test_a_state_that_is_of_something_else_is_refused(state: Content, stranger: Callable[..., Path]) -> None:
    refused(stranger(state_dict=state), READING, DoesNotFit, "missing|not only tensors with names")


@pytest.mark.parametrize("name", ["encoder.norm.weight", "target_encoder.norm.weight", "predictor.predictor_norm.bias"])
def test_missing_and_unexpected_tensors_are_named(name: str, whole: Content, stranger: Callable[..., Path]) -> None:
    state = {key: tensor for key, tensor in whole["state_dict"].items() if key != name}
    short = name.split(".", 1)[1]
    refused(stranger(state_dict=state), (jl.load,), DoesNotFit, f"missing {name}")
    refused(stranger(state_dict={**state, f"{name}2": torch.zeros(1)}), (jl.load,), DoesNotFit, f"unexpected {name}2")
    if not name.startswith("encoder"):
        refused(stranger(state_dict=state), (networks,), DoesNotFit, f"missing {short}")


# ---------------------------------------------------------------------- damage


def flipped(path: Path, values: torch.Tensor) -> Path:
    """One bit of a tensor is another."""
    raw = bytearray(path.read_bytes())
    raw[raw.index(values.numpy().tobytes()) + 5] ^= 4
    path.write_bytes(raw)
    return path


@pytest.mark.parametrize("name", ["target_encoder.blocks.0.attn.qkv.weight", "predictor.predictor_embed.weight"])
def test_one_flipped_bit_in_a_tensor_is_found(name: str, whole: Content, stranger: Callable[..., Path]) -> None:
    path = flipped(stranger(), whole["state_dict"][name])
    refused(path, (jl.load, networks), Unreadable, f"is damaged: the checksum of {name} is wrong: copy the file again")


def test_one_flipped_bit_in_the_state_of_the_optimizer_is_found_where_a_training_goes_on(
    whole: Content, stranger: Callable[..., Path]
) -> None:
    path = flipped(stranger(), whole["optimizer_states"][0]["state"][1]["exp_avg"])
    opened = weights.open(path)
    assert isinstance(opened, Own)
    opened.check_whole(optimizer=False)
    with pytest.raises(Unreadable, match=r"the checksum of optimizer_states.0.state.1.exp_avg is wrong"):
        opened.check_whole()
    jl.load(path)  # uses no optimizer


def test_one_flipped_bit_anywhere_in_the_pickle_is_found(stranger: Callable[..., Path]) -> None:
    path = stranger()
    whole = path.read_bytes()
    start = whole.index(b"state_dict")
    for place in (start, start + 40, whole.index(b"embed_dim"), whole.index(b"jepa_config")):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        refused(path, ALL, Unreadable, "is not a PyTorch checkpoint that can be read safely: it is damaged")


@pytest.mark.parametrize("fraction", [0.0, 0.001, 0.3, 0.9, 0.999])
def test_a_truncated_file_is_refused(fraction: float, stranger: Callable[..., Path]) -> None:
    path = stranger()
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * fraction)])
    refused(path, ALL, Unreadable, "is not a PyTorch checkpoint that can be read safely")


# ---------------------------------------------------------------------- names of torch.compile


@pytest.mark.parametrize("prefix", ["_orig_mod.{}", "per network"])
def test_names_of_torch_compile_are_read_if_all_have_them(
    prefix: str, whole: Content, stranger: Callable[..., Path]
) -> None:
    def renamed(name: str) -> str:
        network, _, rest = name.partition(".")
        return f"{network}._orig_mod.{rest}" if prefix == "per network" else prefix.format(name)

    expected = whole["state_dict"]
    path = stranger(state_dict={renamed(name): tensor for name, tensor in expected.items()})
    found = jl.load(path).state_dict()
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())
    for name, tensor in jl.load_encoder(path).state_dict().items():
        assert torch.equal(tensor, expected[f"target_encoder.{name}"])
    assert set(weights.open(path).states()) == {"encoder", "target_encoder", "predictor"}
    inspected(path)


@pytest.mark.parametrize("pattern", ["_orig_mod.{0}.{1}", "{0}._orig_mod.{1}"])
def test_names_of_torch_compile_on_some_tensors_are_refused(
    pattern: str, whole: Content, stranger: Callable[..., Path]
) -> None:
    state = {
        (pattern.format(*name.split(".", 1)) if ".blocks." in name else name): tensor
        for name, tensor in whole["state_dict"].items()
    }
    refused(stranger(state_dict=state), ALL, DoesNotFit, r"have the prefix _orig_mod\., the others, for example \w+")


# ---------------------------------------------------------------------- what a description cannot decide


def test_options_that_write_or_download_are_reset(stranger: Callable[..., Path]) -> None:
    path = stranger(
        of_data(
            source=a("jepa_lightning.data.DigitScenes", cache="/x/cache"),
            num_workers=10_000,
        )
    )
    data = weights.open(path).config["data"]["init_args"]
    assert data["source"]["init_args"] == {"cache": None}
    assert 0 <= data["num_workers"] < 1000
    path = stranger(of_data(source=a("jepa_lightning.data.Torchvision", name="CIFAR10", download=True)))
    assert weights.open(path).config["data"]["init_args"]["source"]["init_args"]["download"] is False
    for door in ALL:
        door(path)


def test_pretrained_weights_are_not_downloaded_for_networks_whose_tensors_are_here(
    stranger: Callable[..., Path],
) -> None:
    timm = {"pretrained": True, "options": {"checkpoint_path": "/x"}}
    for name, options in (("TorchvisionBackbone", {"weights": "DEFAULT"}), ("TimmBackbone", timm)):
        encoder = a(f"jepa_lightning.models.backbones.{name}", **options)
        found = weights.open(stranger(setting(encoder=encoder))).config["model"]["init_args"]["encoder"]["init_args"]
        assert not found.get("weights")
        assert not found.get("pretrained")
        assert found.get("options", {}) in ({}, {"checkpoint_path": None})


def test_sections_that_are_not_of_networks_and_data_are_left(stranger: Callable[..., Path]) -> None:
    def add(config: Config) -> None:
        config["trainer"] = {
            "logger": a("evilmod.S"), "callbacks": [a("evilmod.S")], "default_root_dir": "/x", "max_epochs": 3,
            "plugins": "evilmod.f", "strategy": "evilmod.f", "precision": ["evilmod.f"], "max_steps": a("evilmod.S"),
        }  # fmt: skip
        config |= {"features": {"output": "/x/f.safetensors"}, "logger": a("evilmod.S"), "callbacks": "evilmod.f"}
        config |= {"maps": a("evilmod.S"), "ckpt_path": "/x", "init_from": "/x", "probe": {"k": 5, "cache": "/x"}}

    path = stranger(add)
    assert set(weights.open(path).config) == {"seed_everything", "model", "data", "trainer", "probe", "compiled"}
    assert weights.open(path).config["trainer"] == {"max_epochs": 3}
    assert weights.open(path).config["probe"] == {"k": 5}
    for door in ALL:
        door(path)


@pytest.mark.parametrize("seed", ["evilmod.f", [1], None, 10**30, 3.5])
def test_a_seed_that_is_no_number_of_one_is_left(seed: Any, stranger: Callable[..., Path]) -> None:
    opened = weights.open(stranger(lambda config: config.update(seed_everything=seed)))
    assert opened.config["seed_everything"] is None
    opened.untrained(jl.load_encoder(opened))


# ---------------------------------------------------------------------- probes


@pytest.fixture
def probe(stranger: Callable[..., Path], tmp_path: Path) -> Callable[..., Path]:
    """Writes the checkpoint of a probe on the encoder of the other one."""

    def write(extra: Callable[[Content], Any] = dict, **arguments: Any) -> Path:
        encoder = stranger().rename(tmp_path / "here" / "encoder.ckpt")
        given = {"checkpoint": str(encoder), "num_heads": 2}
        module = jl.AttentiveProbe(**given)
        module._build([("", 3)])
        state = module.state_dict()
        config = {"model": a("jepa_lightning.AttentiveProbe", **{**given, **arguments})}
        path = stranger(yaml.safe_dump(config), state_dict={**state, "_extra_state": extra(state["_extra_state"])})
        return path.rename(tmp_path / "here" / "probe.ckpt")

    return write


def test_a_probe_itself_is_in_order(probe: Callable[..., Path]) -> None:
    path = probe()
    jl.load(path)
    inspected(path)


@pytest.mark.parametrize(
    "extra",
    [
        lambda extra: {**extra, "tasks": [["", 10**9]]}, lambda extra: {**extra, "tasks": [["", -3]]},
        lambda extra: {**extra, "tasks": 3}, lambda extra: {**extra, "tasks": [[]]},
        lambda extra: {**extra, "tasks": [["", "x"]]}, lambda extra: {}, lambda extra: {**extra, "tasks": [["", 4]]},
        lambda extra: {**extra, "encoder": "another"},
    ],
)  # fmt: skip
def test_what_a_probe_says_of_its_classes_is_checked(
    extra: Callable[[Content], Content], probe: Callable[..., Path]
) -> None:
    path = probe(extra=extra)
    begin = time.process_time()
    with pytest.raises(ValueError, match=r"probe.ckpt"):
        jl.load(path)
    assert time.process_time() - begin < 2


@pytest.mark.parametrize("place", ["someone/model", "/dev/zero", "evil.yaml", "../evil/evilmod.py", ""])
def test_the_encoder_of_a_probe_is_a_checkpoint_on_this_machine(place: str, probe: Callable[..., Path]) -> None:
    with pytest.raises((ValueError, FileNotFoundError)):
        jl.load(probe(checkpoint=place))
