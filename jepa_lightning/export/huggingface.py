"""Writes folders in Hugging Face's format: IJepaModel, VJEPA2Model, VJEPA2ForVideoClassification; and reloads them."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from jepa_lightning.export.base import (
    OTHER_BLOCKS,
    Format,
    encoder_only,
    not_plain,
    other_rotation,
    plain_blocks,
    section,
)
from jepa_lightning.export.source import Functions, Source
from jepa_lightning.models import Predictor, RoPE, VisionTransformer
from jepa_lightning.models.layers import MLP, NORM_EPS
from jepa_lightning.preprocessing import Preprocessing
from jepa_lightning.weights.huggingface_names import (
    IJEPA,
    PREDICTED,
    VJEPA2,
    VJEPA2_PREDICTOR,
    VJEPA2_PROBE,
    rescaled,
)
from jepa_lightning.weights.names import to_theirs
from jepa_lightning.weights.networks import Networks, mlp_ratio
from jepa_lightning.weights.safetensors_file import BRANCH

BILINEAR = 2
"""Its number in Pillow, and so in the processors' files."""


class HuggingFace(Format):
    """``config.json``, ``model.safetensors`` and the configuration of a processor.

    Images are written as an IJepaModel. Clips are written as a VJEPA2Model, which without a predictor of ours has one
    of no layer, or with a probe as a VJEPA2ForVideoClassification.
    """

    title = "a Hugging Face model"
    library = "transformers"
    mask_index = PREDICTED

    def takes_predictor(self, source: Source) -> bool:
        """A VJEPA2Model always has one."""
        return source.networks.encoder.num_frames > 1 and source.networks.actions is None

    def unsupported(self, source: Source) -> str | None:
        """Why transformers has no class for it."""
        networks = source.networks
        encoder = networks.encoder
        reason = not_plain(encoder)
        if reason or not isinstance(encoder, VisionTransformer):
            return reason
        if encoder.num_frames == 1:
            if encoder.pos_embed is None:
                return "its images have rotary positions, IJepaModel adds a table"
            return "no class has an attentive probe on images" if networks.classifier else encoder_only(networks)
        if not isinstance(encoder.positions, RoPE):
            return "VJEPA2Model has rotary positions, this encoder of clips (V-JEPA) adds a table"
        if encoder.positions != RoPE(layout="tiled"):
            return other_rotation("VJEPA2Models", encoder)
        if encoder.img_size[0] != encoder.img_size[1]:
            return f"VJEPA2Model takes square clips, not {encoder.img_size[0]}x{encoder.img_size[1]}"
        return _unsupported_predictor(networks) or _unsupported_probe(networks)

    def write(self, source: Source, folder: Path) -> None:
        """Write the networks and the processor."""
        networks = source.networks
        encoder = cast(VisionTransformer, networks.encoder)
        if encoder.num_frames == 1:
            config, state = _ijepa_config(encoder), to_theirs(encoder.state_dict(), IJEPA)
            name, processor = "preprocessor_config.json", _image_processor(networks.preprocessing)
        else:
            config, state = _vjepa2(networks, encoder)
            name, processor = "video_preprocessor_config.json", _video_processor(networks.preprocessing)
        _write(folder / "config.json", config)
        _write(folder / name, processor)
        save_file(state, folder / "model.safetensors", {"format": "pt", BRANCH: networks.branch})

    def reload(self, folder: Path, source: Source) -> Functions:
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

    def usage(self, source: Source) -> str:
        """With transformers."""
        if source.networks.encoder.num_frames == 1:
            return section(
                "from transformers import AutoImageProcessor, AutoModel\n\n"
                'processor, model = AutoImageProcessor.from_pretrained("."), AutoModel.from_pretrained(".")\n'
                'tokens = model(**processor(image, return_tensors="pt")).last_hidden_state  # (B, N, D); average them',
                "Other sizes: `interpolate_pos_encoding=True`.",
            )
        kind, result = (
            "VJEPA2Model",
            "model(**inputs, skip_predictor=True).last_hidden_state  # (B, N, D); average them",
        )
        notes = "Height and width are those above, from which transformers derives its positions; the length may vary."
        if source.networks.predictor is not None:
            notes += " The predictor always uses mask token 1, counted round."
        if source.networks.classifier is not None:
            kind, result = "VJEPA2ForVideoClassification", "model(**inputs).logits  # (B, classes), of one clip"
            notes += (
                " The norms of encoder and probe share one epsilon. For that, what is added to the residual stream of "
                "the encoder is multiplied by a constant: hidden states of its inner layers are larger by this "
                "constant, tokens and logits are the same."
            )
        code = (
            f"from transformers import AutoVideoProcessor, {kind}\n\n"
            f'processor, model = AutoVideoProcessor.from_pretrained("."), {kind}.from_pretrained(".")\n'
            f'inputs = processor(video, return_tensors="pt")  # (T, H, W, C) -> pixel_values_videos (B, T, C, H, W)\n'
            f"result = {result}"
        )
        return section(code, notes)


def _unsupported_predictor(networks: Networks) -> str | None:
    predictor = networks.predictor
    if predictor is None:
        return None
    if not plain_blocks(predictor.predictor_blocks) or predictor.target_noise is not None:
        return f"of the predictor: {OTHER_BLOCKS}; --no-with_predictor leaves it out"
    if predictor.positions != networks.encoder.positions:
        return f"of the predictor: positions {predictor.positions}; --no-with_predictor leaves it out"
    return None


def _unsupported_probe(networks: Networks) -> str | None:
    encoder, classifier = networks.encoder, networks.classifier
    if classifier is None:
        return None
    heads = cast(int, classifier.pooler.get_submodule("cross_attention_block.xattn").num_heads)
    if heads != encoder.num_heads:
        return (
            f"VJEPA2ForVideoClassification gives the probe as many heads as the encoder, {encoder.num_heads}, "
            f"and this one has {heads}: train it with --model.num_heads {encoder.num_heads}"
        )
    if networks.out_layers is not None:
        blocks = list(networks.out_layers)
        return f"VJEPA2ForVideoClassification reads the last block only, this probe blocks {blocks}"
    return None


def _ijepa_config(encoder: VisionTransformer) -> dict[str, Any]:
    height, width = encoder.img_size
    return {
        "architectures": ["IJepaModel"],
        "model_type": "ijepa",
        "hidden_size": encoder.embed_dim,
        "num_hidden_layers": encoder.depth,
        "num_attention_heads": encoder.num_heads,
        "intermediate_size": _hidden(encoder.blocks[0]),
        "hidden_act": "gelu",
        "layer_norm_eps": NORM_EPS,
        "image_size": height if height == width else [height, width],
        "patch_size": encoder.patch_size,
        "num_channels": encoder.state_dict()["patch_embed.proj.weight"].shape[1],
        "qkv_bias": True,
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
        "initializer_range": 0.02,
    }


def _vjepa2(networks: Networks, encoder: VisionTransformer) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Configuration and tensors; one epsilon serves all of them, that of the probe if there is one."""
    predictor, classifier = networks.predictor, networks.classifier
    epsilon = NORM_EPS if classifier is None else classifier.pooler.cross_attention_block.norm1.eps
    config = _encoder_config(encoder, epsilon) | _predictor_config(predictor)
    state = to_theirs(rescaled(encoder.state_dict(), NORM_EPS, epsilon), VJEPA2)
    inner = _no_predictor(encoder.embed_dim) if predictor is None else _stacked(predictor.state_dict())
    state |= to_theirs(rescaled(inner, NORM_EPS, epsilon), VJEPA2_PREDICTOR)
    if classifier is None:
        return {"architectures": ["VJEPA2Model"], **config}, state
    state = {f"vjepa2.{name}": tensor for name, tensor in state.items()}
    state |= to_theirs(classifier.state_dict(), VJEPA2_PROBE)
    labels = networks.labels or tuple(f"LABEL_{number}" for number in range(classifier.linear.out_features))
    config |= {
        "num_pooler_layers": len(getattr(classifier.pooler, "blocks", ())),
        "id2label": {str(number): label for number, label in enumerate(labels)},
        "label2id": {label: number for number, label in enumerate(labels)},
    }
    return {"architectures": ["VJEPA2ForVideoClassification"], **config}, state


def _encoder_config(encoder: VisionTransformer, epsilon: float) -> dict[str, Any]:
    return {
        "model_type": "vjepa2",
        "hidden_size": encoder.embed_dim,
        "num_hidden_layers": encoder.depth,
        "num_attention_heads": encoder.num_heads,
        "mlp_ratio": mlp_ratio(_hidden(encoder.blocks[0]), encoder.embed_dim),
        "hidden_act": "gelu",
        "layer_norm_eps": epsilon,
        "crop_size": encoder.img_size[0],
        "patch_size": encoder.patch_size,
        "frames_per_clip": encoder.num_frames,
        "tubelet_size": encoder.tubelet_size,
        "in_chans": encoder.state_dict()["patch_embed.proj.weight"].shape[1],
        "qkv_bias": True,
        "drop_path_rate": 0.0,
        "attention_dropout": 0.0,
        "attention_probs_dropout_prob": 0.0,
        "initializer_range": 0.02,
    }


def _predictor_config(predictor: Predictor | None) -> dict[str, Any]:
    if predictor is None:
        return {
            "pred_hidden_size": 1, "pred_num_hidden_layers": 0, "pred_num_attention_heads": 1,
            "pred_num_mask_tokens": 1, "pred_mlp_ratio": 4.0, "pred_zero_init_mask_tokens": True,
        }  # fmt: skip
    width = predictor.embed_dim
    return {
        "pred_hidden_size": width,
        "pred_num_hidden_layers": predictor.depth,
        "pred_num_attention_heads": predictor.num_heads,
        "pred_num_mask_tokens": len(predictor.mask_tokens) if hasattr(predictor, "mask_tokens") else 1,
        "pred_mlp_ratio": mlp_ratio(_hidden(predictor.predictor_blocks[0]), width),
        "pred_zero_init_mask_tokens": True,
    }


def _stacked(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """All mask tokens as one tensor, (number, 1, 1, D)."""
    tokens = [tensor for name, tensor in state.items() if name.startswith("mask_token")]
    rest = {name: tensor for name, tensor in state.items() if not name.startswith("mask_token")}
    return {**rest, "mask_tokens": torch.stack(tokens)}


def _no_predictor(dim: int) -> dict[str, Tensor]:
    """What fills the place of a predictor that is not there: it has no layer and predicts zeros."""
    shapes = {
        "predictor_embed.weight": (1, dim),
        "predictor_embed.bias": (1,),
        "mask_tokens": (1, 1, 1, 1),
        "predictor_norm.weight": (1,),
        "predictor_norm.bias": (1,),
        "predictor_proj.weight": (dim, 1),
        "predictor_proj.bias": (dim,),
    }
    return {name: torch.zeros(shape) for name, shape in shapes.items()}


def _image_processor(processing: Preprocessing) -> dict[str, Any]:
    """Of a class that resizes the shorter side and cuts out the centre; I-JEPA's usual ViTImageProcessor cannot.

    It knows the shorter side of the image only: what is not square is right for square images.
    """
    height, width = processing.size
    size = {"height": height, "width": width}
    cut = processing.crop_pct is not None
    return {
        "image_processor_type": "CLIPImageProcessor",
        "do_convert_rgb": True,
        "size": {"shortest_edge": max(processing.covered)} if cut else size,
        "do_center_crop": cut,
        "crop_size": size,
        **_common(processing),
    }


def _video_processor(processing: Preprocessing) -> dict[str, Any]:
    height, width = processing.size
    return {
        "video_processor_type": "VJEPA2VideoProcessor",
        "size": {"shortest_edge": int(height * 256 / 224)},  # the class insists on that
        "do_center_crop": True,
        "crop_size": {"height": height, "width": width},
        **_common(processing),
    }


def _common(processing: Preprocessing) -> dict[str, Any]:
    return {
        "do_resize": True,
        "resample": BILINEAR,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(processing.mean),
        "image_std": list(processing.std),
    }


def _hidden(block: nn.Module) -> int:
    return cast(MLP, block.mlp).fc1.out_features


def _write(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n")


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
