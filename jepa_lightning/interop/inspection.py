"""`jepa inspect FILE`: what a checkpoint is and what can be done with it. Nothing in it is executed."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from jepa_lightning.interop.description import build_encoder
from jepa_lightning.interop.layouts import Layout, Meta, MetaProbe, OneEncoder, Own, open_layout
from jepa_lightning.interop.meta import read_meta
from jepa_lightning.interop.meta_sizes import HEADS, HEADS_V2, Given, depth_of, encoder_arguments
from jepa_lightning.interop.meta_training import progress
from jepa_lightning.interop.own_layout import configuration
from jepa_lightning.messages import JepaParser
from jepa_lightning.models import Encoder, VisionTransformer

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
        **_training(layout),
        "licence": _licence(layout, family),
    }
    width = max(len(label) for label in lines)
    body = [f"  {label.ljust(width)}  {_wrapped(text, width + 4)}" for label, text in lines.items()]
    return "\n".join([name, *body, "", *(f"  {command}" for command in _commands(layout, name, encoder, heads))])


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
        text = f"ViT, {encoder.embed_dim} channels, {encoder.depth} blocks, {heads}, patches of {encoder.patch_size}"
        text += f", positions {type(encoder.positions).__name__}"
    height, width = encoder.img_size
    size = f"{height}x{width} pixels"
    if encoder.num_frames > 1:
        size = f"{encoder.num_frames} frames of {size}, tubelets of {encoder.tubelet_size}"
    grid = encoder.grid if encoder.num_frames > 1 else encoder.grid[1:]
    return {"encoder": text, "inputs": f"{size}: {' x '.join(map(str, grid))} tokens"}


def outline(layout: Layout) -> tuple[Encoder | None, str]:
    """The encoder without its weights, and its attention heads in words; or None, and why it cannot be built here."""
    if isinstance(layout, MetaProbe):
        return None, ""
    if isinstance(layout, OneEncoder):
        given: dict[str, Any] = {"num_heads": 1} if "num_heads" in layout.given else {}
        encoder: Encoder = layout.networks(**given).encoder
        heads = _heads(HEADS.get(encoder.embed_dim) if given else encoder.num_heads)
        return encoder, heads
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
        return None, "of a kind that is not built here"
    known = (HEADS_V2 if file.rotary else HEADS).get(state["patch_embed.proj.weight"].shape[0])
    arguments = encoder_arguments(file.path, state, Given(num_heads=known or 1, rotary=file.rotary))
    with torch.device("meta"):
        return VisionTransformer(**arguments), _heads(known)


def _heads(number: int | None) -> str:
    return HEADS_UNKNOWN if number is None else f"{number} heads"


def _count(states: dict[str, dict[str, Tensor]]) -> str:
    """Parameters of each network, and their type."""
    counts = [f"{name} {_parameters(state.values())}" for name, state in states.items()]
    kinds = {str(t.dtype).removeprefix("torch.") for state in states.values() for t in state.values()}
    return f"{', '.join(counts)} parameters ({', '.join(sorted(kinds))})"


def _parameters(tensors: Iterable[Tensor]) -> str:
    count = sum(tensor.numel() for tensor in tensors)
    return f"{count / 1e6:,.1f} M" if count >= 1e5 else f"{count:,}"


def _training(layout: Layout) -> dict[str, str]:
    """How far it was trained, and with what."""
    content: dict[str, Any] = layout.content or {}
    if isinstance(layout, Meta):
        try:
            epoch, step = progress(layout.path, content)
        except ValueError:
            return {"trained": f"{content.get('epoch', 'an unknown number of')} epochs; no optimizer to go on with"}
        return {"trained": f"{epoch} epochs, {step:,} steps; the optimizer is there"}
    if not isinstance(layout, Own):
        return {}
    config = configuration(layout.path, content)
    data, trainer = config.get("data") or {}, config.get("trainer") or {}
    arguments = data.get("init_args") or {}
    source = arguments.get("root") or (arguments.get("source") or {}).get("class_path", "")
    of = trainer.get("max_epochs")
    return {
        "trained": f"step {content.get('global_step', 0):,}, in epoch {content.get('epoch', 0) + 1}"
        + (f" of {of}" if of else ""),
        "data": f"{str(data.get('class_path')).split('.')[-1]}, {str(source).split('.')[-1] or 'its own source'}, "
        f"batches of {arguments.get('batch_size')}",
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
    config = "vjepa.yaml" if encoder.num_frames > 1 else "ijepa.yaml"
    model, given, said = f"--ckpt_path {name}", "", ""
    if isinstance(layout, Own):
        run = layout.path.parent.parent / "config.yaml"
        config = str(run) if run.is_file() else config
    elif heads == HEADS_UNKNOWN:
        given, said = " --model.overrides.num_heads N", ", num_heads=N"
        model = f"--model PretrainedEncoder --model.checkpoint {name}{given}"
    return [
        f"jepa validate --config {config} {model} --data.root FOLDER",
        f"jepa predict --config {config} {model} --data.root FOLDER",
        f"jepa fit --config attentive_probe.yaml --model.checkpoint {name}{given} --data.root FOLDER",
        f"jepa fit --config YOURS.yaml --init_from {name}",
        f"jepa export --ckpt_path {name} --to safetensors --out FOLDER",
        f'encoder = jepa_lightning.load_encoder("{name}"{said})',
    ]


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
