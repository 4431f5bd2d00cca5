from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning import Trainer
from torch import Tensor

import jepa_lightning as jl
from jepa_lightning import weights
from jepa_lightning.models.pooling import AttentiveClassifier
from jepa_lightning.probing import AttentiveProbe
from jepa_lightning.weights import HintNeeded, Hints, UnknownFormat
from jepa_lightning.weights.meta_probes import MetaProbe

Golden = Callable[[str], dict[str, Any]]
FOLDER = Path(__file__).parent.parent / "golden"
State = dict[str, Tensor]


def opened(path: Path) -> MetaProbe:
    found = weights.open(path)
    assert isinstance(found, MetaProbe)
    return found


def official(golden: Golden, name: str) -> tuple[State, dict[str, Any]]:
    numbers = golden(f"{name}/golden.safetensors")
    return {
        key.removeprefix("probe.state."): x for key, x in numbers.items() if key.startswith("probe.state.")
    }, numbers


def save(path: Path, *states: State, key: str = "classifiers", prefix: str = "module.") -> Path:
    prefixed = [{f"{prefix}{name}": tensor for name, tensor in state.items()} for state in states]
    torch.save({key: prefixed if key == "classifiers" else prefixed[0], "opt": None, "epoch": 20}, path)
    return path


def random_probe(dim: int = 24, classes: int = 3, heads: int = 2, depth: int = 1) -> State:
    return AttentiveClassifier(dim, classes, heads, depth).state_dict()


@pytest.mark.parametrize(("name", "key"), [("vjepa1_tiny", "classifier"), ("vjepa2_tiny", "classifiers")])
def test_the_official_probes_give_the_official_logits(name: str, key: str, golden: Golden, tmp_path: Path) -> None:
    state, numbers = official(golden, name)
    heads = golden(f"{name}/golden.json")["model"]["probe"]["num_heads"]
    (probe,) = opened(save(tmp_path / "probe.pt", state, key=key)).heads(heads)
    torch.testing.assert_close(probe(numbers["target_full"]), numbers["probe.logits"], rtol=0, atol=1e-5)
    assert not any(parameter.requires_grad for parameter in probe.parameters())


def test_all_probes_of_a_grid_are_read(tmp_path: Path) -> None:
    states = [random_probe() for _ in range(3)]
    probes = opened(save(tmp_path / "probe.pt", *states)).heads(2)
    assert len(probes) == 3
    for probe, state in zip(probes, states, strict=True):
        assert all(torch.equal(tensor, state[name]) for name, tensor in probe.state_dict().items())


@pytest.mark.parametrize(("dim", "depth", "heads"), [(192, 1, 3), (1024, 1, 16), (192, 4, 16), (48, 4, 16)])
def test_published_probes_have_the_published_heads(dim: int, depth: int, heads: int, tmp_path: Path) -> None:
    (probe,) = opened(save(tmp_path / "probe.pt", random_probe(dim, 2, 1, depth))).heads()
    assert probe.pooler.cross_attention_block.xattn.num_heads == heads


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.pop("linear.weight"), "probe 0 has no tensor linear.weight"),
        (lambda s: s.pop("pooler.query_tokens"), "probe 0 does not fit: missing pooler.query_tokens"),
        (lambda s: s.update({"verb.weight": torch.zeros(1)}), "probe 0 does not fit: unexpected verb.weight"),
        (
            lambda s: s.update({"linear.bias": torch.zeros(7)}),
            r"probe 0 does not fit: linear.bias is \[7\], expected \[3\]",
        ),
        (lambda s: s.update({"linear.bias": [1]}), "probe 0 holds a list"),
    ],
)
def test_probes_that_are_not_whole_are_refused(change: Any, message: str, tmp_path: Path) -> None:
    state = random_probe()
    change(state)
    with pytest.raises(ValueError, match=rf"probe.pt: {message}"):
        opened(save(tmp_path / "probe.pt", state)).heads(2)


def test_other_files_hold_no_probes(tmp_path: Path, golden_checkpoint: Path) -> None:
    assert not isinstance(weights.open(golden_checkpoint), MetaProbe)
    torch.save({"classifier": 3}, tmp_path / "number.pt")
    with pytest.raises(UnknownFormat, match="holds classifier"):
        weights.open(tmp_path / "number.pt")
    torch.save({"classifiers": [3]}, tmp_path / "a.pt")
    with pytest.raises(ValueError, match="probe 0 is a int, not a state dict"):
        opened(tmp_path / "a.pt").heads()
    with pytest.raises(HintNeeded, match="embed_dim 24 is no published size: give num_heads="):
        opened(save(tmp_path / "b.pt", random_probe())).heads()


def probe_with_heads(rates: list[float], num_heads: int = 4) -> AttentiveProbe:
    """On a frozen encoder of 64 channels, with data of two classes."""
    path = str(FOLDER / "ijepa_tiny" / "checkpoint.pt")
    module = AttentiveProbe(path, lr=rates, num_heads=num_heads, overrides=Hints(num_heads=4))
    module.trainer = Trainer(accelerator="cpu", logger=False, enable_checkpointing=False)
    module.trainer.datamodule = jl.data.ImageDataModule(img_size=48, patch_size=8)  # type: ignore[attr-defined]
    module.configure_model()
    return module


def test_a_trainer_reads_them_as_heads_of_a_probe(tmp_path: Path) -> None:
    module = probe_with_heads([1.0, 2.0])
    classes = module.tasks[0][1]
    states = [random_probe(64, classes, 4) for _ in range(2)]
    content = opened(save(tmp_path / "probe.pt", *states)).resumed(module, fitting=False)
    module.load_state_dict(content["state_dict"])
    for head, state in zip(module.heads, states, strict=True):
        assert all(torch.equal(tensor, state[name]) for name, tensor in head.state_dict().items())


def test_heads_that_do_not_go_with_the_probe_are_refused(tmp_path: Path) -> None:
    module = probe_with_heads([1.0])
    classes = module.tasks[0][1]
    two = save(tmp_path / "two.pt", *[random_probe(64, classes, 4)] * 2)
    with pytest.raises(
        ValueError, match=r"two\.pt has 2 heads, lr and weight_decay make 1: give --model.lr with 2 values"
    ):
        opened(two).resumed(module, fitting=False)
    other = save(tmp_path / "other.pt", random_probe(64, classes + 1, 4))
    with pytest.raises(ValueError, match=rf"head 0 does not fit: linear.weight is \[{classes + 1}, 64\]"):
        opened(other).resumed(module, fitting=False)
    with pytest.raises(ValueError, match="the training of Meta's probes does not go on here"):
        opened(other).resumed(module, fitting=True)
