"""Networks of torchvision and timm as encoders: the last feature map, read as tokens in raster order."""

from __future__ import annotations

import contextlib
import copy
import io
import warnings
from abc import abstractmethod
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from jepa_lightning.masking.padded import Padded
from jepa_lightning.models.layers import NORM_EPS
from jepa_lightning.models.positions import Grid
from jepa_lightning.models.vision_transformer import Encoder, pair

INSTALL_TIMM = "pip install 'jepa-lightning[export]'"


class Backbone(Encoder):
    """A network that makes a feature map of an image; its places are the tokens.

    A convolution mixes places, so no token can be left out of it: ``context`` is refused, and methods with masks need a
    VisionTransformer.

    BatchNorm works: a target encoder keeps its own running statistics (``ema_copy``). Each process normalises its own
    part of the batch; with ``--trainer.sync_batchnorm true`` (on GPUs) the batch is that of all processes.

    Args:
        backbone: The network.
        img_size: Height and width in pixels that it is built for.
        in_chans: Input channels.
        num_heads: Attention heads that a Transformer predictor takes, unless told otherwise.
        out_dim: Project each token to that many channels, by a LayerNorm and a Linear layer; None for the channels of
            the feature map.

    Raises:
        ValueError: If it cannot take images of this size.
    """

    def __init__(
        self, backbone: nn.Module, img_size: tuple[int, int], in_chans: int, num_heads: int, out_dim: int | None
    ) -> None:
        super().__init__()
        self.backbone, self.img_size, self.in_chans, self.num_heads = backbone, img_size, in_chans, num_heads
        # Shapes are asked of a twin without data, which costs nothing; in a tuple it is no submodule.
        empty: dict[int, Any] = {id(p): nn.Parameter(p.detach().to("meta"), False) for p in self.parameters()}
        empty |= {id(b): b.to("meta") for b in self.buffers()}
        self._twin = (copy.deepcopy(self, empty).eval(),)
        self._grids: dict[tuple[int, int], Grid] = {}
        channels, rows, columns = self._measure(img_size)
        self.grid = self._grids[img_size] = (1, rows, columns)
        self.patch_size = self._stride()
        self.embed_dim = channels if out_dim is None else out_dim
        self.head: nn.Module = nn.Identity()
        if out_dim is not None:
            self.head = nn.Sequential(nn.LayerNorm(channels, eps=NORM_EPS), nn.Linear(channels, out_dim))

    @abstractmethod
    def feature_map(self, inputs: Float[Tensor, "batch channels h w"]) -> Float[Tensor, "batch dim rows columns"]:
        """The last feature map, before anything is pooled."""

    def forward(
        self, inputs: Float[Tensor, "batch channels *size"], context: Int[Tensor, "batch k"] | Padded | None = None
    ) -> Float[Tensor, "batch tokens dim"]:
        """Tokens of the whole image.

        Raises:
            ValueError: If a context is given, or the network cannot take images of this size.
        """
        if context is not None:
            raise ValueError(
                f"{self.label()} cannot leave tokens out: a method with masks needs a VisionTransformer as its encoder"
            )
        if not torch.compiler.is_compiling():
            self.grid_of(inputs)
        return self.head(self.feature_map(inputs).flatten(2).transpose(1, 2))

    def grid_of(self, inputs: Tensor) -> Grid:
        """The token grid of images (B, C, H, W) of any size.

        Raises:
            ValueError: If the network cannot take images of this size, or is given clips.
        """
        if inputs.ndim != 4:
            raise ValueError(
                f"{type(self).__name__} takes images (B, C, H, W), not a clip of shape {tuple(inputs.shape)}: "
                "use a VisionTransformer with num_frames"
            )
        size = (inputs.shape[-2], inputs.shape[-1])
        if size not in self._grids:
            _, rows, columns = self._measure(size)
            self._grids[size] = (1, rows, columns)
        return self._grids[size]

    def _measure(self, size: tuple[int, int]) -> tuple[int, int, int]:
        """Channels, rows and columns of the feature map."""
        try:
            # A traced network also prints where it failed.
            with torch.no_grad(), contextlib.redirect_stderr(io.StringIO()):
                # a deep copy of a traced network is in training mode again
                shape = self._twin[0].eval().feature_map(torch.empty(1, self.in_chans, *size, device="meta")).shape
        except (RuntimeError, AssertionError, ValueError) as error:
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise ValueError(
                f"{self.label()} cannot take {size[0]}x{size[1]} images ({reason}): use another size"
            ) from error
        return shape[1], shape[2], shape[3]

    def _stride(self) -> int:
        """Pixels from one token to the next, read off two large images, or off the one size that it takes."""
        try:
            first, second = self._measure((1024, 1024)), self._measure((2048, 2048))
        except ValueError:
            return round(self.img_size[0] / self.grid[1])
        return round(1024 / (second[1] - first[1]))

    def label(self) -> str:
        """What messages call it."""
        return type(self).__name__


class TorchvisionBackbone(Backbone):
    """A classification network of torchvision, up to its last pooling.

    Args:
        name: Name in ``torchvision.models.list_models()``, for example convnext_tiny or resnet50.
        img_size: Side of the square input in pixels, or (height, width); other sizes work too.
        weights: Pretrained weights, for example DEFAULT, downloaded by torchvision; null for random ones.
        num_heads: Attention heads that a Transformer predictor takes, unless told otherwise.
        out_dim: Project each token to that many channels, by a LayerNorm and a Linear layer; null for the channels of
            the feature map.
    """

    def __init__(
        self,
        name: str = "convnext_tiny",
        img_size: int | tuple[int, int] = 224,
        weights: str | None = None,
        num_heads: int = 1,
        out_dim: int | None = None,
    ) -> None:
        self.name = name
        super().__init__(_up_to_the_pooling(name, weights), pair(img_size), 3, num_heads, out_dim)

    def feature_map(self, inputs: Float[Tensor, "batch channels h w"]) -> Float[Tensor, "batch dim rows columns"]:
        """The last feature map, before the pooling."""
        return self.backbone(inputs)["map"]

    def label(self) -> str:
        """What messages call it."""
        return f"torchvision's {self.name}"


def _up_to_the_pooling(name: str, weights: str | None) -> nn.Module:
    """``images -> {"map": last feature map}``; the layers behind it are gone, so none is left without a gradient."""
    from torchvision.models import get_model
    from torchvision.models.feature_extraction import create_feature_extractor, get_graph_node_names

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # GoogLeNet and Inception: how they are initialised may change
        model = get_model(name, weights=weights)
    _, nodes = get_graph_node_names(model, suppress_diff_warning=True)
    modules = dict(model.named_modules())
    pools = [i for i, node in enumerate(nodes) if _is_pooling(node, modules)]
    if not pools:
        raise ValueError(
            f"torchvision's {name} has no feature map that is pooled: use a convolutional network, or VisionTransformer"
        )
    return create_feature_extractor(model, {nodes[pools[-1] - 1]: "map"}, suppress_diff_warning=True)


def _is_pooling(node: str, modules: dict[str, nn.Module]) -> bool:
    """Whether a node of the graph is a module or function that pools a map to one vector, or a few."""
    function = node.split(".")[-1].rstrip("_0123456789")
    return isinstance(modules.get(node), nn.AdaptiveAvgPool2d) or function in ("adaptive_avg_pool2d", "mean")


class TimmBackbone(Backbone):
    """Any network of timm, unpooled and without its classifier; class and register tokens are left out.

    Args:
        name: Name in ``timm.list_models()``, for example convnext_atto or vit_small_patch16_224.
        img_size: Side of the square input in pixels, or (height, width). Convolutional networks take other sizes too;
            timm's Transformers only this one, unless ``options: {dynamic_img_size: true}``.
        pretrained: Start from timm's weights, which it downloads.
        num_heads: Attention heads that a Transformer predictor takes, unless told otherwise.
        out_dim: Project each token to that many channels, by a LayerNorm and a Linear layer; null for the channels of
            the feature map.
        options: Further arguments of ``timm.create_model``, for example {drop_path_rate: 0.1}.

    Raises:
        ImportError: If timm is not installed.
    """

    def __init__(
        self,
        name: str = "convnext_tiny",
        img_size: int | tuple[int, int] = 224,
        pretrained: bool = False,
        num_heads: int = 1,
        out_dim: int | None = None,
        options: dict[str, Any] | None = None,
    ) -> None:
        try:
            import timm
        except ImportError as error:
            raise ImportError(f"TimmBackbone needs timm: {INSTALL_TIMM}") from error
        self.name, options = name, options or {}
        model: Any = timm.create_model(name, pretrained=pretrained, num_classes=0, global_pool="", **options)
        if hasattr(model, "set_input_size"):  # of networks with position tables or windows
            model.set_input_size(img_size=pair(img_size))
        super().__init__(model, pair(img_size), options.get("in_chans", 3), num_heads, out_dim)

    def feature_map(self, inputs: Float[Tensor, "batch channels h w"]) -> Float[Tensor, "batch dim rows columns"]:
        """What timm's unpooled forward gives, as a map with channels first."""
        x = self.backbone(inputs)
        if x.ndim == 4:
            return x.permute(0, 3, 1, 2) if getattr(self.backbone, "output_fmt", "NCHW") == "NHWC" else x
        x = x[:, int(getattr(self.backbone, "num_prefix_tokens", 0)) :]  # (B, N, D)
        feature_info: Any = self.backbone.feature_info
        stride = feature_info[-1]["reduction"]
        rows, columns = inputs.shape[-2] // stride, inputs.shape[-1] // stride
        return x.transpose(1, 2).unflatten(2, (rows, columns))

    def label(self) -> str:
        """What messages call it."""
        return f"timm's {self.name}"
