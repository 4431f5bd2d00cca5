from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from lightning import LightningDataModule, Trainer
from torch import Tensor
from torch.optim import SGD
from torch.utils.data import DataLoader

import jepa_lightning as jl
from jepa_lightning.lars import LARS
from jepa_lightning.loading import build
from jepa_lightning.masking import MaskedBatch
from jepa_lightning.models.average_pool import PIXEL_FEATURES, AveragePool, raw_pixels
from jepa_lightning.probing import LinearProbe
from jepa_lightning.schedules import Constant, StepDecay
from jepa_lightning.weights.ours import CONFIG_KEY

TrainerFactory = Callable[..., Trainer]
CheckpointFactory = Callable[..., str]
CLASSES = ["a", "b", "c"]
pytestmark = pytest.mark.filterwarnings("ignore:Total length of `list` across ranks is zero")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory, save_checkpoint: CheckpointFactory) -> str:
    return save_checkpoint(tmp_path_factory.mktemp("images") / "a.ckpt")


@pytest.fixture(scope="module")
def video_checkpoint(tmp_path_factory: pytest.TempPathFactory, save_checkpoint: CheckpointFactory) -> str:
    return save_checkpoint(tmp_path_factory.mktemp("clips") / "v.ckpt", "VJEPA", num_frames=4, tubelet_size=2)


class Batches(LightningDataModule):
    """The same batches in every epoch."""

    def __init__(
        self,
        train: Sequence[MaskedBatch] = (),
        val: Sequence[MaskedBatch] = (),
        test: Sequence[MaskedBatch] = (),
        classes: Any = CLASSES,
        label_names: tuple[str, ...] = (),
    ) -> None:
        super().__init__()
        self.parts, self.classes, self.label_names = (train, val, test), classes, label_names

    def train_dataloader(self) -> Any:
        return self._loader(self.parts[0])

    def val_dataloader(self) -> Any:
        return self._loader(self.parts[1])

    def test_dataloader(self) -> Any:
        return self._loader(self.parts[2])

    def _loader(self, batches: Sequence[MaskedBatch]) -> Any:
        return DataLoader(list(batches), batch_size=None) if batches else []  # type: ignore[arg-type]


def batch(size: int = 6, first: int = 0, labels: Any = None, shape: tuple[int, ...] = (3, 16, 16)) -> MaskedBatch:
    known = torch.randint(3, (size,)) if labels is None else torch.as_tensor(labels)
    return MaskedBatch(torch.randn(size, *shape), (), known, torch.arange(first, first + size))


def probe(checkpoint: str, **overrides: Any) -> LinearProbe:
    torch.manual_seed(7)
    settings = {
        "features": [AveragePool(1), AveragePool(2)],
        "lr": [0.5],
        "weight_decay": [0.1],
        "optimizer": partial(LARS, trust_coefficient=0.1),
        "lr_schedule": Constant(1.0),
    }
    return LinearProbe(checkpoint, **{**settings, **overrides})


# ---------------------------------------------------------------------- heads side by side


@pytest.mark.parametrize(
    "optimizer", [partial(LARS, trust_coefficient=0.1), partial(SGD, lr=0.0, momentum=0.9), None], ids=["l", "s", "a"]
)
def test_each_head_learns_what_it_learns_alone(checkpoint: str, quiet_trainer: TrainerFactory, optimizer: Any) -> None:
    data = Batches([batch() for _ in range(3)])  # three steps: momentum counts

    def trained(**settings: Any) -> LinearProbe:
        module = probe(checkpoint, optimizer=optimizer, **settings)
        quiet_trainer(max_epochs=2).fit(module, datamodule=data)
        return module

    together = trained(lr=[0.5, 0.01], weight_decay=[0.0, 0.3])
    assert len(together.heads) == (2 + 2 + 1) * 2 * 4
    for number in range(3, 40, 9):  # of every part, with and without BatchNorm, and of every point of the grid
        head = together.heads[number]
        part, norm, (lr, decay) = together._order()[number]
        kinds = [kind for kind in together.kinds if str(kind) == part.kind] or together.kinds
        alone = trained(lr=[lr], weight_decay=[decay], batch_norm=[norm], features=kinds)
        (match,) = [
            other
            for other, (their, _, _) in zip(alone.heads, alone._order(), strict=True)
            if (their.encoder, their.kind) == (part.encoder, part.kind)
        ]
        for name, tensor in head.state_dict().items():
            torch.testing.assert_close(tensor, match.state_dict()[name], rtol=0, atol=1e-6)
    weights = [head.get_parameter("linear.weight") for head in together.heads[:4]]
    assert all((a - b).abs().max() > 1e-5 for i, a in enumerate(weights) for b in weights[:i])


def test_a_head_equals_a_plain_loop(checkpoint: str, quiet_trainer: TrainerFactory) -> None:
    batches = [batch() for _ in range(3)]
    module = probe(checkpoint, batch_norm=[True], baselines=False, lr_schedule=StepDecay(1.0, 0.1, 1))
    quiet_trainer(max_epochs=2).fit(module, datamodule=Batches(batches))
    (first, second) = probe(checkpoint, batch_norm=[True], baselines=False).new_heads(3)
    head, encoder = second.train(), jl.load_encoder(checkpoint)
    optimizer = LARS(
        [
            {"params": [head.get_parameter("linear.weight")], "weight_decay": 0.1},
            {"params": [head.get_parameter("linear.bias")], "weight_decay": 0.0},
        ],
        trust_coefficient=0.1,
    )
    for lr in (0.5, 0.05):
        for inputs, _, labels, *_ in batches:
            for group in optimizer.param_groups:
                group["lr"] = lr
            tokens = [t.mean(dim=1) for t in encoder(inputs, layers=[0, 1])]
            loss = torch.nn.functional.cross_entropy(head(torch.cat([tokens[-1], *tokens], dim=1)), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    for name, tensor in module.heads[1].state_dict().items():
        torch.testing.assert_close(tensor, head.state_dict()[name], rtol=0, atol=1e-5)
    assert first is not second


def test_biases_are_not_decayed_and_rates_follow_the_grid(checkpoint: str, quiet_trainer: TrainerFactory) -> None:
    module = probe(checkpoint, lr=[0.1, 0.2], weight_decay=[0.3], lr_schedule=Constant(0.5), baselines=False)
    trainer = quiet_trainer(max_steps=1)
    trainer.fit(module, datamodule=Batches([batch()]))
    groups = trainer.optimizers[0].param_groups
    assert [group["lr"] for group in groups] == pytest.approx([0.05, 0.05, 0.1, 0.1] * 4)
    assert [group["weight_decay"] for group in groups] == pytest.approx([0.3, 0.0] * 8)


# ---------------------------------------------------------------------- what heads read


def test_heads_read_the_features_that_their_names_say(checkpoint: str) -> None:
    module, images = probe(checkpoint), torch.randn(4, 3, 16, 16)
    features = module.tokens(images)[:, 0]
    trained, random = jl.load_encoder(checkpoint), module.untrained
    expected = []
    for encoder in (trained, random):
        last = [tokens.mean(dim=1) for tokens in encoder(images, layers=[0, 1])]
        expected += [last[1], torch.cat(last, dim=1)]
    expected.append(raw_pixels(images))
    assert [(p.encoder, p.kind) for p in module.parts] == [
        ("trained", "last block"), ("trained", "last 2 blocks"), ("random initialisation", "last block"),
        ("random initialisation", "last 2 blocks"), ("raw pixels", "16 x 16"),
    ]  # fmt: skip
    for part, wanted in zip(module.parts, expected, strict=True):
        torch.testing.assert_close(features[:, part.start : part.stop], wanted, rtol=0, atol=1e-5)
    assert features.shape == (4, 2 * 3 * 16 + PIXEL_FEATURES)


def test_the_untrained_encoder_is_that_of_the_seed(checkpoint: str) -> None:
    torch.manual_seed(5)
    fresh = build(yaml.safe_load(torch.load(checkpoint, weights_only=True)[CONFIG_KEY])["model"]).encoder
    torch.rand(3)
    module = probe(checkpoint)
    for name, tensor in fresh.state_dict().items():
        assert torch.equal(tensor, module.untrained.state_dict()[name])
    assert not any(p.requires_grad for p in module.untrained.parameters())


def test_the_branch_is_the_one_that_was_asked_for(checkpoint: str) -> None:
    images = torch.randn(2, 3, 16, 16)
    for branch in ("target", "context"):
        found = probe(checkpoint, branch=branch, features=[AveragePool()], baselines=False).tokens(images)[:, 0]
        assert torch.equal(found, jl.load_encoder(checkpoint, branch)(images).mean(dim=1))


def test_a_video_gets_the_mean_of_the_probabilities_of_its_clips(
    video_checkpoint: str, quiet_trainer: TrainerFactory
) -> None:
    module = probe(video_checkpoint, batch_norm=[False], features=[AveragePool()])
    clips = torch.randn(9, 2, 3, 4, 16, 16)
    trainer = quiet_trainer()
    trainer.validate(module, Batches(val=[batch(1, shape=(2, 3, 4, 16, 16))]), verbose=False)
    for parameter in module.heads.parameters():
        torch.nn.init.normal_(parameter)
    logits = torch.stack([module.heads[0](module.features(clips[:, k])) for k in range(2)])
    labels = logits.softmax(dim=2).mean(dim=0).argmax(dim=1)
    (found,) = trainer.validate(module, Batches(val=[MaskedBatch(clips, (), labels, torch.arange(9))]), verbose=False)
    assert found["val/top1"] == 1.0
    assert module.predict_step(MaskedBatch(clips, ()), 0).shape == (9, 16)


# ---------------------------------------------------------------------- the best of each encoder


def separable(size: int = 60) -> MaskedBatch:
    labels = torch.arange(size) % 3
    images = torch.randn(size, 3, 16, 16) + 2.0 * torch.nn.functional.one_hot(labels, 3)[:, :, None, None]
    return MaskedBatch(images, (), labels, torch.arange(size))


def test_labels_that_can_be_read_off_are_learned_and_each_encoder_has_its_best_head(
    checkpoint: str, quiet_trainer: TrainerFactory
) -> None:
    module, trainer = probe(checkpoint, lr=[1e-4, 0.5], weight_decay=[0.0]), quiet_trainer(max_epochs=20)
    trainer.fit(module, datamodule=Batches([separable()], [separable()]))
    accuracy = module.found.accuracy.mean(dim=1)
    for members, best in zip(module.groups().values(), module.chosen(), strict=True):
        assert best in members
        assert accuracy[best] == accuracy[members].max()
    assert trainer.callback_metrics["val/top1"] == accuracy[module.chosen()[0]] > 0.95
    report = module.findings()
    assert [(r.protocol, r.encoder) for r in report.results] == [
        ("linear probe", "trained"), ("linear probe", "random initialisation"), ("linear probe", "raw pixels"),
    ]  # fmt: skip
    assert report.results[0].values == (pytest.approx(float(accuracy[module.chosen()[0]])),)
    assert {r.samples for r in report.results} == {60}
    assert len(report.heads) == 20
    assert report.heads[3].chosen == {"features": "last block", "batch_norm": "yes", "lr": 0.5, "weight_decay": 0.0}
    assert [r.values[0] for r in report.heads] == pytest.approx(accuracy.tolist())


def test_a_baseline_is_never_the_best_head(checkpoint: str, quiet_trainer: TrainerFactory) -> None:
    trainer, module = quiet_trainer(), probe(checkpoint, features=[AveragePool()], batch_norm=[False])
    trainer.validate(module, Batches(val=[batch(1)]), verbose=False)
    for head in module.heads:
        torch.nn.init.normal_(head.get_parameter("linear.weight"))
    images = torch.randn(40, 3, 16, 16)
    pixels = module.heads[2](module.features(images)).argmax(dim=1)
    (found,) = trainer.validate(module, Batches(val=[MaskedBatch(images, (), pixels, torch.arange(40))]), verbose=False)
    results = module.findings().results
    assert results[2].values == (1.0,)
    assert found["val/top1"] == results[0].values[0] < 0.9


def test_several_labels_have_a_row_each(checkpoint: str, quiet_trainer: TrainerFactory) -> None:
    kind = {"classes": [CLASSES, ["l", "r"]], "label_names": ("shape", "motion")}
    labels = torch.stack([torch.arange(6) % 3, torch.arange(6) % 2], dim=1)
    module = probe(checkpoint)
    quiet_trainer(max_epochs=1).fit(
        module, datamodule=Batches([batch(6, labels=labels)], [batch(6, labels=labels)], **kind)
    )
    assert [result.label for result in module.findings().results] == ["shape", "motion"] * 3
    assert module.heads[0].get_parameter("linear.weight").shape[0] == 5


# ---------------------------------------------------------------------- checkpoints


def test_a_checkpoint_holds_heads_alone_and_the_best_travel_in_it(
    checkpoint: str, quiet_trainer: TrainerFactory, tmp_path: Path
) -> None:
    trainer, module = quiet_trainer(max_epochs=1), probe(checkpoint, lr=[0.1, 0.5])
    data = Batches([batch()] * 2, [separable(30)], [separable(30)])
    trainer.fit(module, datamodule=data)
    trainer.save_checkpoint(tmp_path / "p.ckpt")
    state = torch.load(tmp_path / "p.ckpt", weights_only=True)["state_dict"]
    assert {name.split(".")[0] for name in state} == {"heads", "best", "best_of_group", "_extra_state"}
    other = probe(checkpoint, lr=[0.1, 0.5])
    quiet_trainer().test(other, data, ckpt_path=tmp_path / "p.ckpt", verbose=False, weights_only=True)
    assert other.chosen() == module.chosen()
    images = torch.randn(3, 3, 16, 16)
    for mine, theirs in zip(other.heads.eval(), module.heads.eval(), strict=True):
        assert torch.equal(mine(other.features(images)), theirs(module.features(images)))
    fewer = probe(checkpoint, lr=[0.1])
    with pytest.raises(ValueError, match=r"has 20 heads, features, batch_norm, .* make 10: give the features"):
        quiet_trainer().test(fewer, data, ckpt_path=tmp_path / "p.ckpt", verbose=False, weights_only=True)


def test_no_head_is_refused(checkpoint: str) -> None:
    with pytest.raises(ValueError, match=r"lr \[\] and weight_decay \[0.1\] make no head"):
        probe(checkpoint, lr=[])
    with pytest.raises(ValueError, match=r"features \[\] and batch_norm \[False, True\] make no head"):
        probe(checkpoint, features=[])


def test_running_statistics_are_those_of_the_features(checkpoint: str, quiet_trainer: TrainerFactory) -> None:
    module = probe(checkpoint, batch_norm=[True], features=[AveragePool()], baselines=False)
    given = batch(20)
    quiet_trainer(max_epochs=60).fit(module, datamodule=Batches([given]))
    features: Tensor = module.features(given.inputs)
    norm: Any = module.heads[0].norm
    torch.testing.assert_close(norm.running_mean, features.mean(dim=0), rtol=0, atol=0.01)
    torch.testing.assert_close(norm.running_var, features.var(dim=0), rtol=0.02, atol=0.01)
