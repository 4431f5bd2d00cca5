"""SimCLR (Chen et al. 2020) of lightly: its projection head and NT-Xent loss, on an encoder of the recipe's shape.

Two views of each image: crops of 0.25 to 1 of it, random colours, brightness and contrast, grey in one of five.
"""

from __future__ import annotations

import numpy as np
import torch
from common import Training, arguments, batches, by_blocks, crops, mixed, parameters, pictures
from lightly.loss import NTXentLoss
from lightly.models.modules import SimCLRProjectionHead
from timm_encoder import vision_transformer
from torch import Tensor

given = arguments()
torch.manual_seed(given.seed)
shape, images = given.shape, pictures(given)
encoder = vision_transformer(shape).to(given.device)
head = SimCLRProjectionHead(shape["embed_dim"], 2 * shape["embed_dim"], 64).to(given.device)
criterion = NTXentLoss(temperature=0.2)
optimizer = torch.optim.AdamW([*encoder.parameters(), *head.parameters()], weight_decay=0.05)


def view(index: np.ndarray) -> Tensor:
    """One augmented view of each image."""
    x = crops(images[index], (0.25, 1.0))
    count, place = len(x), x.device
    grey = x.mean(dim=1, keepdim=True)
    coloured = torch.where(
        torch.rand(count, 1, 1, 1, device=place) < 0.2, grey, x + 0.4 * torch.randn(count, 3, 1, 1, device=place)
    )
    contrast = torch.empty(count, 1, 1, 1, device=place).uniform_(0.6, 1.4)
    return coloured * contrast + 0.3 * torch.randn(count, 1, 1, 1, device=place)


training = Training(given, shape["batch_size"], by_blocks(encoder, encoder), {"parameters": parameters(encoder)})
drawn = batches(images, shape["batch_size"], given.seed)
for _ in training.steps(optimizer, lr=1e-3):
    index = next(drawn)
    with mixed(given):
        loss = criterion(head(encoder(view(index))), head(encoder(view(index))))
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
training.tell()
