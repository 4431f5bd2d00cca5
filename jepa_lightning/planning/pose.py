"""Poses of a robot's hand: position, rotation as Euler angles about fixed x, y and z, opening of the gripper."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

Pose = Float[Tensor, "*batch 7"]


def matrix(angles: Float[Tensor, "*batch 3"]) -> Float[Tensor, "*batch 3 3"]:
    """The rotation about x, then y, then z, all of them fixed."""
    (cx, cy, cz), (sx, sy, sz) = angles.cos().unbind(-1), angles.sin().unbind(-1)
    rows = [
        [cz * cy, cz * sy * sx - sz * cx, cz * sy * cx + sz * sx],
        [sz * cy, sz * sy * sx + cz * cx, sz * sy * cx - cz * sx],
        [-sy, cy * sx, cy * cx],
    ]
    return torch.stack([torch.stack(row, dim=-1) for row in rows], dim=-2)


def euler(rotation: Float[Tensor, "*batch 3 3"]) -> Float[Tensor, "*batch 3"]:
    """The angles of a rotation, the one about y from -pi/2 to pi/2."""
    y = -rotation[..., 2, 0].clamp(-1.0, 1.0).asin()
    x = torch.atan2(rotation[..., 2, 1], rotation[..., 2, 2])
    z = torch.atan2(rotation[..., 1, 0], rotation[..., 0, 0])
    return torch.stack([x, y, z], dim=-1)


def advance(pose: Pose, action: Pose) -> Pose:
    """The pose after an action: position added, rotation applied, gripper added and clipped to [0, 1]."""
    turned = euler(matrix(action[..., 3:6]) @ matrix(pose[..., 3:6]))
    gripper = (pose[..., 6:] + action[..., 6:]).clamp(0.0, 1.0)
    return torch.cat([pose[..., :3] + action[..., :3], turned, gripper], dim=-1)


def difference(start: Pose, end: Pose) -> Pose:
    """The action that leads from one pose to another; of a trajectory: ``difference(poses[:-1], poses[1:])``."""
    turn = euler(matrix(end[..., 3:6]) @ matrix(start[..., 3:6]).transpose(-1, -2))
    return torch.cat([end[..., :3] - start[..., :3], turn, end[..., 6:] - start[..., 6:]], dim=-1)


def in_camera(pose: Pose, camera: Float[Tensor, "*batch 6"]) -> Pose:
    """Poses as a camera sees them, whose own position and angles are given."""
    back = matrix(camera[..., 3:6]).transpose(-1, -2)
    place = (back @ (pose[..., :3] - camera[..., :3]).unsqueeze(-1)).squeeze(-1)
    return torch.cat([place, euler(back @ matrix(pose[..., 3:6])), pose[..., 6:]], dim=-1)
