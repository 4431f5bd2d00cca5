"""The page as a person uses it, in a real Chromium."""

from __future__ import annotations

import io
import shutil
import struct
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from threading import Thread
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from jepa_lightning import weights
from jepa_lightning.cli import main
from jepa_lightning.commands.explore import data_for, subject_of
from jepa_lightning.data.moving_digits import write_video
from jepa_lightning.explore import figures
from jepa_lightning.explore.items import Item, of_data
from jepa_lightning.explore.subject import Subject, similarity

dash = pytest.importorskip("dash")
playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: pip install '.[test]'")
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here: apt-get install chromium")
FLAGS = [
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
]  # fmt: skip
CheckpointFactory = Callable[..., str]
LOOK = ("input", "attends", "attended", "perplexity", "pca", "similarity")
SHOWN = "name => !!document.querySelector(`#${name} .js-plotly-plot .main-svg`)"
VALUES = """name => {
    const plot = document.querySelector(`#${name} .js-plotly-plot`);
    const heat = plot && plot._fullData && plot._fullData.find(trace => trace.type == 'heatmap');
    return heat ? Array.from(heat.z, row => Array.from(row)) : null;
}"""

AXES = """name => {
    const layout = document.querySelector(`#${name} .js-plotly-plot`)._fullLayout;
    return [layout.xaxis.range[1], layout.yaxis.range[0]];
}"""


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright.sync_playwright() as started:
        chromium = started.chromium.launch(executable_path=CHROMIUM, args=FLAGS, headless=True)
        yield chromium
        chromium.close()


class Visit:
    """A person at the page.

    Args:
        browser: Chromium.
        address: Of the page.
        folder: For pictures of the screen.
    """

    def __init__(self, browser: Any, address: str, folder: Path) -> None:
        self.page, self.folder, self.complaints, self.elsewhere = browser.new_page(), folder, [], []
        self.page.set_default_timeout(60_000)
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("console", lambda line: self.complaints.append(line.text) if line.type == "error" else None)
        self.page.on("request", lambda r: None if r.url.startswith((address, "data:", "blob:")) else self.note(r.url))
        self.page.goto(address)

    def note(self, url: str) -> None:
        self.elsewhere.append(url)

    def values(self, name: str) -> np.ndarray:
        return np.array(self.page.evaluate(VALUES, name), dtype=float)

    def wait(self, condition: Callable[[], Any]) -> None:
        """Until it is true; a minute at most, on a busy machine."""
        for _ in range(600):
            if condition():
                return
            self.page.wait_for_timeout(100)
        pytest.fail("the page does not show what was waited for: " + self.page.inner_text("body"))

    def click(self, name: str, column: int, row: int) -> None:
        """A patch of a picture."""
        axes = self.page.evaluate(AXES, name)
        self.page.mouse.click(*self.place(name, (column + 0.5) / axes[0], (row + 0.5) / axes[1]))

    def tab(self, title: str) -> None:
        self.page.get_by_text(title, exact=True).click()

    def choose(self, name: str, option: str) -> None:
        self.page.click(f"#{name}")
        self.page.get_by_text(option, exact=True).last.click()

    def place(self, name: str, x: float, y: float) -> tuple[float, float]:
        box = self.page.locator(f"#{name} .nsewdrag").first.bounding_box()
        return box["x"] + x * box["width"], box["y"] + y * box["height"]

    def drop(self, name: str, content: bytes) -> str:
        """Give it a file; what the page says."""
        self.page.evaluate("document.querySelector('#note').textContent = ''")
        before = self.page.inner_text("#item")
        file = {"name": name, "mimeType": "application/octet-stream", "buffer": content}
        self.page.locator("input[type=file]").set_input_files(file)
        self.wait(lambda: self.page.inner_text("#note") or self.page.inner_text("#item") != before)
        return str(self.page.inner_text("#note"))

    def is_content(self) -> None:
        """Nothing went wrong, and nothing came from another place."""
        assert self.complaints == []
        assert self.elsewhere == []

    def picture(self, name: str) -> None:
        self.page.screenshot(path=self.folder / f"{name}.png", full_page=True)


Open = Callable[..., Visit]


@pytest.fixture
def visit(browser: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Open]:
    """Runs `jepa explore` on a checkpoint, with a server that can be ended, and opens its page."""
    from werkzeug.serving import make_server

    running: list[Any] = []

    def serve(app: Any, host: str, port: int, **_: Any) -> None:
        running.append((app, make_server(host, port, app.server, threaded=True)))
        Thread(target=running[-1][1].serve_forever, daemon=True).start()

    def start(checkpoint: str, *options: str) -> Visit:
        main(["explore", "--ckpt_path", checkpoint, "--port", "0", *options])
        address = f"http://127.0.0.1:{running[-1][1].server_port}/"
        return Visit(browser, address, tmp_path)

    monkeypatch.setattr(dash.Dash, "run", serve)
    yield start
    for _, server in running:
        server.shutdown()
        server.server_close()


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory, save_checkpoint: CheckpointFactory) -> str:
    return save_checkpoint(tmp_path_factory.mktemp("images") / "a.ckpt", img_size=64)


def opened(checkpoint: str, root: Path) -> tuple[Subject, list[Item]]:
    """What the page should show."""
    subject = subject_of(weights.open(checkpoint))
    return subject, of_data(data_for(subject.encoder, {}, None, str(root)), 200)


def maps_of(subject: Subject, item: Item, patch: int, layer: int, head: int | None = None) -> dict[str, torch.Tensor]:
    attention = subject.attention(item.pixels, layer)
    attention = attention.mean(dim=0) if head is None else attention[head]
    alike = similarity(subject.tokens(item.pixels, layer), patch)
    return {"attends": attention[patch], "attended": attention[:, patch], "similarity": alike}


def shows(visit: Visit, expected: dict[str, torch.Tensor], grid: tuple[int, int, int] = (1, 8, 8)) -> None:
    """Waits for the maps."""

    def there() -> bool:
        found = {name: visit.values(name) for name in expected}
        wanted = {name: figures.as_strip(values, grid).numpy() for name, values in expected.items()}
        return all(
            found[name].shape == values.shape and np.allclose(found[name], values, atol=1e-5)
            for name, values in wanted.items()
        )

    visit.wait(there)


# ---------------------------------------------------------------------- looking


def test_a_click_a_layer_a_head_and_a_sample_change_what_is_seen(
    visit: Open, checkpoint: str, image_folder: Path
) -> None:
    subject, items = opened(checkpoint, image_folder)
    person = visit(checkpoint, "--root", str(image_folder))
    person.wait(lambda: all(person.page.evaluate(SHOWN, name) for name in LOOK))
    shows(person, maps_of(subject, items[0], 0, 1))
    person.click("pca", 5, 2)
    shows(person, maps_of(subject, items[0], 21, 1))
    person.picture("clicked")
    person.page.locator("#layer [role=slider]").press("ArrowLeft")
    shows(person, maps_of(subject, items[0], 21, 0))
    person.choose("head", "head 1")
    shows(person, maps_of(subject, items[0], 21, 0, 1))
    person.choose("item", items[2].title())
    shows(person, maps_of(subject, items[2], 21, 0, 1))
    assert person.page.evaluate("document.querySelector('#perplexity .js-plotly-plot').data[0].x.length") == 2
    person.tab("map of the samples")
    person.page.click("#draw")
    person.wait(lambda: "a map of 4 samples says nothing" in person.page.inner_text("#map"))
    person.is_content()


def test_a_mask_sampled_or_drawn_shows_surprise_and_what_is_expected(
    visit: Open, checkpoint: str, image_folder: Path
) -> None:
    subject, items = opened(checkpoint, image_folder)
    person = visit(checkpoint, "--root", str(image_folder))
    person.tab("what is expected")
    person.wait(lambda: "hide some patches" in person.page.inner_text("#surprise"))
    person.page.click("#sample")
    person.wait(lambda: "hidden patches" in person.page.inner_text("#says"))
    surprise = person.values("surprise").flatten()
    hidden = np.isfinite(surprise)
    assert f"{hidden.sum()} hidden patches" in person.page.inner_text("#says")
    expected = subject.expect(items[0].pixels, torch.tensor(hidden))
    np.testing.assert_allclose(surprise[hidden], expected.surprise, rtol=1e-4)
    token = int(np.flatnonzero(hidden)[0])
    person.click("surprise", token % 8, token // 8)
    person.wait(lambda: person.page.locator("#near img").count() == 8)
    assert f"expected at patch {token}:" in person.page.inner_text("#near")
    person.picture("expected")
    person.page.click("#clear")
    person.wait(lambda: "hide some patches" in person.page.inner_text("#surprise"))
    person.page.mouse.move(*person.place("mask", 0.02, 0.02))
    person.page.mouse.down()
    for share in (0.1, 0.2, 0.3):
        person.page.mouse.move(*person.place("mask", 1.2 * share, share))
    person.page.mouse.up()  # over the middles of three columns and two rows
    person.wait(lambda: np.isfinite(person.values("surprise")).sum() == 6)
    assert np.isfinite(person.values("surprise"))[:2, :3].all()
    person.click("mask", 7, 7)
    person.wait(lambda: np.isfinite(person.values("surprise")).sum() == 7)
    person.is_content()


# ---------------------------------------------------------------------- files


def encoded(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def huge() -> bytes:
    """A valid PNG of 40,000 x 40,000 white pixels: 200 kB, and 4.8 GB once it is decoded."""
    row = b"\0" + b"\xff" * 5000
    squeezed = zlib.compressobj()
    data = b"".join([squeezed.compress(row * 400) for _ in range(100)]) + squeezed.flush()
    chunks = [(b"IHDR", struct.pack(">IIBBBBB", 40_000, 40_000, 1, 0, 0, 0, 0)), (b"IDAT", data), (b"IEND", b"")]
    parts = [struct.pack(">I", len(c)) + kind + c + struct.pack(">I", zlib.crc32(kind + c)) for kind, c in chunks]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def test_a_wrong_a_huge_and_a_tiny_file_get_an_answer_and_the_page_lives_on(
    visit: Open, checkpoint: str, image_folder: Path
) -> None:
    person = visit(checkpoint, "--root", str(image_folder))
    person.wait(lambda: person.page.evaluate(SHOWN, "similarity"))
    said = person.drop("letter.txt", b"Dear Sir or Madam")
    assert said.startswith("letter.txt cannot be read as an image or a video (the image has no known format: ")
    assert "more than 89.5 million pixels" in person.drop("huge.png", huge())
    assert person.drop("film.mp4", b"no film at all").startswith("film.mp4 cannot be read as an image or a video")
    person.picture("refused")
    assert person.drop("pixel.png", encoded(Image.new("RGB", (1, 1), (255, 0, 0)))) == ""
    assert "pixel.png" in person.page.inner_text("#item")
    subject = subject_of(weights.open(checkpoint))
    pixel = Item(torch.tensor([255, 0, 0], dtype=torch.uint8).view(3, 1, 1, 1).expand(3, 1, 64, 64), "pixel.png")
    shows(person, {"attends": maps_of(subject, pixel, 0, 1)["attends"]})
    person.click("input", 3, 3)
    shows(person, {"attends": maps_of(subject, pixel, 27, 1)["attends"]})
    person.is_content()


# ---------------------------------------------------------------------- other checkpoints


def test_a_checkpoint_without_a_predictor_says_so_and_shows_the_rest(
    visit: Open, checkpoint: str, image_folder: Path, tmp_path: Path
) -> None:
    main(["export", "--ckpt_path", checkpoint, "--to", "safetensors", "--out", str(tmp_path / "alone")])
    (alone,) = (tmp_path / "alone").rglob("*.safetensors")
    person = visit(str(alone), "--root", str(image_folder))
    person.tab("what is expected")
    person.wait(lambda: person.page.evaluate(SHOWN, "mask"))
    person.page.click("#sample")
    person.wait(lambda: "this checkpoint has no predictor" in person.page.inner_text("#surprise"))
    person.picture("no_predictor")
    person.tab("attention and features")
    subject, items = opened(str(alone), image_folder)
    shows(person, maps_of(subject, items[0], 0, 1))
    person.is_content()


def test_clips_are_seen_frame_by_frame(visit: Open, save_checkpoint: CheckpointFactory, tmp_path: Path) -> None:
    path = save_checkpoint(tmp_path / "v.ckpt", "VJEPA", img_size=32, num_frames=4, tubelet_size=2)
    frames = np.random.default_rng(0).integers(0, 255, (3, 12, 40, 40, 3)).astype(np.uint8)
    for number, film in enumerate(frames):
        (tmp_path / "films" / "class0").mkdir(parents=True, exist_ok=True)
        write_video(tmp_path / "films" / "class0" / f"{number}.mp4", film)
    subject, items = opened(path, tmp_path / "films")
    person = visit(path, "--root", str(tmp_path / "films"))
    shows(person, maps_of(subject, items[0], 0, 1), (2, 4, 4))
    person.click("input", 6, 1)  # the second step in time, column 2
    shows(person, maps_of(subject, items[0], 16 + 6, 1), (2, 4, 4))
    person.picture("clip")
    assert person.drop("mine.mp4", (tmp_path / "films/class0/1.mp4").read_bytes()) == ""
    assert "mine.mp4" in person.page.inner_text("#item")
    person.tab("what is expected")
    person.wait(lambda: person.page.evaluate(SHOWN, "mask"))
    person.click("mask", 6, 1)
    person.wait(lambda: np.isfinite(person.values("surprise")).sum() == 1)
    assert np.isfinite(person.values("surprise")[1, 6])
    person.is_content()
