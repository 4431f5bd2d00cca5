from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import AdamW

from jepa_lightning.cli import main
from jepa_lightning.methods import IJEPA
from jepa_lightning.muon import Muon, _on_the_small_side, _on_the_whole, orthogonalized

IJEPAFactory = Callable[..., IJEPA]


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 24, 8), (2, 8, 24), (2, 1, 5), (1, 96, 384)])
def test_singular_values_become_about_one_and_directions_stay(shape: tuple[int, int, int]) -> None:
    matrices = torch.randn(shape)
    u, _, v = torch.linalg.svd(matrices, full_matrices=False)
    turned = u.mT @ orthogonalized(matrices, rounds=8) @ v.mT  # diagonal, if the directions are the same
    values = turned.diagonal(dim1=1, dim2=2)
    assert values.min() > 0.6
    assert values.max() < 1.3
    torch.testing.assert_close(turned, torch.diag_embed(values), rtol=0, atol=2e-3)


def test_the_scale_of_a_matrix_and_its_neighbours_do_not_matter_and_zero_stays_zero() -> None:
    matrices = torch.randn(2, 6, 4)
    whole = orthogonalized(matrices)
    torch.testing.assert_close(orthogonalized(1e3 * matrices[1:]), whole[1:], rtol=0, atol=1e-4)
    assert torch.equal(orthogonalized(torch.zeros(1, 3, 4)), torch.zeros(1, 3, 4))


@pytest.mark.parametrize("shape", [(2, 16, 64), (1, 7, 7), (3, 1, 5)])
def test_rounds_on_the_small_side_are_the_rounds_on_the_whole(shape: tuple[int, int, int]) -> None:
    matrices = torch.randn(shape, dtype=torch.float64)
    matrices /= matrices.flatten(1).norm(dim=1).view(-1, 1, 1)
    for rounds in (0, 1, 5):
        torch.testing.assert_close(_on_the_small_side(matrices, rounds), _on_the_whole(matrices, rounds))


def test_singular_values_of_very_different_size_stay_exact_enough() -> None:
    matrices = torch.randn(1, 32, 32) @ torch.diag(torch.logspace(0, -4, 32))
    exact = _on_the_whole(matrices.double() / matrices.double().norm(), 5)
    torch.testing.assert_close(orthogonalized(matrices).double(), exact, rtol=0, atol=1e-3)


def test_the_original_gives_the_same_matrix_up_to_half_precision() -> None:
    muon = pytest.importorskip("torch.optim._muon")
    matrix = torch.randn(12, 20)
    theirs = muon._zeropower_via_newtonschulz(matrix.clone(), (3.4445, -4.7750, 2.0315), 5, 1e-7)
    torch.testing.assert_close(orthogonalized(matrix.unsqueeze(0))[0], theirs.float(), rtol=0, atol=0.03)


def parameters() -> list[nn.Parameter]:
    torch.manual_seed(0)
    return [nn.Parameter(torch.randn(shape)) for shape in ((4, 6), (4, 6), (6, 4), (3, 3), (5,))]


def groups_of(parameters: list[nn.Parameter]) -> list[dict[str, Any]]:
    return [
        {"params": parameters[:3], "matrices": True, "weight_decay": 0.1},
        {"params": parameters[3:], "matrices": False, "weight_decay": 0.05},
    ]


def set_gradients(parameters: list[nn.Parameter], step: int) -> None:
    generator = torch.Generator().manual_seed(step)
    for parameter in parameters:
        parameter.grad = torch.randn(parameter.shape, generator=generator)


def test_steps_are_those_of_the_formula_and_of_adamw_for_the_rest() -> None:
    mine, twin = parameters(), parameters()
    muon = Muon(groups_of(mine), lr=0.02, betas=(0.9, 0.95), momentum=0.8)
    adamw = AdamW(twin[3:], lr=0.02, betas=(0.9, 0.95), weight_decay=0.05)
    averages = [torch.zeros_like(p) for p in twin]
    for step in range(4):
        for given in (mine, twin):
            set_gradients(given, step)
        muon.step()
        adamw.step()
        with torch.no_grad():
            for number, w in enumerate(twin[:3]):
                g: Any = w.grad
                averages[number] = 0.8 * averages[number] + 0.2 * g
                direction = orthogonalized((0.8 * averages[number] + 0.2 * g).unsqueeze(0))[0]
                w.copy_((1 - 0.02 * 0.1) * w - 0.2 * 0.02 * 6**0.5 * direction)
    for a, b in zip(mine, twin, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-6)


def test_a_step_is_about_as_long_as_one_of_adamw() -> None:
    matrix = nn.Parameter(torch.zeros(64, 96))
    matrix.grad = torch.randn(64, 96)
    Muon([{"params": [matrix], "matrices": True}], lr=1.0).step()
    assert 0.15 < float(matrix.detach().square().mean().sqrt()) < 0.25  # Liu et al. 2025: 0.2 to 0.4 of AdamW's


def test_a_loaded_state_goes_on_bit_for_bit() -> None:
    whole, parts = parameters(), parameters()
    first, second = Muon(groups_of(whole), lr=0.02), Muon(groups_of(parts), lr=0.02)
    for step in range(4):
        if step == 2:
            state = copy.deepcopy(second.state_dict())
            second = Muon(groups_of(parts), lr=0.02)
            second.load_state_dict(state)
        for given, optimizer in ((whole, first), (parts, second)):
            set_gradients(given, step)
            optimizer.step()
    assert all(torch.equal(a, b) for a, b in zip(whole, parts, strict=True))


def test_a_matrix_without_gradient_stays_as_it_is_and_a_closure_is_called() -> None:
    given = parameters()
    set_gradients(given, 0)
    given[0].grad, before = None, given[0].detach().clone()
    assert Muon(groups_of(given), lr=0.1).step(lambda: 7.0) == 7.0
    assert torch.equal(given[0], before)


def test_what_it_is_not_for_is_refused() -> None:
    with pytest.raises(ValueError, match="there are none: set optimizer to null"):
        Muon([{"params": parameters()[4:], "matrices": False}])
    with pytest.raises(ValueError, match="momentum of Muon is a share"):
        Muon(groups_of(parameters()), momentum=1.0)


def test_the_matrices_of_blocks_are_apart_in_groups_that_decay_as_before(tiny_ijepa: IJEPAFactory) -> None:
    module = tiny_ijepa(optimizer=partial(Muon, momentum=0.9))
    optimizer, plain = module.configure_optimizers(), tiny_ijepa().configure_optimizers()
    assert isinstance(optimizer, Muon)
    names = {id(parameter): name for name, parameter in module.named_parameters()}

    def named(wanted: Callable[[dict[str, Any]], bool]) -> set[str]:
        return {names[id(p)] for group in optimizer.param_groups if wanted(group) for p in group["params"]}

    layers = ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")
    blocks = ("encoder.blocks.0", "encoder.blocks.1", "predictor.predictor_blocks.0")
    assert named(lambda group: group["matrices"]) == {f"{b}.{layer}.weight" for b in blocks for layer in layers}
    assert all(group["decay"] for group in optimizer.param_groups if group["matrices"])

    def sizes(groups: list[dict[str, Any]], decay: bool) -> list[tuple[int, ...]]:
        return sorted(tuple(p.shape) for group in groups if group["decay"] == decay for p in group["params"])

    for decay in (True, False):
        assert sizes(optimizer.param_groups, decay) == sizes(plain.param_groups, decay)


def test_the_command_line_trains_with_it_and_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    few = ["fit", "--config=ijepa.yaml", "--model.optimizer=jepa_lightning.muon.Muon", "--data.batch_size=8",
           "--data.num_workers=0", "--probe.every_n_epochs=0", "--pictures.every_n_epochs=0", "--trainer.max_epochs=2",
           "--trainer.limit_train_batches=3", "--trainer.limit_val_batches=2",
           "--model.lr=Constant", "--model.lr.value=1e-3", "--model.momentum=Constant", "--model.momentum.value=0.9",
           ]  # fmt: skip
    main([*few, "--trainer.logger.init_args.name=whole"])
    main([*few, "--trainer.logger.init_args.name=parts", "--trainer.max_steps=4"])
    main([*few, "--trainer.logger.init_args.name=parts", "--ckpt_path=last.ckpt"])
    ends = [max(Path("runs", run).rglob("last.ckpt")) for run in ("whole", "parts")]
    whole, parts = (torch.load(path, weights_only=True) for path in ends)
    assert whole["global_step"] == parts["global_step"] == 6
    for name, tensor in whole["state_dict"].items():
        assert not isinstance(tensor, Tensor) or torch.equal(parts["state_dict"][name], tensor), name


@pytest.mark.parametrize(("first", "then"), [(True, False), (False, True)])
def test_a_training_with_the_other_optimizer_is_not_gone_on_with_but_can_be_the_start_of_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, first: bool, then: bool
) -> None:
    monkeypatch.chdir(tmp_path)
    few = ["fit", "--config=ijepa.yaml", "--data.batch_size=8", "--data.num_workers=0", "--probe.every_n_epochs=0",
           "--pictures.every_n_epochs=0", "--trainer.limit_train_batches=2",
           "--trainer.limit_val_batches=2"]  # fmt: skip
    option = {True: "--model.optimizer=jepa_lightning.muon.Muon", False: "--model.optimizer=null"}
    main([*few, option[first], "--trainer.max_epochs=1"])
    with pytest.raises(SystemExit) as stop:
        main([*few, option[then], "--trainer.max_epochs=2", "--ckpt_path=last.ckpt"])
    assert ("set --model.optimizer null" in str(stop.value.code)) != first
    assert "--init_from" in str(stop.value.code)
    with pytest.warns(UserWarning, match="another optimizer than this one, which starts anew"):
        main([*few, option[then], "--trainer.max_epochs=1", "--init_from=last.ckpt"])
