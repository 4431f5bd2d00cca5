"""What a process that loads samples does first."""

from __future__ import annotations

import os
import signal
import threading

from lightning.fabric.utilities.seed import pl_worker_init_function


def start_worker(number: int) -> None:
    """Seed random numbers as Lightning does, and leave signals to the training that the worker belongs to.

    Whoever ends a job signals all its processes. The training then finishes its step and saves, for which it needs its
    workers; it ends them itself, if need be by a SIGTERM of its own.

    Args:
        number: Number of the worker.
    """
    if os.environ.get("PL_SEED_WORKERS") == "1":  # Lightning would do it for a loader without such a function
        pl_worker_init_function(number)
    for name in ("SIGINT", "SIGHUP", "SIGUSR1"):
        if hasattr(signal, name):  # Windows has fewer
            signal.signal(getattr(signal, name), signal.SIG_IGN)
    if hasattr(signal, "sigwaitinfo"):  # which tells who sent a signal; macOS has none
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})  # before the thread, which inherits it
        threading.Thread(target=_end_if_the_parent_says_so, daemon=True).start()


def _end_if_the_parent_says_so() -> None:
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != os.getppid():
        pass
    os._exit(0)
