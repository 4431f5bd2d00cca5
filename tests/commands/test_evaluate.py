"""With an encoder and data that nothing was tuned on, against scikit-learn."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from safetensors import safe_open
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier

import jepa_lightning as jl
from jepa_lightning import weights
from jepa_lightning.cli import main
from jepa_lightning.evaluation.intervals import interval
from jepa_lightning.evaluation.provenance import commit
from jepa_lightning.evaluation.report import read
from jepa_lightning.models.average_pool import raw_pixels

CheckpointFactory = Callable[..., str]
SMALL = ["--k=[1,5]", "--temperature=[0.07,.inf]", "--weight_decay=[0.03,1.0]", "--shots=[1]", "--seeds=3"]
ENCODERS = ["raw pixels", "random initialisation", "trained"]


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images of scikit-learn's handwritten digits: 300 for training, 150 to choose on, 250 for the test."""
    root, data = tmp_path_factory.mktemp("digits"), load_digits()
    order = np.random.default_rng(0).permutation(len(data.target))
    for place, number in enumerate(order[:700]):
        split = "train" if place < 300 else "val" if place < 450 else "test"
        path = root / split / str(data.target[number]) / f"{number:04}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray((data.images[number] * 15).astype(np.uint8)).save(path)
    return root


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory, save_checkpoint: CheckpointFactory) -> str:
    """A random network that has nothing to do with the data."""
    folder = tmp_path_factory.mktemp("random") / "run" / "checkpoints"
    folder.mkdir(parents=True)
    return save_checkpoint(folder / "v.ckpt", embed_dim=32, depth=3, num_heads=4)


@pytest.fixture(scope="module")
def evaluated(checkpoint: str, digits: Path) -> Path:
    """The folder of a report on the test split."""
    main(["evaluate", "--ckpt_path", checkpoint, "--split=test", *data_of(digits), *SMALL])
    return Path(checkpoint).parents[1] / "evaluation" / "v_test"


def test_help_needs_no_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as end:
        main(["evaluate", "--help"])
    assert end.value.code == 0
    assert "--ckpt_path" in capsys.readouterr().out


def data_of(root: Path) -> list[str]:
    return ["--data=ImageDataModule", f"--data.root={root}", "--data.num_workers=0", "--data.masks=null"]


def results(folder: Path) -> dict[tuple[str, str], dict[str, Any]]:
    content = json.loads((folder / "report.json").read_text())
    return {(entry["protocol"], entry["encoder"]): entry for entry in content["results"]}


# ---------------------------------------------------------------------- held out: by hand, on exported features


class Rows:
    """Features that `jepa predict` wrote, by split."""

    def __init__(self, path: Path) -> None:
        with safe_open(path, "np") as file:
            x, names = file.get_tensor("features").astype(np.float64), json.loads(file.metadata()["names"])
        split, self.y = (np.array([name.split("/")[part] for name in names]) for part in (0, 1))
        self.x, self.part = x, {name: np.flatnonzero(split == name) for name in ("train", "val", "test")}

    def accuracy(self, classifier: Any, scale: bool, part: str) -> float:
        train = self.part["train"]
        mean, std = (self.x[train].mean(axis=0), self.x[train].std(axis=0, ddof=1)) if scale else (0.0, 1.0)
        classifier.fit((self.x[train] - mean) / std, self.y[train])
        rows = self.part[part]
        return float((classifier.predict((self.x[rows] - mean) / std) == self.y[rows]).mean())


def neighbours(k: int, temperature: float) -> KNeighborsClassifier:
    def weights(distances: np.ndarray) -> np.ndarray:
        return np.exp((distances[:, :1] - distances) / temperature)

    votes = "uniform" if math.isinf(temperature) else weights
    return KNeighborsClassifier(k, metric="cosine", algorithm="brute", weights=votes)


def logistic(weight_decay: float) -> LogisticRegression:
    return LogisticRegression(C=1 / (weight_decay * 300), max_iter=10_000, tol=1e-8)


def test_accuracies_are_those_of_scikit_learn_on_exported_features(
    evaluated: Path, checkpoint: str, digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    output = tmp_path / "f.safetensors"
    main(["predict", f"--ckpt_path={checkpoint}", *data_of(digits), f"--features.output={output}", "--maps.count=0",
          "--trainer.logger=false"])  # fmt: skip
    rows, found = Rows(output), results(evaluated)
    votes = {(k, t): neighbours(k, t) for k in (1, 5) for t in (0.07, math.inf)}
    grid = {point: rows.accuracy(classifier, False, "val") for point, classifier in votes.items()}
    best = max(grid, key=lambda point: grid[point])
    mine = found["nearest neighbours", "trained"]
    assert (mine["chosen"]["k"], float(mine["chosen"]["temperature"])) == best
    assert mine["chosen"]["top1_where_chosen"] == pytest.approx(grid[best], abs=1e-12)
    assert mine["values"] == [pytest.approx(rows.accuracy(votes[best], False, "test"), abs=1e-12)]
    decays = {decay: rows.accuracy(logistic(decay), True, "val") for decay in (0.03, 1.0)}
    decay = max(decays, key=lambda point: decays[point])
    mine = found["logistic regression", "trained"]
    assert mine["chosen"]["weight_decay"] == decay
    assert mine["values"] == [pytest.approx(rows.accuracy(logistic(decay), True, "test"), abs=1e-12)]
    assert mine["samples"] == 250
    assert 0.15 < mine["values"][0] < 1.0


def test_the_untrained_encoder_and_the_pixels_stand_beside_it_with_their_own_features(
    evaluated: Path, checkpoint: str, digits: Path
) -> None:
    found, encoder = results(evaluated), jl.load_encoder(checkpoint)
    data = jl.data.ImageDataModule(root=str(digits), img_size=16, patch_size=8, masks=None)
    fresh = weights.open(checkpoint).untrained(encoder)
    for name, encode in {
        "trained": lambda x: encoder(x).mean(dim=1),
        "random initialisation": lambda x: fresh(x).mean(dim=1),
        "raw pixels": raw_pixels,
    }.items():
        rows = Rows.__new__(Rows)
        x, y, rows.part = [], [], {}
        for split in ("train", "val", "test"):
            samples = data.dataset(split, augment=False)
            chosen = [samples[n] for n in range(len(samples))]
            with torch.no_grad():
                x.append(encode(data.normalize(torch.stack([sample.inputs for sample in chosen]))).double().numpy())
            rows.part[split] = sum(map(len, y)) + np.arange(len(chosen))
            y.append(np.array([sample.label for sample in chosen]))
        rows.x, rows.y = np.concatenate(x), np.concatenate(y)
        mine = found["logistic regression", name]
        decay = mine["chosen"]["weight_decay"]
        assert mine["values"] == [pytest.approx(rows.accuracy(logistic(decay), True, "test"), abs=1e-12)], name


# ---------------------------------------------------------------------- the same number everywhere


def by_encoder(path: Path) -> dict[tuple[str, str], tuple[float, ...]]:
    return {(result.encoder, result.protocol): result.values for result in read(path).results}


def test_a_running_training_validate_and_evaluate_give_the_same_numbers(
    digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    data = ["--config=ijepa.yaml", f"--data.root={digits}", "--data.num_workers=0"]
    tiny = ["--data.masks.min_keep=1", "--model.encoder.img_size=32", "--model.encoder.embed_dim=32"]
    tiny += ["--model.encoder.depth=1", "--model.encoder.num_heads=2", "--model.predictor.embed_dim=16"]
    tiny += ["--model.predictor.depth=1", "--pictures.every_n_epochs=0", "--maps.count=0", "--trainer.accelerator=cpu"]
    main(["fit", *data, *tiny, "--trainer.max_epochs=1", "--model.lr.warmup_epochs=0"])
    last = "--ckpt_path=runs/ijepa/version_0/checkpoints/last.ckpt"
    main(["validate", *data, *tiny, last])
    fixed = ["--k=[20]", "--temperature=[0.07]", "--weight_decay=[1e-3]", "--shots=[]", "--fractions=[]"]
    main(["evaluate", *data, last, *fixed, "--out=evaluated", "--device=cpu"])
    trained, validated = (by_encoder(Path(f"runs/ijepa/version_{n}/validation.json")) for n in (0, 1))
    evaluated = by_encoder(Path("evaluated/report.json"))
    assert {encoder for encoder, _ in validated} == {"random initialisation", "trained"}
    assert len(validated) == 6
    for key, values in validated.items():
        assert trained[key] == pytest.approx(values, rel=1e-5 if key[1] == "RankMe" else 0), key
        assert evaluated[key] == pytest.approx(values, rel=1e-5 if key[1] == "RankMe" else 0), key
    assert validated["trained", "RankMe"] != validated["random initialisation", "RankMe"]
    shown = capsys.readouterr().out
    assert shown.count(f"{digits.name} (Folder), validation split, n = 150; fitted on 300 training samples") == 3


# ---------------------------------------------------------------------- the report


def test_every_protocol_has_a_value_and_an_interval_for_each_encoder(evaluated: Path, digits: Path) -> None:
    found = results(evaluated)
    names = ["nearest neighbours", "logistic regression", "1 label a class", "1 % of the labels"]
    assert set(found) == {(name, encoder) for name in [*names, "RankMe"] for encoder in ENCODERS}
    for (name, _), entry in found.items():
        assert (entry["data"], entry["split"], entry["samples"]) == (f"{digits.name} (Folder)", "test", 250)
        if name == "RankMe":
            assert entry["values"][0] >= 1
            continue
        assert len(entry["values"]) == (3 if "label" in name else 1)
        expected = interval(entry["values"], 250)._asdict()
        assert entry["interval"] == {key: pytest.approx(value) for key, value in expected.items()}
        assert entry["interval"]["low"] < entry["interval"]["mean"] < entry["interval"]["high"]
        assert entry["samples"] == 250


def test_the_page_has_data_table_protocol_commit_configuration_and_time(
    evaluated: Path, checkpoint: str, digits: Path
) -> None:
    text, content = (evaluated / "report.md").read_text(), json.loads((evaluated / "report.json").read_text())
    lines = text.splitlines()
    assert lines[0] == f"# Evaluation of {checkpoint}"
    assert f"|  | {' | '.join(ENCODERS)} |" in lines
    entry = results(evaluated)["nearest neighbours", "trained"]
    top1, low, high = (100 * entry["interval"][name] for name in ("mean", "low", "high"))
    (row,) = [line for line in lines if line.startswith("| nearest neighbours |") and "[" in line]
    assert row.endswith(f"| {top1:.1f} [{low:.1f}, {high:.1f}] |")
    about = content["about"]
    assert about["commit"] == commit()
    assert f"{digits.name} (Folder), test split, n = 250; fitted on 300 training samples" in lines
    assert about["time"].split()[1] == "s,"
    assert "cores" in about["hardware"]
    assert "torch" in about["software"]
    for name, value in about.items():
        assert f"| {name} | {value} |" in lines
    assert any("Reported: the test split" in line for line in lines)
    assert any("one was chosen on: the validation split" in line for line in lines)
    config = yaml.safe_load(content["config"])
    assert config["split"] == "test"
    assert config["data"]["init_args"]["root"]
    assert content["config"].strip() in text


def test_the_validation_split_is_reported_and_chosen_on_a_tenth_of_training(
    checkpoint: str, digits: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--k=[1]", "--temperature=[.inf]", "--shots=[]", "--fractions=[]", "--baselines=false"]
    main(
        [
            "evaluate",
            f"--ckpt_path={checkpoint}",
            *data_of(digits),
            *arguments,
            f"--out={tmp_path}",
            "--max_train=150",
            "--weight_decay=[1.0]",
        ]
    )
    content = json.loads((tmp_path / "report.json").read_text())
    assert {(entry["protocol"], entry["encoder"]) for entry in content["results"]} == {
        ("nearest neighbours", "trained"), ("logistic regression", "trained"), ("RankMe", "trained"),
    }  # fmt: skip
    assert {(entry["samples"], entry["fitted"]) for entry in content["results"]} == {(150, 150), (150, None)}
    assert any("10 % of the training split, held back" in sentence for sentence in content["protocol"])
    shown = capsys.readouterr().out
    assert f"written to {tmp_path / 'report.md'}" in shown
    assert "nearest neighbours" in shown


# ---------------------------------------------------------------------- several seeds


@pytest.fixture(scope="module")
def seeds(tmp_path_factory: pytest.TempPathFactory, save_checkpoint: CheckpointFactory) -> list[str]:
    folder = tmp_path_factory.mktemp("seeds")
    return [save_checkpoint(folder / f"{seed}.ckpt", seed=seed) for seed in range(2)]


def test_several_checkpoints_are_seeds_with_mean_and_interval(seeds: list[str], digits: Path, tmp_path: Path) -> None:
    few = [*data_of(digits), "--k=[5]", "--temperature=[.inf]", "--weight_decay=[1.0]", "--shots=[3]", "--seeds=2"]
    few += ["--fractions=[]", "--max_train=150"]
    main(["evaluate", "--ckpt_path", *seeds, *few, f"--out={tmp_path / 'whole'}"])
    for number, path in enumerate(seeds):
        main(["evaluate", f"--ckpt_path={path}", *few, f"--out={tmp_path / str(number)}"])
    reports = [tmp_path / str(number) / "report.json" for number in range(2)]
    main(["report", *map(str, reports), f"--out={tmp_path / 'parts'}"])
    whole, parts = results(tmp_path / "whole"), results(tmp_path / "parts")
    alone = [results(path.parent) for path in reports]
    assert set(whole) == set(parts) == set(alone[0])
    for key, entry in whole.items():
        expected = [float(np.mean(found[key]["values"])) for found in alone]
        if key[1] == "raw pixels":
            assert entry["values"] == alone[0][key]["values"]
            continue
        assert entry["values"] == pytest.approx(expected)
        assert parts[key]["values"] == pytest.approx(expected)
        assert entry["interval"]["kind"] == parts[key]["interval"]["kind"] == "Student's t"
        assert entry["interval"]["mean"] == pytest.approx(np.mean(expected))
    assert read(tmp_path / "parts/report.json").about["reports"] == ", ".join(map(str, reports))


# ---------------------------------------------------------------------- mistakes


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--data.root=nowhere"], "no such folder: nowhere"),
        (["--data.root=flat"], "an evaluation needs labels of two classes or more: sort the files into a folder for"),
        (["--data.root=two", "--split=test"], "two has no test split: add a folder two/test"),
        (["--weight_decay=[0.0]", "--data.root=two"], "weight_decay must be above 0 for logistic regression, got 0.0"),
        (["--ckpt_path=absent.ckpt"], "no such checkpoint: absent.ckpt"),
        (["--blocks=9", "--data.root=two"], "of 9 blocks are wanted, VisionTransformer shows 3"),
    ],
)
@pytest.mark.filterwarnings("ignore:the images have no labels")
def test_mistakes_end_in_the_line_that_matters(
    arguments: list[str], message: str, checkpoint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for number in range(8):
        for name in (f"flat/{number}.png", f"two/{'train' if number < 6 else 'val'}/{number % 2}/{number}.png"):
            Path(name).parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (16, 16), (10 * number, 0, 0)).save(name)
    with pytest.raises(SystemExit) as stop:
        main(["evaluate", f"--ckpt_path={checkpoint}", *data_of(Path("two")), *SMALL, *arguments])
    assert message in str(stop.value.code)


def test_a_file_that_is_no_report_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text("{}")
    with pytest.raises(SystemExit, match=r"x.json is no report of jepa"):
        main(["report", str(tmp_path / "x.json")])
