"""The progress bar."""

from collections.abc import Callable
from typing import Any

import pytest
from lightning import Trainer
from lightning.pytorch.demos.boring_classes import BoringModel

from jepa_lightning.callbacks import ProgressBar


class Failing(BoringModel):
    """Cannot do its third step, or its third validation batch."""

    def __init__(self, stage: str) -> None:
        super().__init__()
        self.stage = stage

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        if self.stage == "train" and batch_idx == 2:
            raise RuntimeError("the third")
        return super().training_step(batch, batch_idx)

    def validation_step(self, batch: Any, batch_idx: int) -> Any:
        if self.stage == "validate" and batch_idx == 2 and not self.trainer.sanity_checking:
            raise RuntimeError("the third")
        return super().validation_step(batch, batch_idx)


@pytest.mark.parametrize(("stage", "stands"), [("train", "2/4"), ("validate", "4/4")])
def test_an_error_begins_on_a_line_of_its_own(
    stage: str, stands: str, quiet_trainer: Callable[..., Trainer], capsys: pytest.CaptureFixture[str]
) -> None:
    bar = ProgressBar(refresh_rate=1)
    trainer = quiet_trainer(max_epochs=1, limit_train_batches=4, callbacks=[bar], enable_progress_bar=True)
    with pytest.raises(RuntimeError, match="the third"):
        trainer.fit(Failing(stage))
    shown = capsys.readouterr().out
    assert shown.endswith(("\n", "\r"))
    assert stands in shown.splitlines()[-1]
