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

import pytest
import torch
import yaml
from lightning import Trainer
from lightning import __version__ as lightning_version
from PIL import Image
from safetensors.torch import load_file

from jepa_lightning.weights.ours import CONFIG_KEY
from jepa_lightning.checkpoint_io import AtomicCheckpointIO
from jepa_lightning.loading import build
from jepa_lightning.masking import MaskedBatch, MultiBlock
from jepa_lightning.methods import IJEPA
from jepa_lightning.models import Predictor, VisionTransformer
from jepa_lightning.schedules import Constant

torch.set_num_threads(1)

GOLDEN = Path(__file__).parent / "golden"

EncoderFactory = Callable[..., VisionTransformer]
IJEPAFactory = Callable[..., IJEPA]
BatchFactory = Callable[..., MaskedBatch]
TrainerFactory = Callable[..., Trainer]
CheckpointFactory = Callable[..., str]


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
        module: Any = build(path, config)
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
