"""How many processes load samples, and what each does first."""

from __future__ import annotations

import math
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

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


def own_cores(processes: int | None = None) -> int:
    """Cores for this process beside the others of its training on this machine, at least 1.

    Args:
        processes: Processes of this training on this machine; None for what torchrun says.
    """
    if processes is None:
        processes = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    own, cores = os.environ.get("SLURM_CPUS_PER_TASK", ""), available_cores()
    if own.isdigit() and cores <= int(own):  # SLURM has divided the machine already
        processes = 1
    return max(1, cores // max(1, processes))


def available_cores(cgroups: Path = Path("/sys/fs/cgroup")) -> int:
    """Cores that this process may use: by its affinity, and by the limits of its container.

    Args:
        cgroups: Where the limits stand (Linux).
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min([cores, *(math.ceil(limit) for limit in _limits(cgroups))]))


def _limits(cgroups: Path) -> Iterator[float]:
    """Cores that each group of this process may use, version 2 and version 1."""
    try:
        lines = Path("/proc/self/cgroup").read_text().splitlines()
    except OSError:
        return
    own = next((line.partition("::")[2].strip("/") for line in lines if line.startswith("0::")), "")
    for folder in (cgroups / own, *(cgroups / own).parents):
        with suppress(OSError, ValueError):
            quota, period = (folder / "cpu.max").read_text().split()
            if quota != "max":
                yield int(quota) / int(period)
        if folder == cgroups:
            break
    with suppress(OSError, ValueError):
        quota, period = ((cgroups / "cpu" / f"cpu.cfs_{name}_us").read_text() for name in ("quota", "period"))
        if int(quota) > 0:
            yield int(quota) / int(period)
