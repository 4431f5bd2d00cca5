from __future__ import annotations

import logging
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import yaml
from lightning import LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor, nn
from torch.utils.data import DataLoader

from jepa_lightning.callbacks import Alarm, ProgressBar
from jepa_lightning.callbacks.collapse import Vitals
from jepa_lightning.cli import main
from jepa_lightning.masking import MaskedBatch, MultiBlock
from jepa_lightning.methods import IJEPA
from jepa_lightning.models import Predictor, VisionTransformer
from jepa_lightning.schedules import Constant

IJEPAFactory = Callable[..., IJEPA]
TrainerFactory = Callable[..., Trainer]
CONFIGS = Path(__file__).parents[2] / "configs"
HEALTHY = [
    path.name
    for path in sorted(CONFIGS.glob("*.yaml"))
    if "checkpoint" not in yaml.safe_load(path.read_text())["model"]["init_args"]  # a probe
    and "class_path: Torchvision" not in path.read_text()  # not at hand
]


class Looking(Alarm):
    """Remembers what it saw."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.reasons: list[str] = []

    def judge(self, trainer: Trainer, vitals: Vitals) -> None:
        super().judge(trainer, vitals)
        self.reasons.append(self.reason)


class MeanOfContext(nn.Module):
    """No predictor: it says the same of every place."""

    def __init__(self, encoder: VisionTransformer) -> None:
        super().__init__()

    def forward(self, tokens: Tensor, context: Tensor, targets: Tensor, *rest: Any) -> Tensor:
        return tokens.mean(dim=1)[:, None, None].expand(-1, *targets.shape[1:], -1)


class SomeContext(nn.Module):
    """No predictor: it hands a context token on."""

    def __init__(self, encoder: VisionTransformer) -> None:
        super().__init__()

    def forward(self, tokens: Tensor, context: Tensor, targets: Tensor, *rest: Any) -> Tensor:
        index = (targets % tokens.shape[1]).flatten(1).unsqueeze(-1).expand(-1, -1, tokens.shape[2])
        return tokens.gather(1, index).reshape(*targets.shape, -1)


@pytest.fixture(scope="module")
def smooth_images() -> DataLoader[Any]:
    """Pictures whose parts can be predicted from each other."""
    torch.manual_seed(0)
    sampler = MultiBlock(4, min_keep=2, num_targets=2)
    pictures = [F.interpolate(torch.randn(32, 3, 6, 6), 32, mode="bilinear") for _ in range(6)]
    return DataLoader([MaskedBatch(x, sampler.sample(32)) for x in pictures], batch_size=None)  # type: ignore[arg-type]


@pytest.fixture
def small(tiny_ijepa: IJEPAFactory) -> IJEPAFactory:
    return partial(tiny_ijepa, VisionTransformer(32, 8, 3, 32, 2, 4, init_std=None), momentum=Constant(0.996))


COLLAPSES: dict[str, tuple[dict[str, Any], str, str]] = {
    "EMA momentum 0": ({"momentum": Constant(0.0)}, "target encoder does not lag", "--model.momentum"),
    "predictor removed": ({"predictor": MeanOfContext}, "predictions ignore the place", "--model.predictor"),
    "predictor that copies": ({"predictor": SomeContext}, "predictions are copies", "--model.predictor"),
    "predictor without blocks": (
        {"predictor": partial(Predictor, embed_dim=16, depth=0)}, "predictions ignore the input", "--model",
    ),
    "LR x 30": ({"lr": Constant(3e-2)}, "", "--model.lr"),
    "no number": ({"lr": Constant(1e12)}, "not finite", "--model.lr"),
}  # fmt: skip


@pytest.mark.parametrize("collapse", COLLAPSES)
def test_a_run_that_is_made_to_collapse_raises_the_alarm_and_stops(
    collapse: str,
    small: IJEPAFactory,
    smooth_images: DataLoader[Any],
    quiet_trainer: TrainerFactory,
    caplog: pytest.LogCaptureFixture,
) -> None:
    changed, reason, advice = COLLAPSES[collapse]
    alarm = Alarm(stop=True, stop_on_nan=False)
    trainer = quiet_trainer(max_steps=200, max_epochs=-1, callbacks=[alarm])
    with caplog.at_level(logging.INFO):
        trainer.fit(small(**changed), smooth_images)
    assert 20 < trainer.global_step <= 150
    assert alarm.reason
    assert alarm.reason.startswith(reason)
    (said,) = [record.getMessage() for record in caplog.records if "COLLAPSE ALARM" in record.getMessage()]
    assert f"Change first: {advice}" in said
    assert said.endswith("(training stops)")


def test_a_healthy_run_is_left_in_peace(
    small: IJEPAFactory,
    smooth_images: DataLoader[Any],
    quiet_trainer: TrainerFactory,
    caplog: pytest.LogCaptureFixture,
) -> None:
    alarm = Looking(stop=True, stop_on_nan=False)
    trainer = quiet_trainer(max_steps=120, max_epochs=-1, callbacks=[alarm])
    with caplog.at_level(logging.INFO):
        trainer.fit(small(), smooth_images)
    assert trainer.global_step == 120
    assert alarm.reasons == [""] * 12
    assert not [record for record in caplog.records if "ALARM" in record.getMessage()]


FAULTS = {
    "EMA momentum 0": (["--model.momentum=Constant", "--model.momentum.value=0"], "--model.momentum"),
    "predictor removed": (["--model.predictor.depth=0"], "--model"),
    "LR x 30": (["--model.lr.peak=3e-2"], "--model.lr"),
}


@pytest.mark.slow
@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("config", ["ijepa.yaml", "vjepa2.yaml"])
def test_a_shipped_configuration_that_is_made_to_collapse_is_stopped_within_200_steps(
    config: str, fault: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    changed, advice = FAULTS[fault]
    rate = yaml.safe_load((CONFIGS / config).read_text())["model"]["init_args"]["lr"]["init_args"]["peak"]
    changed = [option.replace("3e-2", str(30 * rate)) for option in changed]
    main(["fit", f"--config={config}", *changed, "--alarm.stop=true", "--trainer.limit_val_batches=0",
          "--probe.every_n_epochs=0", "--pictures.every_n_epochs=0"])  # fmt: skip
    (path,) = tmp_path.rglob("last.ckpt")
    assert 20 < torch.load(path, weights_only=True)["global_step"] <= 200
    events = EventAccumulator(str(path.parents[1])).Reload()
    (text,) = events.Tensors("alarm/text_summary")
    assert f"Change first: {advice}" in text.tensor_proto.string_val[0].decode()


@pytest.mark.slow
@pytest.mark.parametrize("config", HEALTHY)
def test_the_shipped_configurations_are_left_in_peace(
    config: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    main(["fit", f"--config={config}", "--alarm.stop=true", "--probe.every_n_epochs=0", "--pictures.every_n_epochs=0"])
    (folder,) = [path.parent for path in tmp_path.rglob("events.out*")]
    alarms = EventAccumulator(str(folder)).Reload().Scalars("health/alarm")
    assert len(alarms) > 10
    assert {alarm.value for alarm in alarms} == {0.0}


# ---------------------------------------------------------------------- when and where


def judged(values: list[float], patience: int = 2, measure: str = "target_std") -> list[bool]:
    """Whether the alarm was on after each look at one measure, by default the standard deviation of the targets."""
    alarm, trainer = Looking(patience=patience), Trainer(logger=False, accelerator="cpu", barebones=True)
    for value in values:
        alarm.judge(trainer, {"finite": 1.0, measure: value})
    return [bool(reason) for reason in alarm.reasons]


def test_a_sign_must_be_seen_in_several_looks_in_a_row() -> None:
    assert judged([1.0, 0.4, 0.9, 0.4, 0.9, 0.4]) == [False] * 6
    assert judged([1.0, 0.4, 0.4, 0.9]) == [False, False, True, True]


def test_context_tokens_may_share_a_direction_but_not_become_one() -> None:
    assert judged([0.9, 0.45, 0.4, 0.35, 0.45], measure="context_std") == [False] * 5
    assert judged([0.9, 0.45, 0.2, 0.2], measure="context_std") == [False, False, False, True]


def test_the_alarm_ends_when_the_signs_are_gone_for_long() -> None:
    assert judged([1.0, 0.4, 0.4] + [0.9] * 7) == [False, False] + [True] * 6 + [False] * 2
    assert all(judged([1.0, 0.4, 0.4] + 3 * [0.9, 0.9, 0.4])[2:])


def test_a_resumed_run_compares_with_the_best_value_of_the_whole_run() -> None:
    first, second = Looking(patience=1), Looking(patience=1)
    trainer = Trainer(logger=False, accelerator="cpu", barebones=True)
    first.judge(trainer, {"target_std": 1.0})
    second.load_state_dict(first.state_dict())
    second.judge(trainer, {"target_std": 0.4})
    assert second.reason == "targets become constant"


def test_the_alarm_is_in_the_progress_bar_and_in_tensorboard(
    small: IJEPAFactory, smooth_images: DataLoader[Any], quiet_trainer: TrainerFactory, tmp_path: Path
) -> None:
    alarm, bar = Alarm(every_n_steps=2, patience=1), ProgressBar()
    logger = TensorBoardLogger(tmp_path)
    trainer = quiet_trainer(
        max_steps=6, max_epochs=-1, callbacks=[alarm, bar], logger=logger, enable_progress_bar=True, log_every_n_steps=2
    )
    module = small(predictor=MeanOfContext)
    trainer.fit(module, smooth_images)
    assert bar.get_metrics(trainer, module)["COLLAPSE ALARM"] == "predictions ignore the place"
    events = EventAccumulator(logger.log_dir).Reload()
    assert [event.value for event in events.Scalars("health/alarm")] == [1.0, 1.0, 1.0]
    (text,) = events.Tensors("alarm/text_summary")
    assert b"the prediction is the same for all targets" in text.tensor_proto.string_val[0]


def test_the_alarm_can_be_turned_off_and_leaves_nothing_behind(
    small: IJEPAFactory, smooth_images: DataLoader[Any], quiet_trainer: TrainerFactory
) -> None:
    for every, looks in ((0, 0), (1, 4)):
        alarm, module = Looking(every_n_steps=every), small(predictor=MeanOfContext)
        quiet_trainer(max_steps=4, callbacks=[alarm]).fit(module, smooth_images)
        assert len(alarm.reasons) == looks
        assert module.observers == []


def test_an_impossible_patience_is_refused() -> None:
    with pytest.raises(ValueError, match="at least 1, got 0"):
        Alarm(patience=0)


class NoPrediction(IJEPA):
    """Looks like a method whose steps have nothing to observe."""

    def observe(self, step: Any) -> None:
        pass


def test_a_method_without_predictions_is_watched_by_what_it_encodes(
    tiny_encoder: Callable[..., VisionTransformer], smooth_images: DataLoader[Any], quiet_trainer: TrainerFactory
) -> None:
    class Forget(Alarm):
        def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, *rest: Any) -> None:
            if trainer.global_step == 40:  # all features become one
                for network in (pl_module.encoder, pl_module.target_encoder):
                    nn.init.zeros_(network.norm.weight)
                    nn.init.ones_(network.norm.bias[:3])
            super().on_train_batch_start(trainer, pl_module, *rest)

    schedules = {"lr": Constant(0.0), "weight_decay": Constant(0.0), "momentum": Constant(0.9)}
    module = NoPrediction(tiny_encoder(), partial(Predictor, embed_dim=16, depth=1), **schedules)
    alarm = Forget(stop=True)
    trainer = quiet_trainer(max_steps=200, max_epochs=-1, callbacks=[alarm])
    trainer.fit(module, smooth_images)
    assert 60 < trainer.global_step <= 120
    assert "targets become constant" in alarm.reason
