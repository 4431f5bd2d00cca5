from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from jepa_lightning.schedules import Constant, Cosine, Linear, Schedule, WarmupCosine

GOLDEN: dict[str, Any] = json.loads((Path(__file__).parent / "golden" / "schedules.json").read_text())
ENTRIES = [name for name, entry in GOLDEN.items() if name != "about" and entry["kind"] == "warmup_cosine"]
EXACT = {"rel": 1e-12, "abs": 0.0}


def of_entry(name: str) -> tuple[dict[str, Schedule], float, int, list[dict[str, float]]]:
    p = GOLDEN[name]["parameters"]
    schedules = {
        "lr": WarmupCosine(p["start_lr"], p["ref_lr"], p["final_lr"], float(p["warmup_epochs"])),
        "weight_decay": Cosine(p["weight_decay"], p["final_weight_decay"]),
        "momentum": Linear(*p["ema"]),
    }
    total = float(p["ipe_scale"]) * p["epochs"] * p["iterations_per_epoch"]
    return schedules, total, p["iterations_per_epoch"], GOLDEN[name]["rows"]


def test_the_golden_file_has_entries_with_many_rows() -> None:
    assert {"ijepa_vith14_in1k", "ijepa_every_step", "vjepa_vitl16"} <= set(ENTRIES)
    assert all(len(GOLDEN[name]["rows"]) >= 4 for name in ENTRIES)


@pytest.mark.parametrize("name", ENTRIES)
@pytest.mark.parametrize("value", ["lr", "weight_decay", "momentum"])
def test_every_row_of_the_official_schedules_is_reproduced(name: str, value: str) -> None:
    schedules, total, per_epoch, rows = of_entry(name)
    assert int(total) == GOLDEN[name]["parameters"]["total_steps"]
    for row in rows:
        assert schedules[value](row["step"], total, per_epoch) == pytest.approx(row[value], **EXACT), row


@pytest.mark.parametrize("name", ENTRIES)
def test_the_order_of_the_calls_does_not_matter(name: str) -> None:
    schedules, total, per_epoch, rows = of_entry(name)
    for schedule in schedules.values():
        forwards = [schedule(row["step"], total, per_epoch) for row in rows]
        backwards = [schedule(row["step"], total, per_epoch) for row in reversed(rows)]
        assert forwards == backwards[::-1]


@pytest.mark.parametrize(
    ("schedule", "final"),
    [(WarmupCosine(2e-4, 1e-3, 1e-6, 2.0), 1e-6), (Cosine(0.04, 0.4), 0.4), (Linear(0.996, 1.0), 1.0)],
)
def test_the_final_value_is_held_after_the_end(schedule: Schedule, final: float) -> None:
    total = 100.4
    for step in (102, 103, 150, 10_000):
        assert schedule(step, total, 10) == pytest.approx(final, **EXACT)


def test_the_length_is_rounded_down_for_lr_and_weight_decay_but_not_for_momentum() -> None:
    lr, weight_decay, momentum = WarmupCosine(0.0, 1.0, 0.1), Cosine(0.0, 1.0), Linear(0.5, 1.0)
    for step in (1, 4, 9):
        assert lr(step, 10.9, 5) == lr(step, 10.0, 5)
        assert weight_decay(step, 10.9, 5) == weight_decay(step, 10.0, 5)
        assert momentum(step, 10.9, 5) == pytest.approx(0.5 + (step - 1) / 10.9 * 0.5, **EXACT)


def test_warm_up_is_a_line_that_ends_at_the_peak_and_is_counted_in_epochs() -> None:
    schedule = WarmupCosine(start=1.0, peak=3.0, final=0.0, warmup_epochs=2.5)  # int(2.5 * 4) = 10 steps
    assert [schedule(step, 40.0, 4) for step in range(11)] == pytest.approx([1.0 + 0.2 * s for s in range(11)])
    assert schedule(11, 40.0, 4) < 3.0


def test_without_warm_up_the_cosine_starts_at_once() -> None:
    schedule = WarmupCosine(start=5.0, peak=1.0, final=0.0)
    assert schedule(0, 8.0, 4) == 1.0
    assert [schedule(s, 8.0, 4) for s in range(9)] == pytest.approx(
        [0.5 * (1.0 + math.cos(math.pi * s / 8)) for s in range(9)]
    )


def test_a_constant_ignores_the_step() -> None:
    assert {Constant(0.3)(step, total, 7) for step in (1, 2, 1000) for total in (0.0, 5.0)} == {0.3}


@pytest.mark.parametrize("schedule", [WarmupCosine(0.1, 1.0, 0.2, 1.0), Cosine(0.1, 0.2), Linear(0.1, 0.2)])
def test_a_run_of_no_or_one_step_has_finite_values(schedule: Schedule) -> None:
    assert all(math.isfinite(schedule(1, total, 1)) for total in (0.0, 0.5, 1.0))
