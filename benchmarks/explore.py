"""How long a person waits for `jepa explore`: a ViT-S/16 at 224 pixels (384 wide, 12 blocks, 22 M parameters).

Asks the server what a browser asks it: the page with its first figures, a click on a patch of a sample that was not
looked at before, of one that was, another layer, and hidden patches; each for several samples, of random networks and
noise, whose cost is that of trained ones and photographs. A browser's own work, some tenths of a second, is not in it.

    python benchmarks/explore.py [--samples 8]
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch

from jepa_lightning.explore.answers import Answers
from jepa_lightning.explore.items import Item
from jepa_lightning.explore.page import page
from jepa_lightning.explore.subject import Subject
from jepa_lightning.masking import MultiBlock
from jepa_lightning.models import Predictor, VisionTransformer

HERE = {"Host": "127.0.0.1"}


class Browser:
    """Asks a page as a browser does.

    Args:
        answers: What the page asks.
    """

    def __init__(self, answers: Answers) -> None:
        self.client = page(answers, "benchmark").server.test_client()

    def load(self) -> None:
        """The page, its layout, and the figures that it shows first."""
        for address in ("/", "/_dash-layout", "/_dash-dependencies"):
            self.client.get(address, headers=HERE).get_data()
        self.look(0, 0)
        self.ask("mask.figure", {"hidden": [], "item": 0}, {})

    def look(self, item: int, patch: int, layer: int = 11) -> None:
        """What a click on a patch asks."""
        self.ask("..input.figure", {"item": item, "patch": patch, "layer": layer, "head": -1, "opacity": 0.6}, {})

    def hide(self, item: int, hidden: list[int], output: str) -> None:
        """What hiding patches asks."""
        self.ask(output, {"hidden": hidden}, {"item": item})

    def ask(self, output: str, inputs: dict[str, Any], state: dict[str, Any]) -> None:
        """One callback, found by its first output."""
        listed = self.client.get("/_dash-dependencies", headers=HERE).get_json()
        (found,) = [one for one in listed if one["output"].startswith(output)]
        names = found["output"].strip(".").split("...")
        parts = [dict(zip(("id", "property"), name.split("."), strict=True)) for name in names]
        body = {
            "output": found["output"],
            "outputs": parts if found["output"].startswith("..") else parts[0],
            "inputs": [{**one, "value": inputs[one["id"]]} for one in found["inputs"]],
            "state": [{**one, "value": state[one["id"]]} for one in found["state"]],
            "changedPropIds": [f"{found['inputs'][0]['id']}.{found['inputs'][0]['property']}"],
        }
        response = self.client.post("/_dash-update-component", json=body, headers=HERE)
        assert response.status_code == 200, response.get_data(as_text=True)


def network() -> Subject:
    """A random ViT-S/16 with the predictor that goes with it."""
    encoder = VisionTransformer(img_size=224, patch_size=16, embed_dim=384, depth=12, num_heads=6).eval()
    predictor = Predictor(encoder, embed_dim=384, depth=6).eval()
    return Subject(encoder, encoder, predictor, (0.5,) * 3, (0.25,) * 3)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=8, help="how many are looked at (8)")
    options = parser.parse_args(arguments)
    torch.manual_seed(0)
    pixels = torch.randint(256, (options.samples + 1, 3, 1, 224, 224), dtype=torch.uint8)
    items = [Item(clip, f"sample {number}") for number, clip in enumerate(pixels)]
    browser = Browser(Answers(network(), items, MultiBlock((1, 14, 14))))
    hidden = [14 * row + column for row in range(4, 9) for column in range(5, 10)]
    print(f"{os.cpu_count()} CPU cores; torch {torch.__version__}, {torch.get_num_threads()} threads\n")
    print("| what | seconds, median | slowest |\n|---|---:|---:|")
    report("page, with its first figures", [timed(browser.load)])
    numbers = range(1, options.samples + 1)
    report("click on a patch of a new sample", [timed(lambda n=n: browser.look(n, 40)) for n in numbers])
    report("click on another patch", [timed(lambda p=p: browser.look(options.samples, p)) for p in range(50, 58)])
    report("another layer", [timed(lambda k=k: browser.look(options.samples, 40, k)) for k in range(11)])
    report("surprise at hidden patches", [timed(lambda n=n: browser.hide(n, hidden, "..surprise")) for n in numbers])
    report("patches like the expectation, first time", [timed(lambda: browser.hide(1, hidden, "..expected"))])
    report("likewise, later", [timed(lambda n=n: browser.hide(n, hidden, "..expected")) for n in numbers])


def timed(do: Callable[[], None]) -> float:
    """Seconds."""
    start = time.perf_counter()
    do()
    return time.perf_counter() - start


def report(what: str, seconds: Sequence[float]) -> None:
    """A row of the table."""
    print(f"| {what} | {statistics.median(seconds):.2f} | {max(seconds):.2f} |", flush=True)


if __name__ == "__main__":
    main()
