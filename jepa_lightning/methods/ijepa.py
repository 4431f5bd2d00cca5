"""I-JEPA: predict the features of target blocks from a context block of the same image.

Assran et al., "Self-Supervised Learning from Images with a Joint-Embedding Predictive Architecture", CVPR 2023,
arXiv 2301.08243. With target features h = LN(f_target(x)) and predictions g(f(x_context), positions of the target),

    loss = mean over target blocks, tokens and channels of smooth_l1(prediction - h);   f_target <- EMA(f).

Where samples have different numbers of tokens (`per_sample` masks), the mean is over the tokens of each block first:
each sample counts as it would alone.

| | paper | official code | here |
|---|---|---|---|
| distance | squared L2 | smooth L1, beta 1 | smooth L1 |
| targets | as the encoder gives them | layer-normalised without affine, eps 1e-5 | layer-normalised |
| weight decay | linear | cosine | cosine |
| blocks whose outputs are targets | the last | the last | the last (`target_layers` for more, averaged) |
| optimizer | AdamW | AdamW | AdamW (`optimizer`: jepa_lightning.muon.Muon) |
| initial weights | - | depth rescale, undone before training | no rescale (`depth_rescale: true` has it) |
| masks | section 3 | last row and column never used, raster cut | whole grid, random cut (`compat: true`: official) |
| target encoder's mode | - | train() (no dropout, so no difference) | eval() |
| other input sizes | - | crash | positions resampled |
| data seed | - | the same on all ranks | different on each |

C-JEPA (Mo and Tong, NeurIPS 2024, arXiv 2410.19560) adds VICReg's terms to this: `regularizer: VarianceCovariance`.

| | C-JEPA | here |
|---|---|---|
| loss | + 0.001 (25 invariance + 25 variance + covariance) | + 0.025 variance + 0.001 covariance (configs/cjepa.yaml) |
| invariance | of the mean features of two views | none: there is one view, and the prediction ties its parts |
| features of the two terms | could not be established | the mean of the context tokens of a sample |
| batch | - | that of all processes |

Its ablation, as others cite it (ViT-B/16, 100 epochs, linear probe): I-JEPA 63.7, with variance and covariance alone
68.3, with all three 69.5.

SIGReg-I-JEPA has no paper: `regularizer: SIGReg`, with `momentum: null` without EMA copy (configs/ijepa_sigreg.yaml),
and with `stop_gradient: false` without a stop-gradient. A regularizer keeps the means of samples apart; the tokens of
one sample may still become alike.
"""

from __future__ import annotations

from functools import partial

import torch.nn.functional as F
from torch import Tensor

from jepa_lightning.masking import MaskedBatch
from jepa_lightning.methods.masked import MaskedJEPA

smooth_l1 = partial(F.smooth_l1_loss, reduction="none")


class IJEPA(MaskedJEPA):
    """Image JEPA (Assran et al. 2023); C-JEPA (Mo and Tong 2024) with ``regularizer: VarianceCovariance``."""

    def losses(self, batch: MaskedBatch) -> dict[str, Tensor]:
        """Smooth L1 between predicted and target features, and how good the predictions are."""
        return self.mean_distance(self.predictions(batch), smooth_l1)
