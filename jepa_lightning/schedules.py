"""Learning rate, weight decay and EMA momentum as pure functions of the optimizer step.

Nothing counts here: a value follows from the step alone, so a resumed run has the values of an uninterrupted one
and the configuration always wins over what a checkpoint remembers.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod


class Schedule(ABC):
    """A scalar that changes while training.

    Called with the number of the optimizer step, which counts from 1 as in the official code: 1 is the value of the
    first update.
    """

    @abstractmethod
    def __call__(self, step: int, total_steps: float, steps_per_epoch: int) -> float:
        """The value in optimizer step ``step``.

        Args:
            step: Number of this optimizer step, from 1.
            total_steps: Length of the schedule: ipe_scale x epochs x steps per epoch, not rounded.
            steps_per_epoch: Optimizer steps in one epoch.
        """


class Constant(Schedule):
    """The same value always.

    Args:
        value: The value.
    """

    def __init__(self, value: float) -> None:
        self.value = value

    def __call__(self, step: int, total_steps: float, steps_per_epoch: int) -> float:
        """The value."""
        return self.value


class WarmupCosine(Schedule):
    """Linear from ``start`` to ``peak``, then half a cosine to ``final`` (the learning rate of I-JEPA, appendix A.1).

    Args:
        start: Value before the first step.
        peak: Highest value, reached after the warm-up.
        final: Value of the last step.
        warmup_epochs: Length of the warm-up in epochs; fractions are fine.
    """

    def __init__(self, start: float, peak: float, final: float, warmup_epochs: float = 0.0) -> None:
        self.start, self.peak, self.final, self.warmup_epochs = start, peak, final, warmup_epochs

    def __call__(self, step: int, total_steps: float, steps_per_epoch: int) -> float:
        """Warm-up while step < warm-up steps, then the cosine."""
        total, warmup = int(total_steps), int(self.warmup_epochs * steps_per_epoch)
        if step < warmup:
            return self.start + step / max(1, warmup) * (self.peak - self.start)
        # The official cosine is not clamped and rises again if ipe_scale < 1 ends it before the run.
        progress = min(1.0, (step - warmup) / max(1, total - warmup))
        return self.final + (self.peak - self.final) * 0.5 * (1.0 + math.cos(math.pi * progress))


class WarmupStableDecay(Schedule):
    """Linear from ``start`` to ``peak``, constant, linear to ``final`` (V-JEPA 2's cool-down, V-JEPA 2-AC).

    Args:
        start: Value before the first step.
        peak: Value between warm-up and decay.
        final: Value of the last step.
        warmup_epochs: Length of the warm-up in epochs; fractions are fine.
        decay_epochs: Length of the decay in epochs; null for all that is left after the warm-up.
    """

    def __init__(
        self, start: float, peak: float, final: float, warmup_epochs: float = 0.0, decay_epochs: float | None = None
    ) -> None:
        self.start, self.peak, self.final = start, peak, final
        self.warmup_epochs, self.decay_epochs = warmup_epochs, decay_epochs

    def __call__(self, step: int, total_steps: float, steps_per_epoch: int) -> float:
        """Warm-up while step < warm-up steps, decay in the last steps, held at ``final`` after that."""
        total, warmup = int(total_steps), int(self.warmup_epochs * steps_per_epoch)
        if step < warmup:
            return self.start + step / max(1, warmup) * (self.peak - self.start)
        decay = total - warmup if self.decay_epochs is None else int(self.decay_epochs * steps_per_epoch)
        progress = min(1.0, max(0.0, (step - (total - decay)) / max(1, decay)))
        return self.peak + progress * (self.final - self.peak)


class Ramp(Schedule):
    """0, then a line up to a value, which stays (the weight of V-JEPA 2.1's loss on visible tokens).

    Args:
        value: Value at the end.
        first_epoch: Epochs before it rises from 0; fractions are fine.
        last_epoch: Epochs before it has risen to ``value``.
    """

    def __init__(self, value: float, first_epoch: float, last_epoch: float) -> None:
        if not 0 <= first_epoch <= last_epoch:
            raise ValueError(f"a ramp needs 0 <= first_epoch <= last_epoch, got {first_epoch} and {last_epoch}")
        self.value, self.first_epoch, self.last_epoch = value, first_epoch, last_epoch

    def __call__(self, step: int, total_steps: float, steps_per_epoch: int) -> float:
        """By the number of finished steps, as in the official code."""
        first, last = (int(epoch * steps_per_epoch) for epoch in (self.first_epoch, self.last_epoch))
        progress = (step - 1 - first) / max(1, last - first)
        return self.value * min(1.0, max(0.0, progress)) if step - 1 < last else self.value


class StepDecay(Schedule):
    """A value that is multiplied by ``factor`` every so many epochs (the linear probe of I-JEPA, appendix A.2).

    Args:
        value: Value of the first epochs.
        factor: By what it is multiplied.
        every_epochs: Length of a stair in epochs; fractions are fine.
    """

    def __init__(self, value: float = 1.0, factor: float = 0.1, every_epochs: float = 15.0) -> None:
        if every_epochs <= 0:
            raise ValueError(f"every_epochs must be above 0, got {every_epochs}")
        self.value, self.factor, self.every_epochs = value, factor, every_epochs

    def __call__(self, step: int, total_steps: float, steps_per_epoch: int) -> float:
        """Value times factor to the number of stairs that are behind."""
        return self.value * self.factor ** int((step - 1) / (self.every_epochs * steps_per_epoch))


class Cosine(Schedule):
    """Half a cosine from ``start`` to ``final`` (the weight decay of I-JEPA: the paper says linear, the code cosine).

    Args:
        start: Value before the first step.
        final: Value of the last step.
    """

    def __init__(self, start: float, final: float) -> None:
        self.start, self.final = start, final

    def __call__(self, step: int, total_steps: float, steps_per_epoch: int) -> float:
        """The cosine, held at ``final`` after its end."""
        progress = min(1.0, step / max(1, int(total_steps)))
        return self.final + (self.start - self.final) * 0.5 * (1.0 + math.cos(math.pi * progress))


class Linear(Schedule):
    """A line from ``start`` in the first step towards ``final``, which it would reach one step after the last.

    The convention of the official code for the EMA momentum (I-JEPA section 3).

    Args:
        start: Value of the first step.
        final: Value that the line aims at.
    """

    def __init__(self, start: float, final: float) -> None:
        self.start, self.final = start, final

    def __call__(self, step: int, total_steps: float, steps_per_epoch: int) -> float:
        """Start + (step - 1) (final - start) / total, held at ``final`` after that."""
        return self.start + min(1.0, (step - 1) / max(1.0, total_steps)) * (self.final - self.start)
