from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from lightning import Callback, LightningModule, Trainer
from torch import Tensor
from torch.optim import Optimizer
from torch.utils.data import DataLoader

from jepa_lightning.loading import load_meta
from jepa_lightning.masking import MaskedBatch, TokenMasks, gather_tokens
from jepa_lightning.methods import IJEPA
from jepa_lightning.schedules import Cosine, Linear, WarmupCosine

Golden = Callable[[str], dict[str, Any]]
NETWORKS = ("encoder", "predictor", "target_encoder")


def batch_of(numbers: dict[str, Tensor], step: int) -> MaskedBatch:
    prefix = f"step{step}." if step else ""
    targets = torch.stack([numbers[f"{prefix}masks_target.{i}"] for i in range(4)], dim=1)
    return MaskedBatch(numbers[f"{prefix}images"], (TokenMasks(numbers[f"{prefix}masks_context.0"], targets),))


def rows_by_block(tokens: Tensor) -> Tensor:
    return tokens.transpose(0, 1).flatten(0, 1)  # (B, M, Nt, D) -> (M * B, Nt, D), the official order


def build(checkpoint: Path, about: dict[str, Any]) -> IJEPA:
    s = about["schedule"]
    return load_meta(
        checkpoint,
        num_heads=about["model"]["encoder"]["num_heads"],
        predictor_num_heads=about["model"]["predictor"]["num_heads"],
        lr=WarmupCosine(s["start_lr"], s["ref_lr"], s["final_lr"], s["warmup_epochs"]),
        weight_decay=Cosine(s["weight_decay"], s["final_weight_decay"]),
        momentum=Linear(*s["ema"]),
        betas=tuple(about["optimizer"]["betas"]),
        ipe_scale=s["ipe_scale"],
    )


class Recorder(Callback):
    """Everything that the golden file knows about a training step."""

    def __init__(self) -> None:
        self.gradients: dict[str, Tensor] = {}
        self.rows: list[dict[str, float]] = []
        self.optimizer: dict[int, dict[str, Tensor]] = {}

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        row = {"lr": optimizer.param_groups[0]["lr"], "weight_decay": optimizer.param_groups[0]["weight_decay"]}
        row["momentum"] = pl_module.schedule_values()["momentum"]
        for network in ("encoder", "predictor"):
            gradients = {n: p.grad.clone() for n, p in pl_module.get_submodule(network).named_parameters()}
            if trainer.global_step == 0:
                self.gradients.update({f"{network}.{name}": g for name, g in gradients.items()})
            row[f"grad_norm_total.{network}"] = float(
                torch.cat([g.double().flatten() for g in gradients.values()]).norm()
            )
        self.rows.append(row)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self.rows[-1]["losses"] = outputs["loss"].item()
        self.optimizer = {id(p): state for p, state in trainer.optimizers[0].state.items()}


@pytest.fixture(scope="module")
def about(golden: Golden) -> dict[str, Any]:
    return golden("ijepa_tiny/golden.json")


@pytest.fixture(scope="module")
def numbers(golden: Golden) -> dict[str, Tensor]:
    return golden("ijepa_tiny/golden.safetensors")


@pytest.fixture
def untrained(golden_checkpoint: Path, about: dict[str, Any]) -> IJEPA:
    return build(golden_checkpoint, about)


@pytest.fixture(scope="module")
def trained(
    golden_checkpoint: Path, about: dict[str, Any], numbers: dict[str, Tensor], tmp_path_factory: Any
) -> tuple[IJEPA, Recorder]:
    module, recorder = build(golden_checkpoint, about), Recorder()
    trainer = Trainer(
        max_epochs=about["schedule"]["epochs"],
        callbacks=[recorder],
        accelerator="cpu",
        devices=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=tmp_path_factory.mktemp("golden"),
    )
    batches: Any = [batch_of(numbers, step) for step in range(about["steps"])]
    trainer.fit(module, DataLoader(batches, batch_size=None))
    return module, recorder


def assert_near(actual: Tensor, expected: Tensor, tolerance: float) -> None:
    torch.testing.assert_close(actual.detach().double(), expected.double(), rtol=0, atol=tolerance)


# ---------------------------------------------------------------------- forward


@pytest.mark.parametrize(("network", "name"), [("encoder", "encoder_full"), ("target_encoder", "target_full")])
def test_tokens_of_the_whole_image(untrained: IJEPA, numbers: dict[str, Tensor], network: str, name: str) -> None:
    assert_near(untrained.get_submodule(network)(numbers["images"]), numbers[name], 1e-5)


def test_context_tokens(untrained: IJEPA, numbers: dict[str, Tensor]) -> None:
    context = untrained.encoder(numbers["images"], numbers["masks_context.0"])
    assert_near(context, numbers["context"], 1e-5)


def test_predictions(untrained: IJEPA, numbers: dict[str, Tensor]) -> None:
    predicted = untrained.predictor(numbers["context"], *batch_of(numbers, 0).masks[0])
    assert_near(rows_by_block(predicted), numbers["prediction"], 1e-5)


def test_targets(untrained: IJEPA, numbers: dict[str, Tensor]) -> None:
    features = F.layer_norm(untrained.target_encoder(numbers["images"]), (untrained.embed_dim,))
    target = gather_tokens(features, batch_of(numbers, 0).masks[0].targets)
    assert_near(rows_by_block(target), numbers["target"], 1e-5)


def test_loss_of_the_first_step(untrained: IJEPA, numbers: dict[str, Tensor]) -> None:
    assert_near(untrained.losses(batch_of(numbers, 0))["loss"], numbers["loss"], 1e-6)


# ---------------------------------------------------------------------- four training steps


def test_every_gradient_norm_of_the_first_step(trained: tuple[IJEPA, Recorder], numbers: dict[str, Tensor]) -> None:
    _, recorder = trained
    assert {f"grad_norm.{name}" for name in recorder.gradients} == {
        name for name in numbers if name.startswith("grad_norm.")
    }
    for name, gradient in recorder.gradients.items():
        assert_near(gradient.double().norm(), numbers[f"grad_norm.{name}"], 1e-7)


def test_gradients_of_the_first_step(trained: tuple[IJEPA, Recorder], numbers: dict[str, Tensor]) -> None:
    names = [name.removeprefix("grad.") for name in numbers if name.startswith("grad.")]
    assert len(names) == 3
    for name in names:
        assert_near(trained[1].gradients[name], numbers[f"grad.{name}"], 1e-7)


@pytest.mark.parametrize(
    ("name", "tolerance"),
    [
        ("losses", 1e-6),
        ("lr", 1e-15),
        ("weight_decay", 1e-12),
        ("momentum", 1e-12),
        ("grad_norm_total.encoder", 1e-7),
        ("grad_norm_total.predictor", 1e-7),
    ],
)
def test_values_of_every_step(
    trained: tuple[IJEPA, Recorder], numbers: dict[str, Tensor], name: str, tolerance: float
) -> None:
    recorded = torch.tensor([row[name] for row in trained[1].rows], dtype=torch.float64)
    assert len(recorded) == 4
    assert_near(recorded, numbers[name], tolerance)


@pytest.mark.parametrize("network", NETWORKS)
def test_parameters_after_the_last_step(
    trained: tuple[IJEPA, Recorder], numbers: dict[str, Tensor], network: str
) -> None:
    prefix = f"after.{network}."
    expected = {name.removeprefix(prefix): tensor for name, tensor in numbers.items() if name.startswith(prefix)}
    assert len(expected) > 20
    state = trained[0].get_submodule(network).state_dict()
    for name, tensor in expected.items():
        tolerance = torch.full(tensor.shape, 5e-6)
        if name.endswith("qkv.bias"):
            tolerance[len(tensor) // 3 : 2 * len(tensor) // 3] = 1e-5  # keys: rounding noise that AdamW magnifies
        assert ((state[name] - tensor).abs() <= tolerance).all(), name


@pytest.mark.parametrize("network", NETWORKS)
def test_sums_of_every_tensor_after_the_last_step(
    trained: tuple[IJEPA, Recorder], numbers: dict[str, Tensor], about: dict[str, Any], network: str
) -> None:
    state, rows = trained[0].get_submodule(network).state_dict(), []
    assert list(state) == about["digest_keys"][network]
    for tensor in state.values():
        x = tensor.double().flatten()
        weights = (torch.arange(len(x), dtype=torch.float64) + 1).sin()
        rows.append(torch.stack([x.sum(), x.abs().sum(), x.norm(), (x * weights).sum()]))
    torch.testing.assert_close(torch.stack(rows), numbers[f"after_digest.{network}"], rtol=5e-6, atol=1e-5)


def test_optimizer_moments_after_the_last_step(trained: tuple[IJEPA, Recorder], numbers: dict[str, Tensor]) -> None:
    module, recorder = trained
    names = [name.removeprefix("after_opt.") for name in numbers if name.startswith("after_opt.")]
    assert len(names) == 6
    for name in names:
        parameter, moment = name.rsplit(".", 1)
        state = recorder.optimizer[id(module.get_parameter(parameter))]
        assert_near(state[moment], numbers[f"after_opt.{name}"], 1e-8)


def test_every_number_of_the_file_is_compared(numbers: dict[str, Tensor]) -> None:
    single = {"images", "encoder_full", "target_full", "context", "prediction", "target", "loss", "losses", "lr"}
    single |= {"weight_decay", "momentum"}
    groups = ("masks_", "step", "grad.", "grad_norm.", "grad_norm_total.", "after.", "after_digest.", "after_opt.")
    assert not [name for name in numbers if name not in single and not name.startswith(groups)]
