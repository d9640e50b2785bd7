"""The backbone: image -> stem -> four stages of blocks -> four feature maps."""

from __future__ import annotations

import inspect
import math
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from mmengine.model import BaseModule
from mmengine.registry import MODELS
from torch import Tensor, nn
from torch.fx import Proxy
from torch.utils.checkpoint import checkpoint

from mmgcvit import kernels
from mmgcvit.backbone import captured
from mmgcvit.backbone.arch import Arch, resolve_arch
from mmgcvit.backbone.attention import WindowAttention
from mmgcvit.backbone.checks import STAGES, check_choice, check_four, check_integer, check_rate, check_stages
from mmgcvit.backbone.layers import Downsample, GlobalQuery, Mlp, PointwiseConv, Stem, layer_norm
from mmgcvit.backbone.pretrained_init import SafePretrainedInit, adapt_state_dict
from mmgcvit.backbone.windows import PAD_MODES, Pack, WindowLayout, pad_to_multiple, window_layout
from mmgcvit.compat import add_load_state_dict_pre_hook, compute_dtype, is_compiled
from mmgcvit.utils.capture import cached, is_dynamic, is_eager

INTERPOLATIONS = ("bicubic", "bilinear")


class Block(nn.Module):
    """Transformer block: x + gamma1 * attention(norm1(x)), then x + gamma2 * mlp(norm2(x)), each with drop path.

    Args:
        channels: number of channels C.
        num_heads: number of attention heads.
        window: side of the windows, in tokens.
        is_global: global instead of local attention.
        mlp_ratio: hidden channels of the MLP, as a multiple of C.
        layer_scale: initial value of gamma1 and gamma2; None for no layer scale.
        drop_path_rate: probability that an image skips a branch.
        **attention: further arguments of :class:`WindowAttention`.
    """

    def __init__(
        self,
        channels: int,
        num_heads: int,
        window: int,
        is_global: bool,
        mlp_ratio: float,
        layer_scale: float | None,
        drop_path_rate: float,
        **attention: Any,
    ) -> None:
        super().__init__()
        self.drop_path_rate, self.layer_scale = drop_path_rate, layer_scale
        self.norm1 = layer_norm(channels)
        self.attn = WindowAttention(channels, num_heads, window, is_global, **attention)
        self.norm2 = layer_norm(channels)
        self.mlp = Mlp(channels, int(channels * mlp_ratio), attention.get("drop_rate", 0.0))
        for name in ("gamma1", "gamma2"):
            scale = None if layer_scale is None else nn.Parameter(torch.full((channels,), float(layer_scale)))
            self.register_parameter(name, scale)

    def reset_parameters(self) -> None:
        """Initialise the layer scales; the parts of the block have their own methods."""
        for scale in (self.gamma1, self.gamma2):
            if isinstance(scale, Tensor) and self.layer_scale is not None:
                nn.init.constant_(scale, self.layer_scale)

    def forward(
        self,
        x: Tensor,
        pack: Pack,
        queries: Sequence[Tensor] | None = None,
        biases: Sequence[Any] | None = None,
        drop_path_scale: Tensor | None = None,
        ops: kernels.Kernels | None = None,
    ) -> Tensor:
        """Apply the block to packed windows.

        Args:
            x: (rows, C), the windows of ``pack``.
            pack: layout of the windows in x.
            queries: the global query of each region, see :meth:`WindowLayout.expand_query`.
            biases: position bias of each region; None to compute it from the block's own table.
            drop_path_scale: (2, rows, 1), factors of the attention and the MLP branch; None for no drop path.
            ops: implementations of the operations; None to choose them for x and this block.

        Returns:
            (rows, C).
        """
        ops = ops or kernels.choose(x, self)
        scale1, scale2 = (None, None) if drop_path_scale is None else drop_path_scale.unbind(0)
        y = self.norm1(x)
        if pack.is_padded:  # in place only if nothing else can hold the output of the norm
            y = pack.clear_padding(y, in_place=ops is not kernels.REFERENCE)
        x = ops.residual(x, partial(self.attn, y, pack, queries, biases, ops), self.gamma1, scale1)
        return ops.residual(x, partial(self.mlp, self.norm2(x), ops), self.gamma2, scale2)


class Stage(nn.Module):
    """Stage: optional downsampling, global query, and blocks that alternate between local and global attention.

    Args:
        in_channels: channels of the input map; None for a stage without downsampling.
        channels: number of channels C of this stage.
        depth: number of blocks.
        num_heads: number of attention heads.
        window: side of the windows, in tokens.
        pad: one of 'input', 'stage', 'window'; see :class:`GCViT`.
        reductions: how many times the map is halved for the global query.
        interpolation: interpolation mode for resizing the global query.
        drop_path_rates: one per block.
        with_cp: recompute the blocks in the backward pass instead of keeping their activations.
        **block: further arguments of :class:`Block`.
    """

    def __init__(
        self,
        in_channels: int | None,
        channels: int,
        depth: int,
        num_heads: int,
        window: int,
        pad: str,
        reductions: int,
        interpolation: str,
        drop_path_rates: Sequence[float],
        with_cp: bool,
        **block: Any,
    ) -> None:
        super().__init__()
        self.window, self.pad, self.with_cp = window, pad, with_cp
        self.downsample = nn.Identity() if in_channels is None else Downsample(in_channels, channels)
        # A stage with a single block has no global attention and needs no query.
        self.query = GlobalQuery(channels, num_heads, window, reductions, interpolation) if depth > 1 else None
        self.blocks: Any = nn.ModuleList(
            Block(channels, num_heads, window, is_global=index % 2 == 1, drop_path_rate=drop_path_rates[index], **block)
            for index in range(depth)
        )

    def forward(self, x: Tensor, drop_path_scale: Tensor | None = None) -> Tensor:
        """Compute the feature map of this stage.

        Args:
            x: (B, H, W, input channels).
            drop_path_scale: (blocks, 2, B), see :meth:`GCViT.sample_drop_path`.

        Returns:
            (B, H', W', C), where H' and W' are half of H and W if the stage begins with downsampling.
        """
        x = self.downsample(x)
        height, width = x.shape[1:3]
        if self.pad == "stage":
            x = pad_to_multiple(x, self.window)
        if is_eager() and not is_compiled(self.blocks[0]):
            layout = window_layout(tuple(x.shape), self.window, x.device, kernels.max_pack(x))
        else:
            layout = captured.PaddedLayout(tuple(x.shape), self.window, x.device)
        dtype = compute_dtype(x)
        queries = layout.expand_query(self.query(x).to(dtype)) if self.query is not None else None
        scales = None if drop_path_scale is None else layout.per_row(drop_path_scale[..., None, :])
        packs = layout.pack(x)
        ops = [kernels.choose(packs[0], block) for block in self.blocks]
        del x  # the blocks do not need the map, and its memory is free in evaluation
        for index, (block, biases) in enumerate(zip(self.blocks, self._biases(layout, ops, dtype), strict=True)):
            recompute = self.with_cp and torch.is_grad_enabled()
            run = partial(checkpoint, block, use_reentrant=False) if recompute else block
            for n, pack in enumerate(layout.packs):
                scale = None if scales is None else scales[n][index].mT
                packs[n] = run(packs[n], pack, queries, biases, scale, None if biases is None else ops[index])
        return layout.unpack(packs, height, width)

    def _biases(self, layout: WindowLayout, ops: list[kernels.Kernels], dtype: torch.dtype) -> Iterable[Any]:
        """Position biases of each block and region.

        The biases of all blocks are computed together. If any block was modified, each block computes its own instead,
        as its weights may be available only while it is called (sharding, offloading), or as it is compiled.
        """
        if kernels.REFERENCE in ops and is_eager():
            return [None] * len(ops)
        tables = [block.attn.relative_position_bias_table for block in self.blocks]
        return ops[0].position_biases(tables, layout.sizes, self.window, dtype)


@cached
def _drop_path_constants(rates: tuple[float, ...], device: torch.device) -> tuple[Tensor, Tensor]:
    """Probability to keep a branch and the scale of a kept one for each block, (blocks, 1, 1) float32.

    Cached, because a copy to a GPU waits for everything that was launched before.
    """
    scales = [1 / (1 - rate) if rate < 1 else 0.0 for rate in rates]
    values = torch.tensor([[1 - rate for rate in rates], scales], device=device)
    return values[0, :, None, None], values[1, :, None, None]


@MODELS.register_module()
class GCViT(SafePretrainedInit, BaseModule):
    """Global Context Vision Transformer (arXiv 2206.09959): a feature map per stage, for images of any size.

    Registered in mmengine's root registry: ``type='GCViT'`` works in configs of mmdet, mmseg and mmpretrain with
    ``custom_imports=dict(imports=['mmgcvit'])``.

    There are three ways to pad a map whose size is not a multiple of the window size. Their results are equal if the
    height and width of the image are multiples of ``pad_multiple``:

    - ``pad='input'``: the image is zero-padded on the right and at the bottom to multiples of ``pad_multiple``, and the
      maps are cropped.
    - ``pad='stage'`` (tfgcvit): the map of each stage is zero-padded to multiples of the window before its global query
      and its blocks, and cropped at the end of the stage.
    - ``pad='window'`` (the authors' detection models): only attention sees zero-padded windows; the global query comes
      from the unpadded map. All padding of a window is computed as one token.

    Args:
        arch: 'xxtiny', 'xtiny', 'tiny', 'tiny2', 'small', 'small2', 'base', 'large', 'large-384', 'large-512', or a
            dict of embed_dims, depths, num_heads and, optionally, mlp_ratio, window_size, drop_path_rate, layer_scale
            (:class:`~mmgcvit.backbone.arch.Arch`).
        in_channels: channels of the input images.
        window_size: side of the windows of each stage, in tokens; overrides the arch's. An int w means (w, w, 2w, w).
        pad: 'input', 'stage' or 'window'.
        global_query_reductions: for each stage, how many times the map is halved for the global query.
        global_query_interpolation: 'bicubic' or 'bilinear'; interpolation mode for resizing the global query.
        drop_path_rate: drop path rate of the last block; overrides the arch's.
        drop_rate: dropout rate after the projection of attention and in the MLPs.
        attn_drop_rate: dropout rate of the attention weights.
        qkv_bias: whether the linear layers for query, key and value have a bias.
        out_indices: stages whose maps are returned, each through its own norm. Stages after the last one are not built.
            DDP needs every returned map to be used: (1, 2, 3) with ``start_level=0`` for an FPN that would leave out
            the first one.
        frozen_stages: -1 for none, 0 for the stem, i for the stem and the first i stages with their norms.
        with_cp: recompute the blocks in the backward pass: less memory, more time, same results.
        init_cfg: as in mmengine. ``dict(type='Pretrained', checkpoint=...)`` loads a checkpoint from any publisher.

    Attributes:
        out_channels: channels of each returned map.
        out_strides: stride of each returned map, in pixels.
        pad_multiple: least common multiple of stride x window over the four stages, in pixels.

    Raises:
        ValueError: an argument has a value that is not allowed. The message names the argument, its value and what is
            allowed.
        TypeError: an argument is unknown or has the wrong type.

    Examples:
        >>> model = GCViT("xxtiny")
        >>> [tuple(m.shape) for m in model(torch.randn(2, 3, 100, 130))]
        [(2, 64, 25, 33), (2, 128, 13, 17), (2, 256, 7, 9), (2, 512, 4, 5)]
    """

    def __init__(
        self,
        arch: str | Mapping = "tiny",
        in_channels: int = 3,
        window_size: int | Sequence[int] | None = None,
        pad: str = "input",
        global_query_reductions: Sequence[int] = (3, 2, 0, 0),
        global_query_interpolation: str = "bicubic",
        drop_path_rate: float | None = None,
        drop_rate: float = 0.0,
        attn_drop_rate: float = 0.0,
        qkv_bias: bool = True,
        out_indices: Sequence[int] = (0, 1, 2, 3),
        frozen_stages: int = -1,
        with_cp: bool = False,
        init_cfg: dict | list | None = None,
        **unknown: Any,
    ) -> None:
        if unknown:  # Python's own message would not list the allowed arguments
            allowed = ", ".join(list(inspect.signature(GCViT.__init__).parameters)[1:-1])
            raise TypeError(
                "GCViT: unknown argument "
                + ", ".join(f"{k}={v!r}" for k, v in unknown.items())
                + f"; allowed: {allowed}"
            )
        super().__init__(init_cfg=init_cfg)
        add_load_state_dict_pre_hook(self, adapt_state_dict)
        self.arch: Arch = resolve_arch(arch, window_size, drop_path_rate)
        in_channels = check_integer("in_channels", in_channels, 1)
        check_choice("pad", pad, PAD_MODES)
        reductions = check_four("global_query_reductions", global_query_reductions, 0)
        check_choice("global_query_interpolation", global_query_interpolation, INTERPOLATIONS)
        drop_rate, attn_drop_rate = check_rate("drop_rate", drop_rate), check_rate("attn_drop_rate", attn_drop_rate)
        check_choice("qkv_bias", qkv_bias, (True, False))
        out_indices = check_stages("out_indices", out_indices)
        check_choice("frozen_stages", frozen_stages, tuple(range(-1, STAGES + 1)))
        check_choice("with_cp", with_cp, (True, False))

        arch_ = self.arch
        strides = [4 * 2**i for i in range(STAGES)]
        self.in_channels, self.pad = in_channels, pad
        self.out_indices, self.frozen_stages = out_indices, frozen_stages
        self.out_channels = tuple(arch_.dims[i] for i in out_indices)
        self.out_strides = tuple(strides[i] for i in out_indices)
        self.pad_multiple = math.lcm(*(s * w for s, w in zip(strides, arch_.window_size, strict=True)))

        # The rate grows over the blocks of all four stages, including stages that are not built.
        rates = torch.linspace(0, arch_.drop_path_rate, sum(arch_.depths), device="cpu").tolist()
        self.stem = Stem(in_channels, arch_.embed_dims)
        self.stages: Any = nn.ModuleList()
        for i in range(out_indices[-1] + 1):
            self.stages.append(
                Stage(
                    in_channels=arch_.dims[i - 1] if i else None,
                    channels=arch_.dims[i],
                    depth=arch_.depths[i],
                    num_heads=arch_.num_heads[i],
                    window=arch_.window_size[i],
                    pad=pad,
                    reductions=reductions[i],
                    interpolation=global_query_interpolation,
                    drop_path_rates=rates[sum(arch_.depths[:i]) : sum(arch_.depths[: i + 1])],
                    with_cp=with_cp,
                    mlp_ratio=arch_.mlp_ratio,
                    layer_scale=arch_.layer_scale,
                    qkv_bias=qkv_bias,
                    attn_drop_rate=attn_drop_rate,
                    drop_rate=drop_rate,
                )
            )
        for i in out_indices:
            self.add_module(f"norm{i}", layer_norm(arch_.dims[i]))
        self._set_initial_values()
        self._freeze()
        self._was_on_meta = self.stem.conv.weight.is_meta

    def init_weights(self) -> None:
        """Load the weights of ``init_cfg``, if any; a model built on the meta device is initialised first."""
        if self._was_on_meta and not self.stem.conv.weight.is_meta:
            self.reset_parameters()
        super().init_weights()

    def reset_parameters(self) -> None:
        """Initialise all parameters as when the model is built, e.g. after ``to_empty``."""
        for module in self.modules():
            reset: Any = getattr(module, "reset_parameters", None)
            if reset is not None and module is not self:
                reset()
        self._set_initial_values()
        self._was_on_meta = self.stem.conv.weight.is_meta

    def forward(self, x: Tensor, indices: Sequence[int] | None = None) -> tuple[Tensor, ...]:
        """Compute the feature maps of a batch of images.

        Args:
            x: (B, in_channels, H, W), any H, W >= 1, floating point.
            indices: stages whose maps are returned, ascending; ``out_indices`` by default. Only maps of stages in
                ``out_indices`` are normalised. Stages after the last one are not computed.

        Returns:
            (B, C * 2^i, ceil(H / stride_i), ceil(W / stride_i)) for each stage i of ``indices``, contiguous.

        Raises:
            ValueError: x is not 4-D, has the wrong number of channels, or is empty.
            TypeError: the model is traced by torch.fx.
        """
        if isinstance(x, Proxy):  # type: ignore[unreachable]  # of torch.fx, in place of a tensor
            raise TypeError(
                "GCViT cannot be traced by torch.fx, as its windows depend on the size of the images; allowed: "
                "torch.export, or for feature maps of a model of timm: features_only=True, forward_intermediates"
            )
        if x.ndim != 4 or x.shape[1] != self.in_channels or 0 in x.shape:
            raise ValueError(
                f"GCViT: input of shape {tuple(x.shape)}; allowed: (B, {self.in_channels}, H, W) with B, H, W >= 1"
            )
        height, width = x.shape[2:]
        dynamic = is_dynamic(height, width)
        x = x.permute(0, 2, 3, 1).contiguous()  # NHWC from here to the maps
        if self.pad == "input":
            x = pad_to_multiple(x, self.pad_multiple)
        scales = self.sample_drop_path(x)
        indices = self.out_indices if indices is None else indices
        x = self.stem(x)
        maps = []
        nchw = kernels.choose_nchw(x)
        for i, stage in enumerate(self.stages):
            if i > indices[-1]:
                break
            x = stage(x, scales[i])
            if i in indices:
                stride = 4 * 2**i
                rows, columns = (height - 1) // stride + 1, (width - 1) // stride + 1
                y = getattr(self, f"norm{i}")(x) if i in self.out_indices else x
                y = captured.crop(y, rows, columns) if dynamic else y[:, :rows, :columns]
                # Contiguous NCHW: downstream code may read raw memory, as mmcv's RoIAlign does.
                maps.append(nchw(y))
        return tuple(maps)

    def sample_drop_path(self, x: Tensor) -> list[Tensor | None]:
        """Sample the drop-path scale of each branch and image: 0 with probability ``rate``, else 1 / (1 - rate).

        All windows of an image are dropped together.

        Args:
            x: (B, ...), gives the batch size, dtype and device.

        Returns:
            (blocks, 2, B) for each stage; None for a stage without drop path, as in evaluation mode.
        """
        if not self.training:
            return [None] * len(self.stages)
        rates = [[b.drop_path_rate if stage.training else 0.0 for b in stage.blocks] for stage in self.stages]
        if not any(map(any, rates)):
            return [None] * len(rates)
        probability, factor = _drop_path_constants(tuple(rate for stage in rates for rate in stage), x.device)
        scale = torch.bernoulli(probability.expand(-1, 2, x.shape[0])).mul_(factor).to(x.dtype)
        scales = scale.split([len(stage) for stage in rates])
        return [s if any(stage) else None for s, stage in zip(scales, rates, strict=True)]

    def train(self, mode: bool = True) -> GCViT:
        """Set training or evaluation mode; frozen stages stay in evaluation mode."""
        super().train(mode)
        for module in self._frozen_modules():
            module.eval()
        return self

    def _frozen_modules(self) -> list[nn.Module]:
        frozen: list[nn.Module] = [] if self.frozen_stages < 0 else [self.stem]
        for i in range(min(self.frozen_stages, len(self.stages))):
            frozen.append(self.stages[i])
            if i in self.out_indices:
                frozen.append(getattr(self, f"norm{i}"))
        return frozen

    def _freeze(self) -> None:
        for module in self._frozen_modules():
            module.eval()
            module.requires_grad_(False)

    def _set_initial_values(self) -> None:
        """Initialise linear layers and bias tables with a truncated normal (std 0.02), biases with 0.

        Convolutions keep PyTorch's default initialisation.
        """
        for module in self.modules():
            if isinstance(module, nn.Linear) and not isinstance(module, PointwiseConv):
                nn.init.trunc_normal_(module.weight, std=0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
            if isinstance(module, WindowAttention):
                module.reset_parameters()

    def get_layer_depth(self, param_name: str, prefix: str = "") -> tuple[int, int]:
        """Return the layer index of a parameter, for layer-wise learning-rate decay.

        Args:
            param_name: name in the model.
            prefix: prefix of the backbone's parameters, e.g. 'backbone.'.

        Returns:
            The layer index and the number of layers, as in mmpretrain: 0 for the stem, 1 to n for the blocks of all
            stages, n + 1 for everything outside the backbone. The downsampling and the global query of a stage belong
            to its first block, its output norm to its last block.
        """
        depths = self.arch.depths
        layers = sum(depths) + 2
        if not param_name.startswith(prefix):
            return layers - 1, layers
        part, *rest = param_name[len(prefix) :].split(".")
        if part == "stem":
            return 0, layers
        if part == "stages":
            stage = int(rest[0])
            block = int(rest[2]) if rest[1] == "blocks" else 0
            return sum(depths[:stage]) + block + 1, layers
        if part.startswith("norm"):
            return sum(depths[: int(part.removeprefix("norm")) + 1]), layers
        return layers - 1, layers
