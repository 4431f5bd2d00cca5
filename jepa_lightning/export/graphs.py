"""Writes graphs of operations: ONNX and torch.export, both with a dynamic batch and, where possible, dynamic sizes."""

from __future__ import annotations

import copy
import warnings
from abc import abstractmethod
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.export import Dim

from jepa_lightning.export.base import Format, input_layout, section, size_step
from jepa_lightning.export.source import Classify, Functions, Predict, Source, gathering
from jepa_lightning.models import Encoder, Positions, RoPE, VisionTransformer
from jepa_lightning.models.positions import Grid, Rotation

Dims = dict[int, Any]
EXTERNAL = 10**9
"""Bytes of weights from which an ONNX graph has them in a file of its own; protobuf ends at 2 GB."""
OPSET = 18
"""Of ONNX: the first with antialiasing, and what PyTorch's exporter targets; runtimes since 2023 have it."""


class Traceable(Positions):
    """The same positions without a question about sizes, which would fix them in a graph.

    Only for whole inputs: the tokens are all that the grid has, in raster order.
    """

    def __init__(self, positions: Positions) -> None:
        self.positions = positions

    def table(self, grid: Grid, dim: int) -> Tensor | None:
        """As before."""
        return self.positions.table(grid, dim)

    def fit(self, table: Tensor, grid: Grid, wanted: Grid) -> Tensor:
        """Resampled also where nothing changes, which gives the same numbers."""
        volume = table.reshape(1, *grid, -1).permute(0, 4, 1, 2, 3)
        if grid[0] == 1:
            picture = F.interpolate(volume[:, :, 0], size=wanted[1:], mode="bicubic", align_corners=False)
            return picture.flatten(2).transpose(1, 2)
        return F.interpolate(volume, size=wanted, mode="trilinear", align_corners=False).flatten(2).transpose(1, 2)

    def rotation(self, index: Tensor, grid: Grid, head_dim: int) -> Rotation | None:
        """Coordinates counted instead of divided out of the index, which ONNX cannot do with unknown sizes."""
        if not isinstance(self.positions, RoPE):
            return self.positions.rotation(index, grid, head_dim)
        axes = torch.meshgrid(*(torch.arange(side, device=index.device) for side in grid), indexing="ij")
        if (stretch_to := self.positions.stretch_to) is not None:  # over the last place: a size is no number here
            last = [axis.flatten().amax(dim=0).clamp(min=1) for axis in axes]
            axes = (axes[0], *(axes[i] * ((stretch_to - 1) / last[i]) for i in (1, 2)))
        angles = [self.positions.angles(axis.reshape(1, -1), 2 * (head_dim // 3 // 2)) for axis in axes]
        angle = torch.cat(angles, dim=-1)
        angle = F.pad(angle, (0, head_dim - angle.shape[-1])).unsqueeze(1)
        return Rotation(angle.cos(), angle.sin())


class Graph(Format):
    """A graph of operations: ``model`` and, with a predictor, ``predictor``; it can hold every model.

    Args:
        fixed_size: Take inputs of one size and length only; the batch is dynamic in any case.
    """

    suffix: ClassVar[str]

    def __init__(self, fixed_size: bool = False) -> None:
        self.fixed_size = fixed_size

    @abstractmethod
    def load(self, path: Path) -> Callable[..., Tensor]:
        """What one file computes."""

    def reload(self, folder: Path, source: Source) -> Functions:
        """What the files compute."""
        model, predict = self.load(folder / f"model.{self.suffix}"), None
        if source.networks.predictor is not None:
            predict = gathering(self.load(folder / f"predictor.{self.suffix}"))
        if source.networks.classifier is None:
            return Functions(encode=model, predict=predict)
        return Functions(classify=model, predict=predict)

    def notes(self, source: Source) -> str:
        """What is dynamic."""
        networks = source.networks
        notes = "The batch may have any size; images and clips only the size above, which is part of the graph."
        if not self.fixed_size and dynamic_sizes(networks.encoder):
            notes = f"The batch is dynamic, and so are sizes of two tokens or more: {size_step(source)}."
        if networks.predictor is not None:
            several = hasattr(networks.predictor, "mask_tokens")
            notes += (
                f" `predictor.{self.suffix}` takes context_tokens (B, Nc, D), context (B, Nc) and targets (B, Nt), "
                "indices of tokens of an input of the size above"
                + f", and uses mask token {networks.mask_index}, counted round" * several
                + "."
            )
        return notes


class TorchExport(Graph):
    """``model.pt2`` and, with a predictor, ``predictor.pt2``."""

    title, library, suffix = "a torch.export graph", "torch", "pt2"

    def write(self, source: Source, folder: Path) -> None:
        """Trace and save each network."""
        for name, (module, inputs, dims) in _graphs(source, self.fixed_size).items():
            program = torch.export.export(module, inputs, dynamic_shapes=tuple(dims.values()))
            torch.export.save(program, folder / f"{name}.pt2")

    def load(self, path: Path) -> Callable[..., Tensor]:
        """In torch.export's own interpreter."""
        return torch.export.load(path).module()

    def usage(self, source: Source) -> str:
        """With PyTorch alone."""
        code = (
            "import torch\n\n"
            'model = torch.export.load("model.pt2").module()\n'
            f"{_result(source)} = model(inputs)  # {input_layout(source)}"
        )
        return section(code, self.notes(source))


class ONNX(Graph):
    """``model.onnx`` and, with a predictor, ``predictor.onnx``.

    Above a gigabyte the weights are in ``model.onnx.data``, which belongs beside it.
    """

    title, library, suffix = "an ONNX graph", "onnxruntime", "onnx"
    needs = ("onnx", "onnxscript")

    def write(self, source: Source, folder: Path) -> None:
        """Trace and save each network."""
        for name, (module, inputs, dims) in _graphs(source, self.fixed_size).items():
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", message="# The axis name: ")  # one dimension of several inputs
                program = torch.onnx.export(
                    module,
                    inputs,
                    input_names=list(dims),
                    output_names=["logits" if isinstance(module, Classify) else "tokens"],
                    dynamic_shapes=tuple(dims.values()),
                    opset_version=OPSET,
                    dynamo=True,
                    verbose=False,
                )
            cast(Any, program).save(folder / f"{name}.onnx", external_data=external(module))

    def load(self, path: Path) -> Callable[..., Tensor]:
        """In onnxruntime, on the CPU."""
        import onnxruntime

        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        names = [node.name for node in session.get_inputs()]
        return lambda *inputs: torch.from_numpy(
            session.run(None, {key: tensor.numpy() for key, tensor in zip(names, inputs, strict=True)})[0]
        )

    def usage(self, source: Source) -> str:
        """With onnxruntime."""
        code = (
            "import onnxruntime\n\n"
            'session = onnxruntime.InferenceSession("model.onnx")\n'
            f'{_result(source)} = session.run(None, {{"inputs": inputs}})[0]  # {input_layout(source)}'
        )
        notes = self.notes(source)
        if external(source.networks.encoder):
            notes += " The weights are in `model.onnx.data`, which belongs beside `model.onnx`."
        return section(code, notes)


def external(module: nn.Module) -> bool:
    """Whether the weights are too large to stand in the ONNX file itself."""
    return sum(tensor.nbytes for tensor in module.state_dict().values()) > EXTERNAL


def dynamic_sizes(encoder: Encoder) -> bool:
    """Whether a graph of this encoder can take inputs of any size."""
    known = isinstance(encoder, VisionTransformer) and isinstance(encoder.positions, Positions)
    return known and type(encoder.positions).__module__ == Positions.__module__


def _graphs(source: Source, fixed_size: bool) -> dict[str, tuple[nn.Module, tuple[Tensor, ...], dict[str, Dims]]]:
    """What to trace by name: the module, an example, and which dimensions of each input are dynamic."""
    networks = source.networks
    encoder, dims = networks.encoder, {0: Dim("batch")}
    if not fixed_size and dynamic_sizes(encoder):
        encoder = copy.copy(encoder)  # with the same tensors
        encoder.positions = Traceable(encoder.positions)
        dims |= _sizes(encoder)
    model: nn.Module = encoder
    if networks.classifier is not None:
        model = Classify(encoder, networks.classifier, networks.out_layers).eval()
    graphs: dict[str, Any] = {"model": (model, (torch.zeros(source.shape(2)),), {"inputs": dims})}
    if networks.predictor is not None:
        batch, shown, asked = Dim("batch"), Dim("shown"), Dim("asked")
        index = torch.arange(3).expand(2, -1)
        graphs["predictor"] = (
            Predict(networks.predictor, networks.mask_index).eval(),
            (torch.zeros(2, 3, networks.predictor.input_dim), index, index[:, :2] + 1),
            {"context_tokens": {0: batch, 1: shown}, "context": {0: batch, 1: shown}, "targets": {0: batch, 1: asked}},
        )
    return graphs


def _sizes(encoder: Encoder) -> Dims:
    """Frames, height and width: multiples of what a token covers, from two tokens on (to PyTorch one is special)."""
    steps = (encoder.tubelet_size, encoder.patch_size, encoder.patch_size)
    first = 2 if encoder.num_frames > 1 else 1  # an image has no axis of time
    return {
        first + axis: step * Dim(name, min=2)
        for axis, (name, step, tokens) in enumerate(zip(("time", "rows", "columns"), steps, encoder.grid, strict=True))
        if tokens > 1
    }


def _result(source: Source) -> str:
    return "tokens" if source.networks.classifier is None else "logits"
