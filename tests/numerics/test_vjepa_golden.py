"""V-JEPA and V-JEPA 2 against the official code: outputs, gradients, a training step through a real Trainer."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
import torch.nn.functional as F
from lightning import Callback, LightningModule, Trainer
from torch import Tensor
from torch.optim import Optimizer
from torch.utils.data import DataLoader

from jepa_lightning.loading import load_meta
from jepa_lightning.masking import MaskedBatch, TokenMasks, gather_tokens
from jepa_lightning.methods import VJEPA
from jepa_lightning.schedules import Constant

Golden = Callable[[str], dict[str, Any]]
NETWORKS = ("encoder", "predictor", "target_encoder")
FOLDER = Path(__file__).parent.parent / "golden"


class Recorder(Callback):
    """Gradients, settings and moments of the one training step."""

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        named = [
            (f"{network}.{name}", parameter)
            for network in ("encoder", "predictor")
            for name, parameter in pl_module.get_submodule(network).named_parameters()
        ]
        self.gradients = {name: p.grad.clone() for name, p in named if p.grad is not None}
        self.without_gradient = {name for name, p in named if p.grad is None}
        self.values = {"lr": optimizer.param_groups[0]["lr"], "weight_decay": optimizer.param_groups[0]["weight_decay"]}
        self.values["momentum"] = pl_module.schedule_values()["momentum"]

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, outputs: Any, *rest: Any) -> None:
        self.loss = outputs["loss"].item()
        self.variance = trainer.callback_metrics["train/variance"].item()
        self.moments = {id(p): state for p, state in trainer.optimizers[0].state.items()}


class Run(NamedTuple):
    about: dict[str, Any]
    numbers: dict[str, Tensor]
    untrained: VJEPA
    trained: VJEPA
    recorder: Recorder


def build(name: str, about: dict[str, Any]) -> VJEPA:
    encoder, schedule = about["model"]["encoder"], about["schedule"]
    return load_meta(
        FOLDER / name / "checkpoint.pt",
        num_heads=encoder["num_heads"],
        predictor_num_heads=about["model"]["predictor"]["num_heads"],
        img_size=encoder["img_size"],
        num_frames=encoder["num_frames"],
        lr=Constant(schedule["ref_lr"]),
        weight_decay=Constant(schedule["weight_decay"]),
        momentum=Constant(schedule["ema"][0]),
    )


def batch_of(numbers: dict[str, Tensor]) -> MaskedBatch:
    masks = [TokenMasks(numbers[f"masks_context.{i}"], numbers[f"masks_target.{i}"].unsqueeze(1)) for i in range(2)]
    return MaskedBatch(numbers["images"], tuple(masks))


@pytest.fixture(scope="module", params=["vjepa1_tiny", "vjepa2_tiny"])
def run(request: pytest.FixtureRequest, golden: Golden, tmp_path_factory: pytest.TempPathFactory) -> Run:
    about, numbers = golden(f"{request.param}/golden.json"), golden(f"{request.param}/golden.safetensors")
    module, recorder = build(request.param, about), Recorder()
    trainer = Trainer(
        max_epochs=1, callbacks=[recorder], accelerator="cpu", devices=1, logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, default_root_dir=tmp_path_factory.mktemp("golden"),
        gradient_clip_val=about["objective"].get("clip_grad") or None,
    )  # fmt: skip
    trainer.fit(module, DataLoader([batch_of(numbers)], batch_size=None))
    return Run(about, numbers, build(request.param, about), module, recorder)


@pytest.fixture
def first(golden: Golden) -> tuple[VJEPA, dict[str, Tensor]]:
    return build("vjepa1_tiny", golden("vjepa1_tiny/golden.json")), golden("vjepa1_tiny/golden.safetensors")


@pytest.fixture
def second(golden: Golden) -> tuple[VJEPA, dict[str, Tensor]]:
    return build("vjepa2_tiny", golden("vjepa2_tiny/golden.json")), golden("vjepa2_tiny/golden.safetensors")


def assert_near(actual: Tensor, expected: Tensor, tolerance: float = 1e-5) -> None:
    torch.testing.assert_close(actual.detach().double(), expected.double(), rtol=0, atol=tolerance)


# ---------------------------------------------------------------------- forward


@pytest.mark.parametrize(("network", "name"), [("encoder", "encoder_full"), ("target_encoder", "target_full")])
def test_tokens_of_the_whole_clip(run: Run, network: str, name: str) -> None:
    assert_near(run.untrained.get_submodule(network)(run.numbers["images"]), run.numbers[name])


def test_outputs_of_inner_blocks(run: Run) -> None:
    layers = run.untrained.encoder(run.numbers["images"], layers=[0, 1])
    for number, tokens in enumerate(layers):
        assert_near(tokens, run.numbers[f"out_layers.{number}"])


@pytest.mark.parametrize("family", [0, 1])
def test_context_targets_and_predictions(run: Run, family: int) -> None:
    module, numbers, masks = run.untrained, run.numbers, batch_of(run.numbers).masks[family]
    assert_near(module.encoder(numbers["images"], masks.context), numbers[f"context.{family}"])
    features = F.layer_norm(module.target_encoder(numbers["images"]), (module.embed_dim,))
    assert_near(gather_tokens(features, masks.targets[:, 0]), numbers[f"target.{family}"])
    token = 0 if module.share_mask_token else family
    assert_near(module.predictor(numbers[f"context.{family}"], *masks, token)[:, 0], numbers[f"prediction.{family}"])


def test_loss(run: Run) -> None:
    assert_near(run.untrained.losses(batch_of(run.numbers))["loss"], run.numbers["loss"], 1e-6)


def test_v1_interpolates_positions_to_another_size_and_length(first: tuple[VJEPA, dict[str, Tensor]]) -> None:
    module, numbers = first
    assert_near(module.encoder(numbers["interp.images"]), numbers["interp.output"])


def test_v2_takes_clips_that_are_not_square(second: tuple[VJEPA, dict[str, Tensor]]) -> None:
    module, numbers = second
    clip = numbers["nonsquare.images"]
    context, targets = numbers["nonsquare.masks_context"], numbers["nonsquare.masks_target"].unsqueeze(1)
    assert_near(module.encoder(clip), numbers["nonsquare.output"])
    tokens = module.encoder(clip, context)
    assert_near(tokens, numbers["nonsquare.context"])
    grid = module.encoder.grid_of(clip)
    assert grid == (2, 3, 6)
    predicted = module.predictor(tokens, context, targets, 0, grid)[:, 0]
    assert_near(predicted, numbers["nonsquare.prediction_true_grid"])
    square = module.predictor(tokens, context, targets, 0, (2, 3, 3))[:, 0]  # the official quirk
    assert_near(square, numbers["nonsquare.prediction"])


def test_v2_with_two_clip_lengths_in_a_step(second: tuple[VJEPA, dict[str, Tensor]]) -> None:
    module, numbers = second
    losses = []
    for family in (0, 1):
        masks = batch_of(numbers).masks[family]
        features = F.layer_norm(module.target_encoder(numbers["images"]), (48,))
        predicted = module.predictor(module.encoder(numbers["images"], masks.context), *masks, 0)
        losses.append((predicted - gather_tokens(features, masks.targets)).abs().mean())
    clip = numbers["multiseq.images.1"]
    grid, features = module.encoder.grid_of(clip), F.layer_norm(module.target_encoder(clip), (48,))
    for family in (0, 1):
        name = f"1.{family}"
        context, targets = numbers[f"multiseq.masks_context.{name}"], numbers[f"multiseq.masks_target.{name}"][:, None]
        tokens, target = module.encoder(clip, context), gather_tokens(features, targets)
        predicted = module.predictor(tokens, context, targets, 1, grid)
        assert_near(tokens, numbers[f"multiseq.context.{name}"])
        assert_near(target[:, 0], numbers[f"multiseq.target.{name}"])
        assert_near(predicted[:, 0], numbers[f"multiseq.prediction.{name}"])
        losses.append((predicted - target).abs().mean())
    loss = torch.stack(losses).mean()
    assert_near(loss, numbers["multiseq.loss"], 1e-6)
    loss.backward()
    for number, token in enumerate(module.predictor.mask_tokens):
        norm = torch.zeros(()) if token.grad is None else token.grad.norm()
        assert_near(norm, numbers[f"multiseq.grad_norm.mask_tokens.{number}"], 1e-7)


# ---------------------------------------------------------------------- the training step


def test_gradients(run: Run) -> None:
    norms = {name.removeprefix("grad_norm.") for name in run.numbers if name.startswith("grad_norm.")}
    assert set(run.recorder.gradients) <= norms
    for name in norms:
        gradient = run.recorder.gradients.get(name, torch.zeros(1))
        assert_near(gradient.double().norm(), run.numbers[f"grad_norm.{name}"], 1e-7)
    for name in (name.removeprefix("grad.") for name in run.numbers if name.startswith("grad.")):
        assert_near(run.recorder.gradients[name], run.numbers[f"grad.{name}"], 1e-7)
    for network in ("encoder", "predictor"):
        mine = [g.double().flatten() for name, g in run.recorder.gradients.items() if name.startswith(network)]
        assert_near(torch.cat(mine).norm(), run.numbers[f"grad_norm_total.{network}"].squeeze(), 1e-7)


def test_values_of_the_step(run: Run) -> None:
    assert run.recorder.loss == pytest.approx(run.numbers["losses"].item(), abs=1e-6)
    if "losses_reg" in run.numbers:
        assert run.recorder.variance == pytest.approx(run.numbers["losses_reg"].item(), abs=1e-6)
    for name, value in run.recorder.values.items():
        assert value == pytest.approx(run.numbers[name].item(), abs=1e-12)


@pytest.mark.parametrize("network", NETWORKS)
def test_parameters_after_the_step(run: Run, network: str) -> None:
    prefix = f"after.{network}."
    expected = {name.removeprefix(prefix): tensor for name, tensor in run.numbers.items() if name.startswith(prefix)}
    assert len(expected) >= 20
    state = run.trained.get_submodule(network).state_dict()
    for name, tensor in expected.items():
        tolerance = torch.full(tensor.shape, 5e-6)
        if name.endswith("qkv.bias"):
            tolerance[len(tensor) // 3 : 2 * len(tensor) // 3] = 1e-5  # keys: rounding noise that AdamW magnifies
        assert ((state[name] - tensor).abs() <= tolerance).all(), name


@pytest.mark.parametrize("network", NETWORKS)
def test_sums_of_every_tensor_after_the_step(run: Run, network: str) -> None:
    state = run.trained.get_submodule(network).state_dict()
    assert set(state) == set(run.about["digest_keys"][network])
    rows = []
    for name in run.about["digest_keys"][network]:
        x = state[name].double().flatten()
        weights = (torch.arange(len(x), dtype=torch.float64) + 1).sin()
        rows.append(torch.stack([x.sum(), x.abs().sum(), x.norm(), (x * weights).sum()]))
    torch.testing.assert_close(torch.stack(rows), run.numbers[f"after_digest.{network}"], rtol=5e-6, atol=4e-5)


def test_moments_after_the_step(run: Run) -> None:
    names = [name.removeprefix("after_opt.") for name in run.numbers if name.startswith("after_opt.")]
    assert len(names) >= 4
    for name in names:
        parameter, moment = name.rsplit(".", 1)
        state = run.recorder.moments[id(run.trained.get_parameter(parameter))]
        assert_near(state[moment], run.numbers[f"after_opt.{name}"], 1e-8)
