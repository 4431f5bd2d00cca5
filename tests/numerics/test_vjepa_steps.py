"""Four training steps of V-JEPA against a second program, written here from the equations, in float64.

Held out from the golden files: positions that are not uniform, inputs that are not square, clips of another size and
length than the model was built for, several steps with warm-up, clipping and EMA.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest
import torch
from lightning import Trainer
from torch import Tensor
from torch.utils.data import DataLoader

from jepa_lightning.masking import MaskedBatch, TokenMasks
from jepa_lightning.methods import VJEPA
from jepa_lightning.models import Predictor, RoPE, SinCos3D, VisionTransformer
from jepa_lightning.schedules import Cosine, Linear, WarmupCosine

Grid = tuple[int, int, int]
State = dict[str, Tensor]
TUBELET, PATCH, HEADS, LIMIT = 2, 8, 4, 0.02
BATCHES, EPOCHS, SCALE = 2, 2, 1.25


# ---------------------------------------------------------------------- the equations


def norm(x: Tensor, eps: float) -> Tensor:
    centred = x - x.mean(dim=-1, keepdim=True)
    return centred / (centred.square().mean(dim=-1, keepdim=True) + eps).sqrt()


def affine_norm(state: State, name: str, x: Tensor) -> Tensor:
    return norm(x, 1e-6) * state[f"{name}.weight"] + state[f"{name}.bias"]


def linear(state: State, name: str, x: Tensor) -> Tensor:
    return x @ state[f"{name}.weight"].T + state[f"{name}.bias"]


def sines(place: float, width: int) -> list[float]:
    angles = [place / 10000 ** (i / (width / 2)) for i in range(width // 2)]
    return [math.sin(angle) for angle in angles] + [math.cos(angle) for angle in angles]


def table(grid: Grid, dim: int, uniform: bool) -> Tensor:
    """(T, H, W, D), computed in float64 and stored in float32."""
    widths = [2 * math.ceil(dim / 6)] * 3 if uniform else [dim // 2, dim // 4, dim // 4]
    rows = [
        [n for place, width in zip((t, h, w), widths, strict=True) for n in sines(place, width)][:dim]
        for t in range(grid[0]) for h in range(grid[1]) for w in range(grid[2])
    ]  # fmt: skip
    return torch.tensor(rows, dtype=torch.float64).float().double().unflatten(0, grid)


def stretched(positions: Tensor, wanted: Grid) -> Tensor:
    """Linear along each axis between the middles of its cells."""
    for axis, new in enumerate(wanted):
        old = positions.shape[axis]
        places = [max(0.0, (i + 0.5) * old / new - 0.5) for i in range(new)]
        rows = positions.movedim(axis, 0)
        mixed = [
            (1 - place % 1) * rows[int(place)] + place % 1 * rows[min(int(place) + 1, old - 1)] for place in places
        ]
        positions = torch.stack(mixed).movedim(0, axis)
    return positions


def turned(x: Tensor, index: Tensor, grid: Grid) -> Tensor:
    """Pairs of channels of each head (B, heads, N, d) as complex numbers, turned by time, height and width."""
    result, width = x.clone(), 2 * (x.shape[-1] // 3 // 2)
    for axis, place in enumerate((index // (grid[1] * grid[2]), index // grid[2] % grid[1], index % grid[2])):
        for pair in range(width // 2):
            angle = (place.double() * 10000 ** (-pair / (width / 2))).unsqueeze(1)  # (B, 1, N)
            a, b = (x[..., axis * width + 2 * pair + i] for i in (0, 1))
            result[..., axis * width + 2 * pair] = a * angle.cos() - b * angle.sin()
            result[..., axis * width + 2 * pair + 1] = a * angle.sin() + b * angle.cos()
    return result


def block(state: State, name: str, x: Tensor, index: Tensor, grid: Grid, rope: bool) -> Tensor:
    q, k, v = linear(state, f"{name}.attn.qkv", affine_norm(state, f"{name}.norm1", x)).chunk(3, dim=-1)
    q, k, v = (part.unflatten(-1, (HEADS, -1)).transpose(1, 2) for part in (q, k, v))
    if rope:
        q, k = turned(q, index, grid), turned(k, index, grid)
    weights = (q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5).exp()
    attended = (weights / weights.sum(dim=-1, keepdim=True) @ v).transpose(1, 2).flatten(2)
    x = x + linear(state, f"{name}.attn.proj", attended)
    hidden = linear(state, f"{name}.mlp.fc1", affine_norm(state, f"{name}.norm2", x))
    return x + linear(state, f"{name}.mlp.fc2", 0.5 * hidden * (1 + torch.erf(hidden / 2**0.5)))


def rows(x: Tensor, index: Tensor) -> Tensor:
    return torch.stack([sample[places] for sample, places in zip(x, index, strict=True)])


class Twin:
    """The method without any part of the package, on tensors called as in its state."""

    def __init__(self, module: VJEPA, built: Grid, share: bool) -> None:
        state = {name: tensor.detach().double().clone() for name, tensor in module.state_dict().items()}
        self.weights = {name: t for name, t in state.items() if "pos_embed" not in name and "target" not in name}
        self.target = {name.removeprefix("target_"): t for name, t in state.items() if name.startswith("target_")}
        self.share, self.built, self.positions = share, built, module.encoder.positions
        self.moments = {name: (torch.zeros_like(t), torch.zeros_like(t)) for name, t in self.weights.items()}

    def added(self, grid: Grid, dim: int) -> Tensor:
        if not isinstance(self.positions, SinCos3D):
            return torch.zeros(math.prod(grid), dim, dtype=torch.float64)
        return stretched(table(self.built, dim, self.positions.uniform_power), grid).flatten(0, 2)

    def encode(self, state: State, clips: Tensor, grid: Grid, index: Tensor) -> Tensor:
        boxes = (
            clips.unfold(2, TUBELET, TUBELET).unfold(3, PATCH, PATCH).unfold(4, PATCH, PATCH)
        )  # (B, C, T, H, W, ...)
        kernel = state["encoder.patch_embed.proj.weight"].flatten(1)
        x = boxes.permute(0, 2, 3, 4, 1, 5, 6, 7).flatten(4).flatten(1, 3) @ kernel.T
        x = x + state["encoder.patch_embed.proj.bias"] + self.added(grid, len(kernel))
        x = rows(x, index)
        for number in range(2):
            x = block(state, f"encoder.blocks.{number}", x, index, grid, isinstance(self.positions, RoPE))
        return affine_norm(state, "encoder.norm", x)

    def predict(self, context: Tensor, masks: TokenMasks, token: int, grid: Grid) -> Tensor:
        state, asked = self.weights, masks.targets[:, 0]
        shown = linear(state, "predictor.predictor_embed", context)
        places = self.added(grid, shown.shape[-1])
        x = torch.cat([shown + places[masks.context], state[f"predictor.mask_tokens.{token}"] + places[asked]], dim=1)
        index = torch.cat([masks.context, asked], dim=1)
        x = block(state, "predictor.predictor_blocks.0", x, index, grid, isinstance(self.positions, RoPE))
        x = affine_norm(state, "predictor.predictor_norm", x)[:, masks.context.shape[1] :]
        return linear(state, "predictor.predictor_proj", x)

    def loss(self, batch: MaskedBatch) -> Tensor:
        _, _, frames, height, width = batch.inputs.shape
        grid = (frames // TUBELET, height // PATCH, width // PATCH)
        everything = torch.arange(math.prod(grid)).expand(len(batch.inputs), -1)
        features = norm(self.encode(self.target, batch.inputs, grid, everything), 1e-5)
        errors = []
        for family, masks in enumerate(batch.masks):
            context = self.encode(self.weights, batch.inputs, grid, masks.context)
            predicted = self.predict(context, masks, 0 if self.share else family, grid)
            errors.append((predicted - rows(features, masks.targets[:, 0])).abs().mean())
        return torch.stack(errors).mean()

    def step(self, batch: MaskedBatch, number: int, epoch: int, warmup: int, ema: tuple[float, float]) -> float:
        """Learning rate and weight decay before the step, then AdamW, then the average."""
        total, momentum = (
            SCALE * BATCHES * EPOCHS,
            ema[0] + (number - 1) * (ema[1] - ema[0]) / (SCALE * BATCHES * EPOCHS),
        )
        lr, decay = (
            1e-3 + number / max(1, warmup) * 4e-3,
            0.4 - 0.36 * 0.5 * (1 + math.cos(math.pi * number / int(total))),
        )
        if number >= warmup:
            lr = 1e-4 + 4.9e-3 * 0.5 * (1 + math.cos(math.pi * (number - warmup) / (int(total) - warmup)))
        names = [name for name in self.weights if not (self.share and name == "predictor.mask_tokens.1")]
        leaves = [self.weights[name].requires_grad_() for name in names]
        loss = self.loss(batch)
        gradients = dict(zip(names, torch.autograd.grad(loss, leaves), strict=True))
        for network in ("encoder.", "predictor."):
            mine = {name: g for name, g in gradients.items() if name.startswith(network)}
            size = torch.cat([g.flatten() for g in mine.values()]).norm()
            if epoch * BATCHES > warmup and size > LIMIT:
                gradients |= {name: g * LIMIT / (size + 1e-6) for name, g in mine.items()}
        with torch.no_grad():
            for name, gradient in gradients.items():
                self.adamw(name, gradient, number, lr, decay)
            for name, average in self.target.items():
                if "pos_embed" not in name:
                    average.copy_(momentum * average + (1 - momentum) * self.weights[name])
        return float(loss.detach())

    def adamw(self, name: str, gradient: Tensor, number: int, lr: float, decay: float) -> None:
        weight, (first, second) = self.weights[name], self.moments[name]
        if weight.ndim > 1 and "bias" not in name:
            weight.mul_(1 - lr * decay)
        first.copy_(0.9 * first + 0.1 * gradient)
        second.copy_(0.999 * second + 0.001 * gradient.square())
        scale = (second / (1 - 0.999**number)).sqrt() + 1e-8
        weight.sub_(lr * first / (1 - 0.9**number) / scale)


# ---------------------------------------------------------------------- the comparison


def batches(size: tuple[int, int, int]) -> Iterator[MaskedBatch]:
    tokens = (size[0] // TUBELET) * (size[1] // PATCH) * (size[2] // PATCH)
    for _ in range(BATCHES):
        masks = []
        for shown, asked in ((tokens // 2, tokens // 4), (tokens // 4, tokens // 2)):
            order = torch.stack([torch.randperm(tokens) for _ in range(3)])
            masks.append(TokenMasks(order[:, :shown], order[:, None, shown : shown + asked]))
        yield MaskedBatch(torch.randn(3, 3, *size, dtype=torch.float64), tuple(masks))


@pytest.mark.parametrize(
    ("positions", "size", "warmup", "tolerance"),  # the package resamples tables and turns angles in float32
    [
        (SinCos3D(uniform_power=False), (6, 24, 40), 1, 1e-10),  # what it was built for
        (SinCos3D(uniform_power=False), (4, 32, 16), 1, 1e-5),  # resampled along all axes
        (SinCos3D(uniform_power=True), (8, 16, 24), 0, 1e-5),
        (RoPE("interleaved"), (4, 32, 24), 3, 1e-5),
    ],
)
def test_four_steps_end_where_the_equations_do(
    positions: Any, size: tuple[int, int, int], warmup: int, tolerance: float, quiet_trainer: Callable[..., Trainer]
) -> None:
    encoder = VisionTransformer(
        (24, 40), PATCH, 3, 32, 2, HEADS, init_std=None, num_frames=6, tubelet_size=TUBELET, positions=positions
    )
    share, ema = isinstance(positions, RoPE), (0.9, 1.0)
    module = VJEPA(
        encoder, partial(Predictor, embed_dim=24, depth=1, init_std=None, num_mask_tokens=2, mask_token_std=0.5),
        WarmupCosine(1e-3, 5e-3, 1e-4, warmup_epochs=warmup / BATCHES), Cosine(0.04, 0.4), Linear(*ema),
        ipe_scale=SCALE, share_mask_token=share,
    )  # fmt: skip
    for parameter in module.encoder.parameters():  # so that encoder and target encoder differ
        parameter.data += 0.05 * torch.randn_like(parameter)
    twin, losses, data = Twin(module, (3, 3, 5), share), [], list(batches(size))
    trainer = quiet_trainer(max_epochs=EPOCHS, precision="64-true", gradient_clip_val=LIMIT)
    trainer.fit(module, DataLoader(data, batch_size=None))  # type: ignore[arg-type]
    for number in range(BATCHES * EPOCHS):
        epoch = number // BATCHES
        losses.append(twin.step(data[number % BATCHES], number + 1, epoch, warmup, ema))
    assert trainer.callback_metrics["train/loss"].item() == pytest.approx(losses[-1], abs=1e-7)
    expected = {**twin.weights, **{f"target_{name}": tensor for name, tensor in twin.target.items()}}
    state = module.state_dict()
    assert len(expected) > 60
    for name, tensor in expected.items():
        torch.testing.assert_close(state[name].double(), tensor, rtol=0, atol=tolerance, msg=name)
