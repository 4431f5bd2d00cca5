"""Functions that may never return, as reading from a dead disk: done in a thread that is left behind if it is late."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from queue import Empty, SimpleQueue
from typing import Any, TypeVar, cast

T = TypeVar("T")


class _Helper:
    """A thread that does one thing after another, and ends with this object.

    One for each thread that asks: to start one for every image would take a twentieth of the time that decoding takes.
    """

    def __init__(self) -> None:
        self.process = os.getpid()
        self.tasks: SimpleQueue[Any] = SimpleQueue()
        self.answers: SimpleQueue[Any] = SimpleQueue()
        threading.Thread(target=_serve, args=(self.tasks, self.answers), name="with_timeout", daemon=True).start()

    def __del__(self) -> None:
        self.tasks.put(None)


def _serve(tasks: SimpleQueue[Any], answers: SimpleQueue[Any]) -> None:
    while (task := tasks.get()) is not None:
        try:
            answers.put((task(), None))
        except BaseException as error:  # goes on in the caller
            answers.put((None, error))
        del task  # or what it knows would stay until the next


_OWN = threading.local()


class Reader:
    """Gives up samples that take too long to read.

    Args:
        timeout: Seconds after which a file is given up.

    Raises:
        ValueError: If that is not above 0.
    """

    def __init__(self, timeout: float = 60.0) -> None:
        if not timeout > 0:
            raise ValueError(f"timeout must be above 0 seconds, got {timeout}")
        self.timeout = timeout


def with_timeout(function: Callable[[], T], seconds: float) -> T:
    """The result of a function that may never return.

    It runs in another thread. If that is late it is left behind, for nothing can stop it, and the caller goes on.

    Args:
        function: What to do.
        seconds: How long to wait.

    Raises:
        TimeoutError: If it took longer.
    """
    helper = getattr(_OWN, "helper", None)
    if helper is None or helper.process != os.getpid():  # threads do not survive a fork
        helper = _OWN.helper = _Helper()
    helper.tasks.put(function)
    try:
        result, error = helper.answers.get(timeout=seconds)
    except Empty:
        _OWN.helper = None
        raise TimeoutError(f"no answer within {seconds:g} seconds") from None
    except BaseException:  # Ctrl-C: the answer would be taken for that of the next question
        _OWN.helper = None
        raise
    if error is not None:
        try:
            raise error
        finally:
            del error  # or it would hold this frame and this frame the error, with all that both know
    return cast(T, result)
