from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from lightning import Callback, Trainer
from torch import Tensor, nn
from torch.optim import AdamW

import jepa_lightning as jl
from jepa_lightning.data import ImageDataModule
from jepa_lightning.masking import MaskedBatch
from jepa_lightning.models.layers import DropPath
from jepa_lightning.probing import FineTune
from jepa_lightning.schedules import Constant, WarmupCosine
from jepa_lightning.weights.description import encoder_builder

TrainerFactory = Callable[..., Trainer]
DataFactory = Callable[..., ImageDataModule]
CheckpointFactory = Callable[..., str]
DEPTH = 3


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory, save_checkpoint: CheckpointFactory) -> str:
    return save_checkpoint(tmp_path_factory.mktemp("images") / "a.ckpt", depth=DEPTH)


def finetune(checkpoint: str, **overrides: Any) -> FineTune:
    torch.manual_seed(7)
    return FineTune(checkpoint, **{"lr": Constant(1e-3), "weight_decay": Constant(0.1), **overrides})


def with_head(module: FineTune, classes: int = 3) -> FineTune:
    module.heads.extend(module.new_heads(classes))
    return module


# ---------------------------------------------------------------------- layer decay


def layer_of(name: str) -> int:
    """As MAE counts (He et al. 2021): 0 before the blocks, then one for each block, then norm and head."""
    if name.startswith("blocks."):
        return int(name.split(".")[1]) + 1
    return DEPTH + 1 if name.startswith(("norm.", "heads.")) else 0


def test_each_parameter_learns_once_at_the_rate_of_its_layer(checkpoint: str) -> None:
    module = with_head(finetune(checkpoint, layer_decay=0.6))
    names = {parameter: name.removeprefix("encoder.") for name, parameter in module.named_parameters()}
    groups = module.trained()
    placed = [parameter for group in module.configure_optimizers().param_groups for parameter in group["params"]]
    assert placed == [parameter for group in groups for parameter in group.parameters]
    assert sorted(names[p] for p in placed) == sorted(names[p] for p in names if p.requires_grad)
    for group in groups:
        for parameter in group.parameters:
            assert group.lr == pytest.approx(0.6 ** (DEPTH + 1 - layer_of(names[parameter]))), names[parameter]
            assert group.decay == (parameter.ndim > 1), names[parameter]
    assert {layer_of(name) for name in names.values()} == set(range(DEPTH + 2))


def test_steps_equal_those_of_a_plain_loop(
    checkpoint: str, coloured: DataFactory, quiet_trainer: TrainerFactory
) -> None:
    lr = WarmupCosine(start=0.0, peak=2e-3, final=0.0, warmup_epochs=1)
    module = finetune(checkpoint, lr=lr, layer_decay=0.5, label_smoothing=0.1)
    quiet_trainer(max_epochs=2, limit_val_batches=0).fit(module, datamodule=coloured())
    alone = with_head(finetune(checkpoint))
    encoder, head = jl.load_encoder(checkpoint).requires_grad_(True), alone.heads[0]
    network = nn.ModuleDict({"encoder": encoder, "heads": nn.ModuleList([head])})
    groups = [
        {"params": [p], "scale": 0.5 ** (DEPTH + 1 - layer_of(n.removeprefix("encoder."))), "matrix": p.ndim > 1}
        for n, p in network.named_parameters()
        if p.requires_grad
    ]
    optimizer, data = AdamW(groups), coloured(img_size=16, patch_size=8)
    loader, step = data.train_dataloader(), 0
    for epoch in range(2):
        loader.sampler.set_epoch(epoch)
        for batch in loader:
            step += 1
            for group in optimizer.param_groups:
                group["lr"] = lr(step, 12, 6) * group["scale"]
                group["weight_decay"] = 0.1 * group["matrix"]
            logits = head(encoder(data.normalize(batch.inputs)).mean(dim=1))
            optimizer.zero_grad()
            F.cross_entropy(logits, batch.labels, label_smoothing=0.1).backward()
            optimizer.step()
    assert step == 12
    for name, tensor in network.state_dict().items():
        found = module.state_dict()[name]
        if name.endswith("qkv.bias"):  # softmax does not see the bias of keys: Adam makes steps of rounding errors
            found, tensor = (torch.cat([bias[:16], bias[32:]]) for bias in (found, tensor))
        torch.testing.assert_close(found, tensor, rtol=0, atol=2e-5, msg=name)


# ---------------------------------------------------------------------- training


def test_classes_are_learned_validated_and_tested_with_all_layers(
    checkpoint: str,
    coloured: DataFactory,
    quiet_trainer: TrainerFactory,
    tmp_path: Path,
) -> None:
    module = finetune(checkpoint, lr=Constant(5e-3), layer_decay=0.9)
    trainer, before = quiet_trainer(max_epochs=12), jl.load_encoder(checkpoint).state_dict()
    trainer.fit(module, datamodule=coloured())
    assert trainer.callback_metrics["val/top1"] == 1.0
    changed = {n for n, p in module.encoder.named_parameters() if not torch.equal(p, before[n])}
    assert changed == {name for name, p in module.encoder.named_parameters() if p.requires_grad}
    (result,) = module.findings().results  # type: ignore[union-attr]
    assert result[:5] == ("fine-tuning", "", "trained", (1.0,), 12)
    assert (result.data, result.split) == (coloured().title, "val")
    trainer.save_checkpoint(tmp_path / "f.ckpt")
    again = finetune(checkpoint)
    (found,) = quiet_trainer().validate(again, coloured(), tmp_path / "f.ckpt", verbose=False, weights_only=True)
    assert found["val/top1"] == 1.0
    (found,) = quiet_trainer().test(again, coloured(), tmp_path / "f.ckpt", verbose=False, weights_only=True)
    assert found["test/top1"] == 1.0


def test_a_resumed_run_ends_where_an_uninterrupted_one_does(
    checkpoint: str, coloured: DataFactory, quiet_trainer: TrainerFactory, tmp_path: Path
) -> None:
    class SaveInTheMiddle(Callback):
        def on_train_batch_end(self, trainer: Trainer, *rest: Any) -> None:
            if trainer.global_step == 8:
                trainer.save_checkpoint(tmp_path / "middle.ckpt")

    schedule = WarmupCosine(start=0.0, peak=2e-3, final=0.0, warmup_epochs=1)
    whole, resumed = finetune(checkpoint, lr=schedule), finetune(checkpoint, lr=schedule)
    quiet_trainer(max_epochs=3, callbacks=[SaveInTheMiddle()]).fit(whole, datamodule=coloured())
    torch.manual_seed(99)  # what the head starts from must not matter
    trainer = quiet_trainer(max_epochs=3)
    trainer.fit(resumed, datamodule=coloured(), ckpt_path=tmp_path / "middle.ckpt", weights_only=True)
    early = torch.load(tmp_path / "middle.ckpt", weights_only=True)["state_dict"]
    for name, tensor in whole.state_dict().items():
        if isinstance(tensor, Tensor):
            assert torch.equal(resumed.state_dict()[name], tensor), name
    assert not torch.equal(early["heads.0.weight"], whole.heads[0].get_parameter("weight"))


def test_labels_that_are_missing_count_for_nothing(checkpoint: str) -> None:
    module = with_head(finetune(checkpoint, label_smoothing=0.2))
    module.tasks = [("", 3)]
    logits, labels = torch.randn(6, 3), torch.tensor([[0], [2], [-1], [1], [-1], [1]])
    found = module._loss(logits, labels, torch.tensor([4.0]))
    kept = labels[:, 0] >= 0
    torch.testing.assert_close(found, F.cross_entropy(logits[kept], labels[kept, 0], label_smoothing=0.2))


# ---------------------------------------------------------------------- parts


def test_the_head_reads_averaged_tokens_and_begins_near_zero(checkpoint: str) -> None:
    module, images = with_head(finetune(checkpoint)), torch.randn(4, 3, 16, 16)
    encoder = jl.load_encoder(checkpoint)
    torch.testing.assert_close(module.tokens(images)[:, 0], encoder(images).mean(dim=1))
    assert module.tokens(images).requires_grad
    assert module.heads[0].get_parameter("weight").std().item() == pytest.approx(0.01, rel=0.4)
    assert not module.heads[0].get_parameter("bias").any()
    encoded = module.encode(images)
    torch.testing.assert_close(encoded, encoder(images))
    assert module.encoder.training
    torch.testing.assert_close(module.predict_step(MaskedBatch(images, ()), 0), encoder(images).mean(dim=1))


def test_the_branch_is_the_one_that_was_asked_for(checkpoint: str) -> None:
    images = torch.randn(2, 3, 16, 16)
    for branch in ("target", "context"):
        assert torch.equal(
            finetune(checkpoint, branch=branch).encode(images), jl.load_encoder(checkpoint, branch)(images)
        )


def test_clips_and_views_are_encoded_one_by_one(tmp_path: Path, save_checkpoint: CheckpointFactory) -> None:
    path = save_checkpoint(tmp_path / "v.ckpt", "VJEPA", num_frames=4, tubelet_size=2)
    module, clips = finetune(path), torch.randn(3, 2, 3, 4, 16, 16)
    encoder = jl.load_encoder(path)
    expected = torch.stack([encoder(clips[:, k]).mean(dim=1) for k in range(2)], dim=1)
    torch.testing.assert_close(module.tokens(clips), expected)
    assert module.tokens(clips[:, 0]).shape == (3, 1, 16)


def test_drop_path_grows_from_nothing_in_the_first_block(checkpoint: str) -> None:
    module = finetune(checkpoint, drop_path=0.4)
    rates = [[p.rate for p in block.modules() if isinstance(p, DropPath)] for block in module.encoder.blocks]
    assert [set(found) for found in rates] == [{0.0}, {0.2}, {0.4}]
    images = torch.randn(8, 3, 16, 16)
    assert not torch.equal(module.tokens(images), module.tokens(images))
    assert torch.equal(module.encode(images), module.encode(images))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"layer_decay": 0.0}, "layer_decay must be above 0 and at most 1, .* got 0.0"),
        ({"label_smoothing": 1.0}, "label_smoothing from 0 to below 1, got .* and 1.0"),
        ({"drop_path": 1.0}, "use 0 to below 1, not 1.0"),
    ],
)
def test_impossible_numbers_are_refused(checkpoint: str, options: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        finetune(checkpoint, **options)


def test_heads_of_other_classes_are_refused(
    checkpoint: str, coloured: DataFactory, image_folder: Path, quiet_trainer: TrainerFactory, tmp_path: Path
) -> None:
    trainer = quiet_trainer(max_steps=1)
    trainer.fit(finetune(checkpoint), datamodule=coloured())
    trainer.save_checkpoint(tmp_path / "f.ckpt")
    other = ImageDataModule(root=str(image_folder), masks=None, batch_size=4, num_workers=0)
    with pytest.raises(ValueError, match="trained on the classes 3, the data have 2: give the data that they were"):
        quiet_trainer().validate(finetune(checkpoint), other, tmp_path / "f.ckpt", verbose=False, weights_only=True)


def test_a_checkpoint_describes_its_encoder_so_that_it_can_be_built_without_another_file(
    checkpoint: str, coloured: DataFactory, quiet_trainer: TrainerFactory, tmp_path: Path
) -> None:
    module, trainer = finetune(checkpoint), quiet_trainer(max_epochs=1, limit_train_batches=1)
    trainer.fit(module, datamodule=coloured())
    trainer.save_checkpoint(tmp_path / "f.ckpt")
    states = torch.load(tmp_path / "f.ckpt", weights_only=True)["state_dict"]
    tensors = {n.removeprefix("encoder."): v for n, v in states.items() if n.startswith("encoder.")}
    encoder = encoder_builder(tmp_path / "f.ckpt", states["_extra_state"]["encoder"], tensors)()
    encoder.load_state_dict(tensors)
    images = torch.randn(2, 3, 16, 16)
    torch.testing.assert_close(encoder.eval()(images), module.cpu().encode(images))
