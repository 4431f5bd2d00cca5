"""The model card of an export: networks, use, preprocessing, training, parity and licence."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from jepa_lightning.export.base import Format
from jepa_lightning.export.parity import Parity
from jepa_lightning.export.results import results
from jepa_lightning.export.source import Source
from jepa_lightning.preprocessing import Preprocessing

ENCODERS = {
    "target": "the target encoder (the EMA, which the papers evaluate)",
    "context": "the context encoder (the one that the optimizer trained)",
}


def write_card(source: Source, form: Format, parity: Parity, folder: Path) -> None:
    """Write ``README.md`` and ``preprocessing.json``.

    Args:
        source: What was exported.
        form: The format.
        parity: Result of the comparison.
        folder: An existing folder.
    """
    processing = preprocessing(source)
    (folder / "preprocessing.json").write_text(json.dumps(processing, indent=2) + "\n")
    parts = [
        _front(source, form),
        f"# {source.kind} as {form.title}\n\nWritten by `jepa export` from `{source.path.name}`"
        f"{_trained(source)}. It holds {_encoders(source)}{_beside(source)}.",
        _table(source),
        f"## Use\n\n{form.usage(source)}",
        f"## Preprocessing\n\n{_steps(source.networks.preprocessing)}\n\nThe same for programs: `preprocessing.json`.",
        f"## Parity\n\nReloaded in {parity.library} and compared with jepa_lightning in float32 on the CPU; random "
        f"numbers and pictures of the embedded data. The same for programs: `parity.json`.\n\n{parity.table()}",
        *results(source.path),
        *_config(source.config),
        f"## Licence\n\n{source.licence}\n",
    ]
    (folder / "README.md").write_text("\n\n".join(parts))


def preprocessing(source: Source) -> dict[str, Any]:
    """The preprocessing of an image or a frame, as data."""
    processing = source.networks.preprocessing
    clip = source.networks.encoder.num_frames > 1
    to: dict[str, Any] = {"until_it_covers": list(processing.covered), "proportions": "kept, sides rounded"}
    if processing.crop_pct is None:
        to = {"size": list(processing.size)}
    return {
        "channels": "RGB",
        "resize": {**to, "interpolation": "bilinear", "antialias": True},
        "center_crop": None if processing.crop_pct is None else list(processing.size),
        "scale": 1 / 255,
        "mean": list(processing.mean),
        "std": list(processing.std),
        "background": list(processing.background),
        "layout": "B,C,T,H,W" if clip else "B,C,H,W",
        "dtype": "float32",
        **({"frames": source.networks.encoder.num_frames} if clip else {}),
    }


def _front(source: Source, form: Format) -> str:
    """The metadata for Hugging Face's hub."""
    kind = "video" if source.networks.encoder.num_frames > 1 else "image"
    task = f"{kind}-classification" if source.networks.classifier else "image-feature-extraction"
    about: dict[str, Any] = {"tags": ["jepa", "self-supervised-learning", source.kind.lower().replace(" ", "-")]}
    if kind == "image" or source.networks.classifier:  # there is no task of clips without classes
        about["pipeline_tag"] = task
    if form.library in ("transformers", "timm"):
        about["library_name"] = form.library
    return f"---\n{yaml.safe_dump(about, sort_keys=False)}---"


def _trained(source: Source) -> str:
    if source.config and source.progress.step is not None:
        return f" after {source.progress.step:,} optimizer steps"
    return "" if source.progress.epoch is None else f" after {source.progress.epoch:,} epochs"


def _encoders(source: Source) -> str:
    if source.other is not None:
        return "both encoders"
    if source.config and source.arguments.get("momentum", "not an option") is None:
        return "the encoder (there was one, without an EMA)"
    return ENCODERS[source.networks.branch]


def _beside(source: Source) -> str:
    beside = ["a predictor"] * (source.networks.predictor is not None)
    beside += ["a predictor that reads actions"] * (source.networks.actions is not None)
    beside += ["an attentive probe"] * (source.networks.classifier is not None)
    return f" and {' and '.join(beside)}" if beside else ""


def _table(source: Source) -> str:
    encoder = source.networks.encoder
    grid = "x".join(map(str, encoder.grid if encoder.num_frames > 1 else encoder.grid[1:]))
    rows: dict[str, Any] = {
        "encoder": type(encoder).__name__,
        "parameters": f"{sum(p.numel() for p in encoder.parameters()):,}",
        "width": encoder.embed_dim,
        "blocks": getattr(encoder, "depth", "-"),
        "heads": encoder.num_heads,
        "image size": f"{encoder.img_size[0]}x{encoder.img_size[1]}",
        "patch size": encoder.patch_size,
        "tokens": f"{grid}",
    }
    if encoder.num_frames > 1:
        rows |= {"frames": encoder.num_frames, "frames in a token": encoder.tubelet_size}
    if source.networks.labels:
        rows["classes"] = len(source.networks.labels)
    return "\n".join(["| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in rows.items())])


def _steps(processing: Preprocessing) -> str:
    height, width = processing.size
    covered = "x".join(map(str, processing.covered))
    resize = (
        f"both sides to {height}x{width}"
        if processing.crop_pct is None
        else f"until it covers {covered}, and cut out the central {height}x{width}"
    )
    return (
        f"RGB, resize {resize} (bilinear, antialiased), divide by 255, subtract the mean {list(processing.mean)}, "
        f"divide by the standard deviation {list(processing.std)}."
    )


def _config(config: Mapping[str, Any]) -> list[str]:
    """The sections that say how the model was made."""
    if not config:
        return []
    told = {name: config[name] for name in ("seed_everything", "model", "data") if name in config}
    text = yaml.safe_dump(told, sort_keys=False).strip()
    return [f"## Training\n\nConfiguration of jepa_lightning:\n\n```yaml\n{text}\n```"]
