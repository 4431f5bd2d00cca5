"""The commands of `jepa` that train nothing; LightningCLI has the others."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from typing import NamedTuple


class Command(NamedTuple):
    """What `jepa NAME` does.

    Attributes:
        function: ``module:function``, imported when it is called; it takes the arguments after the name.
        summary: One line for `jepa --help`.
    """

    function: str
    summary: str


COMMANDS = {
    "init": Command(
        "jepa_lightning.commands.init:main",
        "Look at a folder of your images, videos or episodes and write a configuration that fits.",
    ),
    "inspect": Command(
        "jepa_lightning.commands.inspect:main",
        "Say what a checkpoint is, whoever wrote it: networks, sizes, epoch, licence.",
    ),
    "explore": Command(
        "jepa_lightning.commands.explore:main",
        "Look inside: attention, features, what is expected of hidden patches; a page in your browser.",
    ),
    "evaluate": Command(
        "jepa_lightning.commands.evaluate:main",
        "Nearest neighbours, logistic regression, few labels, beside the untrained encoder; writes a report.",
    ),
    "dense": Command(
        "jepa_lightning.commands.dense:main",
        "Segmentation, depth, correspondence, label propagation from frozen tokens; writes a report with pictures.",
    ),
    "report": Command(
        "jepa_lightning.commands.report:main",
        "Put the reports of several seeds into one: mean and 95 % interval.",
    ),
    "plan": Command(
        "jepa_lightning.commands.plan:main",
        "Plan with a world model in Two Rooms, beside honest baselines; writes a report, pictures and a video.",
    ),
    "list": Command(
        "jepa_lightning.commands.configs:main",
        "List the configurations that ship with the package, each with what it trains.",
    ),
    "export": Command(
        "jepa_lightning.commands.export:main",
        "Write a checkpoint for Hugging Face, timm, ONNX, torch.export or as safetensors, and compare.",
    ),
}


DESCRIPTIONS = {
    name: {"description": text, "usage": f"jepa {name} --config NAME_OR_FILE [--option VALUE ...]"}
    for name, text in {
        "fit": "Train. Options of the model, the data and the observers stand at the end of this page.",
        "validate": "Probe a checkpoint on held-out data and print what it has learned.",
        "test": "The same as validate on the test split.",
        "predict": "Write the features of every image, with file names, to a safetensors file.",
    }.items()
}
"""Of Lightning's commands, for their help."""


def run(arguments: Sequence[str]) -> bool:
    """Run the command that the first argument names.

    Args:
        arguments: Those of the process, without its name.

    Returns:
        Whether there is such a command; if not, nothing was done.
    """
    if not arguments or arguments[0] not in COMMANDS:
        return False
    module, _, function = COMMANDS[arguments[0]].function.partition(":")
    getattr(import_module(module), function)(list(arguments[1:]))
    return True
