from __future__ import annotations

import pickle
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch

from jepa_lightning.weights.torch_file import own, read_torch


class Calls:
    """Pickles as a call of a function."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = function, arguments

    def __reduce__(self) -> tuple[Any, ...]:
        return self.call


def archive(path: Path, pickled: bytes, compression: int = zipfile.ZIP_STORED) -> Path:
    """A file as torch.save writes it, with any pickle in it."""
    with zipfile.ZipFile(path, "w", compression) as file:
        for name, content in {"data.pkl": pickled, "version": b"3\n", "byteorder": b"little"}.items():
            file.writestr(f"archive/{name}", content)
    return path


def nested(times: int, width: int = 2) -> tuple[Any, ...]:
    """Tuples in tuples: no memory, but width^times steps to hash."""
    value: tuple[Any, ...] = ()
    for _ in range(times):
        value = (value,) * width
    return value


def test_what_torch_saved_is_read(tmp_path: Path) -> None:
    shared = torch.arange(6.0)
    content = {"a": shared, "b": [shared.view(2, 3), (1, "x", None)], "c": {"betas": (0.9, 0.999)}}
    torch.save(content, tmp_path / "a.pt")
    found = read_torch(tmp_path / "a.pt")
    assert torch.equal(found["a"], shared)
    assert torch.equal(found["b"][0], shared.view(2, 3))
    assert found["b"][1] == (1, "x", None)
    assert found["c"] == content["c"]


def test_options_that_all_groups_of_an_optimizer_share_are_no_bomb(tmp_path: Path) -> None:
    betas = (0.9, 0.999)
    torch.save([{"betas": betas, "size": (3, number)} for number in range(200)], tmp_path / "groups.pt")
    assert len(read_torch(tmp_path / "groups.pt")) == 200


@pytest.mark.parametrize("kept", [0, 3, 300, -1])
def test_a_file_that_is_not_whole_is_refused(tmp_path: Path, kept: int) -> None:
    torch.save({"a": torch.zeros(1000)}, tmp_path / "a.pt")
    whole = (tmp_path / "a.pt").read_bytes()
    (tmp_path / "a.pt").write_bytes(whole[:kept])
    reason = "it is empty" if kept == 0 else "it is no file of torch.save" if kept == 3 else "it is truncated"
    with pytest.raises(ValueError, match=f"a.pt is not a PyTorch checkpoint that can be read safely: {reason}"):
        read_torch(tmp_path / "a.pt")


@pytest.mark.parametrize("harm", [Calls(Path.touch, Path("harm")), Calls(eval, "open('harm', 'w')"), Calls(print, "x")])
def test_code_is_not_run_and_the_message_says_which(
    harm: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"a": harm}, "harmful.pt")
    with pytest.raises(
        ValueError, match=r"it wants to run \S+, which was not done\. If you trust .*weights_only=False"
    ):
        read_torch(Path("harmful.pt"))
    assert not Path("harm").exists()
    assert capsys.readouterr().out == ""


def test_a_compressed_archive_is_refused_before_it_is_unpacked(tmp_path: Path) -> None:
    path = archive(tmp_path / "bomb.pt", b"\x80\x02" + b"N0" * 10_000_000 + b"N.", zipfile.ZIP_DEFLATED)
    assert path.stat().st_size < 100_000
    with pytest.raises(
        ValueError, match=r"bomb.pt .*: archive/data.pkl in it is compressed, which torch.save never does"
    ):
        read_torch(path)


def test_parts_that_claim_to_be_larger_than_the_file_are_refused(tmp_path: Path) -> None:
    path = archive(tmp_path / "lie.pt", pickle.dumps({"a": 1}, 2))
    raw = bytearray(path.read_bytes())
    entry = raw.rindex(b"PK\x01\x02")  # of the last part, in the table at the end
    raw[entry + 20 : entry + 28] = (10**9).to_bytes(4, "little") * 2
    path.write_bytes(raw)
    with pytest.raises(ValueError, match=r"lie.pt .* its parts claim to be larger than the whole"):
        read_torch(path)


@pytest.mark.parametrize(("times", "width"), [(60, 2), (8, 30)])
def test_tuples_of_tuples_are_refused_before_they_are_hashed(tmp_path: Path, times: int, width: int) -> None:
    path = archive(tmp_path / "tuples.pt", pickle.dumps({"encoder": nested(times, width)}, 2))
    with pytest.raises(ValueError, match=r"tuples.pt .* its pickle is a bomb"):
        read_torch(path)


def test_lists_of_lists_do_no_harm(tmp_path: Path) -> None:
    laughs: list[Any] = []
    for _ in range(60):
        laughs = [laughs] * 10
    assert set(read_torch(archive(tmp_path / "lists.pt", pickle.dumps({"a": laughs}, 2)))) == {"a"}


def test_a_pickle_that_would_take_minutes_is_refused(tmp_path: Path) -> None:
    path = archive(tmp_path / "long.pt", b"\x80\x02" + b"N0" * 1_600_000 + b"N.")
    with pytest.raises(ValueError, match=r"long.pt .* more than 3,000,000 operations: no training has that"):
        read_torch(path)


def test_another_kind_of_pickle_is_damage_without_advice_to_read_it_unsafely(tmp_path: Path) -> None:
    path = archive(tmp_path / "four.pt", b"\x80\x04\x95" + (2**40).to_bytes(8, "little") + b"N.")
    with pytest.raises(ValueError, match=r"safely: it is damaged \(Unsupported operand 149\): copy it again$"):
        read_torch(path)


def test_memory_that_is_not_there_is_refused(tmp_path: Path) -> None:
    path = archive(tmp_path / "large.pt", pickle.dumps({"a": Calls(bytearray, 2**62)}, 2))
    with pytest.raises(ValueError, match=r"large.pt .* it is damaged \(MemoryError"):
        read_torch(path)


def test_one_value_repeated_a_billion_times_is_refused(tmp_path: Path) -> None:
    torch.save({"encoder": {"norm.weight": torch.zeros(1).expand(10**12)}}, tmp_path / "wide.pt")
    assert (tmp_path / "wide.pt").stat().st_size < 2000
    with pytest.raises(ValueError, match=r"wide.pt .* its tensors claim 3,725.3 GB, the file has 1,\d{3} bytes"):
        read_torch(tmp_path / "wide.pt")


def test_damage_anywhere_in_the_pickle_is_one_kind_of_error(tmp_path: Path) -> None:
    torch.save({"a": torch.arange(4.0)}, tmp_path / "a.pt")
    whole = (tmp_path / "a.pt").read_bytes()
    start = whole.index(b"\x80\x02}")
    refused = 0
    for position in range(start, start + 180, 3):
        (tmp_path / "b.pt").write_bytes(whole[:position] + b"\xff" + whole[position + 1 :])
        try:  # a name may have changed, which is no damage; whatever else is raised fails the test
            read_torch(tmp_path / "b.pt")
        except ValueError:
            refused += 1
    assert refused > 30


def test_an_own_tensor_outlives_its_file_and_is_float32(tmp_path: Path) -> None:
    source = {
        "a": torch.randn(3000),
        "b": torch.randn(40, 50).bfloat16(),
        "c": torch.arange(5),
        "d": torch.randn(9, 7).T,
    }
    torch.save(source, tmp_path / "a.pt")
    content = read_torch(tmp_path / "a.pt")
    mine = {name: own(tensor) for name, tensor in content.items()}
    assert {name: tensor.dtype for name, tensor in mine.items()} == {
        "a": torch.float32, "b": torch.float32, "c": torch.int64, "d": torch.float32,
    }  # fmt: skip
    assert all(tensor.is_contiguous() for tensor in mine.values())
    assert all(torch.equal(mine[name].to(tensor.dtype), tensor) for name, tensor in source.items())
    for name, tensor in mine.items():
        assert tensor.data_ptr() != content[name].data_ptr()
        assert torch.equal(content[name], source[name])  # giving its pages back loses nothing
