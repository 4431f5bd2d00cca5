"""Fine-tuning of the whole encoder, with smaller learning rates in earlier layers.

I-JEPA (arXiv 2301.08243, appendix A.2) fine-tunes as MAE does (He et al. 2021, arXiv 2111.06377, appendix A.2): AdamW,
and a learning rate that falls by a factor from each layer to the one before it (Clark et al. 2020, arXiv 2003.10555).

| | I-JEPA, 1 % of the labels | I-JEPA, all labels | here |
|---|---|---|---|
| encoder | target | target | `branch` |
| head | not said | not said | linear, on the average of the tokens |
| layer decay | 0.75 | 0.75 | `layer_decay` |
| drop path | 0 | 0.25 | `drop_path` |
| label smoothing | 0.1 | not said | `label_smoothing` |
| mixup, cutmix | none | 0.8, 1.0 | none |
| augmentation | RandAugment | not said | that of the data module |
| epochs, batch | 50, 512 | 50, 528 | `trainer.max_epochs`, `data.batch_size` |
"""

from __future__ import annotations

from functools import partial
from typing import Any, cast

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.optim import AdamW

from jepa_lightning import weights
from jepa_lightning.models import Encoder, evaluating
from jepa_lightning.models.layers import DropPath
from jepa_lightning.probing.classifier import Classifier, Group, by_clip
from jepa_lightning.schedules import Constant, Schedule
from jepa_lightning.weights import Branch, Hints


class FineTune(Classifier):
    """An encoder and a linear head on the average of its tokens, trained together; images and clips.

    Args:
        checkpoint: The pretrained model, in any format that ``load_encoder`` reads.
        lr: Learning rate of the head by optimizer step.
        branch: Which encoder it begins with: ``target`` (EMA, as the paper) or ``context``.
        overrides: Sizes of the encoder that the checkpoint does not say: num_heads, img_size, num_frames.
        weight_decay: Weight decay by optimizer step, of matrices; null for 0.05.
        layer_decay: Learning rate of a block over that of the next one; 1 for the same everywhere.
        drop_path: Rate of the last block; it grows linearly from 0 in the first.
        label_smoothing: Fraction of the target that is spread over all classes.
        betas: The two decay rates of AdamW.
    """

    def __init__(
        self,
        checkpoint: str,
        lr: Schedule,
        branch: Branch = "target",
        overrides: Hints | None = None,
        weight_decay: Schedule | None = None,
        layer_decay: float = 0.75,
        drop_path: float = 0.0,
        label_smoothing: float = 0.0,
        betas: tuple[float, float] = (0.9, 0.999),
    ) -> None:
        if not 0 < layer_decay <= 1 or not 0 <= label_smoothing < 1:
            raise ValueError(
                f"layer_decay must be above 0 and at most 1, label_smoothing from 0 to below 1, got {layer_decay} and "
                f"{label_smoothing}"
            )
        opened = weights.open(checkpoint)
        encoder = opened.networks(branch, hints=overrides).encoder.requires_grad_(True).train()
        super().__init__(checkpoint, encoder, [(0.0, 0.0)], partial(AdamW, lr=0.0, betas=betas))
        _set_drop_path(encoder, drop_path)
        self.description = opened.describe(encoder)
        self.lr, self.weight_decay = lr, weight_decay or Constant(0.05)
        self.layer_decay, self.drop_path, self.label_smoothing = layer_decay, drop_path, label_smoothing

    def new_heads(self, outputs: int) -> list[nn.Module]:
        """One linear layer, near zero, so that the first steps leave the encoder as it is."""
        head = nn.Linear(self.encoder.embed_dim, outputs)
        nn.init.normal_(head.weight, std=0.01)
        nn.init.zeros_(head.bias)
        return [head]

    def about(self, number: int) -> dict[str, Any]:
        """What was chosen."""
        return {
            "layer_decay": self.layer_decay,
            "drop_path": self.drop_path,
            "label_smoothing": self.label_smoothing,
        }

    def groups(self) -> dict[tuple[str, str], list[int]]:
        """There is one head."""
        return {("fine-tuning", "trained"): [0]}

    def sentences(self) -> list[str]:
        """How the results were made, for a report."""
        return ["Fine-tuning: all layers and a linear head on averaged tokens learn.", *super().sentences()]

    def get_extra_state(self) -> dict[str, Any]:
        """What the outputs of a head mean, and what the encoder is, so that no other file is needed to build it."""
        return {**super().get_extra_state(), "encoder": self.description}

    # ------------------------------------------------------------------ features

    @torch.no_grad()
    def encode(self, inputs: Float[Tensor, "batch channels *size"]) -> Float[Tensor, "batch tokens dim"]:
        """Tokens of the encoder as it is now."""
        with evaluating(self.encoder):
            return cast(Tensor, self.encoder(inputs))

    def tokens(self, inputs: Tensor) -> Tensor:
        """(B, V, D): the averaged tokens of each clip and view, with gradient."""
        return by_clip(lambda clips: cast(Tensor, self.encoder(clips)).mean(dim=1), inputs)

    # ------------------------------------------------------------------ optimisation

    def trained(self) -> list[Group]:
        """Two groups for each layer: matrices, which are decayed, and vectors."""
        groups: dict[tuple[float, bool], list[nn.Parameter]] = {}
        for parameter, scale in self.scales():
            groups.setdefault((scale, parameter.ndim > 1), []).append(parameter)
        return [Group(found, scale, 1.0, decay) for (scale, decay), found in groups.items()]

    def schedules(self) -> dict[str, Schedule]:
        """Learning rate of the head, and weight decay."""
        return {"lr": self.lr, "weight_decay": self.weight_decay}

    def scales(self) -> list[tuple[nn.Parameter, float]]:
        """Each parameter with the factor of its learning rate.

        With L blocks, ``layer_decay`` to the power of L + 1 for what stands before the blocks, of L for the first
        block, and so on; 1 for the head and the final norm.
        """
        depth = len(cast(Any, getattr(self.encoder, "blocks", ())))
        found = [(parameter, 1.0) for parameter in self.heads.parameters()]
        for name, parameter in self.encoder.named_parameters():
            if name.startswith("blocks."):
                steps = depth - int(name.split(".")[1])
            else:
                steps = 0 if name.startswith("norm.") or not depth else depth + 1
            found.append((parameter, self.layer_decay**steps))
        return found


def _set_drop_path(encoder: Encoder, rate: float) -> None:
    """As at construction: 0 in the first block, ``rate`` in the last."""
    blocks = list(cast(Any, getattr(encoder, "blocks", ())))
    paths = [[part for part in block.modules() if isinstance(part, DropPath)] for block in blocks]
    if rate and not any(paths):
        raise ValueError(f"{type(encoder).__name__} has no drop path: set drop_path to 0")
    for number, found in enumerate(paths):
        for path in found:
            path.rate = DropPath(rate * number / max(1, len(blocks) - 1)).rate  # checks it
