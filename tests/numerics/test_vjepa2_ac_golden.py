"""V-JEPA 2-AC against the official code: outputs, and two training steps from a checkpoint in mid-training."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from lightning import Callback, LightningDataModule, LightningModule, Trainer
from torch import Tensor
from torch.optim import Optimizer
from torch.utils.data import DataLoader

from jepa_lightning.checkpoint_io import WeightsIO
from jepa_lightning.data import Trajectory
from jepa_lightning.loading import load_meta
from jepa_lightning.methods import VJEPA2AC
from jepa_lightning.schedules import WarmupStableDecay
from jepa_lightning.weights import open as open_weights

Golden = Callable[[str], dict[str, Any]]
PATH = Path(__file__).parent.parent / "golden" / "vjepa2_ac_tiny" / "checkpoint.pt"


class Recorder(Callback):
    """Losses, settings and gradients of each step; stops after the second."""

    def __init__(self) -> None:
        self.rows: list[dict[str, float]] = []
        self.gradients: list[dict[str, Tensor]] = []

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        named = pl_module.get_submodule("predictor").named_parameters()
        self.gradients.append({name: p.grad.clone() for name, p in named if p.grad is not None})
        self.settings = {name: optimizer.param_groups[0][name] for name in ("lr", "weight_decay")}
        assert optimizer.param_groups[1]["weight_decay"] == 0.0

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *rest: Any) -> None:
        logged = {
            name: trainer.callback_metrics[f"train/{name}"].item() for name in ("loss", "teacher_forcing", "rollout")
        }
        self.rows.append({**logged, **self.settings})
        trainer.should_stop = len(self.rows) == 2


class Batches(LightningDataModule):
    """One batch in each epoch; the checkpoint has finished the first."""

    def __init__(self, numbers: dict[str, Tensor]) -> None:
        super().__init__()
        self.batches = [batch_of(numbers), batch_of(numbers, "step1.")]

    def train_dataloader(self) -> DataLoader[Any]:
        assert self.trainer is not None
        return DataLoader([self.batches[self.trainer.current_epoch - 1]], batch_size=None)  # type: ignore[arg-type]


class Run(NamedTuple):
    about: dict[str, Any]
    numbers: dict[str, Tensor]
    untrained: VJEPA2AC
    trained: VJEPA2AC
    recorder: Recorder
    moments: dict[int, dict[str, Tensor]]


def batch_of(numbers: dict[str, Tensor], step: str = "") -> Trajectory:
    return Trajectory(*(numbers[f"{step}{name}"] for name in ("images", "actions", "states")))


def build(**options: Any) -> VJEPA2AC:
    module = load_meta(PATH, num_heads=3, predictor_num_heads=2, img_size=32, num_frames=16, auto_steps=2, **options)
    assert isinstance(module, VJEPA2AC)
    return module


@pytest.fixture(scope="module")
def run(golden: Golden) -> Run:
    about, numbers = golden("vjepa2_ac_tiny/golden.json"), golden("vjepa2_ac_tiny/golden.safetensors")
    schedule = about["schedule"]
    names = ("start_lr", "ref_lr", "final_lr", "warmup_epochs", "anneal_epochs")
    lr = WarmupStableDecay(*(schedule[name] for name in names))
    module, recorder = build(lr=lr), Recorder()
    trainer = Trainer(
        accelerator="cpu", devices=1, logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, max_epochs=schedule["epochs"], callbacks=[recorder], log_every_n_steps=1,
        reload_dataloaders_every_n_epochs=1, plugins=[WeightsIO(module, open_weights(PATH))],
    )  # fmt: skip
    for parameter in module.predictor.parameters():
        parameter.data.add_(1.0)  # what follows comes from the file
    trainer.fit(module, datamodule=Batches(numbers), ckpt_path=PATH, weights_only=True)
    moments = {id(parameter): state for parameter, state in trainer.optimizers[0].state.items()}
    return Run(about, numbers, build(), module, recorder, moments)


def assert_near(found: Tensor, expected: Tensor, tolerance: float = 1e-5) -> None:
    torch.testing.assert_close(found.detach().double(), expected.double(), rtol=0, atol=tolerance)


def test_outputs(run: Run) -> None:
    numbers, module = run.numbers, run.untrained
    given = [numbers[f"forward.{name}"] for name in ("features", "actions", "states")]
    assert_near(module.predictor(*given), numbers["forward.output"])
    assert_near(module.features(numbers["images"]), numbers["features"])
    features, actions, states = module.features(numbers["images"]), numbers["actions"], numbers["states"]
    forced = module.normalized(module.predictor(features[:, :64], actions, states[:, :4]))
    assert_near(forced, numbers["prediction_teacher_forcing"])
    sequence = torch.cat([features[:, :16], forced[:, :16]], dim=1)
    second = module.normalized(module.predictor(sequence, actions[:, :2], states[:, :2]))
    assert_near(torch.cat([forced[:, :16], second[:, 16:]], dim=1), numbers["prediction_rollout"])


def test_losses_and_settings_of_both_steps(run: Run) -> None:
    names = {"loss": "losses", "teacher_forcing": "losses_teacher_forcing", "rollout": "losses_rollout"}
    for step, row in enumerate(run.recorder.rows):
        for name, key in names.items():
            assert row[name] == pytest.approx(run.numbers[key][step].item(), abs=1e-6)
        for name in ("lr", "weight_decay"):
            assert row[name] == pytest.approx(run.numbers[name][step].item(), abs=1e-12)
    assert len(run.recorder.rows) == 2


def test_gradients(run: Run) -> None:
    first = run.recorder.gradients[0]
    norms = {
        name.removeprefix("grad_norm.predictor."): x
        for name, x in run.numbers.items()
        if "grad_norm.predictor." in name
    }
    assert set(first) == set(norms)
    for name, norm in norms.items():
        assert_near(first[name].double().norm(), norm, 2e-7)
    for name in run.about["full_gradients"]["predictor"]:
        assert_near(first[name], run.numbers[f"grad.predictor.{name}"], 1e-7)
    for step, gradients in enumerate(run.recorder.gradients):
        total = torch.cat([gradient.double().flatten() for gradient in gradients.values()]).norm()
        assert_near(total, run.numbers["grad_norm_total.predictor"][step], 1e-6)


def test_weights_and_moments_after_both_steps(run: Run) -> None:
    state = run.trained.predictor.state_dict()
    expected = {
        name.removeprefix("after.predictor."): x for name, x in run.numbers.items() if name.startswith("after.pre")
    }
    assert len(expected) > 20
    for name, tensor in expected.items():
        tolerance = torch.full(tensor.shape, 5e-6)
        if name.endswith("qkv.bias"):
            tolerance[len(tensor) // 3 : 2 * len(tensor) // 3] = 1e-5  # keys: rounding noise that AdamW magnifies
        assert ((state[name] - tensor).abs() <= tolerance).all(), name
    rows = []
    for name in run.about["digest_keys"]["predictor"]:
        x = state[name].double().flatten()
        weights = (torch.arange(len(x), dtype=torch.float64) + 1).sin()
        rows.append(torch.stack([x.sum(), x.abs().sum(), x.norm(), (x * weights).sum()]))
    torch.testing.assert_close(torch.stack(rows), run.numbers["after_digest.predictor"], rtol=5e-6, atol=4e-5)
    for name in run.about["moments"]["predictor"]:
        moments = run.moments[id(run.trained.predictor.get_parameter(name))]
        for moment in ("exp_avg", "exp_avg_sq"):
            assert_near(moments[moment], run.numbers[f"after_opt.predictor.{name}.{moment}"], 1e-8)
    assert {float(each["step"]) for each in run.moments.values()} == {3.0}


def test_the_encoder_is_the_target_encoder_of_the_file_and_does_not_change(run: Run) -> None:
    content = torch.load(PATH, weights_only=True)["target_encoder"]
    for module in (run.untrained, run.trained):
        state = module.target_encoder.state_dict()
        assert set(content) == {f"module.{name}" for name in state}
        assert all(torch.equal(content[f"module.{name}"], tensor) for name, tensor in state.items())
