"""Signals that ask a training to end: they are noted, and the training ends after the step in progress."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from lightning.pytorch.utilities import rank_zero_only

ALWAYS = ("SIGINT", "SIGTERM")
UNLESS_HANDLED = ("SIGHUP", "SIGUSR1")
"""Left to whoever ignores them (nohup) or handles them (Lightning queues a job of SLURM again on SIGUSR1)."""


class Signals:
    """Notes the first signal; a second Ctrl-C stops at once."""

    def __init__(self) -> None:
        self.received = 0
        """Number of the signal; 0 for none."""
        self._before: dict[int, Any] = {}
        self._process = os.getpid()

    def install(self) -> None:
        """Take the signals over; in another thread than the main one nothing happens."""
        self._process = os.getpid()
        for name in (*ALWAYS, *UNLESS_HANDLED):
            number = getattr(signal, name, None)  # Windows has fewer
            if number is None or number in self._before:
                continue
            before = signal.getsignal(number)
            if name in ALWAYS or before == signal.SIG_DFL or getattr(before, "ends_the_command", False):
                try:
                    self._before[number] = signal.signal(number, self._note)
                except ValueError:  # not the main thread
                    return

    def restore(self) -> None:
        """Give the signals back."""
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}

    def _note(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self._process:  # a worker that was forked: its parent ends it
            return
        if number == signal.SIGINT:
            signal.signal(signal.SIGINT, signal.default_int_handler)
        if not self.received and not getattr(rank_zero_only, "rank", 0):
            again = " (Ctrl-C to stop at once)" if number != signal.SIGINT else " (once more to stop at once)"
            name = signal.Signals(number).name
            # Not by logging: the signal may have come in the middle of another line.
            os.write(2, f"\n{name}: finishing this step, then saving{again}\n".encode())
        self.received = self.received or number


def end_command(number: int, frame: FrameType | None) -> None:
    """A handler: leave with the exit code that a shell gives a command ended by this signal."""
    raise SystemExit(128 + number)


end_command.ends_the_command = True  # type: ignore[attr-defined]  # a training may take its place


@contextmanager
def signals_end_the_command() -> Iterator[None]:
    """Let SIGTERM and SIGHUP end the command as Ctrl-C does, so that files are closed; a training finishes its step.

    Nothing happens outside the main thread. A signal that is ignored (nohup) stays ignored.
    """
    before: dict[int, Any] = {}
    if threading.current_thread() is threading.main_thread():
        for name in ("SIGTERM", "SIGHUP"):
            if (number := getattr(signal, name, None)) and signal.getsignal(number) == signal.SIG_DFL:
                before[number] = signal.signal(number, end_command)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
