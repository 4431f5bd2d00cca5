from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from jepa_lightning.data.files import find_files, held_out, printable

STRANGE = [b"caf\xe9.jpg", b"\xff.jpg", b"a\rb.jpg", b"a\nb.jpg", "a\u2028b.jpg".encode()]


def touch(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
    return path


def test_files_are_found_by_their_extension_and_sorted(tmp_path: Path) -> None:
    for name in ("b/2.JPG", "b/1.png", "a.jpg", "b/c/3.jpg", "jpg", "b.jpg/notes.txt"):
        touch(tmp_path / name)
    assert find_files(tmp_path, {".jpg", ".png"}) == ["a.jpg", "b/1.png", "b/2.JPG", "b/c/3.jpg"]


def test_hidden_names_are_left_out_below_the_folder_but_it_may_be_hidden_itself(tmp_path: Path) -> None:
    root = tmp_path / ".cache"
    for name in ("cat/0.jpg", "cat/._0.jpg", ".ipynb_checkpoints/1.jpg", "__MACOSX/cat/0.jpg", "cat/.thumbs/0.jpg"):
        touch(root / name)
    assert find_files(root, {".jpg"}) == ["cat/0.jpg"]


def test_links_to_folders_are_followed_but_not_in_a_circle(tmp_path: Path) -> None:
    touch(tmp_path / "elsewhere/0.jpg")
    touch(tmp_path / "root/dog/1.jpg")
    (tmp_path / "root/cat").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "root/also").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere/up").symlink_to(tmp_path / "root")
    (tmp_path / "root/self").symlink_to("self")
    (tmp_path / "root/lost.jpg").symlink_to("nowhere")  # listed, so that it is named when it cannot be read
    with pytest.warns(UserWarning, match="is a link to a folder that it is in"):
        found = find_files(tmp_path / "root", {".jpg"})
    assert found == ["also/0.jpg", "cat/0.jpg", "dog/1.jpg", "lost.jpg"]


def test_a_folder_that_may_not_be_read_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("lost+found/0.jpg", "1.jpg"):
        touch(tmp_path / name)
    read = os.scandir

    def refuse(path: Path) -> Any:
        if path.name == "lost+found":
            raise PermissionError
        return read(path)

    monkeypatch.setattr("os.scandir", refuse)
    with pytest.warns(UserWarning, match=r"lost\+found may not be read"):
        assert find_files(tmp_path, {".jpg"}) == ["1.jpg"]


def test_any_file_name_can_be_found_and_printed(tmp_path: Path) -> None:
    for name in STRANGE:
        touch(tmp_path / os.fsdecode(name))
    found = find_files(tmp_path, {".jpg"})
    assert sorted(os.fsencode(name) for name in found) == sorted(STRANGE)
    for name in found:
        shown = printable(name)
        assert shown.encode().decode().splitlines() == [shown]
        assert json.loads(json.dumps(name)) == name
    assert printable("a\rb.jpg") == "a\\rb.jpg"
    assert printable("caf\udce9.jpg") == "caf\\udce9.jpg"
    for name in ("Straße 7.jpg", "写真　1.jpg", "a b\u00a0c.jpg"):
        assert printable(name) == name


def test_of_every_class_with_two_samples_one_is_held_out_and_one_is_not() -> None:
    names = [f"{number}.mp4" for number in range(40)]
    for fraction in (0.01, 0.1, 0.5, 0.99):
        labels = [number % 8 for number in range(40)]
        held = held_out(names, labels, fraction)
        for label in range(8):
            of_class = [out for out, other in zip(held, labels, strict=True) if other == label]
            assert 1 <= sum(of_class) <= 4
    assert held_out(names[:3], ["a", "b", "b"], 0.1)[0] is False  # a class of one is for training
    assert held_out(names, [0] * 40, 0.0) == [False] * 40
    assert sum(held_out(names, list(range(40)), 0.1)) == 1  # the loss of training has something to be compared with
    assert held_out(names[:1], [0], 0.1) == [False]


def test_large_classes_are_held_out_by_the_hash_of_each_name_alone() -> None:
    names = [f"cat/{number}.jpg" for number in range(2000)]
    one, two = held_out(names, [0] * 2000, 0.1), held_out(names, [n % 4 for n in range(2000)], 0.1)
    assert one == two == held_out([*names, "cat/more.jpg"], [0] * 2001, 0.1)[:2000]
    assert 150 < sum(one) < 250


@pytest.mark.parametrize("fraction", [-0.1, 1.0, 3.0])
def test_a_fraction_that_is_none_is_refused(fraction: float) -> None:
    with pytest.raises(ValueError, match=f"from 0 to below 1, not {fraction}"):
        held_out(["a"], [0], fraction)
