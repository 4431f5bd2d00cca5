"""The section "Use" of a model card: how each library loads an export, and what sizes it then takes."""

from __future__ import annotations

from jepa_lightning.export.graphs import dynamic_sizes, external
from jepa_lightning.export.meta import FILE, hints_for
from jepa_lightning.export.source import Source


def huggingface(source: Source) -> str:
    """With transformers."""
    if source.networks.encoder.num_frames == 1:
        return _section(
            "from transformers import AutoImageProcessor, AutoModel\n\n"
            'processor, model = AutoImageProcessor.from_pretrained("."), AutoModel.from_pretrained(".")\n'
            'tokens = model(**processor(image, return_tensors="pt")).last_hidden_state  # (B, N, D); average them',
            "Other sizes: `interpolate_pos_encoding=True`.",
        )
    kind, result = "VJEPA2Model", "model(**inputs, skip_predictor=True).last_hidden_state  # (B, N, D); average them"
    notes = "Height and width are those above, from which transformers derives its positions; the length may vary."
    if source.networks.predictor is not None:
        notes += " The predictor always uses mask token 1, counted round."
    if source.networks.classifier is not None:
        kind, result = "VJEPA2ForVideoClassification", "model(**inputs).logits  # (B, classes), of one clip"
        notes += (
            " So that one epsilon of the norms serves encoder and probe, what is added to the residual stream of the "
            "encoder is multiplied by a constant: hidden states of its inner layers are larger by it, tokens and "
            "logits are the same."
        )
    code = (
        f"from transformers import AutoVideoProcessor, {kind}\n\n"
        f'processor, model = AutoVideoProcessor.from_pretrained("."), {kind}.from_pretrained(".")\n'
        f'inputs = processor(video, return_tensors="pt")  # (T, H, W, C) -> pixel_values_videos (B, T, C, H, W)\n'
        f"result = {result}"
    )
    return _section(code, notes)


def timm(source: Source) -> str:
    """With timm."""
    return _section(
        "import timm\n\n"
        'model = timm.create_model("local-dir:FOLDER", pretrained=True).eval()\n'
        "transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model))\n"
        "tokens = model.forward_features(transform(image)[None])  # (B, N, D); model(...) averages them",
        "Other sizes: `create_model(..., img_size=...)`, which resamples the positions in timm's own way.",
    )


def onnx(source: Source, fixed_size: bool = False) -> str:
    """With onnxruntime."""
    code = (
        "import onnxruntime\n\n"
        'session = onnxruntime.InferenceSession("model.onnx")\n'
        f'{_result(source)} = session.run(None, {{"inputs": inputs}})[0]  # {_inputs(source)}'
    )
    notes = _graph(source, fixed_size, "onnx")
    if external(source.networks.encoder):
        notes += " The weights are in `model.onnx.data`, which belongs beside `model.onnx`."
    return _section(code, notes)


def torch_export(source: Source, fixed_size: bool = False) -> str:
    """With PyTorch alone."""
    code = (
        "import torch\n\n"
        'model = torch.export.load("model.pt2").module()\n'
        f"{_result(source)} = model(inputs)  # {_inputs(source)}"
    )
    return _section(code, _graph(source, fixed_size, "pt2"))


def safetensors(source: Source) -> str:
    """With jepa_lightning."""
    return _section(
        "import jepa_lightning\n\n"
        'encoder = jepa_lightning.load_encoder("model.safetensors")\n'
        f"tokens = encoder(inputs)  # {_inputs(source)}",
        f"Other sizes work: {_unit(source)}.",
    )


def meta(source: Source) -> str:
    """With jepa_lightning; Meta's own repositories read the file too."""
    arguments = "".join(f", {name}={value}" for name, value in hints_for(source).given.items())
    return _section(
        f'import jepa_lightning\n\nmodule = jepa_lightning.load_meta("{FILE}"{arguments})',
        "There is no optimizer in it."
        + ("" if source.other is not None else " The source has one encoder, which stands for both here."),
    )


def _section(code: str, notes: str) -> str:
    return f"```python\n{code}\n```\n\n{notes}"


def _graph(source: Source, fixed_size: bool, suffix: str) -> str:
    """What is dynamic in a graph."""
    notes = "The batch may have any size; images and clips only the size above, which is part of the graph."
    if not fixed_size and dynamic_sizes(source.networks.encoder):
        notes = f"The batch is dynamic, and so are sizes of two tokens or more: {_unit(source)}."
    if source.networks.predictor is not None:
        token = ""
        if hasattr(source.networks.predictor, "mask_tokens"):
            token = f", and uses mask token {source.networks.mask_index}, counted round"
        notes += (
            f" `predictor.{suffix}` takes context_tokens (B, Nc, D), context (B, Nc) and targets (B, Nt), numbers of "
            f"tokens of an input of the size above{token}."
        )
    return notes


def _unit(source: Source) -> str:
    encoder = source.networks.encoder
    frames = f" and of {encoder.tubelet_size} frames" if encoder.num_frames > 1 else ""
    return f"multiples of {encoder.patch_size} pixels{frames}"


def _result(source: Source) -> str:
    return "tokens" if source.networks.classifier is None else "logits"


def _inputs(source: Source) -> str:
    layout = "(B, C, T, H, W)" if source.networks.encoder.num_frames > 1 else "(B, C, H, W)"
    return f"float32 {layout}, see preprocessing.json"
