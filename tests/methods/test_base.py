from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor
from torch.optim import Optimizer
from torch.utils.data import DataLoader

from jepa_lightning.losses import SIGReg
from jepa_lightning.masking import MaskedBatch
from jepa_lightning.methods import IJEPA, JEPA
from jepa_lightning.models import BlockOptions, VisionTransformer
from jepa_lightning.schedules import Cosine, Linear, WarmupCosine

EncoderFactory = Callable[..., VisionTransformer]
IJEPAFactory = Callable[..., IJEPA]
BatchFactory = Callable[..., MaskedBatch]
TrainerFactory = Callable[..., Trainer]
MOVED = "target_encoder.blocks.0.attn.qkv.weight"


def loader(batches: list[MaskedBatch]) -> DataLoader[Any]:
    return DataLoader(batches, batch_size=None)  # type: ignore[arg-type]


def copied(module: torch.nn.Module) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in module.state_dict().items()}


class Twin(Callback):
    """Averages the encoder itself, once for each optimizer step, from what it sees from outside."""

    def __init__(self, momentum: Callable[[int], float]) -> None:
        self.momentum, self.steps, self.batches = momentum, 0, 0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.average = copied(pl_module.target_encoder)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self.batches += 1
        if trainer.global_step > self.steps:
            self.steps = trainer.global_step
            m = self.momentum(self.steps)
            for name, tensor in pl_module.encoder.named_parameters():
                self.average[name] = m * self.average[name] + (1 - m) * tensor.detach()

    def assert_equal(self, module: JEPA) -> None:
        for name, tensor in module.target_encoder.state_dict().items():
            torch.testing.assert_close(tensor, self.average[name], rtol=0, atol=1e-6)


class Recorder(Callback):
    """What the optimizer is set to when it steps."""

    def __init__(self) -> None:
        self.rows: list[dict[str, Any]] = []

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        groups = optimizer.param_groups
        self.rows.append(
            {
                "step": trainer.global_step + 1,
                "lr": {group["lr"] for group in groups},
                "decayed": {group["weight_decay"] for group in groups if group["decay"]},
                "others": {group["weight_decay"] for group in groups if not group["decay"]},
            }
        )


# ---------------------------------------------------------------------- the target encoder


def test_the_average_moves_once_per_optimizer_step_under_gradient_accumulation(
    tiny_ijepa: IJEPAFactory, tiny_batch: BatchFactory, quiet_trainer: TrainerFactory
) -> None:
    momentum = Linear(0.5, 1.0)
    module = tiny_ijepa(momentum=momentum)
    twin = Twin(lambda step: momentum(step, 6.0, 3))
    trainer = quiet_trainer(max_epochs=2, accumulate_grad_batches=2, callbacks=[twin])
    trainer.fit(module, loader([tiny_batch() for _ in range(5)]))
    assert (twin.batches, twin.steps) == (10, 6)
    twin.assert_equal(module)
    assert (module.target_encoder.norm.weight - module.encoder.norm.weight).abs().max() > 0


def test_the_average_moves_once_per_batch_without_accumulation(
    tiny_ijepa: IJEPAFactory, tiny_batch: BatchFactory, quiet_trainer: TrainerFactory
) -> None:
    module, twin = tiny_ijepa(), Twin(lambda step: 0.9)
    quiet_trainer(max_steps=3, callbacks=[twin]).fit(module, loader([tiny_batch() for _ in range(4)]))
    assert (twin.batches, twin.steps) == (3, 3)
    twin.assert_equal(module)


class Finished(Callback):
    """The state between two batches, by optimizer step."""

    def __init__(self) -> None:
        self.states: dict[int, dict[str, Tensor]] = {}

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:
        self.states[trainer.global_step] = copied(pl_module)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.states[trainer.global_step] = copied(pl_module)


@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_checkpoint_that_lightning_writes_when_a_batch_ends_holds_the_update_of_that_step(
    accumulate: int, tiny_ijepa: IJEPAFactory, tiny_batch: BatchFactory, quiet_trainer: TrainerFactory, tmp_path: Path
) -> None:
    saver = ModelCheckpoint(tmp_path, "{step}", every_n_train_steps=1, save_top_k=-1)
    finished, twin, module = Finished(), Twin(lambda step: 0.9), tiny_ijepa()
    trainer = quiet_trainer(
        max_epochs=1, callbacks=[saver, finished, twin], enable_checkpointing=True, accumulate_grad_batches=accumulate
    )
    trainer.fit(module, loader([tiny_batch() for _ in range(6)]))
    saved = {step: tmp_path / f"step={step}.ckpt" for step in range(1, 6 // accumulate + 1)}
    assert sorted(saved.values()) == sorted(tmp_path.glob("*.ckpt"))
    for step, path in saved.items():
        state = torch.load(path, weights_only=True)["state_dict"]
        assert state.keys() == finished.states[step].keys()
        assert all(torch.equal(state[name], tensor) for name, tensor in finished.states[step].items())
        assert not torch.equal(state[MOVED], finished.states[step - 1][MOVED])
    twin.assert_equal(module)  # saving did not move it twice


@pytest.mark.parametrize("when", ["in validation", "on an error"])
def test_a_checkpoint_that_lightning_writes_elsewhere_holds_the_last_update(
    when: str, tiny_ijepa: IJEPAFactory, tiny_batch: BatchFactory, quiet_trainer: TrainerFactory, tmp_path: Path
) -> None:
    class Fail(Callback):
        def on_train_batch_end(self, trainer: Trainer, *args: Any) -> None:
            if trainer.global_step == 2:
                raise RuntimeError("stopped by the test")

        def on_exception(self, trainer: Trainer, *args: Any) -> None:
            trainer.save_checkpoint(tmp_path / "saved.ckpt")

    saver = ModelCheckpoint(tmp_path, "saved", monitor="val/loss", save_on_train_epoch_end=False)
    callback = saver if when == "in validation" else Fail()
    twin, module, batches = Twin(lambda step: 0.9), tiny_ijepa(), [tiny_batch() for _ in range(3)]
    trainer = quiet_trainer(max_epochs=1, callbacks=[twin, callback], enable_checkpointing=True)
    with pytest.raises(RuntimeError, match="stopped by the test") if when == "on an error" else nullcontext():
        trainer.fit(module, loader(batches), loader(batches[:1]))
    twin.assert_equal(module)
    saved = torch.load(tmp_path / "saved.ckpt", weights_only=True)["state_dict"]
    assert all(torch.equal(saved[name], tensor) for name, tensor in module.state_dict().items())


def test_reading_the_state_changes_nothing(
    tiny_ijepa: IJEPAFactory, tiny_batch: BatchFactory, quiet_trainer: TrainerFactory
) -> None:
    class Read(Callback):
        def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:
            before = pl_module.target_encoder.blocks[0].attn.qkv.weight.clone()
            assert torch.equal(pl_module.state_dict()[MOVED], before)

    twin, module = Twin(lambda step: 0.9), tiny_ijepa()
    quiet_trainer(max_steps=3, callbacks=[Read(), twin]).fit(module, loader([tiny_batch() for _ in range(3)]))
    twin.assert_equal(module)


def test_the_target_encoder_gets_no_gradient_and_stays_in_eval_mode(
    tiny_ijepa: IJEPAFactory, tiny_batch: BatchFactory, quiet_trainer: TrainerFactory
) -> None:
    class Watcher(Callback):
        def __init__(self) -> None:
            self.training: list[tuple[bool, bool]] = []

        def on_after_backward(self, trainer: Trainer, pl_module: LightningModule) -> None:
            self.training.append((pl_module.encoder.training, pl_module.target_encoder.training))
            assert all(p.grad is not None for p in pl_module.encoder.parameters())
            assert all(p.grad is None for p in pl_module.target_encoder.parameters())

    watcher, module = Watcher(), tiny_ijepa()
    batches = [tiny_batch() for _ in range(2)]
    quiet_trainer(max_epochs=2, callbacks=[watcher]).fit(module, loader(batches), loader(batches[:1]))
    assert watcher.training == [(True, False)] * 4
    assert not any(p.requires_grad for p in module.target_encoder.parameters())
    assert not any(part.training for part in module.target_encoder.modules())


def test_the_target_encoder_starts_as_a_copy_of_the_encoder(tiny_ijepa: IJEPAFactory) -> None:
    module = tiny_ijepa()
    assert module.target_encoder is not module.encoder
    copies = module.target_encoder.state_dict()
    assert all(torch.equal(tensor, copies[name]) for name, tensor in module.encoder.state_dict().items())


# ---------------------------------------------------------------------- optimizer and schedules


@pytest.mark.parametrize(("accumulate", "per_epoch"), [(1, 5), (2, 3)])
def test_schedules_follow_the_optimizer_step(
    tiny_ijepa: IJEPAFactory,
    tiny_batch: BatchFactory,
    quiet_trainer: TrainerFactory,
    accumulate: int,
    per_epoch: int,
) -> None:
    lr, weight_decay, momentum = WarmupCosine(1e-4, 1e-3, 1e-5, 1.0), Cosine(0.04, 0.4), Linear(0.9, 1.0)
    module = tiny_ijepa(lr=lr, weight_decay=weight_decay, momentum=momentum, ipe_scale=1.25)
    recorder, total = Recorder(), 1.25 * 2 * per_epoch
    trainer = quiet_trainer(max_epochs=2, accumulate_grad_batches=accumulate, callbacks=[recorder])
    trainer.fit(module, loader([tiny_batch() for _ in range(5)]))
    assert [row["step"] for row in recorder.rows] == list(range(1, 2 * per_epoch + 1))
    for row in recorder.rows:
        assert row["lr"] == {lr(row["step"], total, per_epoch)}
        assert row["decayed"] == {weight_decay(row["step"], total, per_epoch)}
        assert row["others"] == {0.0}
    last = trainer.callback_metrics
    assert last["schedule/lr"].item() == pytest.approx(lr(2 * per_epoch, total, per_epoch), rel=1e-5)
    assert last["schedule/momentum"].item() == pytest.approx(momentum(2 * per_epoch, total, per_epoch), rel=1e-5)


def test_the_length_of_the_schedules_follows_max_steps(
    tiny_ijepa: IJEPAFactory, tiny_batch: BatchFactory, quiet_trainer: TrainerFactory
) -> None:
    lr, recorder = Cosine(1e-3, 0.0), Recorder()
    trainer = quiet_trainer(max_steps=3, callbacks=[recorder])
    trainer.fit(tiny_ijepa(lr=lr), loader([tiny_batch() for _ in range(2)]))
    assert [row["lr"] for row in recorder.rows] == [{lr(step, 3.0, 2)} for step in (1, 2, 3)]


@pytest.mark.parametrize(("warmup_epochs", "told"), [(2.0, False), (2.5, True)])
def test_a_warm_up_that_is_longer_than_the_training_is_told(
    tiny_ijepa: IJEPAFactory,
    tiny_batch: BatchFactory,
    quiet_trainer: TrainerFactory,
    caplog: pytest.LogCaptureFixture,
    warmup_epochs: float,
    told: bool,
) -> None:
    module = tiny_ijepa(lr=WarmupCosine(1e-4, 1e-3, 1e-6, warmup_epochs=warmup_epochs))
    with caplog.at_level("INFO"):
        quiet_trainer(max_epochs=2).fit(module, loader([tiny_batch()] * 3))
    message = "the warm-up of the learning rate, 7 steps, is longer than the training, 6 steps"
    assert (message in caplog.text) == told
    assert ("set --model.lr.warmup_epochs to less than 2" in caplog.text) == told


def test_a_training_without_an_end_is_refused_with_advice(
    tiny_ijepa: IJEPAFactory, tiny_batch: BatchFactory, quiet_trainer: TrainerFactory
) -> None:
    with pytest.raises(ValueError, match=r"set --trainer\.max_epochs or --trainer\.max_steps"):
        quiet_trainer(max_epochs=-1).fit(tiny_ijepa(), loader([tiny_batch()]))


def test_every_trainable_parameter_is_in_exactly_one_group(tiny_ijepa: IJEPAFactory) -> None:
    module = tiny_ijepa()
    grouped = [p for group in module.configure_optimizers().param_groups for p in group["params"]]
    trainable = [p for p in module.parameters() if p.requires_grad]
    assert len({id(p) for p in grouped}) == len(grouped) == len(trainable)
    assert {id(p) for p in grouped} == {id(p) for p in trainable}


def test_a_parameter_of_the_method_itself_is_trained_too(tiny_ijepa: IJEPAFactory) -> None:
    module = tiny_ijepa()
    module.temperature = torch.nn.Parameter(torch.ones(()))
    grouped = [p for group in module.configure_optimizers().param_groups for p in group["params"]]
    assert any(p is module.temperature for p in grouped)


def test_the_mask_token_and_weights_are_decayed_but_biases_and_norms_are_not(tiny_ijepa: IJEPAFactory) -> None:
    module = tiny_ijepa()
    decayed = {id(p) for group in module.configure_optimizers().param_groups if group["decay"] for p in group["params"]}
    for name, parameter in module.named_parameters():
        is_weight = name.endswith("mask_token") or (name.endswith("weight") and "norm" not in name)
        assert (id(parameter) in decayed) == (is_weight and parameter.requires_grad), name


def test_a_table_that_is_a_bias_is_not_decayed(tiny_encoder: EncoderFactory, tiny_ijepa: IJEPAFactory) -> None:
    encoder = tiny_encoder()
    encoder.register_parameter("relative_position_bias", torch.nn.Parameter(torch.zeros(4, 9)))
    groups = tiny_ijepa(encoder).configure_optimizers().param_groups
    assert [g["decay"] for g in groups for p in g["params"] if p is encoder.relative_position_bias] == [False]


def test_the_groups_are_in_the_official_order(tiny_ijepa: IJEPAFactory) -> None:
    module = tiny_ijepa()
    groups = module.configure_optimizers().param_groups
    names = {id(p): name.split(".")[0] for name, p in module.named_parameters()}
    order = [({names[id(p)] for p in group["params"]}, group["decay"]) for group in groups]
    assert order == [({"encoder"}, True), ({"predictor"}, True), ({"encoder"}, False), ({"predictor"}, False)]


def test_the_betas_reach_the_optimizer(tiny_ijepa: IJEPAFactory) -> None:
    optimizer = tiny_ijepa(betas=(0.8, 0.95)).configure_optimizers()
    assert {group["betas"] for group in optimizer.param_groups} == {(0.8, 0.95)}


# ---------------------------------------------------------------------- the steps


def test_losses_are_logged_for_training_and_validation(
    tiny_ijepa: IJEPAFactory, tiny_batch: BatchFactory, quiet_trainer: TrainerFactory
) -> None:
    module, batch = tiny_ijepa(), tiny_batch()
    trainer = quiet_trainer(max_steps=1)
    trainer.fit(module, loader([batch]), loader([batch]))
    logged = trainer.callback_metrics
    assert {"train/loss", "train/explained_variance", "val/loss", "schedule/lr"} <= set(logged)
    assert logged["val/loss"].item() == pytest.approx(module.losses(batch)["loss"].item(), abs=1e-6)


def test_the_loss_on_held_out_data_is_the_mean_over_samples_and_stays_out_of_checkpoints(
    tiny_ijepa: IJEPAFactory, tiny_batch: BatchFactory, quiet_trainer: TrainerFactory
) -> None:
    module, batches = tiny_ijepa(), [tiny_batch(1), tiny_batch(4)]
    with torch.no_grad():
        one, four = (module.losses(batch)["loss"].item() for batch in batches)
    for _ in range(2):  # nothing is left from the time before
        (found,) = quiet_trainer().validate(module, loader(batches), verbose=False)
        assert found["val/loss"] == pytest.approx((one + 4 * four) / 5, rel=1e-6)
    assert {name.split(".")[0] for name in module.state_dict()} == set(module.networks())


def test_a_loss_that_is_no_number_on_held_out_data_shows(
    tiny_ijepa: IJEPAFactory, tiny_batch: BatchFactory, quiet_trainer: TrainerFactory
) -> None:
    broken = tiny_batch()
    broken = broken._replace(inputs=torch.full_like(broken.inputs, torch.nan))
    (found,) = quiet_trainer().test(tiny_ijepa(), loader([tiny_batch(), broken]), verbose=False)
    assert math.isnan(found["test/loss"])


def test_encoding_is_the_target_encoder_without_gradient(tiny_ijepa: IJEPAFactory, tiny_batch: BatchFactory) -> None:
    module, batch = tiny_ijepa(), tiny_batch()
    torch.nn.init.zeros_(module.encoder.norm.weight)  # so that the two encoders differ
    tokens = module.encode(batch.inputs)
    assert not tokens.requires_grad
    assert torch.equal(tokens, module.target_encoder(batch.inputs))
    assert torch.equal(module.predict_step(batch, 0), tokens.mean(dim=1))


def test_the_frozen_encoder_stays_what_it_was(tiny_ijepa: IJEPAFactory, tiny_batch: BatchFactory) -> None:
    module, batch = tiny_ijepa(), tiny_batch()
    kept, before = module.frozen_encoder(), module.encode(batch.inputs)
    torch.nn.init.zeros_(module.target_encoder.norm.weight)
    assert torch.equal(kept(batch.inputs), before)
    assert not any(p.requires_grad for p in kept.parameters())


def test_a_resumed_run_ends_where_an_uninterrupted_one_does(
    tiny_ijepa: IJEPAFactory, tiny_batch: BatchFactory, quiet_trainer: TrainerFactory, tmp_path: Any
) -> None:
    class SaveInTheMiddle(Callback):
        def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
            if trainer.current_epoch == 0:
                trainer.save_checkpoint(tmp_path / "middle.ckpt")

    batches = [tiny_batch() for _ in range(2)]
    build = partial(tiny_ijepa, lr=Cosine(1e-3, 1e-5), momentum=Linear(0.5, 1.0))
    whole, resumed = build(), build()
    quiet_trainer(max_epochs=2, callbacks=[SaveInTheMiddle()]).fit(whole, loader(batches))
    quiet_trainer(max_epochs=2).fit(resumed, loader(batches), ckpt_path=tmp_path / "middle.ckpt", weights_only=True)
    for name, tensor in whole.state_dict().items():
        torch.testing.assert_close(resumed.state_dict()[name], tensor, rtol=0, atol=1e-7)


# ---------------------------------------------------------------------- without an EMA copy


def without_copy(factory: IJEPAFactory, **options: Any) -> IJEPA:
    return factory(momentum=None, **options)


def test_without_momentum_the_target_encoder_is_the_encoder_and_registered_once(tiny_ijepa: IJEPAFactory) -> None:
    module, with_copy = without_copy(tiny_ijepa), tiny_ijepa()
    assert module.target_encoder is module.encoder
    assert list(module.networks()) == ["encoder", "predictor"]
    doubled = {name for name in with_copy.state_dict() if name.startswith("target_encoder.")}
    assert set(module.state_dict()) == set(with_copy.state_dict()) - doubled
    module.encoder = VisionTransformer(32, 8, 3, 32, 1, 2)
    assert module.target_encoder is module.encoder


def test_without_momentum_training_logs_none_and_changes_nothing_but_by_gradients(
    tiny_ijepa: IJEPAFactory, tiny_batch: BatchFactory, quiet_trainer: TrainerFactory
) -> None:
    module = without_copy(tiny_ijepa, regularizer=SIGReg(num_slices=8))
    trainer = quiet_trainer(max_epochs=2)
    trainer.fit(module, loader([tiny_batch() for _ in range(2)]), loader([tiny_batch()]))
    assert "schedule/lr" in trainer.callback_metrics
    assert "schedule/momentum" not in trainer.callback_metrics
    assert module.target_encoder is module.encoder
    assert all(parameter.requires_grad for parameter in module.parameters())


def test_without_momentum_a_resumed_run_ends_where_an_uninterrupted_one_does(
    tiny_ijepa: IJEPAFactory, tiny_batch: BatchFactory, quiet_trainer: TrainerFactory, tmp_path: Any
) -> None:
    class SaveInTheMiddle(Callback):
        def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
            if trainer.current_epoch == 0:
                trainer.save_checkpoint(tmp_path / "middle.ckpt")

    batches = [tiny_batch() for _ in range(2)]
    options = {"lr": Cosine(1e-3, 1e-5), "regularizer": SIGReg(num_slices=8), "stop_gradient": False}
    whole, resumed = (without_copy(tiny_ijepa, **options) for _ in range(2))
    quiet_trainer(max_epochs=2, callbacks=[SaveInTheMiddle()]).fit(whole, loader(batches))
    quiet_trainer(max_epochs=2).fit(resumed, loader(batches), ckpt_path=tmp_path / "middle.ckpt", weights_only=True)
    for name, tensor in whole.state_dict().items():
        assert torch.equal(resumed.state_dict()[name], tensor), name


def test_encoding_is_that_of_eval_mode_and_leaves_every_part_in_its_mode(
    tiny_encoder: EncoderFactory, tiny_ijepa: IJEPAFactory, tiny_batch: BatchFactory
) -> None:
    encoder = tiny_encoder(blocks=BlockOptions(drop_path=0.5))
    module, inputs = without_copy(tiny_ijepa, encoder=encoder), tiny_batch().inputs
    encoder.norm.eval()
    modes = [part.training for part in module.modules()]
    first, second = module.encode(inputs), module.encode(inputs)
    assert torch.equal(first, second)
    assert torch.equal(first, module.frozen_encoder()(inputs))
    assert [part.training for part in module.modules()] == modes
    assert not torch.equal(encoder(inputs), encoder(inputs))  # in training it drops paths


def test_gradients_flow_through_the_targets_only_where_they_are_let(
    tiny_ijepa: IJEPAFactory, tiny_batch: BatchFactory
) -> None:
    inputs = tiny_batch().inputs
    assert not without_copy(tiny_ijepa).targets_of(inputs).requires_grad
    assert without_copy(tiny_ijepa, stop_gradient=False).targets_of(inputs).requires_grad
    with torch.no_grad():
        assert not without_copy(tiny_ijepa, stop_gradient=False).targets_of(inputs).requires_grad


def test_gradients_cannot_be_wanted_in_a_copy_that_is_not_trained(tiny_ijepa: IJEPAFactory) -> None:
    with pytest.raises(ValueError, match="stop_gradient: false needs momentum: null"):
        tiny_ijepa(stop_gradient=False)


def standardised(tokens: Tensor) -> Tensor:
    centred = tokens - tokens.mean(dim=-1, keepdim=True)
    return centred / (centred.square().mean(dim=-1, keepdim=True) + 1e-5).sqrt()


@pytest.mark.parametrize("count", [2, 3, None])
def test_targets_of_several_layers_are_the_mean_of_what_the_last_blocks_say(
    tiny_encoder: EncoderFactory, tiny_ijepa: IJEPAFactory, tiny_batch: BatchFactory, count: int | None
) -> None:
    module, inputs = tiny_ijepa(tiny_encoder(depth=3), target_layers=count), tiny_batch().inputs
    said: list[Tensor] = []
    for block in module.target_encoder.blocks:
        block.register_forward_hook(lambda block, given, output: said.append(output))
    targets = module.targets_of(inputs)
    used = said if count is None else said[-count:]
    assert len(used) == (count or 3)
    expected = sum(standardised(module.target_encoder.norm(output)) for output in used) / len(used)
    torch.testing.assert_close(targets, expected, rtol=0, atol=1e-5)
    assert not targets.requires_grad


def test_the_target_of_one_layer_is_what_the_target_encoder_says(
    tiny_ijepa: IJEPAFactory, tiny_batch: BatchFactory
) -> None:
    module, inputs = tiny_ijepa(target_layers=1), tiny_batch().inputs
    assert torch.equal(module.targets_of(inputs), module.target_encoder(inputs))


@pytest.mark.parametrize("count", [0, 3])
def test_targets_of_layers_that_are_not_there_are_refused(tiny_ijepa: IJEPAFactory, count: int) -> None:
    with pytest.raises(ValueError, match=f"target_layers {count} of an encoder of 2: use 1 to 2"):
        tiny_ijepa(target_layers=count)


@pytest.mark.parametrize(("options", "told"), [({}, True), ({"regularizer": SIGReg(num_slices=8)}, False)])
def test_a_training_that_nothing_keeps_from_collapsing_says_so(
    tiny_ijepa: IJEPAFactory, options: dict[str, Any], told: bool, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level("INFO"):
        without_copy(tiny_ijepa, **options).setup("fit")
    assert ("momentum is null and so is regularizer" in caplog.text) == told
    caplog.clear()
    with caplog.at_level("INFO"):
        tiny_ijepa().setup("fit")
    assert not caplog.text


def test_random_numbers_follow_from_the_step_in_training_and_are_the_same_in_every_validation(
    tiny_ijepa: IJEPAFactory, tiny_batch: BatchFactory, quiet_trainer: TrainerFactory
) -> None:
    module, drawn = tiny_ijepa(), []
    losses = module.losses
    module.losses = lambda batch: drawn.append((module.training, module.draw)) or losses(batch)  # type: ignore[method-assign,func-returns-value,assignment]
    batches = loader([tiny_batch() for _ in range(3)])
    quiet_trainer(max_epochs=2, accumulate_grad_batches=2, num_sanity_val_steps=0).fit(module, batches, batches)
    assert [step for training, step in drawn if training] == [0, 0, 1, 2, 2, 3]
    assert {step for training, step in drawn if not training} == {0}
