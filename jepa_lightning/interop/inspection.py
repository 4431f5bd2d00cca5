"""`jepa inspect FILE`: what a checkpoint is and what can be done with it. Nothing in it is executed."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from jepa_lightning.interop.description import build_encoder
from jepa_lightning.interop.formats import FORMATS
from jepa_lightning.interop.layouts import Layout, Meta, MetaProbe, OneEncoder, Own, open_layout
from jepa_lightning.interop.meta import read_meta
from jepa_lightning.interop.meta_sizes import HEADS, HEADS_V2, Given, depth_of, encoder_arguments, tensor_of
from jepa_lightning.interop.meta_training import progress
from jepa_lightning.interop.networks import Networks, papers_preprocessing
from jepa_lightning.interop.own_layout import configuration, data_of
from jepa_lightning.interop.source import Source
from jepa_lightning.messages import JepaParser
from jepa_lightning.models import Encoder, RoPE, VisionTransformer
from jepa_lightning.models.layers import Block

ACTIONS = "conditioned on actions: not supported yet; everything here reads the encoder alone"
HEADS_UNKNOWN = "number of heads not in the file"


def main(args: Sequence[str]) -> None:
    """Print what a checkpoint is.

    Args:
        args: The file or folder, after `jepa inspect`.

    Raises:
        FileNotFoundError: No such file.
        ValueError: Damaged, or of no known layout.
    """
    parser = JepaParser(prog="jepa inspect", description=__doc__)
    parser.add_argument("checkpoint", help="A file, a folder, or the name of a folder on Hugging Face's hub.")
    path = parser.parse_args(list(args)).checkpoint
    print(report(open_layout(path), path))  # noqa: T201  # what was asked for


def report(layout: Layout, name: str) -> str:
    """The whole text.

    Args:
        layout: The checkpoint.
        name: What the person calls it.
    """
    encoder, heads = outline(layout)
    states = {"encoder": encoder.state_dict()} if isinstance(layout, OneEncoder) and encoder else layout.states()
    family = layout.family()
    lines = {
        "layout": f"{layout.title}, {_bytes(_size(layout.path))}",
        "family": family,
        **(_probe(states) if isinstance(layout, MetaProbe) else _encoder(encoder, heads)),
        "networks": _count(states),
        **({"predictor": ACTIONS} if family == "V-JEPA 2-AC" else {}),
        **_training(layout),
        "licence": _licence(layout, family),
    }
    width = max(len(label) for label in lines)
    body = [f"  {label.ljust(width)}  {_wrapped(text, width + 4)}" for label, text in lines.items()]
    commands = _commands(layout, name, encoder, heads)
    return "\n".join([name, *body, *[""] * bool(commands), *(f"  {command}" for command in commands)])


def _probe(states: dict[str, dict[str, Tensor]]) -> dict[str, str]:
    """Sizes of the heads, which are all alike."""
    state = states["head 0"]
    classes, dim = state["linear.weight"].shape
    depth = 1 + depth_of({key.removeprefix("pooler."): tensor for key, tensor in state.items()}, "blocks")
    return {"probe": f"{classes} classes, tokens of {dim} channels, {depth} layers"}


def _encoder(encoder: Encoder | None, heads: str) -> dict[str, str]:
    """Sizes of the encoder."""
    if encoder is None:
        return {"encoder": heads or "none of its own"}
    text = f"{type(encoder).__name__}, {encoder.embed_dim} channels"
    if isinstance(encoder, VisionTransformer):
        kind = "" if type(encoder.blocks[0]) is Block else f" ({type(encoder.blocks[0]).__name__})"
        text = f"ViT, {encoder.embed_dim} channels, {_plural(encoder.depth, 'block')}{kind}, {heads}, patches of "
        text += f"{encoder.patch_size}, positions {_positions(encoder)}"
    height, width = encoder.img_size
    size = f"{height}x{width} pixels"
    if encoder.num_frames > 1:
        size = f"{encoder.num_frames} frames of {size}, tubelets of {encoder.tubelet_size}"
    grid = encoder.grid if encoder.num_frames > 1 else encoder.grid[1:]
    return {"encoder": text, "inputs": f"{size}: {' x '.join(map(str, grid))} tokens"}


def _positions(encoder: VisionTransformer) -> str:
    """The class, and of rotary ones the layout, which decides where they can go."""
    kind = type(encoder.positions).__name__
    return f"{kind} ({encoder.positions.layout})" if isinstance(encoder.positions, RoPE) else kind


def outline(layout: Layout) -> tuple[Encoder | None, str]:
    """The encoder without its weights, and its attention heads in words; or None, and why it cannot be built here."""
    if isinstance(layout, MetaProbe):
        return None, ""
    if isinstance(layout, OneEncoder):
        try:
            encoder = layout.networks().encoder
            return encoder, _heads(encoder.num_heads)
        except ValueError as error:
            if "give num_heads" not in str(error):
                raise
            return layout.networks(num_heads=1).encoder, HEADS_UNKNOWN
    with torch.device("meta"):
        if isinstance(layout, Own):
            described = configuration(layout.path, layout.content)["model"].get("init_args", {}).get("encoder")
            if not described:
                return None, ""
            try:
                encoder = build_encoder(layout.path, described)
            except ValueError as error:  # of a package that is not imported, for example
                return None, str(error)
            return encoder, _heads(encoder.num_heads)
    file = read_meta(layout.path, layout.content)
    state = file.networks.get("target_encoder") or file.networks["encoder"]
    if file.family == "V-JEPA 2.1":
        return None, "two patch embeddings and norms of several levels: not supported yet, nothing here loads it"
    width = tensor_of(file.path, "encoder", state, "patch_embed.proj.weight", 4, 5).shape[0]
    known = (HEADS_V2 if file.rotary else HEADS).get(width)
    arguments = encoder_arguments(file.path, state, Given(num_heads=known or 1, rotary=file.rotary))
    with torch.device("meta"):
        return VisionTransformer(**arguments), _heads(known)


def _heads(number: int | None) -> str:
    return HEADS_UNKNOWN if number is None else _plural(number, "head")


def _count(states: dict[str, dict[str, Tensor]]) -> str:
    """Parameters of each network, and their type."""
    counts = [f"{name} {_parameters(state.values())}" for name, state in states.items()]
    kinds = {str(t.dtype).removeprefix("torch.") for state in states.values() for t in state.values()}
    return f"{', '.join(counts)} parameters ({', '.join(sorted(kinds))})"


def _parameters(tensors: Iterable[Tensor]) -> str:
    count = sum(tensor.numel() for tensor in tensors)
    return f"{count / 1e6:,.1f} M" if count >= 1e6 else f"{count:,}"


def _plural(count: int, what: str) -> str:
    return f"{count:,} {what}" + "s" * (count != 1)


def _training(layout: Layout) -> dict[str, str]:
    """How far it was trained, and with what."""
    content: dict[str, Any] = layout.content or {}
    if isinstance(layout, Meta):
        try:
            epoch, step = progress(layout.path, content)
        except ValueError:
            done = content.get("epoch", "an unknown number of")
            return {"trained": f"{done} {'epoch' if done == 1 else 'epochs'}; no optimizer to go on with"}
        return {"trained": f"{_plural(epoch, 'epoch')}, {_plural(step, 'step')}; the optimizer is there"}
    if not isinstance(layout, Own):
        return {}
    config = configuration(layout.path, content)
    data, trainer = config.get("data") or {}, config.get("trainer") or {}
    of = trainer.get("max_epochs")
    return {
        "trained": f"step {content.get('global_step', 0):,}, in epoch {content.get('epoch', 0) + 1}"
        + (f" of {of}" if of else ""),
        "data": f"{data_of(data)}, batches of {(data.get('init_args') or {}).get('batch_size')}",
    }


def _licence(layout: Layout, family: str) -> str:
    """Under what the weights may be used, as far as that is known."""
    if isinstance(layout, Own):
        return "as whoever trained it decides; if it started from other weights, theirs applies too"
    if family.startswith("V-JEPA 2"):
        return "if these are Meta's weights: MIT"
    return "if these are Meta's weights, also converted ones: CC BY-NC 4.0, no commercial use"


def _commands(layout: Layout, name: str, encoder: Encoder | None, heads: str) -> list[str]:
    """What can be done with it."""
    if isinstance(layout, MetaProbe):
        return [
            f"jepa validate --config attentive_probe.yaml --model.checkpoint ENCODER --ckpt_path {name}",
            f'jepa_lightning.interop.meta_probes.load_probes("{name}")',
        ]
    if encoder is None:
        return []
    clips, unknown = encoder.num_frames > 1, heads == HEADS_UNKNOWN
    model, given = f"--ckpt_path {name}", " --model.overrides.num_heads N" if unknown else ""
    if unknown:
        model = f"--model PretrainedEncoder --model.checkpoint {name}{given}"
    if not isinstance(layout, Own):  # ours say on which data
        model = f"--config {'vjepa' if clips else 'ijepa'}.yaml {model}"
    probe = "attentive_probe" if clips else "linear_probe"
    return [
        f"jepa validate {model} --data.root FOLDER",
        f"jepa predict {model} --data.root FOLDER",
        f"jepa fit --config {probe}.yaml --model.checkpoint {name}{given} --data.root FOLDER",
        *[f"jepa fit --config YOURS.yaml --init_from {name}"] * (layout.family() != "V-JEPA 2-AC"),
        f"jepa export --ckpt_path {name}{' --num_heads N' * unknown} --out FOLDER --to {_homes(layout, encoder)}",
        f'encoder = jepa_lightning.load_encoder("{name}"{", num_heads=N" * unknown})',
    ]


def _homes(layout: Layout, encoder: Encoder) -> str:
    """The formats that have a place for the encoder: ``timm  # or onnx``."""
    config = configuration(layout.path, layout.content) if isinstance(layout, Own) else None
    networks = Networks(encoder, "target", papers_preprocessing(encoder.img_size))
    source = Source(layout.path, networks, licence="", config=config)
    first, *others = (name for name, form in FORMATS.items() if form.no_home(source) is None)
    return f"{first}  # or {', '.join(others)}"


def _size(path: Path) -> int:
    files = path.rglob("*") if path.is_dir() else [path]
    return sum(file.stat().st_size for file in files if file.is_file())


def _bytes(size: int) -> str:
    unit = next(unit for unit in ("GB", "MB", "kB", "bytes") if size >= _UNITS[unit] or unit == "bytes")
    return f"{size / _UNITS[unit]:,.1f} {unit}" if unit != "bytes" else f"{size} bytes"


_UNITS = {"GB": 10**9, "MB": 10**6, "kB": 10**3, "bytes": 1}


def _wrapped(text: str, indent: int) -> str:
    """Lines of at most 110 characters."""
    lines = [""]
    for word in text.split(" "):
        if len(lines[-1]) + len(word) > 110 - indent:
            lines.append("")
        lines[-1] += f"{word} "
    return ("\n" + " " * indent).join(line.rstrip() for line in lines)
