"""Reloads what was written, in the library that it was written for."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

from torch import Tensor

from jepa_lightning.interop.safetensors_file import read_networks
from jepa_lightning.interop.source import Functions, Source, functions


def reload_huggingface(folder: Path, source: Source) -> Functions:
    """What transformers computes.

    Raises:
        ValueError: If it misses a tensor, or does not know one.
    """
    import transformers

    kind = json.loads((folder / "config.json").read_text())["architectures"][0]
    with _quiet(transformers.utils.logging):
        model, about = getattr(transformers, kind).from_pretrained(folder, output_loading_info=True)
    wrong = {name: sorted(map(str, found)) for name, found in about.items() if found}
    if wrong:
        raise ValueError(f"transformers' {kind} does not take the tensors that were written: {wrong}")
    model.eval()
    if kind == "IJepaModel":
        return Functions(encode=lambda inputs: model(inputs).last_hidden_state)
    base: Any = model.vjepa2 if kind == "VJEPA2ForVideoClassification" else model

    def encode(inputs: Tensor) -> Tensor:
        """Transformers has time before channels."""
        return base(inputs.transpose(1, 2), skip_predictor=True).last_hidden_state

    def predict(tokens: Tensor, context: Tensor, targets: Tensor) -> Tensor:
        return base.predictor(tokens, [context], [targets]).last_hidden_state

    def classify(inputs: Tensor) -> Tensor:
        return model(inputs.transpose(1, 2)).logits

    has_predictor, has_probe = source.networks.predictor is not None, base is not model
    return Functions(encode, classify if has_probe else None, predict if has_predictor else None)


def reload_timm(folder: Path, source: Source) -> Functions:
    """What timm computes."""
    import timm

    model = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    encode: Callable[[Tensor], Tensor] = cast(Any, model).forward_features
    return Functions(encode=encode)


def reload_safetensors(folder: Path, source: Source) -> Functions:
    """What our own networks compute, built from the file alone."""
    return functions(source._replace(networks=read_networks(folder)._replace(mask_index=source.networks.mask_index)))


@contextmanager
def _quiet(logging: Any) -> Iterator[None]:
    """Without the progress bars and the advice of transformers, which are for what it downloads."""
    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()
