from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from lightning import Trainer
from torch import Tensor
from torch.utils.data import DataLoader

from jepa_lightning.data import Trajectory
from jepa_lightning.loading import start_from
from jepa_lightning.methods import VJEPA2AC
from jepa_lightning.models import ActionPredictor, RoPE, VisionTransformer
from jepa_lightning.schedules import Constant
from jepa_lightning.weights import open as open_weights


def make(clips: bool = True, predictor: dict[str, Any] | None = None, **options: Any) -> VJEPA2AC:
    video = {"num_frames": 4, "tubelet_size": 2, "positions": RoPE()} if clips else {}
    encoder = VisionTransformer(16, 8, 3, 24, 1, 2, init_std=None, **video)
    sizes = {"embed_dim": 16, "depth": 1, "num_heads": 2, "init_std": None, "action_dim": 2, "state_dim": 3}
    build = partial(ActionPredictor, **{**sizes, **(predictor or {})})
    return VJEPA2AC(encoder, build, Constant(1e-2), Constant(0.0), **options)


def batch(frames: int = 4, states: bool = True) -> Trajectory:
    shape = (3, 3, frames, 16, 16)
    return Trajectory(torch.randn(shape), torch.randn(3, frames - 1, 2), torch.randn(3, frames, 3) if states else None)


def normalized(x: Tensor) -> Tensor:
    return F.layer_norm(x, (24,))


@pytest.mark.parametrize("auto_steps", [1, 2, 4])
@pytest.mark.parametrize("loss_exp", [1.0, 2.0])
def test_the_loss_is_that_of_a_loop_over_frames(auto_steps: int, loss_exp: float) -> None:
    module, data = make(auto_steps=auto_steps, loss_exp=loss_exp), batch(frames=6)
    frames = [data.frames[:, :, t : t + 1].expand(-1, -1, 2, -1, -1) for t in range(6)]  # twice, to fill a tubelet
    true = [normalized(module.encoder(frame)) for frame in frames]

    def last(history: list[Tensor]) -> Tensor:
        steps = len(history)
        out = module.predictor(torch.cat(history, 1), data.actions[:, :steps], data.states[:, :steps])  # type: ignore[index]
        return normalized(out[:, -4:])

    forced = torch.stack([(last(true[:t]) - true[t]).abs() ** loss_exp / loss_exp for t in range(1, 6)]).mean()
    rolled = [true[0]]
    for _ in range(auto_steps):
        rolled.append(last(rolled))
    errors = [(rolled[t] - true[t]).abs() ** loss_exp / loss_exp for t in range(1, auto_steps + 1)]
    found = module.losses(data)
    assert list(found) == ["loss", "teacher_forcing", "rollout"]
    torch.testing.assert_close(found["teacher_forcing"], forced)
    torch.testing.assert_close(found["rollout"], torch.stack(errors).mean())
    assert found["loss"] == found["teacher_forcing"] + found["rollout"]


def test_gradients_pass_through_the_roll_out() -> None:
    module, data = make(auto_steps=2), batch(frames=3)
    (full,) = torch.autograd.grad(module.losses(data)["rollout"], [module.predictor.action_encoder.weight])
    with torch.no_grad():
        first = module.features(data.frames)[:, :4]
        second = module.normalized(module.predictor(first, data.actions[:, :1], data.states[:, :1]))  # type: ignore[index]
    sequence = torch.cat([first, second], dim=1)
    third = module.normalized(module.predictor(sequence, data.actions, data.states[:, :2])[:, 4:])  # type: ignore[index]
    cut = (third - module.features(data.frames)[:, 8:]).abs().mean() / 2
    (stopped,) = torch.autograd.grad(cut, [module.predictor.action_encoder.weight])
    assert not torch.allclose(full, stopped, rtol=0.05)


def test_the_encoder_is_not_trained_and_stays_in_eval_mode(quiet_trainer: Callable[..., Trainer]) -> None:
    module, data = make(), batch()
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    trainer = quiet_trainer(max_steps=3)
    trainer.fit(module, DataLoader([data] * 3, batch_size=None))  # type: ignore[arg-type]
    changed = {
        name.split(".")[0] for name, tensor in module.state_dict().items() if not torch.equal(before[name], tensor)
    }
    assert changed == {"predictor"}
    assert not module.encoder.training
    assert {"train/loss", "train/teacher_forcing", "train/rollout"} <= set(trainer.callback_metrics)
    owned = {id(p) for group in trainer.optimizers[0].param_groups for p in group["params"]}
    assert owned == {id(p) for p in module.predictor.parameters() if p.requires_grad}


@pytest.mark.parametrize("clips", [True, False])
def test_one_batch_is_learned_by_heart(clips: bool, quiet_trainer: Callable[..., Trainer]) -> None:
    module, data = make(clips, {"embed_dim": 48, "depth": 2, "state_dim": None}), batch(states=False)
    first = module.losses(data)["loss"].item()
    quiet_trainer(max_steps=150).fit(module, DataLoader([data] * 150, batch_size=None))  # type: ignore[arg-type]
    assert module.losses(data)["loss"].item() < 0.4 * first


def test_trajectories_that_are_too_short_for_the_roll_out_are_refused() -> None:
    with pytest.raises(
        ValueError, match=r"trajectories of 3 frames are too short for a roll-out of 3 steps.*num_frames"
    ):
        make(auto_steps=3).losses(batch(frames=3))
    with pytest.raises(ValueError, match="use at least 1, not 0"):
        make(auto_steps=0)


def test_frames_of_a_clip_are_encoded_one_by_one() -> None:
    module, frames = make(), torch.randn(2, 3, 5, 16, 16)
    tokens = module.encode(frames)
    assert tokens.shape == (2, 5 * 4, 24)
    assert torch.allclose(tokens[:, 8:12], module.encode(frames[:, :, 2]), atol=1e-6)


def test_a_new_world_model_starts_from_the_target_encoder_of_any_pretraining(
    save_checkpoint: Callable[..., str], tmp_path: Any
) -> None:
    path = save_checkpoint(tmp_path / "last.ckpt", seed=3)
    found = open_weights(path)
    module = VJEPA2AC(
        VisionTransformer(16, 8, 3, 16, 2, 2),
        partial(ActionPredictor, embed_dim=12, depth=1, num_heads=2, state_dim=None),
        Constant(1e-2), Constant(0.0),
    )  # fmt: skip
    fresh = module.predictor.action_encoder.weight.clone()
    moments = start_from(module, found)
    target = found.networks("target").encoder.state_dict()
    assert all(torch.equal(target[name], tensor) for name, tensor in module.encoder.state_dict().items())
    assert not torch.equal(found.networks("context").encoder.state_dict()["norm.bias"], target["norm.bias"])
    assert torch.equal(module.predictor.action_encoder.weight, fresh)
    assert moments(module) is None
    assert not any(parameter.requires_grad for parameter in module.encoder.parameters())
