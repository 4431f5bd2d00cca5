"""Opens any checkpoint for export: through the one door, and attentive probes of ours beside it."""

from __future__ import annotations

import copy
import sys
from pathlib import Path
from typing import Any, cast

from torch import Tensor, nn

from jepa_lightning.checkpoint import load
from jepa_lightning.interop.layouts import Layout, Meta, OneEncoder, Own, open_layout
from jepa_lightning.interop.networks import Branch, Networks
from jepa_lightning.interop.own_layout import configuration, preprocessing_of
from jepa_lightning.interop.source import Source
from jepa_lightning.models import Predictor
from jepa_lightning.models.pooling import AttentiveClassifier
from jepa_lightning.probing import AttentiveProbe

OTHER: dict[Branch, Branch] = {"target": "context", "context": "target"}


def open_source(
    path: str | Path, branch: Branch = "target", both: bool = False, task: str | None = None, **given: Any
) -> Source:
    """Read what there is to export; a predictor is read too, and left out later where it is not wanted.

    Args:
        path: A checkpoint of any layout that is known here.
        branch: Which of its encoders.
        both: Read the encoder of the other branch too.
        task: Which of its labels, for a probe with several.
        **given: What no tensor shows: num_heads, img_size, num_frames, predictor_num_heads.

    Raises:
        FileNotFoundError: No such file.
        ValueError: Damaged, of no known layout, or a probe with several labels without a ``task``.
    """
    layout = open_layout(path)
    config = configuration(layout.path, layout.content) if isinstance(layout, Own) else None
    if config is not None and _kind(config) == AttentiveProbe.__name__:
        return _probe(layout, config, task)
    if task is not None:
        raise ValueError(f"{path} is no probe: leave out --task {task}")
    networks = layout.networks(branch, config is None or _predicts_tokens(config), **given)
    other = None
    if both and not isinstance(layout, OneEncoder) and networks.branch == branch:
        other = layout.networks(OTHER[branch], **given).encoder
    method = None if config is None else _kind(config)
    return Source(layout.path, networks, licence(layout), other, config, method, **_progress(layout))


def licence(layout: Layout) -> str:
    """What is known about the use of the weights."""
    if isinstance(layout, Own):
        return (
            "These weights were trained with jepa_lightning (whose code is Apache-2.0) and are licensed as whoever "
            "trained them decides: say it here. If the training started from other weights, theirs applies too."
        )
    if layout.family().startswith("V-JEPA 2"):
        return "Meta released its V-JEPA 2 code and weights under the MIT licence. If these are others, say so here."
    return (
        "Meta released its I-JEPA and V-JEPA weights, also as converted for other libraries, under CC BY-NC 4.0: no "
        "commercial use. If these are others, say so here."
    )


def _probe(layout: Layout, config: dict[str, Any], task: str | None) -> Source:
    """The best head of an AttentiveProbe on its encoder."""
    module: AttentiveProbe = load(layout.path)
    if module.attend_across_clips:
        raise ValueError(
            f"{layout.path}: a probe with attend_across_clips reads several clips at once, exports read one: "
            "train it without"
        )
    classifier = cast(AttentiveClassifier, module.heads[int(cast(Tensor, module.best))])
    classifier = _of_task(layout.path, classifier, module.tasks, task)
    networks = Networks(
        module.encoder.eval(),
        config["model"]["init_args"].get("branch", "target"),
        preprocessing_of(config.get("data") or {}, module.encoder.img_size),
        classifier=classifier.requires_grad_(False).eval(),
    )
    layers = None if module.out_layers is None else tuple(module.out_layers)
    return Source(
        layout.path, networks, licence(layout), None, config, "AttentiveProbe", **_progress(layout), out_layers=layers
    )


def _of_task(
    path: Path, classifier: AttentiveClassifier, tasks: list[tuple[str, int]], task: str | None
) -> AttentiveClassifier:
    """The same head with the outputs of one label."""
    names = [name for name, _ in tasks]
    if len(tasks) == 1 and task in (None, names[0]):
        return classifier
    if names == [""]:
        raise ValueError(f"{path} classifies by one label, which has no name: leave out --task {task}")
    if task not in names:
        raise ValueError(f"{path} classifies {', '.join(names)}: choose one of them with --task")
    number = names.index(task)
    first = sum(count for _, count in tasks[:number])
    rows = slice(first, first + tasks[number][1])
    chosen = copy.deepcopy(classifier)
    linear = nn.Linear(classifier.linear.in_features, tasks[number][1])
    linear.load_state_dict({name: tensor[rows].clone() for name, tensor in classifier.linear.state_dict().items()})
    chosen.linear = linear
    return chosen


def _kind(config: dict[str, Any]) -> str:
    return str(config["model"].get("class_path")).split(".")[-1]


def _predicts_tokens(config: dict[str, Any]) -> bool:
    """Whether the predictor of a training is one of tokens at positions, and not of something else."""
    path = str(((config["model"].get("init_args") or {}).get("predictor") or {}).get("class_path"))
    module, _, name = path.rpartition(".")
    kind = getattr(sys.modules.get(module), name, None)  # what is not imported is refused anyway
    return isinstance(kind, type) and issubclass(kind, Predictor)


def _progress(layout: Layout) -> dict[str, Any]:
    """How long it was trained, as far as the file says."""
    if isinstance(layout, Own):
        return {"steps": int(layout.content["global_step"])}
    epoch = layout.content.get("epoch") if isinstance(layout, Meta) else None
    return {"epochs": epoch} if isinstance(epoch, int) else {}
