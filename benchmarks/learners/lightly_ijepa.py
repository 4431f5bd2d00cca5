"""I-JEPA of lightly (https://github.com/lightly-ai/lightly): its collator, its predictor and its timm encoder.

Put together as its example is: target features layer-normalised, smooth L1, EMA 0.996 to 1, AdamW at 1.5e-4 (the
example's) times five, because its rate for a batch of 64 hardly moves so small a network in so few steps.
"""

from __future__ import annotations

import copy

import torch
import torch.nn.functional as F
from common import Training, arguments, batches, by_blocks, crops, mixed, parameters, pictures
from lightly.data.ijepa_collate import IJEPAMaskCollator
from lightly.models import utils
from lightly.models.modules import IJEPAPredictorTIMM
from timm_encoder import vision_transformer
from torch import Tensor

given = arguments()
torch.manual_seed(given.seed)
shape, images = given.shape, pictures(given)
encoder = vision_transformer(shape).to(given.device)
patches = encoder.patch_embed.num_patches
predictor = IJEPAPredictorTIMM(
    num_patches=patches,
    depth=shape["predictor_depth"],
    mlp_dim=shape["embed_dim"],
    predictor_embed_dim=shape["predictor_embed_dim"],
    num_heads=shape["num_heads"],
).to(given.device)
target_encoder = copy.deepcopy(encoder).requires_grad_(False)
# Its collator wants more than min_keep tokens in each mask, and not one alone: on 4x4 patches it looks for ever for
# targets of a sixth with two, and fails with one.
coarse = patches < 36
collate = IJEPAMaskCollator(
    shape["img_size"], shape["patch_size"], (0.85, 1.0), (0.2, 0.25) if coarse else (0.15, 0.2), (0.75, 1.5), nenc=1,
    npred=4, min_keep=1 if coarse else 2 if patches < 64 else 4,
)  # fmt: skip
optimizer = torch.optim.AdamW([*encoder.parameters(), *predictor.parameters()], weight_decay=0.05)


def tokens(network: torch.nn.Module, x: Tensor, masks: list[Tensor] | None = None) -> Tensor:
    """Positions, then masks, then blocks."""
    x = network.patch_embed(x) + network.pos_embed
    return network.norm(network.blocks(x if masks is None else utils.apply_masks(x, masks)))


encode = by_blocks(target_encoder, lambda x: tokens(target_encoder, x))
training = Training(given, shape["batch_size"], encode, {"parameters": parameters(encoder)})
drawn = batches(images, shape["batch_size"], given.seed)
for done in training.steps(optimizer, lr=7.5e-4):
    x = crops(images[next(drawn)], (0.6, 1.0))
    x, *masks = collate(list(x))
    context, targets = ([mask.to(given.device) for mask in of_kind] for of_kind in masks)
    with mixed(given):
        with torch.no_grad():
            h = F.layer_norm(tokens(target_encoder, x), (shape["embed_dim"],))
            h = utils.repeat_interleave_batch(utils.apply_masks(h, targets), len(x), repeat=len(context))
        loss = F.smooth_l1_loss(predictor(tokens(encoder, x, context), context, targets), h)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    utils.update_momentum(encoder, target_encoder, 0.996 + 0.004 * done)
training.tell()
