"""Opens a checkpoint of any format for export, attentive probes of ours included."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any, cast

from torch import Tensor, nn

from jepa_lightning.export.source import Source
from jepa_lightning.loading import load
from jepa_lightning.models.pooling import AttentiveClassifier
from jepa_lightning.weights import Branch, CheckpointError, Hints, Networks, Weights
from jepa_lightning.weights.ours import Own

OTHER: dict[Branch, Branch] = {"target": "context", "context": "target"}


def open_source(
    weights: Weights, branch: Branch = "target", both: bool = False, task: str | None = None, hints: Hints | None = None
) -> Source:
    """Read the networks to export; the predictor is read too, and may be left out later.

    Args:
        weights: A checkpoint.
        branch: Which of its encoders.
        both: Read the encoder of the other branch too.
        task: Which of its labels, for a probe with several.
        hints: Sizes that no tensor shows.

    Raises:
        CheckpointError: Damaged, or a probe with several labels without a ``task``.
    """
    if weights.family == "AttentiveProbe" and isinstance(weights, Own):
        networks, other = _probe(weights, task), None
    elif task is not None:
        raise CheckpointError(f"{weights.path} is no probe: leave out --task {task}")
    else:
        networks = weights.networks(branch, True, hints)
        other = weights.networks(OTHER[branch], hints=hints).encoder if both and weights.two_encoders else None
        other = other if networks.branch == branch else None
    return Source(weights.path, networks, weights.licence, other, weights.config, weights.progress)


def _probe(weights: Own, task: str | None) -> Networks:
    """The best head of an AttentiveProbe on its encoder."""
    module: Any = load(weights)
    if module.attend_across_clips:
        raise CheckpointError(
            f"{weights.path}: a probe with attend_across_clips reads several clips at once, exports read one: "
            "train it without"
        )
    classifier = cast(AttentiveClassifier, module.heads[int(cast(Tensor, module.best))])
    classifier = _of_task(weights.path, classifier, module.tasks, task)
    return Networks(
        module.encoder.eval(),
        weights.arguments.get("branch", "target"),
        weights.preprocessing(module.encoder.img_size),
        classifier=classifier.requires_grad_(False).eval(),
        out_layers=None if module.out_layers is None else tuple(module.out_layers),
    )


def _of_task(
    path: Path, classifier: AttentiveClassifier, tasks: list[tuple[str, int]], task: str | None
) -> AttentiveClassifier:
    """The same head with the outputs of one label."""
    names = [name for name, _ in tasks]
    if len(tasks) == 1 and task in (None, names[0]):
        return classifier
    if names == [""]:
        raise CheckpointError(f"{path} classifies by one label, which has no name: leave out --task {task}")
    if task not in names:
        raise CheckpointError(f"{path} classifies {', '.join(names)}: choose one of them with --task")
    number = names.index(task)
    first = sum(count for _, count in tasks[:number])
    rows = slice(first, first + tasks[number][1])
    chosen = copy.deepcopy(classifier)
    linear = nn.Linear(classifier.linear.in_features, tasks[number][1])
    linear.load_state_dict({name: tensor[rows].clone() for name, tensor in classifier.linear.state_dict().items()})
    chosen.linear = linear
    return chosen
