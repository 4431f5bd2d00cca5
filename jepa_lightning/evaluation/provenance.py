"""Provenance of results: commit, versions, hardware."""

from __future__ import annotations

import os
import platform
import subprocess
from pathlib import Path

import torch

from jepa_lightning import __version__

PACKAGE = Path(__file__).parent.parent


def commit() -> str:
    """`git describe` of the clone that this code runs from; the version of the package where there is no clone."""
    clone = PACKAGE.parent
    if not (clone / ".git").exists():  # a repository further up is not of this project
        return f"jepa-lightning {__version__}"
    command = ["git", "-C", str(clone), "describe", "--always", "--dirty", "--tags"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return f"jepa-lightning {__version__}, in a clone that git cannot describe"


def hardware(device: torch.device | None = None) -> str:
    """Names of the accelerator, if ``device`` is one, and of the processor, with its cores."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    found = f"{cores} cores of {_processor()}"
    if device is not None and device.type == "cuda":
        return f"{torch.cuda.get_device_name(device)}; {found}"
    return found if device is None or device.type == "cpu" else f"{device.type}; {found}"


def software() -> str:
    """Versions of this package, PyTorch and Python."""
    return f"jepa-lightning {__version__}, torch {torch.__version__}, Python {platform.python_version()}"


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine() or "an unknown processor"
