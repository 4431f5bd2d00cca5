"""I-JEPA of stable-pretraining (https://github.com/galilai-group/stable-pretraining), encoder of the recipe's shape.

Its module makes masks, targets and loss; EMA by its own wrapper, after each step. AdamW at 1e-3 as in its benchmark.
"""

from __future__ import annotations

import torch
from common import Training, arguments, batches, by_blocks, crops, mixed, parameters, pictures
from stable_pretraining.methods import IJEPA
from timm_encoder import vision_transformer

given = arguments()
torch.manual_seed(given.seed)
shape, images = given.shape, pictures(given)
model = IJEPA(
    vision_transformer(shape),
    predictor_embed_dim=shape["predictor_embed_dim"],
    predictor_depth=shape["predictor_depth"],
).to(given.device)
optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], weight_decay=0.05, betas=(0.9, 0.95))


def tokens(x: torch.Tensor) -> torch.Tensor:
    """Of the teacher, the network that the paper evaluates."""
    height, width = student._get_grid_size(x)
    everything = torch.arange(height * width, device=x.device).expand(len(x), -1)
    return model._encode(teacher.patch_embed(x), everything, height, width, teacher)


student, teacher = model.encoder.student, model.encoder.teacher
training = Training(given, shape["batch_size"], by_blocks(teacher.vit, tokens), {"parameters": parameters(student)})
drawn = batches(images, shape["batch_size"], given.seed)
model.train()
for done in training.steps(optimizer, lr=1e-3):
    with mixed(given):
        loss = model(crops(images[next(drawn)], (0.6, 1.0))).loss
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    model.encoder.update_ema_coefficient(int(1000 * done), 1000)
    model.encoder.update_teacher()
training.tell()
