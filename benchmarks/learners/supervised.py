"""The encoder of the recipe with a linear layer on its averaged tokens, trained on the labels: what they are worth."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
import yaml
from common import Training, arguments, batches, by_blocks, crops, mixed, parameters, pictures
from torch import nn

from jepa_lightning.commands.configs import find_config
from jepa_lightning.loading import build
from jepa_lightning.models import evaluating

given = arguments()
torch.manual_seed(given.seed)
images, labels = pictures(given), torch.from_numpy(np.load(given.images)["train_y"]).long().to(given.device)
encoder = build(yaml.safe_load(Path(find_config(given.config)).read_text())["model"]).encoder.to(given.device)
head = nn.Linear(encoder.embed_dim, int(labels.max()) + 1).to(given.device)
optimizer = torch.optim.AdamW([*encoder.parameters(), *head.parameters()], weight_decay=0.05)


def encode(x: torch.Tensor) -> torch.Tensor:
    """Averaged tokens of the last blocks."""
    with evaluating(encoder):
        return by_blocks(encoder, encoder)(x)


batch_size = given.shape["batch_size"]
training = Training(given, batch_size, encode, {"parameters": parameters(encoder)})
drawn = batches(images, batch_size, given.seed)
for _ in training.steps(optimizer, lr=1e-3):
    index = next(drawn)
    with mixed(given):
        logits = head(encoder(crops(images[index], (0.6, 1.0))).mean(dim=1))
    loss = nn.functional.cross_entropy(logits.float(), labels[index])
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
training.tell()
