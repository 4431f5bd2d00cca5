"""`--trainer.strategy fsdp2`: Lightning's ModelParallelStrategy with every process in the data-parallel group."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.strategies import ModelParallelStrategy, StrategyRegistry


class FSDP2Strategy(ModelParallelStrategy):
    """Shards parameters, gradients and optimizer state over all processes; nothing is tensor-parallel.

    Checkpoints are one file in place of a folder of shards, so that `jepa_lightning.load` and any number of devices
    can read them.
    """

    def __init__(self) -> None:
        super().__init__(tensor_parallel_size=1, save_distributed_checkpoint=False)

    def setup_environment(self) -> None:
        """Lightning's own default makes the processes of one machine tensor-parallel."""
        self._data_parallel_size = self.num_nodes * self.num_processes
        super().setup_environment()

    def load_checkpoint(self, checkpoint_path: str | Path, weights_only: bool | None = None) -> dict[str, Any]:
        """Let the module refuse the file first: Lightning hands over one tensor after the other, past its checks."""
        path, accept = Path(self.broadcast(checkpoint_path)), getattr(self.lightning_module, "accept", None)
        if accept is not None and path.is_file():
            accept(torch.load(path, map_location="cpu", weights_only=True, mmap=True)["state_dict"])
        return super().load_checkpoint(checkpoint_path, weights_only)


if "fsdp2" not in StrategyRegistry:
    StrategyRegistry.register("fsdp2", FSDP2Strategy, "FSDP2, data-parallel over all processes")
