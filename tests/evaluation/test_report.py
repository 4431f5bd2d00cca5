from __future__ import annotations

import pytest
import torch

from jepa_lightning.evaluation import Features, knn_top1, linear_top1, score, table
from jepa_lightning.metrics import rankme


def test_scores_leave_out_samples_without_a_label_except_for_the_rank() -> None:
    train, held_out = (Features(torch.randn(90, 8), torch.randint(3, (90,))) for _ in range(2))
    unknown = torch.full((50,), -1)
    more = [Features(torch.cat([p.x, torch.randn(50, 8)]), torch.cat([p.y, unknown])) for p in (train, held_out)]
    scores = score(*more, k=5)
    assert scores["knn_top1"] == pytest.approx(knn_top1(train, held_out, 5))
    assert scores["linear_top1"] == pytest.approx(linear_top1(train, held_out))
    assert scores["rankme"] == pytest.approx(rankme(more[1].x).item())


def test_without_two_classes_only_the_rank_is_scored() -> None:
    one_class = Features(torch.randn(30, 8), torch.zeros(30, dtype=torch.long))
    no_class = Features(torch.randn(30, 8), torch.full((30,), -1))
    assert set(score(one_class, one_class, k=5)) == set(score(no_class, no_class, k=5)) == {"rankme"}


def test_the_table_has_a_column_for_each_encoder_and_percent_for_accuracies() -> None:
    text = table(
        {
            "random initialisation": {"rankme": 3.14159, "knn_top1": 0.1},
            "trained": {"rankme": 40.0, "knn_top1": 0.87654, "linear_top1": 0.9},
        }
    )
    lines = text.splitlines()
    assert lines[0].split("  ")[-1].strip() == "trained"
    assert "random initialisation" in lines[0]
    assert set(lines[1]) == {"-"}
    cells = {line.split("  ")[0].strip(): line.split()[-2:] for line in lines[2:]}
    assert cells == {
        "linear probe top-1 (%)": ["-", "90.0"],
        "k-NN top-1 (%)": ["10.0", "87.7"],
        "RankMe": ["3.1", "40.0"],
    }
    assert len({len(line) for line in lines}) == 1


def test_the_table_has_no_row_that_nobody_scored() -> None:
    assert "top-1" not in table({"trained": {"rankme": 2.0}})


def test_several_labels_are_scored_one_by_one_and_their_mean_is_the_main_figure() -> None:
    train, held_out = (Features(torch.randn(60, 4), torch.randint(2, (60, 2))) for _ in range(2))
    train.y[:, 1] = (train.x[:, 0] > 0).long()
    held_out.y[:, 1] = (held_out.x[:, 0] > 0).long()
    scores = score(train, held_out, 5, ("digit", "motion"))
    assert scores["linear_top1_motion"] == pytest.approx(linear_top1(train.task(1), held_out.task(1)))
    assert scores["linear_top1_motion"] > 0.9 > 0.7 > scores["linear_top1_digit"]
    assert scores["knn_top1"] == pytest.approx((scores["knn_top1_digit"] + scores["knn_top1_motion"]) / 2)
    names = [line.split("  ")[0] for line in table({"trained": scores}).splitlines()[2:]]
    assert names == [
        "linear probe top-1, digit (%)", "linear probe top-1, motion (%)", "k-NN top-1, digit (%)",
        "k-NN top-1, motion (%)", "RankMe",
    ]  # fmt: skip
