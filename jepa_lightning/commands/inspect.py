"""`jepa inspect FILE`: what a checkpoint is and what can be done with it. Nothing in it is executed."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from torch import Tensor

from jepa_lightning import weights
from jepa_lightning.commands.messages import JepaParser
from jepa_lightning.commands.options import add_permissions, allowed
from jepa_lightning.export.formats import FORMATS
from jepa_lightning.export.source import Source
from jepa_lightning.models import DenseVisionTransformer, Encoder, RoPE, VisionTransformer
from jepa_lightning.models.layers import Block
from jepa_lightning.preprocessing import Preprocessing
from jepa_lightning.weights import CheckpointError, HintNeeded, Hints, Networks, Weights
from jepa_lightning.weights.meta_probes import MetaProbe
from jepa_lightning.weights.stored_config import data_title

ACTIONS = "conditioned on actions: not supported yet; everything here reads the encoder alone"
HEADS_UNKNOWN = "number of heads not in the file"


def main(args: Sequence[str]) -> None:
    """Print what a checkpoint is.

    Args:
        args: The file or folder, after `jepa inspect`.

    Raises:
        FileNotFoundError: No such file.
        CheckpointError: Damaged, or of no known format.
    """
    parser = JepaParser(prog="jepa inspect", description=__doc__)
    parser.add_argument("checkpoint", help="A file, a folder, or the name of a folder on Hugging Face's hub.")
    add_permissions(parser)
    options = parser.parse_args(list(args))
    with allowed(options):
        print(report(weights.open(options.checkpoint), options.checkpoint))  # noqa: T201  # what was asked for


def report(opened: Weights, name: str) -> str:
    """The whole text.

    Args:
        opened: The checkpoint.
        name: What the person calls it.
    """
    encoder, heads = outline(opened)
    states = opened.states()
    family = opened.family
    lines = {
        "format": f"{opened.format}, {_bytes(_size(opened.path))}",
        "family": family,
        **(_probe(opened) if isinstance(opened, MetaProbe) else _encoder(encoder, heads)),
        "networks": _count(states),
        **({"predictor": ACTIONS} if family == "V-JEPA 2-AC" else {}),
        **_training(opened),
        "licence": opened.licence,
    }
    width = max(len(label) for label in lines)
    body = [f"  {label.ljust(width)}  {_wrapped(text, width + 4)}" for label, text in lines.items()]
    commands = _commands(opened, name, encoder, heads)
    return "\n".join([name, *body, *[""] * bool(commands), *(f"  {command}" for command in commands)])


def _probe(opened: MetaProbe) -> dict[str, str]:
    """Sizes of the heads, which are all alike."""
    classes, dim = opened.states()["head 0"]["linear.weight"].shape
    return {"probe": f"{classes} classes, tokens of {dim} channels, {opened.depth} layers"}


def _encoder(encoder: Encoder | None, heads: str) -> dict[str, str]:
    """Sizes of the encoder."""
    if encoder is None:
        return {"encoder": heads or "none of its own"}
    text = f"{type(encoder).__name__}, {encoder.embed_dim} channels"
    if isinstance(encoder, VisionTransformer):
        kind = "" if type(encoder.blocks[0]) is Block else f" ({type(encoder.blocks[0]).__name__})"
        text = f"ViT, {encoder.embed_dim} channels, {_plural(encoder.depth, 'block')}{kind}, {heads}, patches of "
        text += f"{encoder.patch_size}, positions {_positions(encoder)}"
    if isinstance(encoder, DenseVisionTransformer):
        text += f", images and clips, levels after blocks {', '.join(map(str, encoder.levels))}"
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


def outline(opened: Weights) -> tuple[Encoder | None, str]:
    """The encoder without its weights, and its attention heads in words; or None, and why it cannot be built here."""
    try:
        encoder = opened.outline()
    except HintNeeded:
        return opened.outline(Hints(num_heads=1)), HEADS_UNKNOWN
    except CheckpointError as error:  # of a package that is not trusted, for example
        return None, str(error)
    return encoder, "" if encoder is None else _plural(encoder.num_heads, "head")


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


def _training(opened: Weights) -> dict[str, str]:
    """How far it was trained, and with what."""
    done, data = opened.progress, opened.config.get("data") or {}
    if done.step is None and done.epoch is None:
        return {}
    if not opened.config:
        trained = f"{_plural(done.epoch, 'epoch')}" if done.epoch is not None else "an unknown number of epochs"
        if done.resumable:
            return {"trained": f"{trained}, {_plural(done.step or 0, 'step')}; the optimizer is there"}
        return {"trained": f"{trained}; no optimizer to go on with"}
    of = opened.config["trainer"].get("max_epochs")
    lines = {"trained": f"step {done.step:,}, in epoch {(done.epoch or 0) + 1}" + (f" of {of}" if of else "")}
    batch = (data.get("init_args") or {}).get("batch_size")
    return {**lines, "data": f"{data_title(data)}, batches of {batch}"} if data else lines


def _commands(opened: Weights, name: str, encoder: Encoder | None, heads: str) -> list[str]:
    """What can be done with it."""
    if isinstance(opened, MetaProbe):
        return [
            f"jepa validate --config attentive_probe.yaml --model.checkpoint ENCODER --ckpt_path {name}",
            f'jepa_lightning.weights.open("{name}").heads()',
        ]
    if encoder is None:
        return []
    clips, unknown = encoder.num_frames > 1, heads == HEADS_UNKNOWN
    model, given = f"--ckpt_path {name}", " --model.overrides.num_heads N" if unknown else ""
    if unknown:
        model = f"--model PretrainedEncoder --model.checkpoint {name}{given}"
    if not opened.config:  # ours say on which data
        model = f"--config {'vjepa' if clips else 'ijepa'}.yaml {model}"
    probe = "attentive_probe" if clips else "linear_probe"
    return [
        f"jepa validate {model} --data.root FOLDER",
        f"jepa predict {model} --data.root FOLDER",
        f"jepa fit --config {probe}.yaml --model.checkpoint {name}{given} --data.root FOLDER",
        *[f"jepa fit --config YOURS.yaml --init_from {name}"] * (opened.family != "V-JEPA 2-AC"),
        f"jepa export --ckpt_path {name}{' --num_heads N' * unknown} --out FOLDER --to {_formats(opened, encoder)}",
        f'encoder = jepa_lightning.load_encoder("{name}"{", num_heads=N" * unknown})',
    ]


def _formats(opened: Weights, encoder: Encoder) -> str:
    """The formats that can hold the encoder: ``timm  # or onnx``."""
    networks = Networks(encoder, "target", Preprocessing(encoder.img_size))
    source = Source(opened.path, networks, licence="", config=opened.config)
    first, *others = (name for name, form in FORMATS.items() if form.unsupported(source) is None)
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
