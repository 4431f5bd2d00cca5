"""A pretrained encoder, which is evaluated and used, not trained."""

from __future__ import annotations

from pathlib import Path
from typing import NoReturn, cast

import torch
from jaxtyping import Float
from torch import Tensor

from jepa_lightning import weights
from jepa_lightning.masking import MaskedBatch
from jepa_lightning.methods.base import Method
from jepa_lightning.probing.classifier import by_clip
from jepa_lightning.weights import Branch, Hints


class PretrainedEncoder(Method):
    """The frozen encoder of any checkpoint, ours or not: `jepa validate` probes it, `jepa predict` writes its features.

    Args:
        checkpoint: A ``.ckpt`` of ours, a file in Meta's layout, a folder in Hugging Face's layout (or its name on the
            hub), a file of timm's ``vit_*_ijepa``, or one that `jepa export` wrote.
        branch: Which of its encoders: ``target`` (EMA, as the papers) or ``context``.
        overrides: What the checkpoint does not say: num_heads, img_size, num_frames.
    """

    def __init__(
        self,
        checkpoint: str,
        branch: Branch = "target",
        overrides: Hints | None = None,
    ) -> None:
        super().__init__()
        self.checkpoint, self.encoder = checkpoint, weights.open(checkpoint).networks(branch, hints=overrides).encoder

    @property
    def title(self) -> str:
        """What tables call it: the file or folder."""
        return Path(self.checkpoint).name

    @torch.no_grad()
    def encode(self, inputs: Float[Tensor, "batch channels *size"]) -> Float[Tensor, "batch tokens dim"]:
        """Its tokens."""
        return cast(Tensor, self.encoder(inputs))

    def predict_step(self, batch: MaskedBatch, batch_idx: int) -> Float[Tensor, "batch dim"]:
        """Features: the tokens, averaged, also over several clips of a video."""
        return by_clip(lambda clips: self.encode(clips).mean(dim=1), batch.inputs).mean(dim=1)

    def setup(self, stage: str) -> None:
        """One batch is enough, because there is no loss; the probes read the data themselves."""
        self.trainer.limit_val_batches = self.trainer.limit_test_batches = 1

    def validation_step(self, batch: MaskedBatch, batch_idx: int) -> None:
        """Nothing: there is no loss."""

    def test_step(self, batch: MaskedBatch, batch_idx: int) -> None:
        """Nothing."""

    def training_step(self, batch: MaskedBatch, batch_idx: int) -> NoReturn:
        """Never reached."""
        raise NotImplementedError

    def configure_optimizers(self) -> NoReturn:
        """Refuse to train.

        Raises:
            ValueError: Always.
        """
        raise ValueError(
            f"a PretrainedEncoder is not trained: give a method and --init_from {self.checkpoint}, or probe it with "
            "--config attentive_probe.yaml"
        )
