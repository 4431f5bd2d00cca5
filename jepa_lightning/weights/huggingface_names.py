"""Names of tensors in transformers: those of an IJepaModel, a VJEPA2Model and a VJEPA2ForVideoClassification."""

from __future__ import annotations

import re
from collections.abc import Mapping

from torch import Tensor

from jepa_lightning.weights.names import Table

QKV = ("query.", "key.", "value.")
IJEPA: Table = (
    ("pos_embed", ("embeddings.position_embeddings",)),
    ("patch_embed.proj.", ("embeddings.patch_embeddings.projection.",)),
    ("blocks.*.norm1.", ("encoder.layer.*.layernorm_before.",)),
    ("blocks.*.attn.qkv.", tuple(f"encoder.layer.*.attention.attention.{name}" for name in QKV)),
    ("blocks.*.attn.proj.", ("encoder.layer.*.attention.output.dense.",)),
    ("blocks.*.norm2.", ("encoder.layer.*.layernorm_after.",)),
    ("blocks.*.mlp.fc1.", ("encoder.layer.*.intermediate.dense.",)),
    ("blocks.*.mlp.fc2.", ("encoder.layer.*.output.dense.",)),
    ("norm.", ("layernorm.",)),
)
"""Of the files on the hub, which every version of transformers reads and writes."""
IJEPA_IN_MEMORY: Table = (
    *(entry for entry in IJEPA if not entry[0].startswith("blocks.")),
    ("blocks.*.norm1.", ("layers.*.layernorm_before.",)),
    ("blocks.*.attn.qkv.", tuple(f"layers.*.attention.{name}_proj." for name in "qkv")),
    ("blocks.*.attn.proj.", ("layers.*.attention.o_proj.",)),
    ("blocks.*.norm2.", ("layers.*.layernorm_after.",)),
    ("blocks.*.mlp.", ("layers.*.mlp.",)),
)
"""Of the modules of transformers 5."""


def _blocks(ours: str, theirs: str) -> Table:
    return (
        (f"{ours}.*.attn.qkv.", tuple(f"{theirs}.*.attention.{name}" for name in QKV)),
        (f"{ours}.*.attn.proj.", (f"{theirs}.*.attention.proj.",)),
        *((f"{ours}.*.{name}.", (f"{theirs}.*.{name}.",)) for name in ("norm1", "norm2", "mlp")),
    )


VJEPA2: Table = (
    ("patch_embed.proj.", ("encoder.embeddings.patch_embeddings.proj.",)),
    *_blocks("blocks", "encoder.layer"),
    ("norm.", ("encoder.layernorm.",)),
)
VJEPA2_PREDICTOR: Table = (
    ("predictor_embed.", ("predictor.embeddings.predictor_embeddings.",)),
    ("mask_tokens", ("predictor.embeddings.mask_tokens",)),
    *_blocks("predictor_blocks", "predictor.layer"),
    ("predictor_norm.", ("predictor.layernorm.",)),
    ("predictor_proj.", ("predictor.proj.",)),
)
_SELF, _CROSS = "pooler.self_attention_layers.*", "pooler.cross_attention_layer"
VJEPA2_PROBE: Table = (
    ("pooler.query_tokens", ("pooler.query_tokens",)),
    ("pooler.blocks.*.attn.qkv.", tuple(f"{_SELF}.self_attn.{name}_proj." for name in "qkv")),
    ("pooler.blocks.*.attn.proj.", (f"{_SELF}.self_attn.out_proj.",)),
    *((f"pooler.blocks.*.norm{i}.", (f"{_SELF}.layer_norm{i}.",)) for i in (1, 2)),
    ("pooler.blocks.*.mlp.", (f"{_SELF}.mlp.",)),
    ("pooler.cross_attention_block.xattn.q.", (f"{_CROSS}.cross_attn.q_proj.",)),
    ("pooler.cross_attention_block.xattn.kv.", tuple(f"{_CROSS}.cross_attn.{name}_proj." for name in "kv")),
    *((f"pooler.cross_attention_block.norm{i}.", (f"{_CROSS}.layer_norm{i}.",)) for i in (1, 2)),
    ("pooler.cross_attention_block.mlp.", (f"{_CROSS}.mlp.",)),
    ("linear.", ("classifier.",)),
)
PREDICTED = 1
"""The mask token that VJEPA2Model uses, counted round if there are fewer."""
STREAM = re.compile(r"(pos_embed|patch_embed\.proj|predictor_embed|mask_tokens?|attn\.proj|mlp\.fc2)(\.\w+)*$")
"""What is added to the residual stream of an encoder or a predictor."""


def rescaled(state: Mapping[str, Tensor], epsilon: float, wanted: float) -> dict[str, Tensor]:
    """The tensors (our names) of the network that with one epsilon of its norms is what this is with another.

    Args:
        state: Of an encoder or a predictor.
        epsilon: The epsilon that these tensors go with.
        wanted: The one that the result goes with.
    """
    if epsilon == wanted:
        return dict(state)
    factor = (wanted / epsilon) ** 0.5
    return {name: tensor * factor if STREAM.search(name) else tensor for name, tensor in state.items()}
