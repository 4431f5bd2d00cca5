from __future__ import annotations

import os

# Before torch is there: threads that a test starts heed nothing else, and eight times two of them, on two busy cores,
# wait for each other for minutes.
os.environ["OMP_NUM_THREADS"] = "1"

import json
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import jaxtyping
import pytest
import torch
import yaml
from lightning import Trainer
from lightning import __version__ as lightning_version
from PIL import Image
from safetensors.torch import load_file
from torch import nn

from jepa_lightning.checkpoint_io import AtomicCheckpointIO
from jepa_lightning.export.source import Source
from jepa_lightning.loading import build
from jepa_lightning.masking import MaskedBatch, MultiBlock
from jepa_lightning.methods import IJEPA
from jepa_lightning.models import Predictor, RoPE, VisionTransformer
from jepa_lightning.models.pooling import AttentiveClassifier
from jepa_lightning.preprocessing import Preprocessing
from jepa_lightning.schedules import Constant
from jepa_lightning.weights import Networks
from jepa_lightning.weights.ours import CONFIG_KEY

torch.set_num_threads(1)

GOLDEN = Path(__file__).parent / "golden"

EncoderFactory = Callable[..., VisionTransformer]
IJEPAFactory = Callable[..., IJEPA]
BatchFactory = Callable[..., MaskedBatch]
TrainerFactory = Callable[..., Trainer]
CheckpointFactory = Callable[..., str]
SourceFactory = Callable[..., Source]


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)  # tiny tensors: more threads only wait for each other, for minutes on a busy machine


@pytest.fixture(autouse=True)
def no_trace_of_processes() -> Iterator[None]:
    """What a strategy tells its processes stays in the environment, and a later pair would take it for its own."""
    names = ("LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT", "NODE_RANK", "WORLD_SIZE")
    before = {name: os.environ[name] for name in names if name in os.environ}
    yield
    for name in set(names) & set(os.environ):
        del os.environ[name]
    os.environ.update(before)


@pytest.fixture(autouse=True)
def same_random_numbers() -> None:
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def golden() -> Callable[[str], dict[str, Any]]:
    def read(name: str) -> dict[str, Any]:
        path = GOLDEN / name
        return load_file(path) if path.suffix == ".safetensors" else json.loads(path.read_text())

    return read


@pytest.fixture(scope="session")
def golden_checkpoint() -> Path:
    return GOLDEN / "ijepa_tiny" / "checkpoint.pt"


@pytest.fixture
def tiny_encoder() -> EncoderFactory:
    def build(**overrides: Any) -> VisionTransformer:
        settings = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 4, "init_std": None}
        return VisionTransformer(**{**settings, **overrides})

    return build


@pytest.fixture
def tiny_ijepa(tiny_encoder: EncoderFactory) -> IJEPAFactory:
    def build(encoder: VisionTransformer | None = None, **overrides: Any) -> IJEPA:
        settings = {
            "predictor": partial(Predictor, embed_dim=16, depth=1, init_std=None),
            "lr": Constant(1e-3),
            "weight_decay": Constant(0.05),
            "momentum": Constant(0.9),
        }
        return IJEPA(tiny_encoder() if encoder is None else encoder, **{**settings, **overrides})

    return build


@pytest.fixture
def tiny_batch() -> BatchFactory:
    def build(batch_size: int = 3, size: tuple[int, int] = (32, 32), patch_size: int = 8, **masks: Any) -> MaskedBatch:
        grid = (size[0] // patch_size, size[1] // patch_size)
        sampler = MultiBlock(grid, **{"min_keep": 2, "num_targets": 2, **masks})
        return MaskedBatch(torch.randn(batch_size, 3, *size), sampler.sample(batch_size))

    return build


@pytest.fixture
def quiet_trainer(tmp_path: Path) -> TrainerFactory:
    return partial(
        Trainer,
        accelerator="cpu",
        devices=1,
        logger=False,
        log_every_n_steps=1,  # or trainer.callback_metrics has not the values of every step
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=tmp_path,
    )


@pytest.fixture(scope="session")
def image_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("images")
    generator = torch.Generator().manual_seed(0)
    for number in range(38):
        folder = root / ("train" if number < 34 else "val") / f"class{number % 2}"
        folder.mkdir(parents=True, exist_ok=True)
        pixels = torch.randint(256, (40, 40, 3), generator=generator, dtype=torch.uint8)
        Image.fromarray(pixels.numpy()).save(folder / f"{number}.jpg")
    return root


@pytest.fixture(scope="session")
def save_checkpoint() -> CheckpointFactory:
    """Writes a checkpoint as `jepa fit` leaves it, trained by chance: the target encoder differs from the encoder."""

    def save(path: Path, method: str = "IJEPA", seed: int = 5, **encoder: Any) -> str:
        schedule = {"class_path": "jepa_lightning.schedules.Constant", "init_args": {"value": 0.5}}
        sizes = {"img_size": 16, "patch_size": 8, "embed_dim": 16, "depth": 2, "num_heads": 2, "init_std": None}
        arguments: dict[str, Any] = dict.fromkeys(("lr", "weight_decay", "momentum"), schedule)
        arguments["encoder"] = {"class_path": "jepa_lightning.VisionTransformer", "init_args": {**sizes, **encoder}}
        narrow = {"embed_dim": 12, "depth": 1, "num_heads": 2}
        arguments["predictor"] = {"class_path": "jepa_lightning.Predictor", "init_args": narrow}
        config = {"class_path": f"jepa_lightning.{method}", "init_args": arguments}
        torch.manual_seed(seed)
        module: Any = build(config)
        for parameter in module.target_encoder.parameters():
            parameter.data += 0.3 * torch.randn_like(parameter)
        kind, masks = ("Video", "MultiBlock3D") if "num_frames" in encoder else ("Image", "MultiBlock")
        few = {"class_path": f"jepa_lightning.masking.{masks}", "init_args": {"min_keep": 4}}
        data = {"class_path": f"jepa_lightning.data.{kind}DataModule", "init_args": {"masks": few}}
        text = yaml.safe_dump({"seed_everything": seed, "model": config, "data": data, "trainer": {}})
        content = {"state_dict": module.state_dict(), CONFIG_KEY: text, "global_step": 7, "epoch": 0}
        content["pytorch-lightning_version"] = lightning_version
        AtomicCheckpointIO().save_checkpoint(content, path)
        return str(path)

    return save


# ---------------------------------------------------------------------- networks of any format


def _random(module: Any) -> Any:
    """With weights and biases that all matter."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return module.requires_grad_(False).eval()


def _as_meta_writes_it(module: Any, optimizer: torch.optim.Optimizer, path: Path, epoch: int) -> Path:
    """Groups in the official order, position tables among the parameters, everything under its number."""
    networks = ("encoder", "predictor", "target_encoder")
    content: dict[str, Any] = {
        name: {f"module.{key}": tensor.clone() for key, tensor in module.get_submodule(name).state_dict().items()}
        for name in networks
    }
    trained = dict(optimizer.state)
    by_name = {name: trained[p] for name, p in module.named_parameters() if p in trained}
    groups: list[dict[str, Any]] = []
    states: dict[int, Any] = {}
    number = 0
    for decayed in (True, False):
        for network in networks[:2]:
            names = []
            for key, tensor in content[network].items():
                if decayed == (tensor.ndim > 1 and "bias" not in key):
                    state = by_name.get(f"{network}.{key.removeprefix('module.')}")
                    if state is not None:
                        states[number] = {name: value.clone() for name, value in state.items()}
                    names.append(number)
                    number += 1
            groups.append({"params": names, "lr": 1e-3, "WD_exclude": not decayed})
    content |= {"opt": {"state": states, "param_groups": groups}, "scaler": None, "epoch": epoch, "lr": 1e-3}
    torch.save(content, path)
    return path


@pytest.fixture
def as_meta_writes_it() -> Callable[[Any, torch.optim.Optimizer, Path, int], Path]:
    return _as_meta_writes_it


@pytest.fixture
def random_weights() -> Callable[[nn.Module], nn.Module]:
    return _random


@pytest.fixture
def image_source() -> SourceFactory:
    """An I-JEPA of random weights, as a source of exports."""

    def build(predictor: bool = False, img_size: Any = 16, **sizes: Any) -> Source:
        settings = {"patch_size": 8, "embed_dim": 24, "depth": 2, "num_heads": 3, "mlp_ratio": 3.3, **sizes}
        encoder = _random(VisionTransformer(img_size, **settings))
        predicting = _random(Predictor(encoder, 12, 1)) if predictor else None
        networks = Networks(encoder, "target", Preprocessing(encoder.img_size), predicting)
        return Source(Path("some.ckpt"), networks, "All rights reserved.")

    return build


@pytest.fixture
def clip_source() -> SourceFactory:
    """A V-JEPA 2 of random weights, as a source of exports; ``classes`` for one with a probe."""

    def build(predictor: bool = False, classes: int = 0, probe_heads: int = 3, depth: int = 3, **sizes: Any) -> Source:
        settings = {"patch_size": 8, "embed_dim": 36, "depth": 2, "num_heads": 3, "num_frames": 4, "tubelet_size": 2}
        settings = {"img_size": 16, **settings, "positions": RoPE(layout="tiled"), **sizes}
        encoder = _random(VisionTransformer(**settings))
        predicting = _random(Predictor(encoder, 24, 1, 2, num_mask_tokens=3)) if predictor else None
        classifier = _random(AttentiveClassifier(encoder.embed_dim, classes, probe_heads, depth)) if classes else None
        processing = Preprocessing(encoder.img_size)
        networks = Networks(encoder, "target", processing, predicting, classifier)
        return Source(Path("some.ckpt"), networks, "All rights reserved.")

    return build


@pytest.fixture
def without_type_checks() -> Iterator[None]:
    """Sizes are symbols while a graph is traced, and symbols are no integers."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)
