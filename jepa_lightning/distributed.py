"""The few collective operations that methods and callbacks need. State is asked when used, never in a constructor.

DTensor is imported where it is needed: its import takes a third of a second, and plain networks do without it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh


def world_size() -> int:
    """Number of processes; 1 without a process group."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """Number of this process, from 0."""
    return dist.get_rank() if dist.is_available() and dist.is_initialized() else 0


def gather_rows(rows: Tensor) -> Tensor:
    """Rows of all processes, in rank order; processes may hold different numbers of rows."""
    if world_size() == 1:
        return rows
    length = torch.tensor([len(rows)], device=rows.device)
    lengths = [torch.empty_like(length) for _ in range(world_size())]
    dist.all_gather(lengths, length)
    longest = max(int(n) for n in lengths)
    padded = torch.cat([rows, rows.new_zeros(longest - len(rows), *rows.shape[1:])])
    gathered = [torch.empty_like(padded) for _ in lengths]
    dist.all_gather(gathered, padded)
    return torch.cat([part[: int(n)] for part, n in zip(gathered, lengths, strict=True)])


def largest(value: int, device: torch.device) -> int:
    """The largest value of any process; every process must ask.

    Args:
        value: That of this process.
        device: Where the process group communicates.
    """
    if world_size() == 1:
        return value
    found = torch.tensor(value, device=device)
    dist.all_reduce(found, dist.ReduceOp.MAX)
    return int(found)


def sum_over_processes(x: Tensor) -> Tensor:
    """Sum of the processes' tensors, the same in each, with gradient.

    A loss of such sums is the same in every process. Its backward pass sums the gradients of all processes too, so that
    after DDP or FSDP have averaged over processes, every parameter has the gradient of one process that held all data.
    """
    return x if world_size() == 1 else cast(Tensor, _Sum.apply(x))


class _Sum(torch.autograd.Function):
    """All-reduce of values and of gradients. PyTorch's own is deprecated, and its successor private."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        total = x.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return cast(Tensor, _Sum.apply(gradient))


@torch.no_grad()
def replicate(tensors: Iterable[Tensor]) -> None:
    """Give every process the values of the first, as DDP does by itself and FSDP2 does not."""
    for tensor in tensors:
        if world_size() > 1 and not is_sharded(tensor):
            dist.broadcast(tensor, 0)


def norms_of(tensors: Sequence[Tensor]) -> Tensor:
    """L2 norm of each tensor, (n,) float32; under FSDP2 of all its shards together, in one collective."""
    norms = torch.stack(torch._foreach_norm([local_part(tensor) for tensor in tensors])).float()
    if world_size() > 1 and any(map(is_sharded, tensors)):
        squares = norms.square()
        dist.all_reduce(squares)
        return squares.sqrt()
    return norms


def is_sharded(tensor: Tensor) -> bool:
    """Whether FSDP2 has sharded a tensor over the processes."""
    from torch.distributed.tensor import DTensor

    return isinstance(tensor, DTensor)


def local_part(tensor: Tensor) -> Tensor:
    """What this process holds of a tensor: its shard under FSDP2, else all of it."""
    return cast(Any, tensor).to_local() if is_sharded(tensor) else tensor


def whole(tensor: Tensor) -> Tensor:
    """All of a tensor, also where FSDP2 has sharded it; every process must ask."""
    return cast(Any, tensor).full_tensor() if is_sharded(tensor) else tensor


def as_placed(tensor: Tensor, other: Tensor) -> Tensor:
    """A tensor that every process has, sharded as ``other`` is; unchanged if ``other`` is not sharded."""
    from torch.distributed.tensor import DTensor, distribute_tensor

    if not isinstance(other, DTensor):
        return tensor
    return distribute_tensor(tensor, other.device_mesh, other.placements, src_data_rank=None)  # nothing is sent


@torch.no_grad()
def relative_distance(first: Iterable[Tensor], second: Iterable[Tensor]) -> Tensor:
    """``|first - second| / |second|`` over all tensors of two lists; of shards, those of all processes together.

    One pair after the other, so that no copy of a whole network is made, and at most one collective.
    """
    sharded, squares = False, []
    for pair in zip(first, second, strict=True):
        sharded = sharded or is_sharded(pair[1])
        a, b = map(local_part, pair)
        squares.append(torch.stack([(a - b).square().sum(), b.square().sum()]).float())
    total = torch.stack(squares).sum(dim=0)
    if sharded and world_size() > 1:
        dist.all_reduce(total)
    return (total[0] / total[1].clamp_min(1e-24)).sqrt()


def shard(module: nn.Module, mesh: DeviceMesh | None) -> nn.Module:
    """Shard a network under FSDP, block by block; the module itself under every other strategy.

    Encoder and target encoder go through here one by one, so that their shards align and the EMA stays local.

    Args:
        module: A network whose Transformer blocks stand in ModuleLists.
        mesh: The data-parallel mesh under Lightning's ModelParallelStrategy (FSDP2), else None.
    """
    from torch.distributed.fsdp import FSDPModule, fully_shard
    from torch.distributed.fsdp.wrap import wrap

    if mesh is None:
        return wrap(module)  # FSDP1 inside the context that Lightning's FSDPStrategy opens, else nothing
    if not isinstance(module, FSDPModule):
        blocks = [block for stack in module.modules() if isinstance(stack, nn.ModuleList) for block in stack]
        for block in blocks:
            fully_shard(block, mesh=mesh)
        # True also for the outermost part: the target encoder has no backward pass that would shard it again.
        fully_shard(module, mesh=mesh, reshard_after_forward=True)
    return module
