from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from jepa_lightning.callbacks.parts import Parts, Rows, digest_of


def rows(*index: int) -> Rows:
    numbers = torch.tensor(index)
    return Rows(numbers.float().unsqueeze(1).expand(-1, 3), numbers, -numbers)


def test_what_was_written_is_read_in_order_of_writing(tmp_path: Path) -> None:
    parts = Parts(tmp_path / "parts", "one")
    assert parts.read() is None
    parts.write(rows(3, 1))
    parts.write(rows(2))
    found = Parts(tmp_path / "parts", "one").read()
    assert found is not None
    assert found.index.tolist() == [3, 1, 2]
    assert found.features.tolist() == [[3.0] * 3, [1.0] * 3, [2.0] * 3]
    assert found.labels.tolist() == [-3, -1, -2]
    parts.clear()
    assert not (tmp_path / "parts").exists()


def test_parts_of_something_else_are_thrown_away(tmp_path: Path) -> None:
    Parts(tmp_path / "parts", "one").write(rows(1))
    assert Parts(tmp_path / "parts", "two").read() is None
    assert not (tmp_path / "parts").exists()


def test_a_part_that_was_being_written_is_not_read(tmp_path: Path) -> None:
    parts = Parts(tmp_path / "parts", "one")
    parts.write(rows(1))
    (tmp_path / "parts" / "123.part").write_bytes(b"half of it")
    found = parts.read()
    assert found is not None
    assert found.index.tolist() == [1]


def test_rows_are_sorted_and_each_sample_is_there_once() -> None:
    joined = Rows.joined([rows(5, 2), rows(2, 0, 5)]).in_order()
    assert joined.index.tolist() == [0, 2, 5]
    assert joined.features[:, 0].tolist() == [0.0, 2.0, 5.0]


def test_labels_may_be_several() -> None:
    several = Rows(torch.zeros(2, 3), torch.tensor([1, 0]), torch.tensor([[1, 2], [3, 4]]))
    assert several.in_order().labels.tolist() == [[3, 4], [1, 2]]


CONFIG = "model: {class_path: A}\ndata: {init_args: {root: x, batch_size: 3, num_workers: 1}}\ntrainer: {devices: 1}"


def test_the_same_computation_has_the_same_digest() -> None:
    network = nn.Linear(3, 2)
    digest = digest_of(network, ["a", "b"], CONFIG)
    assert digest == digest_of(network, ["a", "b"], CONFIG.replace("batch_size: 3", "batch_size: 7"))
    assert digest == digest_of(network, ["a", "b"], CONFIG.replace("devices: 1", "devices: 2"))
    assert digest == digest_of(network, ["a", "b"], CONFIG.replace("num_workers: 1", "num_workers: 0"))


@pytest.mark.parametrize("change", ["weights", "names", "model", "data"])
def test_another_computation_has_another_digest(change: str) -> None:
    network = nn.Linear(3, 2)
    digest = digest_of(network, ["a", "b"], CONFIG)
    names = ["a", "c"] if change == "names" else ["a", "b"]
    config = CONFIG.replace("class_path: A", "class_path: B") if change == "model" else CONFIG
    config = config.replace("root: x", "root: y") if change == "data" else config
    if change == "weights":
        with torch.no_grad():
            network.weight[1, 2] += 1e-3
    assert digest_of(network, names, config) != digest
