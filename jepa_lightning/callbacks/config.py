"""Write the resolved configuration to the folder of the run, TensorBoard and every checkpoint."""

from __future__ import annotations

from functools import cached_property
from typing import Any

from lightning import LightningModule, Trainer
from lightning.pytorch.cli import SaveConfigCallback

from jepa_lightning.callbacks.observer import tensorboards
from jepa_lightning.weights.ours import CONFIG_KEY


class SaveConfig(SaveConfigCallback):
    """Writes `config.yaml` beside the logs, and the same text into TensorBoard and every checkpoint."""

    @cached_property
    def text(self) -> str:
        """The resolved configuration as YAML."""
        return self.parser.dump(self.config, skip_none=False)

    def save_config(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Add a text panel to TensorBoard, indented, so that Markdown shows it as it is."""
        for writer in tensorboards(trainer):
            writer.add_text("config", "\n".join(f"    {line}" for line in self.text.splitlines()))

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Add the configuration to a checkpoint; jepa_lightning.load rebuilds the module from it."""
        checkpoint[CONFIG_KEY] = self.text
