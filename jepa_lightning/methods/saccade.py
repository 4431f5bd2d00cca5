"""Saccade-JEPA: predict how the features of an image change when the eye moves a little.

After "Saccade JEPA" in the jepa repository of LumenPallidium (2023), which has no paper; joint embedding and EMA as in
I-JEPA (Assran et al., arXiv 2301.08243), variance and covariance as in VICReg (Bardes et al., arXiv 2105.04906). Of two
views of an image, x the first and y the second, A the rotation and translation between them, code its Fourier features
and A' its inverse: with c = f(x), p = g(c, code(A)) and r = g(p, code(A')),

    loss = huber(p - sg[f_target(y)]) + 0.25 |r - c|^2 + 25 mean_d max(0, 4 - std_d(c)) + sum over i != j of C_ij^2 / D;
    f_target <- EMA(f),

with means over samples and channels, the standard deviations and the covariance matrix C of c over the batch. The cycle
term is zero for a predictor that is never wrong, whatever the encoder does; there is no stop-gradient in it.

| | intended | original code | here |
|---|---|---|---|
| shift | to 0.9 of 200 - 128 pixels | half of it: a fraction of the side, where affine_grid halves | to 0.9 |
| way back | the inverse movement | negated code, which is no code: cosines are even | code of the inverse |
| layers of the MLP | 3 | 2: the first two are one module (list * n) | 3 (`AffineMLP.depth`) |
| covariance | VICReg's | with the variances, against the variance term; over B | off-diagonal, over B - 1 |
| directions | both | one for each batch | one for each sample |
| movement | - | one for each sample | one for each sample |
| warp | - | whole image, nearest pixel | the view, bilinear |
| draws | - | global generator | (seed, step, index): the same after a resume |
| batch of the statistics | - | of each process | of all processes |
| features | - | a Linear layer of 1,536 on the pooled map | mean token; such a layer is `out_dim` of a backbone |
| tokens | - | 64 x 24 cut out of one vector, for a Transformer | left out |
| target encoder's mode | - | train() | eval(); BatchNorm as in training |
| `predict_affines` | regress the movement | sign and shape faults, without cycles | left out |
"""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor

from jepa_lightning.losses import Regularizer, VarianceCovariance
from jepa_lightning.masking import MaskedBatch, TokenMasks
from jepa_lightning.masking.tokens import Family
from jepa_lightning.methods.base import JEPA, Observed, watched
from jepa_lightning.methods.groups import OptimizerFactory
from jepa_lightning.models import AffineMLP, AffineViews, Encoder, affine_code
from jepa_lightning.schedules import Schedule


class SaccadeJEPA(JEPA):
    """Saccade-JEPA (LumenPallidium 2023): two views, a small movement between them, any backbone.

    The views are as large as ``encoder.img_size``; the images must be larger, so set ``data.img_size``.

    Args:
        encoder: The context encoder, the network that is trained and kept: TorchvisionBackbone, TimmBackbone, ConvNeXt
            or VisionTransformer.
        predictor: Builds the predictor for an encoder.
        lr: Learning rate by optimizer step.
        weight_decay: Weight decay by optimizer step; biases, norms and other vectors are never decayed.
        momentum: Momentum of the target encoder by optimizer step; null for no EMA copy.
        views: How far views may be turned and moved; null for the original's 2 degrees and 0.9.
        cycle_weight: Weight of the cycle term; 0 leaves it out.
        betas: The two decay rates of AdamW.
        ipe_scale: Length of the schedules over the length of the training; above 1 they are not finished.
        compile: Compile the networks with torch.compile; the first steps then take minutes.
        regularizer: Keeps the features of a batch apart; null for VarianceCovariance with the original's weights.
        stop_gradient: Keep gradients out of the targets.
        target_layers: How many last blocks of the target encoder the targets are averaged over; null for all.
        optimizer: Makes the optimizer, for example jepa_lightning.muon.Muon; null for AdamW with ``betas``.
    """

    def __init__(
        self, encoder: Encoder, predictor: Callable[[Encoder], AffineMLP], lr: Schedule, weight_decay: Schedule,
        momentum: Schedule | None, *, views: AffineViews | None = None, cycle_weight: float = 0.25,
        betas: tuple[float, float] = (0.9, 0.999), ipe_scale: float = 1.0, compile: bool = False,
        regularizer: Regularizer | None = None, stop_gradient: bool = True, target_layers: int | None = 1,
        optimizer: OptimizerFactory | None = None,
    ) -> None:  # fmt: skip
        regularizer = regularizer or VarianceCovariance(variance_weight=25.0, covariance_weight=1.0, std=4.0)
        super().__init__(
            encoder, lr, weight_decay, momentum, betas, ipe_scale, compile, regularizer, stop_gradient, target_layers,
            optimizer,
        )  # fmt: skip
        self.predictor = predictor(encoder)
        self.views, self.cycle_weight = views or AffineViews(), cycle_weight

    def losses(self, batch: MaskedBatch) -> dict[str, Tensor]:
        """Huber loss of the prediction, the cycle, variance and covariance of the context features."""
        images = batch.inputs
        index = torch.arange(len(images), device=images.device) if batch.index is None else batch.index
        first, second, movement = self.views(images, self.encoder.img_size, index, self.draw)
        context = self.encoder(first).mean(dim=1)  # (B, D)
        target = self.targets_of(second).mean(dim=1)  # (B, D)
        predicted = self.predictor(context, affine_code(movement))
        returned = self.predictor(predicted, affine_code(movement.inverse()))
        parts = {"prediction": F.huber_loss(predicted, target), "cycle": F.mse_loss(returned, context)}
        terms = cast(Regularizer, self.regularizer).terms(context, self.draw)
        loss = parts["prediction"] + self.cycle_weight * parts["cycle"]
        for name, (weight, value) in terms.items():
            loss, parts[name] = loss + weight * value, value
        # Observers see one token that is both context and target, and one block of targets.
        token = torch.zeros(len(images), 1, dtype=torch.long, device=images.device)
        masks, seen, block = TokenMasks(token, token.unsqueeze(1)), context.unsqueeze(1), predicted[:, None, None]
        self.observe(Observed(masks, (1, 1, 1), seen, block, target.unsqueeze(1)))
        return {
            "loss": loss,
            **{name: value.detach() for name, value in parts.items()},
            **watched(Family(*masks), seen, block, target[:, None, None]),
        }
