from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import av
import pytest
import torch
import torch.nn.functional as F
import yaml
from lightning import Callback, LightningDataModule, LightningModule, Trainer
from torch import Tensor
from torch.utils.data import DataLoader

import jepa_lightning as jl
from jepa_lightning.callbacks import Report
from jepa_lightning.checkpoint_io import AtomicCheckpointIO
from jepa_lightning.data import ClipFormat, ClipSampler, VideoDataModule
from jepa_lightning.data.moving_digits import write_video
from jepa_lightning.evaluation import read
from jepa_lightning.loading import build, load
from jepa_lightning.masking import MaskCollator, MaskedBatch
from jepa_lightning.models.pooling import AttentiveClassifier
from jepa_lightning.probing import AttentiveProbe
from jepa_lightning.probing.classifier import at_the_edge
from jepa_lightning.schedules import Constant
from jepa_lightning.weights.ours import CONFIG_KEY

TrainerFactory = Callable[..., Trainer]
CLASSES = ["a", "b", "c"]
pytestmark = pytest.mark.filterwarnings("ignore:Total length of `list` across ranks is zero")  # no validation split


def pretraining(encoder: dict[str, Any], method: str = "IJEPA") -> dict[str, Any]:
    schedule = {"class_path": "jepa_lightning.schedules.Constant", "init_args": {"value": 0.5}}
    sizes = {"img_size": 16, "patch_size": 8, "embed_dim": 16, "depth": 2, "num_heads": 2, "init_std": None}
    arguments = dict.fromkeys(("lr", "weight_decay", "momentum"), schedule)
    arguments["encoder"] = {"class_path": "jepa_lightning.VisionTransformer", "init_args": {**sizes, **encoder}}
    narrow = {"embed_dim": 12, "depth": 1, "num_heads": 2}
    arguments["predictor"] = {"class_path": "jepa_lightning.Predictor", "init_args": narrow}
    return {"class_path": f"jepa_lightning.{method}", "init_args": arguments}


def save(path: Path, config: dict[str, Any], seed: int) -> str:
    """A checkpoint as `jepa fit` leaves it; the target encoder differs from the encoder."""
    torch.manual_seed(seed)
    module: Any = build(config)
    for parameter in module.target_encoder.parameters():
        parameter.data += 0.3 * torch.randn_like(parameter)
    content = {"state_dict": module.state_dict(), CONFIG_KEY: yaml.safe_dump({"model": config})}
    AtomicCheckpointIO().save_checkpoint(content, path)
    return str(path)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save(tmp_path_factory.mktemp("images") / "a.ckpt", pretraining({}), 1)


@pytest.fixture(scope="module")
def video_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> str:
    config = pretraining({"num_frames": 4, "tubelet_size": 2}, "VJEPA")
    return save(tmp_path_factory.mktemp("clips") / "v.ckpt", config, 2)


class Batches(LightningDataModule):
    """The same batches in every epoch."""

    views = 1

    def __init__(
        self,
        train: Sequence[MaskedBatch] = (),
        val: Sequence[MaskedBatch] = (),
        test: Sequence[MaskedBatch] = (),
        classes: Any = CLASSES,
        label_names: tuple[str, ...] = (),
    ) -> None:
        super().__init__()
        self.train, self.val, self.test, self.classes, self.label_names = train, val, test, classes, label_names

    def train_dataloader(self) -> Any:
        return self._loader(self.train)

    def val_dataloader(self) -> Any:
        return self._loader(self.val)

    def test_dataloader(self) -> Any:
        return self._loader(self.test)

    def _loader(self, batches: Sequence[MaskedBatch]) -> Any:
        return DataLoader(list(batches), batch_size=None) if batches else []  # type: ignore[arg-type]


def batch(size: int = 4, first: int = 0, labels: Any = None, shape: tuple[int, ...] = (3, 16, 16)) -> MaskedBatch:
    known = torch.randint(3, (size,)) if labels is None else torch.as_tensor(labels)
    return MaskedBatch(torch.randn(size, *shape), (), known, torch.arange(first, first + size))


def probe(checkpoint: str, **overrides: Any) -> AttentiveProbe:
    torch.manual_seed(7)  # the first head drawn after it is the same, however many follow
    settings = {"num_heads": 2, "lr": [1e-2], "weight_decay": [0.1], "lr_schedule": Constant(1.0)}
    return AttentiveProbe(checkpoint, **{**settings, **overrides})


def scatter(module: torch.nn.Module) -> None:
    """Large random weights, so that predictions differ from sample to sample and from head to head."""
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter, std=0.7)


def with_heads(checkpoint: str, trainer: Trainer, data: Batches, **overrides: Any) -> AttentiveProbe:
    """A probe whose heads are there before training, and predict different things."""
    module = probe(checkpoint, **overrides)
    trainer.validate(module, Batches(val=[batch(1)], **_kind(data)), verbose=False)
    for head in module.heads:
        scatter(head)
    return module


def _kind(data: Batches) -> dict[str, Any]:
    return {"classes": data.classes, "label_names": data.label_names}


def guesses(head: Any, module: AttentiveProbe, inputs: Tensor) -> Tensor:
    return head(module.encode(inputs)).argmax(dim=1)


# ---------------------------------------------------------------------- heads side by side


@pytest.mark.parametrize("clip", [None, 0.05])
def test_each_head_of_a_grid_learns_what_it_learns_alone(
    checkpoint: str, quiet_trainer: TrainerFactory, clip: float | None
) -> None:
    data, grid = Batches([batch() for _ in range(3)]), [(lr, wd) for lr in (1e-3, 3e-2) for wd in (0.0, 0.5)]

    def trained(lr: list[float], decay: list[float], clip: float | None) -> AttentiveProbe:
        module = probe(checkpoint, lr=lr, weight_decay=decay, depth=2)
        quiet_trainer(max_epochs=2, gradient_clip_val=clip).fit(module, datamodule=data)
        return module

    together = trained([1e-3, 3e-2], [0.0, 0.5], clip)
    assert together.grid == grid
    for head, (lr, decay) in zip(together.heads, grid, strict=True):
        alone = trained([lr], [decay], clip).heads[0].state_dict()
        for name, tensor in head.state_dict().items():
            torch.testing.assert_close(tensor, alone[name], rtol=0, atol=1e-6)
    ends = [head.get_parameter("linear.weight") for head in together.heads]
    assert all((a - b).abs().max() > 1e-4 for i, a in enumerate(ends) for b in ends[:i])
    if clip:
        other = trained([3e-2], [0.5], None).heads[0].get_parameter("linear.weight")
        assert (other - ends[3]).abs().max() > 1e-4


def test_clipping_limits_the_norm_of_each_head_by_itself(checkpoint: str, quiet_trainer: TrainerFactory) -> None:
    norms = []

    class Norms(Callback):
        def on_before_zero_grad(self, trainer: Trainer, pl_module: Any, optimizer: Any) -> None:
            for head in pl_module.heads:
                grads = [p.grad.flatten() for p in head.parameters() if p.grad is not None]
                norms.append(torch.cat(grads).norm().item() if grads else None)

    module = probe(checkpoint, lr=[1e-3, 1e-2])
    options = {"gradient_clip_val": 1e-3, "callbacks": [Norms()]}
    quiet_trainer(max_steps=2, **options).fit(module, datamodule=Batches([batch()] * 2))
    clipped = [norm for norm in norms if norm is not None]
    assert len(clipped) >= 2
    assert clipped == pytest.approx([1e-3] * len(clipped), rel=1e-2)


def test_clipping_by_value_is_not_mistaken_for_the_norm(checkpoint: str, quiet_trainer: TrainerFactory) -> None:
    largest = []

    class Largest(Callback):
        def on_before_zero_grad(self, trainer: Trainer, pl_module: Any, optimizer: Any) -> None:
            largest.extend(p.grad.abs().max().item() for p in pl_module.heads.parameters() if p.grad is not None)

    options = {"gradient_clip_val": 1e-3, "gradient_clip_algorithm": "value", "callbacks": [Largest()]}
    quiet_trainer(max_steps=2, **options).fit(probe(checkpoint), datamodule=Batches([batch()] * 2))
    assert max(largest) == pytest.approx(1e-3)


def test_rates_and_decays_follow_the_grid_and_the_schedules(checkpoint: str, quiet_trainer: TrainerFactory) -> None:
    module = probe(
        checkpoint, lr=[0.1, 0.2], weight_decay=[0.3], lr_schedule=Constant(0.5), weight_decay_schedule=Constant(2.0)
    )
    trainer = quiet_trainer(max_steps=1)
    trainer.fit(module, datamodule=Batches([batch()]))
    groups = trainer.optimizers[0].param_groups
    assert [group["lr"] for group in groups] == pytest.approx([0.05, 0.05, 0.1, 0.1])
    assert [group["weight_decay"] for group in groups] == pytest.approx([0.6, 0.0, 0.6, 0.0])
    for number, head in enumerate(module.heads):
        decayed = {id(p) for p in groups[2 * number]["params"]}
        assert decayed == {id(p) for name, p in head.named_parameters() if "query" in name or p.ndim == 2}
        assert decayed | {id(p) for p in groups[2 * number + 1]["params"]} == {id(p) for p in head.parameters()}


def test_the_default_schedule_is_a_cosine_to_zero(checkpoint: str, quiet_trainer: TrainerFactory) -> None:
    seen = []

    class Rates(Callback):
        def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Any) -> None:
            seen.append(optimizer.param_groups[0]["lr"])

    module = probe(checkpoint, lr_schedule=None)
    quiet_trainer(max_epochs=2, callbacks=[Rates()]).fit(module, datamodule=Batches([batch()] * 2))
    assert seen == pytest.approx([1e-2 * 0.5 * (1 + math.cos(math.pi * step / 4)) for step in (1, 2, 3, 4)])


# ---------------------------------------------------------------------- the encoder


def test_the_encoder_never_changes_and_gets_no_gradient(checkpoint: str, quiet_trainer: TrainerFactory) -> None:
    modes = []

    class Modes(Callback):
        def on_train_batch_end(self, trainer: Trainer, pl_module: Any, *_: Any) -> None:
            modes.append((pl_module.encoder.training, pl_module.heads[0].training))

    module = probe(checkpoint, lr=[1.0])
    before = {name: tensor.clone() for name, tensor in module.encoder.state_dict().items()}
    trainer = quiet_trainer(max_epochs=2, callbacks=[Modes()])
    trainer.fit(module, datamodule=Batches([batch()] * 2, [batch()]))
    assert all(torch.equal(before[name], tensor) for name, tensor in module.encoder.state_dict().items())
    assert not any(p.requires_grad or p.grad is not None for p in module.encoder.parameters())
    mine = {id(p) for p in module.heads.parameters()}
    assert {id(p) for group in trainer.optimizers[0].param_groups for p in group["params"]} == mine
    assert set(modes) == {(False, True)}  # also after a validation


def test_the_branch_is_the_one_that_was_asked_for(checkpoint: str) -> None:
    inputs, source = torch.randn(2, 3, 16, 16), load(checkpoint)
    found = {branch: probe(checkpoint, branch=branch).encode(inputs) for branch in ("target", "context")}
    assert torch.equal(found["target"], source.target_encoder(inputs))
    assert torch.equal(found["context"], source.encoder(inputs))
    assert (found["target"] - found["context"]).abs().max() > 0.1


def test_several_blocks_are_read_one_after_the_other(checkpoint: str) -> None:
    inputs, encoder = torch.randn(2, 3, 16, 16), load(checkpoint).target_encoder
    tokens = probe(checkpoint, out_layers=[1, 0]).encode(inputs)
    last, first = encoder(inputs, layers=[1, 0])
    assert tokens.shape == (2, 8, 16)
    assert torch.equal(tokens, torch.cat([last, first], dim=1))
    assert torch.equal(last, encoder(inputs))


# ---------------------------------------------------------------------- accuracy


def test_accuracy_counts_each_labelled_sample_once(checkpoint: str, quiet_trainer: TrainerFactory) -> None:
    trainer = quiet_trainer()
    module = with_heads(checkpoint, trainer, Batches())
    inputs = torch.randn(9, 3, 16, 16)
    right = guesses(module.heads[0], module, inputs)
    labels = right.clone()
    labels[[0, 4, 5]] = (right[[0, 4, 5]] + 1) % 3  # wrong: 0, 4 and 5 of the samples 0 to 6
    labels[6] = -1  # not known

    def part(samples: list[int], index: list[int]) -> MaskedBatch:
        return MaskedBatch(inputs[samples], (), labels[samples], torch.tensor(index))

    batches = [
        part([0, 1, 2, 3], [10, 11, 12, 13]),
        part([4, 5, 6], [14, 15, 16]),  # 6 has no label
        part([0, 0, 7], [10, 10, -1]),  # copies, and a file that could not be decoded, which would be right
        part([8], [17]),
    ]
    (found,) = trainer.validate(module, Batches(val=batches), verbose=False)
    assert found["val/top1"] == pytest.approx(4 / 7)
    means = [(labels[s] == right[s]).float().mean().item() for s in ([0, 1, 2, 3], [4, 5, 6], [0, 0, 7], [8])]
    assert abs(sum(means) / 4 - 4 / 7) > 0.05  # what the mean of batch means would be


def test_samples_that_do_not_tell_which_they_are_count_one_by_one(
    checkpoint: str, quiet_trainer: TrainerFactory
) -> None:
    """Pairs of a user's own data set have no index: neither positions in a batch nor copies are looked at."""
    trainer = quiet_trainer()
    module = with_heads(checkpoint, trainer, Batches())
    inputs = torch.randn(7, 3, 16, 16)
    labels = guesses(module.heads[0], module, inputs)
    labels[[0, 5]] = (labels[[0, 5]] + 1) % 3
    pairs = [(image, int(label)) for image, label in zip(inputs, labels, strict=True)]
    batches = [MaskCollator(None)(pairs[:3]), MaskCollator(None)(pairs[3:])]
    (found,) = trainer.validate(module, Batches(val=batches), verbose=False)
    assert found["val/top1"] == pytest.approx(5 / 7)


def test_features_are_those_of_all_clips_of_a_video_together(video_checkpoint: str) -> None:
    module, inputs = probe(video_checkpoint).eval(), torch.randn(2, 3, *CLIPS)
    features = module.predict_step(MaskedBatch(inputs, ()), 0)
    expected = torch.stack([module.encoder(inputs[:, clip]).mean(dim=1) for clip in range(3)]).mean(dim=0)
    torch.testing.assert_close(features, expected, rtol=0, atol=1e-6)


def test_the_best_head_is_reported_and_all_are_logged(checkpoint: str, quiet_trainer: TrainerFactory) -> None:
    trainer = quiet_trainer()
    module = with_heads(checkpoint, trainer, Batches(), lr=[0.1, 0.2], weight_decay=[0.3])
    inputs = torch.randn(40, 3, 16, 16)
    first, second = (guesses(head, module, inputs) for head in module.heads)
    share = (first == second).float().mean().item()
    assert share < 0.9
    data = Batches(val=[MaskedBatch(inputs, (), second, torch.arange(40))])
    (found,) = trainer.validate(module, data, verbose=False)
    assert found == pytest.approx(
        {"val/top1": 1.0, "val_heads/lr0.1_wd0.3": share, "val_heads/lr0.2_wd0.3": 1.0}, abs=1e-6
    )
    # In the test split the other head would be the better one.
    data = Batches(test=[MaskedBatch(inputs, (), first, torch.arange(40))])
    (found,) = trainer.test(module, data, verbose=False)
    assert found["test/top1"] == pytest.approx(share)
    assert found["test_heads/lr0.1_wd0.3"] == 1.0


def test_the_best_head_travels_in_the_checkpoint(
    checkpoint: str, quiet_trainer: TrainerFactory, tmp_path: Path
) -> None:
    trainer, path = quiet_trainer(max_epochs=1), tmp_path / "probe.ckpt"
    module = with_heads(checkpoint, quiet_trainer(), Batches(), lr=[0.0, 0.0])
    inputs = torch.randn(20, 3, 16, 16)
    data = Batches([batch()], [MaskedBatch(inputs, (), guesses(module.heads[1], module, inputs), torch.arange(20))])
    trainer.fit(module, datamodule=data)
    trainer.save_checkpoint(path)
    other = probe(checkpoint, lr=[0.0, 0.0])
    first = guesses(module.heads[0], module, inputs)
    data = Batches(test=[MaskedBatch(inputs, (), first, torch.arange(20))])
    (found,) = quiet_trainer().test(other, data, ckpt_path=path, verbose=False, weights_only=True)
    assert found["test/top1"] < 0.95
    assert found["test/top1"] == pytest.approx((guesses(module.heads[1], module, inputs) == first).float().mean())


def test_the_sanity_check_does_not_choose_a_head(checkpoint: str, quiet_trainer: TrainerFactory) -> None:
    module = with_heads(checkpoint, quiet_trainer(), Batches(), lr=[0.0, 0.0])
    inputs = torch.randn(20, 3, 16, 16)
    data = Batches([batch()], [MaskedBatch(inputs, (), guesses(module.heads[1], module, inputs), torch.arange(20))])
    seen = []

    class Look(Callback):
        def on_train_start(self, trainer: Trainer, pl_module: Any) -> None:
            seen.append(int(pl_module.best))

    module.best.fill_(0)
    trainer = quiet_trainer(max_epochs=1, num_sanity_val_steps=1, callbacks=[Look()])
    trainer.fit(module, datamodule=data)
    assert seen == [0]
    assert int(module.best) == 1


def test_several_labels_are_told_apart_and_their_mean_decides(checkpoint: str, quiet_trainer: TrainerFactory) -> None:
    trainer, kind = quiet_trainer(), {"classes": [CLASSES, ["l", "r"]], "label_names": ("shape", "motion")}
    module = with_heads(checkpoint, trainer, Batches(**kind), lr=[0.1, 0.2])
    inputs = torch.randn(40, 3, 16, 16)
    logits = [head(module.encode(inputs)) for head in module.heads]
    assert logits[0].shape == (40, 5)
    shape, motion = logits[1][:, :3].argmax(1), logits[0][:, 3:].argmax(1)
    labels = torch.stack([shape, motion], dim=1)
    labels[0, 0], labels[1, 1] = -1, -1
    (found,) = trainer.validate(
        module, Batches(val=[MaskedBatch(inputs, (), labels, torch.arange(40))], **kind), verbose=False
    )
    accuracy = torch.zeros(2, 2)
    for number, values in enumerate(logits):
        for task, part in enumerate(values.split([3, 2], dim=1)):
            accuracy[number, task] = (part.argmax(1) == labels[:, task])[2:].float().mean()
    best = int(accuracy.mean(dim=1).argmax())
    assert found["val/top1"] == pytest.approx(accuracy[best].mean().item())
    assert found["val/top1_shape"] == pytest.approx(accuracy[best, 0].item())
    assert found["val/top1_motion"] == pytest.approx(accuracy[best, 1].item())
    assert found["val_heads/lr0.1_wd0.1"] == pytest.approx(accuracy[0].mean().item())
    assert accuracy[0, 0] < 1 == accuracy[1, 0]


def test_the_loss_of_several_labels_is_the_sum_over_labels_of_the_mean_over_samples(
    checkpoint: str, quiet_trainer: TrainerFactory
) -> None:
    kind = {"classes": [CLASSES, ["l", "r"]], "label_names": ("shape", "motion")}
    module = with_heads(checkpoint, quiet_trainer(), Batches(**kind), lr=[0.0])
    given = batch(4, labels=[[0, 1], [2, -1], [-1, 0], [1, 1]])
    logits = module.heads[0](module.encode(given.inputs)).log_softmax(dim=1)
    expected = -torch.stack([logits[i, :3].log_softmax(0)[c] for i, c in ((0, 0), (1, 2), (3, 1))]).mean()
    expected -= torch.stack([logits[i, 3:].log_softmax(0)[c] for i, c in ((0, 1), (2, 0), (3, 1))]).mean()
    trainer = quiet_trainer(max_steps=1)
    trainer.fit(module, datamodule=Batches([given], **kind))
    assert trainer.callback_metrics["train/loss"].item() == pytest.approx(expected.item(), rel=1e-5)


def test_a_batch_without_labels_leaves_the_heads_alone(checkpoint: str, quiet_trainer: TrainerFactory) -> None:
    module = with_heads(checkpoint, quiet_trainer(), Batches(), weight_decay=[0.0])
    before = {name: tensor.clone() for name, tensor in module.heads.state_dict().items()}
    trainer = quiet_trainer(max_steps=1)
    trainer.fit(module, datamodule=Batches([batch(4, labels=[-1] * 4)]))
    assert trainer.callback_metrics["train/loss"].item() == 0.0
    assert all(torch.equal(tensor, before[name]) for name, tensor in module.heads.state_dict().items())


def test_a_split_without_labels_has_no_accuracy_and_says_so(checkpoint: str, quiet_trainer: TrainerFactory) -> None:
    with pytest.warns(UserWarning, match="no sample of this split has a label"):
        (found,) = quiet_trainer().validate(
            probe(checkpoint), Batches(val=[batch(3, labels=[-1] * 3)]), verbose=False
        ) or ({},)
    assert "val/top1" not in found


def test_labels_that_can_be_read_off_the_tokens_are_learned(checkpoint: str, quiet_trainer: TrainerFactory) -> None:
    labels = torch.arange(24) % 3
    inputs = torch.randn(24, 3, 16, 16) + 2.0 * F.one_hot(labels, 3)[:, :, None, None]
    given = MaskedBatch(inputs, (), labels, torch.arange(24))
    trainer = quiet_trainer(max_epochs=30)
    trainer.fit(probe(checkpoint, lr=[1e-5, 1e-2]), datamodule=Batches([given], [given]))
    assert trainer.callback_metrics["val/top1"].item() == 1.0
    assert trainer.callback_metrics["train/loss_of_best"].item() < 0.2 < trainer.callback_metrics["train/loss"].item()


# ---------------------------------------------------------------------- clips and views


CLIPS = (3, 4, 16, 16)


def test_a_clip_is_one_sequence(video_checkpoint: str) -> None:
    module, inputs = probe(video_checkpoint), torch.randn(2, *CLIPS)
    assert module.tokens(inputs).shape == (2, 1, 8, 16)
    assert torch.equal(module.tokens(inputs)[:, 0], module.encoder(inputs))


def test_a_video_gets_the_mean_of_the_probabilities_of_its_clips_and_views(
    video_checkpoint: str, quiet_trainer: TrainerFactory
) -> None:
    trainer = quiet_trainer()
    module = with_heads(video_checkpoint, trainer, Batches())
    with torch.no_grad():
        module.heads[0].linear.weight.mul_(3.0)  # sure of itself, so that the two means differ
    inputs = torch.randn(40, 3, *CLIPS)
    logits = torch.stack([module.heads[0](module.encoder(inputs[:, k])) for k in range(3)])
    labels = logits.softmax(dim=2).mean(dim=0).argmax(dim=1)
    assert (logits.mean(dim=0).argmax(dim=1) != labels).any()
    (found,) = trainer.validate(module, Batches(val=[MaskedBatch(inputs, (), labels, torch.arange(40))]), verbose=False)
    assert found["val/top1"] == 1.0


class TwoViews(Batches):
    views = 2


def test_clips_in_one_sequence_stand_one_after_the_other_for_each_view(
    video_checkpoint: str, quiet_trainer: TrainerFactory
) -> None:
    trainer = quiet_trainer()
    module = with_heads(video_checkpoint, trainer, Batches(), attend_across_clips=True)
    inputs = torch.randn(40, 6, *CLIPS)  # three clips, both views of each before the next
    sequences = [torch.cat([module.encoder(inputs[:, 2 * clip + view]) for clip in range(3)], 1) for view in range(2)]
    probabilities = torch.stack([module.heads[0](sequence).softmax(dim=1) for sequence in sequences]).mean(dim=0)
    labels = probabilities.argmax(dim=1)
    (found,) = trainer.validate(
        module, TwoViews(val=[MaskedBatch(inputs, (), labels, torch.arange(40))]), verbose=False
    )
    assert found["val/top1"] == 1.0
    tokens = module.eval().tokens(inputs)
    assert tokens.shape == (40, 2, 24, 16)
    for view in range(2):
        torch.testing.assert_close(tokens[:, view], sequences[view], rtol=0, atol=1e-5)
    module.attend_across_clips = False
    (found,) = trainer.validate(
        module, TwoViews(val=[MaskedBatch(inputs, (), labels, torch.arange(40))]), verbose=False
    )
    assert found["val/top1"] < 1.0


@pytest.mark.parametrize("together", [False, True])
def test_training_clips_have_one_view_whatever_evaluation_has(
    video_checkpoint: str, quiet_trainer: TrainerFactory, together: bool
) -> None:
    module = with_heads(video_checkpoint, quiet_trainer(), Batches(), lr=[0.0], attend_across_clips=together)
    given = batch(4, shape=(3, *CLIPS))  # three clips: not a multiple of the two views
    tokens = [module.encoder(given.inputs[:, clip]) for clip in range(3)]
    sequences = [torch.cat(tokens, dim=1)] if together else tokens
    losses = [F.cross_entropy(module.heads[0](sequence), given.labels) for sequence in sequences]
    trainer = quiet_trainer(max_steps=1)
    trainer.fit(module, datamodule=TwoViews([given]))
    expected = torch.stack(losses).mean().item()
    assert trainer.callback_metrics["train/loss"].item() == pytest.approx(expected, rel=1e-5)


def by_hand(path: Path, size: tuple[int, int]) -> list[Tensor]:
    """Three clips of four frames in the middle of the thirds of a file, of each the two ends of its longer side."""
    with av.open(str(path)) as container:
        frames = [torch.from_numpy(frame.to_ndarray(format="rgb24")) for frame in container.decode(video=0)]
    assert len(frames) == 33  # thirds of 11 frames, a clip of every second one spans 7: two are left before it
    pixels = torch.stack(frames).permute(0, 3, 1, 2).float()
    scale = max(size[0] / pixels.shape[2], size[1] / pixels.shape[3])
    sides = [round(scale * side) for side in pixels.shape[2:]]
    pixels = F.interpolate(pixels, size=sides, mode="bilinear", antialias=True).round()
    ends = [pixels[..., : size[0], : size[1]], pixels[..., -size[0] :, -size[1] :]]
    return [view[[11 * clip + 2 + 2 * step for step in range(4)]].transpose(0, 1) for clip in range(3) for view in ends]


@pytest.mark.parametrize("together", [False, True])
@pytest.mark.parametrize("size", [(16, 16), (16, 24)])
def test_clips_and_views_of_real_files_are_evaluated_as_by_hand(
    video_checkpoint: str, quiet_trainer: TrainerFactory, tmp_path: Path, size: tuple[int, int], together: bool
) -> None:
    shapes = [(24, 40), (40, 24), (32, 32), (26, 50), (50, 26)]
    for number, shape in enumerate(shapes * 3):
        path = tmp_path / ("val" if number < 10 else "train") / CLASSES[number % 3] / f"{number:02d}.mp4"
        path.parent.mkdir(parents=True, exist_ok=True)
        coarse = torch.rand(12, 3, 5, 6, generator=torch.Generator().manual_seed(number)) * 255
        smooth = F.interpolate(coarse.transpose(0, 1)[None], size=(33, *shape), mode="trilinear")[0]
        write_video(path, smooth.permute(1, 2, 3, 0).to(torch.uint8).numpy(), fps=8)
    data = VideoDataModule(
        root=str(tmp_path), masks=None, clips=partial(ClipSampler, frame_step=2, num_clips=3), batch_size=4,
        num_workers=0, inputs=ClipFormat(num_frames=4, img_size=size, views=2),
    )  # fmt: skip
    module, trainer = probe(video_checkpoint, attend_across_clips=together), quiet_trainer()
    trainer.validate(module, data, verbose=False)
    for head in module.heads:
        scatter(head)
    right = []
    for path in sorted(tmp_path.glob("val/*/*.mp4")):
        clips = data.normalize(torch.stack(by_hand(path, size)).to(torch.uint8))
        tokens = [module.encoder(clip[None]) for clip in clips]
        sequences = [torch.cat(tokens[view::2], dim=1) for view in range(2)] if together else tokens
        shares = torch.stack([module.heads[0](sequence).softmax(dim=1)[0] for sequence in sequences]).mean(dim=0)
        right.append(CLASSES[int(shares.argmax())] == path.parent.name)
        assert shares.sort().values[-2:].diff() > 1e-3  # not decided by a rounded pixel
    assert 0 < sum(right) < 10
    (found,) = trainer.validate(module, data, verbose=False)
    assert found["val/top1"] == pytest.approx(sum(right) / 10)
    seen = {
        int(i): clips for batch in data.val_dataloader() for i, clips in zip(batch.index, batch.inputs, strict=True)
    }
    for index, clips in seen.items():
        wanted = torch.stack(by_hand(tmp_path / "val" / data.listing("val").name(index), size))
        assert (clips.float() - wanted).abs().max() <= 1


# ---------------------------------------------------------------------- checkpoints


class SaveInTheMiddle(Callback):
    def __init__(self, path: Path) -> None:
        self.path = path

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.current_epoch == 0:
            trainer.save_checkpoint(self.path)


def test_a_checkpoint_holds_no_encoder_and_loads_to_the_same_logits(
    checkpoint: str, quiet_trainer: TrainerFactory, tmp_path: Path
) -> None:
    module, trainer, path = probe(checkpoint, lr=[1e-2, 3e-2]), quiet_trainer(max_epochs=2), tmp_path / "p.ckpt"
    trainer.fit(module, datamodule=Batches([batch()] * 2, [batch()]))
    trainer.save_checkpoint(path)
    content = torch.load(path, weights_only=True)
    assert not [name for name in content["state_dict"] if "encoder" in name]
    assert sum(name.startswith("heads.") for name in content["state_dict"]) == 2 * len(module.heads[0].state_dict())
    schedule = {"class_path": "jepa_lightning.schedules.Constant", "init_args": {"value": 1.0}}
    arguments = {"checkpoint": checkpoint, "num_heads": 2, "lr": [1e-2, 3e-2], "weight_decay": [0.1]}
    config = {
        "class_path": "jepa_lightning.probing.AttentiveProbe",
        "init_args": {**arguments, "lr_schedule": schedule},
    }
    torch.save({**content, CONFIG_KEY: yaml.safe_dump({"model": config})}, path)
    again, inputs = jl.load(path), torch.randn(3, 3, 16, 16)
    assert isinstance(again, AttentiveProbe)
    assert not again.training
    assert [list(task) for task in again.tasks] == [["", 3]]
    for mine, theirs in zip(again.heads, module.heads, strict=True):
        assert torch.equal(mine(again.encode(inputs)), theirs(module.encode(inputs)))


def test_heads_find_an_encoder_that_moved_with_them_or_say_where_they_looked(
    quiet_trainer: TrainerFactory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "old" / "runs").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "old")
    save(Path("runs/a.ckpt"), pretraining({}), 1)
    trainer, path = quiet_trainer(max_epochs=1), Path("runs/probe/p.ckpt")
    module = probe("runs/a.ckpt")
    trainer.fit(module, datamodule=Batches([batch()]))
    trainer.save_checkpoint(path)
    arguments = {"checkpoint": "runs/a.ckpt", "num_heads": 2, "lr": [1e-2], "weight_decay": [0.1]}
    config = {"class_path": "jepa_lightning.probing.AttentiveProbe", "init_args": arguments}
    content = {**torch.load(path, weights_only=True), CONFIG_KEY: yaml.safe_dump({"model": config})}
    torch.save(content, path)
    (tmp_path / "old").rename(tmp_path / "new")
    monkeypatch.chdir(tmp_path)
    inputs, moved = torch.randn(2, 3, 16, 16), tmp_path / "new" / path
    assert torch.equal(jl.load(moved).encode(inputs), module.encode(inputs))
    (tmp_path / "new/runs/a.ckpt").rename(tmp_path / "b.ckpt")
    with pytest.raises(FileNotFoundError, match=rf"runs/a.ckpt is neither in {tmp_path} nor .*load\(path, checkpoint="):
        jl.load(moved)
    assert torch.equal(jl.load(moved, checkpoint="b.ckpt").encode(inputs), module.encode(inputs))
    with pytest.raises(ValueError, match=r"b.ckpt holds its encoder itself: leave out checkpoint=c.ckpt"):
        jl.load("b.ckpt", checkpoint="c.ckpt")


def test_a_resumed_run_ends_where_an_uninterrupted_one_does(
    checkpoint: str, quiet_trainer: TrainerFactory, tmp_path: Path
) -> None:
    path, data = tmp_path / "middle.ckpt", Batches([batch() for _ in range(3)], [batch(5)])
    make = partial(probe, checkpoint, lr=[1e-3, 3e-2], weight_decay=[0.0, 0.5], lr_schedule=None, depth=2)
    whole = make()
    quiet_trainer(max_epochs=3, gradient_clip_val=0.1, callbacks=[SaveInTheMiddle(path)]).fit(whole, datamodule=data)
    resumed = make()
    torch.manual_seed(99)  # what the heads start from must not matter
    quiet_trainer(max_epochs=3, gradient_clip_val=0.1).fit(resumed, datamodule=data, ckpt_path=path, weights_only=True)
    for name, tensor in whole.heads.state_dict().items():
        torch.testing.assert_close(resumed.heads.state_dict()[name], tensor, rtol=0, atol=1e-7)
    assert int(whole.best) == int(resumed.best)
    early = torch.load(path, weights_only=True)["state_dict"]["heads.3.linear.weight"]
    assert (early - whole.heads[3].get_parameter("linear.weight")).abs().max() > 1e-3


def test_the_configuration_wins_over_what_a_checkpoint_remembers(
    checkpoint: str, quiet_trainer: TrainerFactory, tmp_path: Path
) -> None:
    path, data = tmp_path / "middle.ckpt", Batches([batch()] * 2)
    quiet_trainer(max_epochs=1, callbacks=[SaveInTheMiddle(path)]).fit(probe(checkpoint), datamodule=data)
    trainer = quiet_trainer(max_epochs=2)
    trainer.fit(probe(checkpoint, lr=[0.25], weight_decay=[0.75]), datamodule=data, ckpt_path=path, weights_only=True)
    decayed, vectors = trainer.optimizers[0].param_groups
    assert (decayed["lr"], decayed["weight_decay"]) == (0.25, 0.75)
    assert (vectors["lr"], vectors["weight_decay"]) == (0.25, 0.0)


def test_heads_are_refused_by_another_encoder_and_by_other_classes(
    checkpoint: str, quiet_trainer: TrainerFactory, tmp_path: Path
) -> None:
    trainer, path = quiet_trainer(max_epochs=1), tmp_path / "probe.ckpt"
    trainer.fit(probe(checkpoint), datamodule=Batches([batch()]))
    trainer.save_checkpoint(path)
    again = partial(quiet_trainer().validate, ckpt_path=path, verbose=False, weights_only=True)
    other = save(tmp_path / "other.ckpt", pretraining({}), 5)
    with pytest.raises(ValueError, match=rf"not trained on the encoder of {other}: .* --model.checkpoint {checkpoint}"):
        again(probe(other), Batches(val=[batch()]))
    with pytest.raises(ValueError, match="not trained on the encoder"):  # the same file, its other network
        again(probe(checkpoint, branch="context"), Batches(val=[batch()]))
    with pytest.raises(ValueError, match="trained on the classes 3, the data have 2: give the data"):
        again(probe(checkpoint), Batches(val=[batch(labels=[0, 1, 0, 1])], classes=["a", "b"]))
    with pytest.raises(
        ValueError, match="the checkpoint has 1 heads, lr and weight_decay make 2 of depth 1: give the lr"
    ):
        again(probe(checkpoint, lr=[0.1, 0.2]), Batches(val=[batch()]))
    with pytest.raises(
        ValueError, match="the checkpoint has 1 heads, lr and weight_decay make 1 of depth 4: give the lr"
    ):
        again(probe(checkpoint, depth=4), Batches(val=[batch()]))


# ---------------------------------------------------------------------- mistakes and what is shown


@pytest.mark.parametrize("classes", [[], ["only"]])
def test_data_without_labels_are_refused(checkpoint: str, quiet_trainer: TrainerFactory, classes: list[str]) -> None:
    message = f"labels of two classes or more, the data have {len(classes)}: sort the files into a folder"
    with pytest.raises(ValueError, match=message):
        quiet_trainer(max_steps=1).fit(probe(checkpoint), datamodule=Batches([batch()], classes=classes))


def test_loaders_without_a_data_module_are_refused(checkpoint: str, quiet_trainer: TrainerFactory) -> None:
    with pytest.raises(ValueError, match="takes the number of classes from a data module: give datamodule="):
        quiet_trainer(max_steps=1).fit(probe(checkpoint), Batches([batch()]).train_dataloader())


def test_an_empty_grid_is_refused(checkpoint: str) -> None:
    with pytest.raises(ValueError, match=r"lr \[\] and weight_decay \[0.1\] make no head"):
        probe(checkpoint, lr=[])


def test_the_heads_are_shown_and_written_at_the_end_of_fit_and_in_validation(
    checkpoint: str, quiet_trainer: TrainerFactory, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    kind = {"classes": [CLASSES, ["l", "r"]], "label_names": ("shape", "motion")}
    labels = torch.stack([torch.arange(4) % 3, torch.arange(4) % 2], dim=1)
    data = Batches([batch(4, labels=labels)], [batch(4, labels=labels)], [batch(4, labels=labels)], **kind)
    module, trainer = probe(checkpoint, lr=[0.001, 0.01]), quiet_trainer(max_epochs=2, callbacks=[Report()])
    trainer.fit(module, datamodule=data)
    lines = capsys.readouterr().out.strip().splitlines()
    assert lines[0] == "Batches, validation split, n = 4"
    best, edge = int(module.best), ("the lowest of the grid: a lower one", "the highest of the grid: a higher one")
    assert sum(edge[best] in line for line in lines) == 1
    (head,) = [number for number, line in enumerate(lines) if "best in validation" in line]  # not after every epoch
    assert lines[head].split()[:6] == ["lr", "weight", "decay", "top-1", "shape", "(%)"]
    rows = [line.split() for line in lines[head + 2 : head + 4]]
    assert [row[:2] for row in rows] == [["0.001", "0.1"], ["0.01", "0.1"]]
    assert [row[-1] == "yes" for row in rows] == [best == 0, best == 1]
    path = tmp_path / "heads_validation.json"
    assert lines[-2:] == [f"written to {path}", f"written to {path.with_suffix('.md')}"]
    written = read(path)
    assert (written.about["encoder"], written.about["checkpoint"], written.about["steps"]) == (
        checkpoint, "as trained", 2,
    )  # fmt: skip
    assert {(r.protocol, r.data, r.split, r.samples) for r in written.heads} == {
        ("attentive probe", "Batches", "val", 4)
    }
    assert [r.label for r in written.results] == ["shape", "motion"]
    top1 = trainer.callback_metrics["val/top1"].item()
    assert sum(r.mean for r in written.results) / 2 == pytest.approx(top1)
    assert list(written.results) == [
        r for r in written.heads if r.chosen == {"lr": (0.001, 0.01)[best], "weight_decay": 0.1}
    ]
    path.unlink()
    quiet_trainer(callbacks=[Report()]).validate(module, data, verbose=False)
    assert read(path).heads == written.heads
    quiet_trainer(callbacks=[Report()]).test(module, data, verbose=False)
    assert read(tmp_path / "heads_test.json").results[0].split == "test"


@pytest.mark.parametrize(
    ("rates", "best", "said"),
    [
        ([0.1, 0.01, 0.1, 1.0], 0.1, []),
        ([0.1], 0.1, []),
        ([0.1, 0.1], 0.1, []),
        ([0.1, 0.01], 0.1, ["The best lr, 0.1, is the highest of the grid: a higher one"]),
        ([0.1, 0.01], 0.01, ["The best lr, 0.01, is the lowest of the grid: a lower one"]),
    ],
)
def test_a_grid_whose_best_learning_rate_is_at_its_edge_is_said_to_be_too_narrow(
    rates: list[float], best: float, said: list[str]
) -> None:
    assert [line.partition(" may be")[0] for line in at_the_edge(rates, best)] == said


def test_untrained_heads_are_called_so(
    checkpoint: str, quiet_trainer: TrainerFactory, capsys: pytest.CaptureFixture[str]
) -> None:
    quiet_trainer(callbacks=[Report()]).validate(probe(checkpoint), Batches(val=[batch()]), verbose=False)
    assert "These heads are untrained: give --ckpt_path." in capsys.readouterr().out


def test_a_dry_run_writes_nothing(checkpoint: str, quiet_trainer: TrainerFactory, tmp_path: Path) -> None:
    trainer = quiet_trainer(fast_dev_run=True, callbacks=[Report()])
    trainer.fit(probe(checkpoint), datamodule=Batches([batch()], [batch()]))
    assert not list(tmp_path.iterdir())


def test_a_head_has_one_output_for_each_class_of_each_label(checkpoint: str, quiet_trainer: TrainerFactory) -> None:
    module = with_heads(checkpoint, quiet_trainer(), Batches(classes=[["x"] * 4, ["y"] * 2], label_names=("p", "q")))
    (head,) = module.heads
    assert isinstance(head, AttentiveClassifier)
    assert head.linear.out_features == 6
