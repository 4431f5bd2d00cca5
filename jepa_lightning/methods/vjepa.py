"""V-JEPA and V-JEPA 2: predict the features of masked tubes of a clip from the rest of it.

Bardes et al., "Revisiting Feature Prediction for Learning Visual Representations from Video", arXiv 2404.08471;
Assran et al., "V-JEPA 2", arXiv 2506.09985. With target features h = LN(f_target(x)), and for each family of masks
(short: eight small tubes, long: two large ones) predictions g(f(x_context), its mask token, positions of the targets),

    loss = mean over families of the mean over tokens and channels of |prediction - h|;   f_target <- EMA(f).

Where samples have different numbers of tokens (`per_sample` masks), each sample counts as it would alone.
V-JEPA 2 is the same method with rotary positions, other schedules and more data: see configs/vjepa2.yaml.

| | papers | official code | here |
|---|---|---|---|
| masks of a batch | - | cut to the shortest, the last frames go | cut at random (`compat: true`: official) |
| mask token | one for each family | V-JEPA 2: all families share the first | own (`share_mask_token: true`: shared) |
| gradient clipping | 10 (V-JEPA) | each network alone, after warm-up | the same: `trainer.gradient_clip_val: 10` |
| initial weights | - | V-JEPA undoes the depth rescale, V-JEPA 2 keeps it | `depth_rescale` says |
| rotary positions | 3-D RoPE | angles and pairs do not match | `layout: interleaved` is right, `tiled` official |
| predictor on non-square input | - | positions of a square grid | the true grid |
| variance term | - | weight 0 in every configuration | logged, not added (`regularizer` adds one of contexts) |
| GradScaler | - | also with bfloat16 | none with bfloat16 |
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer

from jepa_lightning.losses import Regularizer
from jepa_lightning.masking import MaskedBatch, Padded
from jepa_lightning.methods.groups import OptimizerFactory
from jepa_lightning.methods.masked import MaskedJEPA
from jepa_lightning.models import Encoder, Predictor
from jepa_lightning.schedules import Schedule


class VJEPA(MaskedJEPA):
    """Video JEPA (Bardes et al. 2024) and V-JEPA 2 (Assran et al. 2025).

    Args:
        encoder: The context encoder, the network that is trained and kept.
        predictor: Builds the predictor for an encoder, so that sizes are said once.
        lr: Learning rate by optimizer step.
        weight_decay: Weight decay by optimizer step; biases, norms and other vectors are never decayed.
        momentum: Momentum of the target encoder by optimizer step; null for no EMA copy.
        loss_exp: p of the distance mean(|prediction - target|^p) / p.
        share_mask_token: Use the first mask token for every family of masks, as the official V-JEPA 2 does.
        betas: The two decay rates of AdamW.
        ipe_scale: Length of the schedules over the length of the training; above 1 they are not finished.
        compile: Compile the networks with torch.compile; the first steps then take minutes.
        regularizer: A term on the context features of each family of masks, SIGReg or VarianceCovariance; null for
            none. The official variance term, of the predictions, is logged only.
        stop_gradient: Keep gradients out of the targets.
        target_layers: How many last blocks of the target encoder the targets are averaged over; null for all.
        optimizer: Makes the optimizer, for example jepa_lightning.muon.Muon; null for AdamW with ``betas``.
    """

    def __init__(
        self, encoder: Encoder, predictor: Callable[[Encoder], Predictor], lr: Schedule, weight_decay: Schedule,
        momentum: Schedule | None, *, loss_exp: float = 1.0, share_mask_token: bool = False,
        betas: tuple[float, float] = (0.9, 0.999), ipe_scale: float = 1.0, compile: bool = False,
        regularizer: Regularizer | None = None, stop_gradient: bool = True, target_layers: int | None = 1,
        optimizer: OptimizerFactory | None = None,
    ) -> None:  # fmt: skip
        super().__init__(
            encoder, predictor, lr, weight_decay, momentum, betas=betas, ipe_scale=ipe_scale, compile=compile,
            regularizer=regularizer, stop_gradient=stop_gradient, target_layers=target_layers, optimizer=optimizer,
        )  # fmt: skip
        self.loss_exp, self.share_mask_token = loss_exp, share_mask_token

    def losses(self, batch: MaskedBatch) -> dict[str, Tensor]:
        """The distance between predicted and target features, and how good the predictions are."""
        predictions = self.predictions(batch, self.share_mask_token)
        spread = torch.stack([spread_of(p.predicted.detach(), p.masks.targets) for p in predictions]).mean(dim=0)
        return {**self.mean_distance(predictions, self.distance), "variance": F.relu(1.0 - spread).mean()}

    def distance(
        self, predicted: Float[Tensor, "batch m nt dim"], target: Float[Tensor, "batch m nt dim"]
    ) -> Float[Tensor, "batch m nt dim"]:
        """|predicted - target|^p / p."""
        return (predicted - target).abs().pow(self.loss_exp) / self.loss_exp

    def setup(self, stage: str) -> None:
        """Freeze mask tokens that no family uses: without a gradient they would stop DDP."""
        super().setup(stage)
        if stage == "fit" and self.share_mask_token:
            for name, token in self.predictor.named_parameters():
                if name.startswith("mask_tokens."):
                    token.requires_grad_(name == "mask_tokens.0")

    def on_train_batch_start(self, batch: MaskedBatch, batch_idx: int) -> None:
        """Refuse unused mask tokens under DDP, which would stop in the next step with an error that names no cause.

        Raises:
            ValueError: If there are more mask tokens than families of masks.
        """
        tokens, families = len(getattr(self.predictor, "mask_tokens", ())), len(batch.masks)
        parallel: Any = self.trainer.strategy.model
        waits = isinstance(parallel, DistributedDataParallel) and not parallel.find_unused_parameters
        if waits and families < tokens and not self.share_mask_token:
            raise ValueError(
                f"the predictor has {tokens} mask tokens, the batch {families} families of masks, and DDP waits for a "
                f"gradient of every token: set --model.predictor.num_mask_tokens {families}, or "
                "--model.share_mask_token true"
            )
        super().on_train_batch_start(batch, batch_idx)

    def configure_gradient_clipping(
        self, optimizer: Optimizer, gradient_clip_val: float | None = None, gradient_clip_algorithm: str | None = None
    ) -> None:
        """Clip the gradients of encoder and predictor separately to `trainer.gradient_clip_val`, after the warm-up.

        As the official code, from epoch warmup_epochs + 1 on (from 0): the first epoch after the warm-up has none.
        """
        clip = nn.utils.clip_grad_value_ if gradient_clip_algorithm == "value" else nn.utils.clip_grad_norm_
        if gradient_clip_val and self.current_epoch > getattr(self.lr, "warmup_epochs", 0):
            for network in (self.encoder, self.predictor):
                clip(network.parameters(), gradient_clip_val)


def spread_of(
    tokens: Float[Tensor, "batch m nt dim"], index: Int[Tensor, "batch m nt"] | Padded
) -> Float[Tensor, "batch dim"]:
    """Standard deviation over the tokens of each sample, as the official variance term has it."""
    tokens = tokens.float().flatten(1, 2)
    if isinstance(index, Padded):
        kept = (index.indices >= 0).flatten(1).unsqueeze(-1)
        count = kept.sum(dim=1)
        centred = (tokens - (tokens * kept).sum(dim=1, keepdim=True) / count.unsqueeze(1)) * kept
        variance = centred.square().sum(dim=1) / (count - 1).clamp(min=1)
    else:
        variance = tokens.var(dim=1, correction=min(1, tokens.shape[1] - 1))
    return (variance + 1e-4).sqrt()
