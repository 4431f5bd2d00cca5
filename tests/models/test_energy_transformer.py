from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any, Literal

import pytest
import torch
from lightning import Callback, Trainer
from torch import Tensor, nn

from jepa_lightning.loading import build
from jepa_lightning.masking import MaskedBatch
from jepa_lightning.methods import IJEPA
from jepa_lightning.models import EnergyBlocks, Predictor, RoPE, VisionTransformer
from jepa_lightning.models.energy_transformer import EnergyAttention, EnergyLayerNorm, EnergyTransformer
from jepa_lightning.models.packing import Packing
from jepa_lightning.models.positions import Rotation, rotate
from jepa_lightning.schedules import Constant

EncoderFactory = Callable[..., VisionTransformer]
IJEPAFactory = Callable[..., IJEPA]
LENGTHS = (1, 5, 3)
PLACES = torch.tensor([5 * row + column for row, length in enumerate(LENGTHS) for column in range(length)])
HOPFIELD: list[Literal["relu", "softmax"]] = ["relu", "softmax"]
POSITIONS = [None, RoPE(layout="interleaved"), RoPE(layout="tiled")]


def block_of(depth: int = 3, std: float = 0.3, **options: Any) -> EnergyTransformer:
    """With parameters that are neither small nor equal."""
    (block,) = EnergyBlocks(**options).build(depth, 24, 3, 2.0)
    for parameter in block.parameters():
        nn.init.normal_(parameter, std=std)
    assert isinstance(block, EnergyTransformer)
    return block


def rotation_of(positions: RoPE | None, rows: int = 3) -> Rotation | None:
    index = torch.arange(5 * rows).view(rows, 5) * 7 % 16
    return None if positions is None else positions.rotation(index, (1, 4, 4), 8)


def naive_energy(block: EnergyTransformer, g: Tensor, rotation: Rotation | None) -> Tensor:
    """Of one sequence (N, D), token by token."""
    heads, energy = block.attn.num_heads, torch.zeros(())
    q, k = (part.unflatten(-1, (heads, -1)).transpose(0, 1)[None] for part in block.attn.qk(g).chunk(2, dim=-1))
    if rotation is not None:
        q, k = rotate(q, rotation), rotate(k, rotation)
    for h in range(heads):
        beta = block.attn.log_beta[h].exp()
        for i in range(len(g)):
            keys = [j for j in range(len(g)) if j != i or block.attn.attend_to_self]
            if keys:
                total = sum(torch.exp(beta * (q[0, h, i] @ k[0, h, j])) for j in keys)
                energy = energy - torch.log(torch.as_tensor(total)) / beta
    for token in g:
        hidden = block.hopfield.xi.weight @ token
        if hasattr(block.hopfield, "log_beta"):
            beta = block.hopfield.log_beta.exp()[0]
            energy = energy - torch.log(torch.exp(beta * hidden).sum()) / beta
        else:
            energy = energy - 0.5 * hidden.clamp_min(0).square().sum()
    return energy


def part_of(rotation: Rotation | None, row: int, length: int) -> Rotation | None:
    return None if rotation is None else Rotation(*(part[row : row + 1, :, :length] for part in rotation))


def energy_of(block: EnergyTransformer, g: Tensor, rotation: Rotation | None = None) -> Tensor:
    """The sum of the papers over sequences; a batch of one is a packed list."""
    sequences = g[0].split(LENGTHS) if len(g) == 1 else g.unbind()
    energies = [naive_energy(block, x, part_of(rotation, row, len(x))) for row, x in enumerate(sequences)]
    return torch.stack(energies).sum()


# ---------------------------------------------------------------------- the energy and its gradient


@pytest.mark.parametrize("hopfield", HOPFIELD)
@pytest.mark.parametrize("attend_to_self", [True, False])
@pytest.mark.parametrize("positions", POSITIONS)
@pytest.mark.parametrize("padding", [False, True])
def test_a_step_follows_the_gradient_of_the_energy(
    hopfield: str, attend_to_self: bool, positions: RoPE | None, padding: bool
) -> None:
    block = block_of(hopfield=hopfield, attend_to_self=attend_to_self, std=0.2, alpha=1.0)
    packing = Packing.of(PLACES, 3, 5) if padding else None
    x, rotation = torch.randn(1, 9, 24) if padding else torch.randn(3, 5, 24), rotation_of(positions)
    g = block.norm(x).detach().requires_grad_()
    energy = energy_of(block, g, rotation)
    (gradient,) = torch.autograd.grad(energy, g)
    stepped, measured = block(x, rotation, packing, measured=True)
    assert gradient.abs().max() > 0.1
    torch.testing.assert_close(x - stepped, gradient, rtol=0, atol=1e-5)
    torch.testing.assert_close(measured, energy.detach(), rtol=1e-5, atol=1e-4)
    assert block(x, rotation, packing)[1] is None


@pytest.mark.parametrize("hopfield", HOPFIELD)
def test_parameters_get_the_gradient_of_the_differentiated_energy(hopfield: str) -> None:
    block, x = block_of(hopfield=hopfield, std=0.2, alpha=1.0), torch.randn(2, 4, 24)
    weights, g = torch.randn(2, 4, 24), block.norm(x)
    (gradient,) = torch.autograd.grad(energy_of(block, g), g, create_graph=True)
    parameters = list(block.parameters())
    closed = torch.autograd.grad((block(x)[0] * weights).sum(), parameters)
    twice = torch.autograd.grad(((x - gradient) * weights).sum(), parameters)
    for a, b in zip(closed, twice, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("hopfield", HOPFIELD)
@pytest.mark.parametrize("attend_to_self", [True, False])
@pytest.mark.parametrize("padding", [False, True])
def test_the_energy_never_rises_if_steps_are_small(hopfield: str, attend_to_self: bool, padding: bool) -> None:
    packing = Packing.of(PLACES, 3, 5) if padding else None
    for seed in range(3):
        torch.manual_seed(seed)
        options = EnergyBlocks(alpha=1e-3, hopfield=hopfield, attend_to_self=attend_to_self)
        block = block_of(40, 0.4, alpha=1e-3, hopfield=hopfield, attend_to_self=attend_to_self).double()
        x = torch.randn(1, 9, 24, dtype=torch.float64) if padding else torch.randn(3, 5, 24, dtype=torch.float64)
        options.run(nn.ModuleList([block]), x, packing=packing)
        assert block.energies.shape == (40,)
        assert bool((block.energies.diff() < 0).all())


def test_the_norm_has_a_symmetric_jacobian_without_negative_eigenvalues() -> None:
    norm = EnergyLayerNorm(6).double()
    for parameter in norm.parameters():
        nn.init.normal_(parameter)
    jacobian = torch.autograd.functional.jacobian(norm, torch.randn(6, dtype=torch.float64))
    torch.testing.assert_close(jacobian, jacobian.T)
    assert torch.linalg.eigvalsh(jacobian).min() > -1e-12
    x = torch.randn(3, 6, dtype=torch.float64)
    centred = x - x.mean(dim=1, keepdim=True)
    scaled = norm.log_gamma.exp() * centred / (centred.square().mean(dim=1, keepdim=True) + 1e-5).sqrt()
    torch.testing.assert_close(norm(x), scaled + norm.delta)


def test_a_token_alone_in_its_sequence_attends_to_nothing_if_not_to_itself() -> None:
    block, x = block_of(attend_to_self=False), torch.randn(2, 1, 24, requires_grad=True)
    force, energy = block.attn(x, measured=True)
    assert not force.any()
    assert energy == 0.0
    (gradient,) = torch.autograd.grad(block(x)[0].sum(), x)
    assert torch.isfinite(gradient).all()


def test_samples_of_a_batch_do_not_see_each_other() -> None:
    block, x = block_of(), torch.randn(3, 5, 24)
    torch.testing.assert_close(block(x)[0][1:2], block(x[1:2])[0], rtol=0, atol=1e-5)


def test_inverse_temperatures_start_where_the_reference_has_them() -> None:
    layer = EnergyAttention(32, 2)
    torch.testing.assert_close(layer.log_beta.exp().detach(), torch.full((2,), 1 / math.sqrt(16)))
    (memory,) = EnergyBlocks(hopfield="softmax").build(1, 24, 3, 2.0)
    assert float(memory.hopfield.log_beta.detach().exp()) == pytest.approx(0.01)


# ---------------------------------------------------------------------- in place of blocks


@pytest.mark.parametrize("depth", [1, 4])
def test_steps_share_their_weights(tiny_encoder: EncoderFactory, depth: int) -> None:
    encoder = tiny_encoder(blocks=EnergyBlocks(hopfield="softmax"), depth=depth, mlp_ratio=3.0)
    trunk = {name: tuple(p.shape) for name, p in encoder.blocks.named_parameters()}
    assert trunk == {
        "0.norm.log_gamma": (1,), "0.norm.delta": (32,), "0.attn.log_beta": (4,), "0.attn.qk.weight": (64, 32),
        "0.hopfield.log_beta": (1,), "0.hopfield.xi.weight": (96, 32),
    }  # fmt: skip
    assert encoder.depth == depth


@pytest.mark.parametrize("positions", [None, RoPE()])
def test_layers_are_the_states_after_steps(tiny_encoder: EncoderFactory, positions: RoPE | None) -> None:
    build = partial(tiny_encoder, blocks=EnergyBlocks(alpha=0.5), positions=positions)
    encoder, images, context = build(depth=3), torch.randn(2, 3, 32, 32), torch.tensor([[4, 9], [1, 15]])
    shorter = build(depth=1)
    shorter.load_state_dict(encoder.state_dict())
    last, first = encoder(images, context, layers=[2, 0])
    torch.testing.assert_close(first, shorter(images, context), rtol=0, atol=1e-6)
    torch.testing.assert_close(last, encoder(images, context), rtol=0, atol=1e-6)
    assert (last - first).abs().max() > 1e-3
    with pytest.raises(ValueError, match=r"layers \[3\] of 3 blocks: use numbers from 0 to 2"):
        encoder(images, layers=[3])


@pytest.mark.parametrize("hopfield", HOPFIELD)
def test_checkpointed_activations_change_neither_output_nor_gradient(
    tiny_encoder: EncoderFactory, hopfield: str
) -> None:
    encoder, images = tiny_encoder(blocks=EnergyBlocks(hopfield=hopfield)), torch.randn(2, 3, 32, 32)
    again = tiny_encoder(blocks=EnergyBlocks(hopfield=hopfield, checkpoint_activations=True))
    again.load_state_dict(encoder.state_dict())
    gradients = [
        torch.autograd.grad(network(images).square().sum(), list(network.parameters())) for network in (encoder, again)
    ]
    for a, b in zip(*gradients, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)
    assert encoder.diagnostics() == again.diagnostics()


def test_with_rotary_positions_attention_depends_on_distances_only(tiny_encoder: EncoderFactory) -> None:
    encoder = tiny_encoder(positions=RoPE(), blocks=EnergyBlocks(alpha=0.5), patch_init_std=0.1)
    image = torch.randn(1, 3, 48, 64)
    inside = torch.arange(6 * 8).reshape(6, 8)[2:, 3:7].reshape(1, -1)
    torch.testing.assert_close(encoder(image, inside), encoder(image[:, :, 16:, 24:56]), rtol=0, atol=1e-5)


def test_energies_are_measured_in_training_only(tiny_encoder: EncoderFactory) -> None:
    encoder, images = tiny_encoder(blocks=EnergyBlocks(), depth=3).eval(), torch.randn(2, 3, 32, 32)
    encoder(images)
    assert encoder.diagnostics() == {}
    encoder.train()(images)
    energies = encoder.diagnostics()
    assert list(energies) == ["energy_0", "energy_1", "energy_2"]
    assert energies["energy_0"] > energies["energy_1"] > energies["energy_2"]
    assert not any(value.requires_grad for value in energies.values())
    block = encoder.blocks[0]
    g = block.norm(encoder.patch_embed(images) + encoder.pos_embed)
    torch.testing.assert_close(energies["energy_0"], energy_of(block, g).detach() / 32, rtol=1e-5, atol=1e-4)
    assert not [name for name in encoder.state_dict() if "energies" in name]


def test_autocast_changes_tokens_and_energies_only_by_rounding(tiny_encoder: EncoderFactory) -> None:
    encoder, images = tiny_encoder(blocks=EnergyBlocks(), positions=RoPE()), torch.randn(2, 3, 32, 32)
    tokens, energies = encoder(images), encoder.diagnostics()
    with torch.autocast("cpu", torch.bfloat16):
        cast = encoder(images)
    torch.testing.assert_close(cast.float(), tokens, rtol=0, atol=0.1)
    for name, value in encoder.diagnostics().items():
        torch.testing.assert_close(value.float(), energies[name], rtol=0.02, atol=0.02)


@pytest.mark.parametrize("alpha", [0.0, -0.1])
def test_a_step_that_does_not_descend_is_refused(alpha: float) -> None:
    with pytest.raises(ValueError, match=rf"alpha .* above 0, not {alpha}"):
        EnergyBlocks(alpha=alpha)


def test_no_step_and_heads_that_do_not_divide_the_width_are_refused(tiny_encoder: EncoderFactory) -> None:
    with pytest.raises(ValueError, match="depth 0: use at least 1"):
        tiny_encoder(blocks=EnergyBlocks(), depth=0)
    with pytest.raises(ValueError, match="embed_dim 32 is not divisible by num_heads 5"):
        tiny_encoder(blocks=EnergyBlocks(), num_heads=5)


def test_a_configuration_may_give_options_of_blocks_or_another_trunk() -> None:
    def encoder(blocks: Any) -> VisionTransformer:
        arguments = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 2, "blocks": blocks}
        schedule = {"class_path": "Constant", "init_args": {"value": 0.1}}
        module = build(
            {
                "class_path": "IJEPA",
                "init_args": {
                    "encoder": {"class_path": "VisionTransformer", "init_args": arguments},
                    "predictor": {"class_path": "Predictor", "init_args": {"embed_dim": 16, "depth": 1}},
                    **dict.fromkeys(("lr", "weight_decay", "momentum"), schedule),
                },
            }
        )
        assert isinstance(module.encoder, VisionTransformer)
        return module.encoder

    assert encoder({"swiglu": True}).options.swiglu
    energy = {"class_path": "EnergyBlocks", "init_args": {"alpha": 0.3, "hopfield": "softmax"}}
    assert encoder(energy).options == EnergyBlocks(alpha=0.3, hopfield="softmax")
    assert len(encoder(None).blocks) == 2


# ---------------------------------------------------------------------- training


class Logged(Callback):
    def __init__(self) -> None:
        self.rows: list[dict[str, float]] = []

    def on_train_batch_end(self, trainer: Trainer, *rest: Any) -> None:
        self.rows.append({name: float(value) for name, value in trainer.callback_metrics.items()})


def test_one_batch_is_overfitted_while_every_step_lowers_the_logged_energy(
    tiny_encoder: EncoderFactory, tiny_ijepa: IJEPAFactory, tiny_batch: Callable[..., MaskedBatch], quiet_trainer: Any
) -> None:
    predictor = partial(Predictor, embed_dim=16, depth=2, init_std=None, blocks=EnergyBlocks(alpha=0.3))
    encoder = tiny_encoder(blocks=EnergyBlocks(alpha=0.3), depth=3, patch_init_std=0.1)
    batch, logged = tiny_batch(4, (48, 48), per_sample=True), Logged()
    module = tiny_ijepa(encoder, predictor=predictor, lr=Constant(5e-3), momentum=Constant(0.99))
    before = module.losses(batch)["loss"].item()
    loader: Any = torch.utils.data.DataLoader([batch] * 60, batch_size=None)  # type: ignore[arg-type]
    quiet_trainer(max_epochs=1, callbacks=[logged]).fit(module, loader)
    assert module.losses(batch)["loss"].item() < 0.6 * before
    for network, steps in (("encoder", 3), ("predictor", 2)):
        for row in logged.rows:
            energies = [row[f"train/{network}_energy_{step}"] for step in range(steps)]
            assert energies == sorted(energies, reverse=True)
            assert f"train/{network}_energy_{steps}" not in row
