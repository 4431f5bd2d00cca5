from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from jepa_lightning.schedules import (
    Constant,
    Cosine,
    Linear,
    Ramp,
    Schedule,
    StepDecay,
    WarmupCosine,
    WarmupStableDecay,
)

GOLDEN: dict[str, Any] = json.loads((Path(__file__).parent / "golden" / "schedules.json").read_text())
KINDS = ("warmup_cosine", "linear_decay", "wsd")
ENTRIES = [name for name, entry in GOLDEN.items() if name != "about" and entry["kind"] in KINDS]
EXACT = {"rel": 1e-12, "abs": 0.0}


def learning_rate(kind: str, p: dict[str, Any]) -> Schedule:
    if kind == "linear_decay":  # V-JEPA 2's cool-down
        return WarmupStableDecay(p["ref_lr"], p["ref_lr"], p["final_lr"])
    if kind == "wsd":  # V-JEPA 2-AC
        return WarmupStableDecay(p["start_lr"], p["ref_lr"], p["final_lr"], p["warmup_epochs"], p["anneal_epochs"])
    return WarmupCosine(p["start_lr"], p["ref_lr"], p["final_lr"], float(p["warmup_epochs"]))


def of_entry(name: str) -> tuple[dict[str, Schedule], float, int, list[dict[str, float]]]:
    p, rows = GOLDEN[name]["parameters"], GOLDEN[name]["rows"]
    schedules = {
        "lr": learning_rate(GOLDEN[name]["kind"], p),
        "weight_decay": Cosine(p["weight_decay"], p["final_weight_decay"]),
    }
    if "ema" in p:  # the action-conditioned predictor has no target encoder
        schedules["momentum"] = Linear(*p["ema"])
    total = float(p.get("ipe_scale", 1.0)) * p["epochs"] * p["iterations_per_epoch"]
    return schedules, total, p["iterations_per_epoch"], rows


def test_the_golden_file_has_entries_with_many_rows() -> None:
    assert {"ijepa_vith14_in1k", "ijepa_every_step", "vjepa_vitl16"} <= set(ENTRIES)
    assert {"vjepa2_vitg16_pretrain", "vjepa2_vitg16_cooldown", "vjepa2_ac_vitg16"} <= set(ENTRIES)
    assert {GOLDEN[name]["kind"] for name in ENTRIES} == set(KINDS)
    assert all(len(GOLDEN[name]["rows"]) >= 4 for name in ENTRIES)
    assert [name for name in ENTRIES if any("momentum" not in row for row in GOLDEN[name]["rows"])] == [
        "vjepa2_ac_vitg16"
    ]


@pytest.mark.parametrize("name", ENTRIES)
def test_every_row_of_the_official_schedules_is_reproduced(name: str) -> None:
    schedules, total, per_epoch, rows = of_entry(name)
    assert int(total) == GOLDEN[name]["parameters"]["total_steps"]
    for row in rows:
        assert set(row) == {"step", *schedules}
        for value, schedule in schedules.items():
            assert schedule(row["step"], total, per_epoch) == pytest.approx(row[value], **EXACT), (value, row)


@pytest.mark.parametrize("name", ENTRIES)
def test_the_order_of_the_calls_does_not_matter(name: str) -> None:
    schedules, total, per_epoch, rows = of_entry(name)
    for schedule in schedules.values():
        forwards = [schedule(row["step"], total, per_epoch) for row in rows]
        backwards = [schedule(row["step"], total, per_epoch) for row in reversed(rows)]
        assert forwards == backwards[::-1]


@pytest.mark.parametrize(
    ("schedule", "final"),
    [
        (WarmupCosine(2e-4, 1e-3, 1e-6, 2.0), 1e-6),
        (WarmupStableDecay(2e-4, 1e-3, 1e-6, 2.0, 3.0), 1e-6),
        (Cosine(0.04, 0.4), 0.4),
        (Linear(0.996, 1.0), 1.0),
    ],
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


def test_a_plateau_lies_between_two_lines_that_are_counted_in_epochs() -> None:
    schedule = WarmupStableDecay(start=1.0, peak=3.0, final=2.0, warmup_epochs=0.5, decay_epochs=1.25)
    values = [schedule(step, 20.9, 4) for step in range(21)]  # 2 steps up, 13 flat, 5 down
    assert values[:3] == pytest.approx([1.0, 2.0, 3.0])
    assert set(values[2:16]) == {3.0}
    assert values[16:] == pytest.approx([2.8, 2.6, 2.4, 2.2, 2.0])


def test_without_a_length_the_decay_takes_all_that_is_left_after_the_warm_up() -> None:
    schedule = WarmupStableDecay(start=0.0, peak=1.0, final=0.0, warmup_epochs=1.0)
    assert [schedule(s, 8.0, 4) for s in range(9)] == pytest.approx([0.0, 0.25, 0.5, 0.75, 1.0, 0.75, 0.5, 0.25, 0.0])


def test_a_released_cool_down_that_is_stretched_never_reaches_its_final_value() -> None:
    cooldown = WarmupStableDecay(5.25e-4, 5.25e-4, 1e-6)
    assert cooldown(12_000, 1.25 * 12_000, 300) == pytest.approx(1.058e-4)
    assert cooldown(12_000, 12_000, 300) == pytest.approx(1e-6)


def test_a_ramp_is_0_then_a_line_then_its_value_by_finished_steps() -> None:
    ramp = Ramp(0.5, first_epoch=50, last_epoch=100)  # of V-JEPA 2.1: steps 15,000 and 30,000 of 300 an epoch
    values = {finished: ramp(finished + 1, 375_000, 300) for finished in (0, 14_999, 15_000, 22_500, 30_000, 10**6)}
    assert values == {0: 0, 14_999: 0, 15_000: 0, 22_500: 0.25, 30_000: 0.5, 10**6: 0.5}
    assert Ramp(0.5, 0, 0)(1, 10, 5) == 0.5
    with pytest.raises(ValueError, match="got 3 and 2"):
        Ramp(0.5, 3, 2)


def test_stairs_go_down_after_whole_stairs() -> None:
    schedule = StepDecay(2.0, factor=0.1, every_epochs=3)
    assert [schedule(s, 40.0, 4) for s in (1, 12, 13, 24, 25, 40)] == pytest.approx([2, 2, 0.2, 0.2, 0.02, 0.002])
    half = StepDecay(1.0, factor=0.5, every_epochs=0.5)
    assert [half(s, 8.0, 4) for s in range(1, 6)] == pytest.approx([1, 1, 0.5, 0.5, 0.25])
    with pytest.raises(ValueError, match="every_epochs must be above 0, got 0"):
        StepDecay(every_epochs=0)


def test_a_constant_ignores_the_step() -> None:
    assert {Constant(0.3)(step, total, 7) for step in (1, 2, 1000) for total in (0.0, 5.0)} == {0.3}


@pytest.mark.parametrize(
    "schedule",
    [
        WarmupCosine(0.1, 1.0, 0.2, 1.0),
        WarmupStableDecay(0.1, 1.0, 0.2, 1.0, 2.0),
        WarmupStableDecay(0.1, 1.0, 0.2),
        Cosine(0.1, 0.2),
        Linear(0.1, 0.2),
        StepDecay(0.1),
    ],
)
def test_a_run_of_no_or_one_step_has_finite_values(schedule: Schedule) -> None:
    assert all(math.isfinite(schedule(1, total, 1)) for total in (0.0, 0.5, 1.0))
