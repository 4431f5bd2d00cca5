from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from lightning import Trainer
from torch.utils.data import DataLoader

from jepa_lightning.data import Trajectory
from jepa_lightning.losses import SIGReg, VarianceCovariance
from jepa_lightning.methods import PLDM
from jepa_lightning.models import InverseDynamics, KeypointEncoder, LatentDynamics, TemporalDistance
from jepa_lightning.models.keypoint_encoder import expected_places
from jepa_lightning.planning import WorldModel
from jepa_lightning.schedules import Constant


def make(**options: Any) -> PLDM:
    encoder = KeypointEncoder(16, 8, hidden_dim=16, widths=(4, 8))
    parts: dict[str, Any] = {
        "inverse": partial(InverseDynamics, hidden_dim=16),
        "distance": partial(TemporalDistance, hidden_dim=16, groups=2, group_size=4),
        "window": 4,
        "goals": 2,
    }
    dynamics = partial(LatentDynamics, hidden_dim=16)
    options = {"regularizer": VarianceCovariance(16.0, 1.0), **parts, **options}
    return PLDM(encoder, dynamics, Constant(1e-2), Constant(0.0), **options)


def batch(frames: int = 7) -> Trajectory:
    return Trajectory(torch.randn(6, 3, frames, 16, 16), torch.randn(6, frames - 1, 2))


def test_the_loss_is_the_sum_of_its_terms_in_a_loop_over_frames() -> None:
    module, data = make(), batch()
    found, times = module.losses(data), module.times(6, 7)
    z = torch.stack(
        [torch.stack([module.encoder(data.frames[b : b + 1, :, t])[0, 0] for t in times[b]]) for b in range(6)]
    )
    predictions, similar, inverse = [], [], []
    for b in range(6):
        rolled = z[b, 0]
        for t in range(3):
            action = data.actions[b, times[b, t]]
            rolled = module.dynamics(rolled, action)
            predictions.append((rolled - z[b, t + 1]).square().mean())
            similar.append((z[b, t + 1] - z[b, t]).square().mean())
            inverse.append((module.inverse(z[b, t], z[b, t + 1]) - action).square().mean())  # type: ignore[misc]
    torch.testing.assert_close(found["prediction"], torch.stack(predictions).mean())
    torch.testing.assert_close(found["time_similarity"], torch.stack(similar).mean())
    torch.testing.assert_close(found["inverse"], torch.stack(inverse).mean())
    weights = {"prediction": 1, "time_similarity": 1, "inverse": 10, "distance": 1, "variance_hinge": 16}
    total = sum(weights.get(name, 1) * value for name, value in found.items() if name != "loss")
    torch.testing.assert_close(found["loss"], total)


def test_a_term_that_is_left_out_has_no_network_and_no_value() -> None:
    module = make(inverse=None, distance=None, regularizer=SIGReg(16))
    assert set(module.networks()) == {"encoder", "dynamics"}
    assert set(module.losses(batch())) == {"loss", "prediction", "time_similarity", "sigreg"}
    with pytest.raises(ValueError, match="no temporal distance"):
        module.temporal_distance(torch.zeros(1, 1, 8), torch.zeros(1, 1, 8))


def test_the_temporal_distance_is_a_quasimetric() -> None:
    distance = make().distance
    assert distance is not None
    a, b, c = torch.randn(3, 200, 8)
    assert (distance(a, c) <= distance(a, b) + distance(b, c) + 1e-5).all()
    assert (distance(a, b) >= 0).all()
    assert distance(a, a).abs().max() == 0
    assert not torch.allclose(distance(a, b), distance(b, a))


def test_distances_along_a_line_become_numbers_of_steps() -> None:
    torch.manual_seed(0)
    head = TemporalDistance(KeypointEncoder(8, 1), hidden_dim=32, groups=2, group_size=4, far=60.0)
    optimizer = torch.optim.Adam(head.parameters(), 1e-2)
    line = torch.linspace(-1, 1, 11)[:, None]
    for _ in range(300):
        optimizer.zero_grad()
        head.loss(line[None], line[None]).backward()
        optimizer.step()
    found = head(line[:1].expand(10, 1), line[1:])
    assert (found - torch.arange(1, 11)).abs().max() < 1.5


def test_the_places_of_maps_are_where_their_peaks_are() -> None:
    maps = torch.full((1, 1, 9, 5), -50.0)
    maps[0, 0, 2, 4] = 50.0
    torch.testing.assert_close(expected_places(maps), torch.tensor([[1.0, -0.5]]))  # column, row


def test_it_is_a_world_model_for_planning() -> None:
    module = make().eval()
    assert isinstance(module, WorldModel)
    state = module.encode(torch.randn(5, 3, 16, 16))
    following = module.step(state, torch.randn(5, 2))
    assert following.shape == state.shape == (5, 1, 8)
    assert module.temporal_distance(following.unflatten(0, (1, 5)), state.unflatten(0, (1, 5))).shape == (1, 5)
    assert module.encode(torch.randn(2, 3, 4, 16, 16)).shape == (2, 4, 8)


def test_frames_of_a_step_follow_from_its_number(monkeypatch: pytest.MonkeyPatch) -> None:
    module = make()
    monkeypatch.setattr(PLDM, "draw", property(lambda self: self.now), raising=True)
    drawn = []
    for module.now in (3, 4, 3):  # type: ignore[attr-defined]
        drawn.append(module.times(6, 30))
    assert torch.equal(drawn[0], drawn[2])
    assert not torch.equal(drawn[0], drawn[1])
    assert (drawn[0][:, :4].diff(dim=1) == 1).all()
    assert drawn[0].min() >= 0
    assert drawn[0].max() < 30


def test_pieces_shorter_than_a_roll_out_are_refused() -> None:
    with pytest.raises(ValueError, match=r"pieces of 3 frames are too short for roll-outs of 4: set --data.num_frames"):
        make().losses(batch(frames=3))
    with pytest.raises(ValueError, match="window must be at least 2"):
        make(window=1)


def test_one_batch_is_learned_by_heart(quiet_trainer: Callable[..., Trainer]) -> None:
    torch.manual_seed(0)
    module, data = make(), batch(frames=4)
    first = module.losses(data)
    quiet_trainer(max_steps=100).fit(module, DataLoader([data] * 100, batch_size=None))  # type: ignore[arg-type]
    last = module.losses(data)
    assert last["loss"] < 0.5 * first["loss"]
    assert last["inverse"] < 0.5 * first["inverse"]
