"""V-JEPA 2.1 against the official code: outputs, gradients, a step on clips and one on images with a real Trainer."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from lightning import Callback, LightningModule, Trainer
from torch import Tensor
from torch.optim import Optimizer
from torch.utils.data import DataLoader

from jepa_lightning.loading import load_encoder, load_meta
from jepa_lightning.masking import MaskedBatch, TokenMasks, gather_tokens
from jepa_lightning.methods import VJEPA21
from jepa_lightning.methods.vjepa21 import nearness
from jepa_lightning.schedules import Constant, WarmupCosine

Golden = Callable[[str], dict[str, Any]]
NETWORKS = ("encoder", "predictor", "target_encoder")
FILE = Path(__file__).parent.parent / "golden" / "vjepa21_tiny" / "checkpoint.pt"
SIZES: dict[str, int] = {"num_heads": 2, "predictor_num_heads": 2, "img_size": 64, "num_frames": 8}
BRANCHES = {"video": ("", ""), "image": ("step1.", "image_branch.")}
"""What stands before the names of the inputs and of the outputs."""


class Recorder(Callback):
    """Gradients, settings, losses and moments of each step."""

    def __init__(self) -> None:
        self.steps: list[dict[str, Any]] = []

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        gradients = {name: p.grad.clone() for name, p in pl_module.named_parameters() if p.grad is not None}
        group = optimizer.param_groups[0]
        self.steps.append({
            "gradients": gradients, "lr": group["lr"], "weight_decay": group["weight_decay"],
            "momentum": pl_module.schedule_values()["momentum"],
        })  # fmt: skip

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, outputs: Any, *rest: Any) -> None:
        shown = trainer.callback_metrics
        self.steps[-1] |= {name: shown[f"train/{name}"].item() for name in ("loss", "prediction", "context")}
        self.moments = {id(p): state for p, state in trainer.optimizers[0].state.items()}


class Run(NamedTuple):
    about: dict[str, Any]
    numbers: dict[str, Tensor]
    untrained: VJEPA21
    trained: VJEPA21
    recorder: Recorder


def build() -> VJEPA21:
    module = load_meta(
        FILE, **SIZES, context_weight=0.5, momentum=Constant(0.99925), weight_decay=Constant(0.04),
        lr=WarmupCosine(start=1e-4, peak=6e-4, final=6e-4, warmup_epochs=1), ipe_scale=1.25,
    )  # fmt: skip
    assert isinstance(module, VJEPA21)
    return module


def batch_of(numbers: dict[str, Tensor], step: str = "") -> MaskedBatch:
    masks = [
        TokenMasks(numbers[f"{step}masks_context.{i}"], numbers[f"{step}masks_target.{i}"].unsqueeze(1)) for i in (0, 1)
    ]
    return MaskedBatch(numbers[f"{step}images"], tuple(masks))


@pytest.fixture(scope="module")
def run(golden: Golden, tmp_path_factory: pytest.TempPathFactory) -> Run:
    about, numbers = golden("vjepa21_tiny/golden.json"), golden("vjepa21_tiny/golden.safetensors")
    module, recorder = build(), Recorder()
    trainer = Trainer(
        max_epochs=1, callbacks=[recorder], accelerator="cpu", devices=1, logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, default_root_dir=tmp_path_factory.mktemp("golden"),
        log_every_n_steps=1,
    )  # fmt: skip
    batches: Any = [batch_of(numbers), batch_of(numbers, "step1.")]
    trainer.fit(module, DataLoader(batches, batch_size=None))
    return Run(about, numbers, build(), module, recorder)


def assert_near(actual: Tensor, expected: Tensor, tolerance: float = 1e-5) -> None:
    torch.testing.assert_close(actual.detach().double(), expected.double(), rtol=0, atol=tolerance)


# ---------------------------------------------------------------------- forward


@pytest.mark.parametrize("branch", BRANCHES)
def test_dense_tokens_and_the_four_levels(run: Run, branch: str) -> None:
    inputs, outputs = BRANCHES[branch]
    pixels = run.numbers[f"{inputs}images"]
    assert_near(run.untrained.encoder(pixels), run.numbers[f"{outputs}encoder_dense"])
    levels = run.untrained.target_encoder(pixels, layers=run.untrained.encoder.levels)
    assert_near(torch.cat(levels, dim=-1), run.numbers[f"{outputs}target_full"])


def test_an_image_without_an_axis_of_time_is_the_same_image(run: Run) -> None:
    pixels = run.numbers["step1.images"]
    assert torch.equal(run.untrained.encoder(pixels[:, :, 0]), run.untrained.encoder(pixels))


def test_clips_of_another_size_and_length(run: Run) -> None:
    assert_near(run.untrained.encoder(run.numbers["nonsquare.images"]), run.numbers["nonsquare.output"])


def test_load_encoder_gives_the_dense_tokens_of_the_target_encoder(run: Run) -> None:
    encoder = load_encoder(FILE, **{name: size for name, size in SIZES.items() if name != "predictor_num_heads"})
    pixels = run.numbers["images"]
    assert torch.equal(encoder(pixels), run.untrained.target_encoder(pixels))
    assert_near(encoder(pixels), run.numbers["target_full"][..., -24:])


@pytest.mark.parametrize("branch", BRANCHES)
@pytest.mark.parametrize("family", [0, 1])
def test_context_targets_predictions_and_distances(run: Run, branch: str, family: int) -> None:
    (inputs, outputs), module, numbers = BRANCHES[branch], run.untrained, run.numbers
    batch = batch_of(numbers, inputs)
    masks, grid = batch.families()[family], module.encoder.grid_of(batch.inputs)
    context = module.predictor.reads(module.encoder, batch.inputs, masks.context)
    assert_near(context, numbers[f"{outputs}context.{family}"])
    features = module.features(batch.inputs)
    assert_near(gather_tokens(features, masks.targets)[:, 0], numbers[f"{outputs}target.{family}"])
    assert_near(gather_tokens(features, masks.context), numbers[f"{outputs}target_context.{family}"])
    predicted, recovered = module.predictor(context, *masks, 0, grid, image=branch == "image", with_context=True)
    assert_near(predicted[:, 0], numbers[f"{outputs}prediction.{family}"])
    assert_near(recovered[:, 0], numbers[f"{outputs}prediction_context.{family}"])
    assert_near(1 / nearness(masks, grid)[:, 0], numbers[f"{outputs}distance_sqrt.{family}"], 1e-6)


@pytest.mark.parametrize("branch", BRANCHES)
def test_losses(run: Run, branch: str) -> None:
    inputs, outputs = BRANCHES[branch]
    losses = run.untrained.losses(batch_of(run.numbers, inputs))
    names = {"loss": "loss", "prediction": "loss_prediction", "context": "loss_context_weighted"}
    for ours, theirs in names.items():
        assert_near(losses[ours], run.numbers[f"{outputs}{theirs}"], 1e-6)
    plain = build()
    plain.weight_by_distance = False
    assert_near(plain.losses(batch_of(run.numbers, inputs))["context"], run.numbers[f"{outputs}loss_context"], 1e-6)


def test_gradients_of_the_image_branch(run: Run) -> None:
    module = build()
    module.losses(batch_of(run.numbers, "step1."))["loss"].backward()
    prefix = "image_branch.grad_norm."
    names = [name.removeprefix(prefix) for name in run.numbers if name.startswith(prefix)]
    assert len(names) > 15
    for name in names:
        gradient = module.get_parameter(name).grad
        assert gradient is not None
        assert_near(gradient.double().norm(), run.numbers[f"{prefix}{name}"], 1e-7)
    assert module.encoder.video_mod_embed.grad is None
    assert module.encoder.patch_embed.get_parameter("proj.weight").grad is None


# ---------------------------------------------------------------------- the training steps


def test_gradients_of_both_steps(run: Run) -> None:
    norms = {name.removeprefix("grad_norm.") for name in run.numbers if name.startswith("grad_norm.")}
    first = run.recorder.steps[0]["gradients"]
    assert set(first) <= norms
    for name in norms:
        assert_near(first.get(name, torch.zeros(1)).double().norm(), run.numbers[f"grad_norm.{name}"], 1e-7)
    full = [name.removeprefix("grad.") for name in run.numbers if name.startswith("grad.")]
    assert len(full) == 7
    for name in full:
        assert_near(first[name], run.numbers[f"grad.{name}"], 1e-7)
    for network in ("encoder", "predictor"):
        for number, step in enumerate(run.recorder.steps):
            mine = [g.double().flatten() for name, g in step["gradients"].items() if name.startswith(network)]
            assert_near(torch.cat(mine).norm(), run.numbers[f"grad_norm_total.{network}"][number], 1e-6)


def test_values_of_both_steps(run: Run) -> None:
    names = {"loss": "losses", "prediction": "losses_prediction", "context": "losses_context_weighted"}
    for number, step in enumerate(run.recorder.steps):
        for ours, theirs in names.items():
            assert step[ours] == pytest.approx(run.numbers[theirs][number].item(), abs=1e-6)
        for name in ("lr", "weight_decay", "momentum"):
            assert step[name] == pytest.approx(run.numbers[name][number].item(), abs=1e-12)


@pytest.mark.parametrize("network", NETWORKS)
def test_parameters_after_both_steps(run: Run, network: str) -> None:
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
def test_sums_of_every_tensor_after_both_steps(run: Run, network: str) -> None:
    state = run.trained.get_submodule(network).state_dict()
    assert set(state) == set(run.about["digest_keys"][network])
    rows = []
    for name in run.about["digest_keys"][network]:
        x = state[name].double().flatten()
        weights = (torch.arange(len(x), dtype=torch.float64) + 1).sin()
        rows.append(torch.stack([x.sum(), x.abs().sum(), x.norm(), (x * weights).sum()]))
    torch.testing.assert_close(torch.stack(rows), run.numbers[f"after_digest.{network}"], rtol=5e-6, atol=4e-5)


def test_moments_after_both_steps(run: Run) -> None:
    names = [name.removeprefix("after_opt.") for name in run.numbers if name.startswith("after_opt.")]
    assert len(names) >= 4
    for name in names:
        parameter, moment = name.rsplit(".", 1)
        state = run.recorder.moments[id(run.trained.get_parameter(parameter))]
        assert_near(state[moment], run.numbers[f"after_opt.{name}"], 1e-8)
