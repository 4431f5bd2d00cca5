"""The encoder of the recipe with a linear layer on its averaged tokens, trained on the labels: what they are worth."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
import yaml
from common import Training, arguments, batches, by_blocks, crops, parameters
from torch import nn

from jepa_lightning.checkpoint import build
from jepa_lightning.finding import find_config
from jepa_lightning.models import evaluating

given = arguments()
torch.manual_seed(given.seed)
arrays = np.load(given.images)
encoder = build(yaml.safe_load(Path(find_config(given.config)).read_text())["model"]).encoder
head = nn.Linear(encoder.embed_dim, int(arrays["train_y"].max()) + 1)
optimizer = torch.optim.AdamW([*encoder.parameters(), *head.parameters()], weight_decay=0.05)


def encode(x: torch.Tensor) -> torch.Tensor:
    """Averaged tokens of the last blocks."""
    with evaluating(encoder):
        return by_blocks(encoder, encoder)(x)


batch_size = given.shape["batch_size"]
training = Training(given, batch_size, encode, {"parameters": parameters(encoder)})
drawn = batches(arrays["train_x"], batch_size, given.seed)
images, labels = arrays["train_x"], torch.from_numpy(arrays["train_y"]).long()
for _ in training.steps(optimizer, lr=1e-3):
    index = next(drawn)
    loss = nn.functional.cross_entropy(head(encoder(crops(images[index], (0.6, 1.0))).mean(dim=1)), labels[index])
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
training.tell()
