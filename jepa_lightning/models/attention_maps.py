"""What tokens attend to, recomputed on request: the fused attention of training never has these numbers in memory."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from jepa_lightning.models.energy_transformer import EnergyAttention, EnergyTransformer
from jepa_lightning.models.layers import Attention
from jepa_lightning.models.packing import Packing
from jepa_lightning.models.positions import Rotation


@torch.no_grad()
def attention_maps(
    network: nn.Module, *inputs: Any, blocks: Sequence[int] = (-1,), **options: Any
) -> list[Float[Tensor, "batch heads queries keys"]]:
    """Softmax attention of chosen blocks while the network runs on ``inputs``: row i says what token i attends to.

    Each map is computed in float32 from the queries and keys that the fused attention is given, rotated and masked as
    they are, and no others are kept. The network runs as it is called in training (also sharded), but not compiled,
    and in the mode that it is in. Of an Energy Transformer the maps are those of its steps (Hoover et al. 2023,
    equation 3). In a batch of sequences of different lengths the last rows of a short one mean nothing.

    Args:
        network: A VisionTransformer or a Predictor.
        inputs: What it is called with: ``(images,)``, or ``(context_tokens, context, targets)`` for a Predictor, whose
            sequences are [context, mask tokens of one target block], B * M of them.
        blocks: Numbers of blocks from 0; negative ones count from the end.
        options: Keyword arguments of the call.

    Raises:
        ValueError: If there is no block of such a number, or no softmax attention in the network.
    """
    depth = attention_depth(network)
    if depth == 0:
        raise ValueError(
            f"{type(network).__name__} has no softmax attention to show: attention maps need a network of Transformer "
            "blocks, such as VisionTransformer or Predictor"
        )
    if wrong := [number for number in blocks if not -depth <= number < depth]:
        raise ValueError(f"no block {wrong[0]} among {depth}: use blocks from 0 to {depth - 1}")
    wanted = {number % depth for number in blocks}
    maps: dict[int, Tensor | None] = {}

    def look(layer: nn.Module, args: tuple[Any, ...]) -> None:
        number = len(maps)
        maps[number] = _map_of(layer, *args) if number in wanted else None

    layers = [layer for layer in network.modules() if isinstance(layer, Attention | EnergyAttention)]
    hooks = [layer.register_forward_pre_hook(look) for layer in layers]
    try:
        with torch.compiler.set_stance("force_eager"):  # compiled code does not see new hooks
            network(*inputs, **options)
    finally:
        for hook in hooks:
            hook.remove()
    shown = [found for number in blocks if (found := maps[number % depth]) is not None]
    if hasattr(network, "cls_token"):  # the last one, to which no other token attends
        return [found[..., :-1, :-1] for found in shown]
    return shown


def attention_depth(network: nn.Module) -> int:
    """How many softmax attentions follow each other in a network: blocks, or steps of an Energy Transformer."""
    steps = sum(block.steps for block in network.modules() if isinstance(block, EnergyTransformer))
    return steps + sum(isinstance(layer, Attention) for layer in network.modules())


def softmax_attention(
    query: Float[Tensor, "batch heads queries channels"],
    key: Float[Tensor, "batch heads keys channels"],
    keep: Bool[Tensor, "#batch #heads #queries keys"] | None = None,
) -> Float[Tensor, "batch heads queries keys"]:
    """``softmax(q k' / sqrt(channels))`` in float32, over the keys that are kept."""
    with torch.autocast(query.device.type, enabled=False):  # or the product would be rounded again
        scores = query.float() @ key.float().transpose(-2, -1) * query.shape[-1] ** -0.5
    return (scores if keep is None else scores.masked_fill(~keep, -torch.inf)).softmax(dim=-1)


class _Softmax(TorchFunctionMode):
    """Sees the softmax inside, fused or not."""

    maps: Tensor

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        if func is F.scaled_dot_product_attention:
            query, key, _, *_ = args
            self.maps = softmax_attention(query, key, (kwargs or {}).get("attn_mask"))
        elif func is Tensor.softmax:
            self.maps = result.float()
        return result


def _map_of(
    layer: nn.Module, x: Tensor, rotation: Rotation | None = None, packing: Packing | None = None, *args: Any
) -> Tensor:
    """The map of one layer, which for this runs a second time; where its parameters are sharded, they are whole now."""
    if packing is not None and packing.runs:  # of all sequences in one table, not of each length in its own
        if rotation is not None:
            rotation = Rotation(*(packing.pad(part[:, 0]).unsqueeze(1) for part in rotation))
        packing = packing._replace(runs=())
    with _Softmax() as seen:
        layer.forward(x, rotation, packing, *args)
    return seen.maps
