"""`--trainer.strategy fsdp2`: Lightning's ModelParallelStrategy with every process in the data-parallel group."""

from __future__ import annotations

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


if "fsdp2" not in StrategyRegistry:
    StrategyRegistry.register("fsdp2", FSDP2Strategy, "FSDP2, data-parallel over all processes")
