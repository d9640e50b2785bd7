"""All private interfaces of torch, torchvision, mmengine, mmcv, mmdet, mmseg and timm that the package uses.

No other module of the package imports a name with a leading underscore from another library.
``tests/test_compat*.py`` check that each of them still exists and behaves the same, so that a new release breaks a test
and not a user.
"""

from __future__ import annotations

import copy
import pickle
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

import torch
from mmengine.optim.scheduler import param_scheduler
from mmengine.runner import CheckpointLoader, checkpoint
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.utils import _python_dispatch, _pytree

try:
    is_compiling = torch.compiler.is_compiling
except AttributeError:  # torch 2.1
    from torch._dynamo.external_utils import is_compiling
try:
    is_dynamo_compiling = torch.compiler.is_dynamo_compiling
except AttributeError:  # torch 2.1
    is_dynamo_compiling = is_compiling


if hasattr(torch.compiler, "is_exporting"):
    #: Whether ``torch.export`` (or the ONNX exporter that builds on it) is running.
    is_exporting: Callable[[], bool] = torch.compiler.is_exporting
else:  # before torch 2.7

    def is_exporting() -> bool:
        """Whether ``torch.export`` is running."""
        return is_compiling() and not is_dynamo_compiling()


#: Whether ``torch.jit.trace`` is running.
is_tracing: Callable[[], bool] = torch._C._is_tracing

#: Whether a transform of ``torch.func`` (grad, vmap, jvp, ...) is running.
functorch_is_active: Callable[[], bool] = torch._C._are_functorch_transforms_active

#: Level of forward-mode differentiation; -1 if it is not running.
forward_ad_level: Callable[[], int] = partial(getattr, forward_ad, "_current_level")


#: Whether torch may call oneDNN (``torch.backends.mkldnn.flags`` can disable it).
onednn_is_enabled: Callable[[], bool] = torch._C._get_mkldnn_enabled


def onednn_has_bfloat16() -> bool:
    """Whether oneDNN computes in bfloat16 on this processor, with the instructions that it may use."""
    return torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported()


#: Linear layer by one call of oneDNN, which torch's compiler uses on CPUs; None if this torch does not have it.
#: ``onednn_linear(x, weight, bias, *PLAIN)`` computes (..., C), (C', C), (C',) or None -> (..., C'), all of them of
#: float32 or of bfloat16; ``*GELU`` in the place of ``*PLAIN`` adds an exact GELU. It has no gradient.
onednn_linear: Callable[..., Tensor] | None = (
    getattr(torch.ops.mkldnn, "_linear_pointwise", None) if torch.backends.mkldnn.is_available() else None
)
#: The same with a sum: ``onednn_linear_sum(x, added, weight, bias, "add")``, where ``added`` is (..., C').
onednn_linear_sum: Callable[..., Tensor] | None = getattr(onednn_linear, "binary", None)
PLAIN: tuple[str, list, str] = ("none", [], "")
GELU: tuple[str, list, str] = ("gelu", [], "none")

#: Attributes of a module that hold its hooks. A module with an entry in any of them must be called.
MODULE_HOOKS = tuple(
    name for name, value in vars(nn.Module()).items() if name.endswith("_hooks") and "state_dict" not in name
)
#: The dicts of hooks that run for every module of the process.
GLOBAL_HOOKS = tuple(
    value
    for name, value in vars(torch.nn.modules.module).items()
    if name.startswith("_global_") and name.endswith("_hooks") and "registration" not in name
)


def is_compiled(module: nn.Module) -> bool:
    """Whether calling a module runs a compiled function (``module.compile()``, ``torch.compile(module)``)."""
    return getattr(module, "_compiled_call_impl", None) is not None or hasattr(module, "_orig_mod")


def is_built_from(module: nn.Module, kinds: tuple[type[nn.Module], ...], package: str) -> bool:
    """Whether a module and its parts are of known classes, and calling one is just running its class's ``forward``.

    Not so with hooks (sharding, observers), with a ``forward`` replaced on the instance (offloading), after
    ``module.compile()``, and with parameters of a tensor subclass (quantization, DTensor).

    Args:
        module: the module.
        kinds: allowed classes; subclasses do not count.
        package: prefix of the Python modules whose classes are allowed, too.
    """
    for hooks in GLOBAL_HOOKS:
        if hooks:
            return False
    waiting = [module]
    while waiting:
        part = waiting.pop()
        kind, attributes = type(part), vars(part)
        if kind not in kinds and not kind.__module__.startswith(package):
            return False
        if "forward" in attributes or attributes.get("_compiled_call_impl") is not None:
            return False
        for name in MODULE_HOOKS:
            if attributes[name]:
                return False
        for parameter in attributes["_parameters"].values():
            if parameter is not None and type(parameter) is not nn.Parameter and type(parameter) is not Tensor:
                return False
        waiting += attributes["_modules"].values()
    return True


if hasattr(torch, "get_autocast_dtype"):
    #: Whether autocast is on for a device type.
    autocast_is_enabled: Callable[[str], bool] = torch.is_autocast_enabled
else:  # before torch 2.4

    def autocast_is_enabled(device: str) -> bool:
        """Whether autocast is on for a device type."""
        return torch.is_autocast_cpu_enabled() if device == "cpu" else torch.is_autocast_enabled()


def compute_dtype(x: Tensor) -> torch.dtype:
    """Dtype in which matrix products with x are computed: that of x, or that of autocast."""
    device = x.device.type
    if device == "meta" or x.dtype == torch.float64 or not autocast_is_enabled(device):
        return x.dtype
    if hasattr(torch, "get_autocast_dtype"):
        return torch.get_autocast_dtype(device)
    return torch.get_autocast_cpu_dtype() if device == "cpu" else torch.get_autocast_gpu_dtype()


def storage_id(tensor: Tensor) -> int:
    """Identifier of the storage of a tensor, also on the meta device."""
    return tensor.untyped_storage()._cdata


def softmax_backward(gradient: Tensor, output: Tensor, out: Tensor) -> Tensor:
    """Gradient of a softmax over the last dimension with respect to its input, from that of its output."""
    return torch._softmax_backward_data(gradient, output, -1, output.dtype, grad_input=out)


# Checkpoints: state dict hooks, and the unpickler whose steps can be restricted.

#: The pure-Python unpickler: its ``dispatch`` table and ``stack`` let a subclass check every step before executing it.
PythonUnpickler: Any = vars(pickle)["_Unpickler"]


def zip_directory_size(file: BinaryIO) -> int:
    """Bytes of the directory at the end of a zip file, which ``zipfile.ZipFile`` reads into memory.

    Raises:
        zipfile.BadZipFile: it is not a zip file.
    """
    end = vars(zipfile)["_EndRecData"](file)
    if not end:
        raise zipfile.BadZipFile("File is not a zip file")
    return int(end[5])


def checkpoint_loaders() -> dict[str, Callable[..., Any]]:
    """The loaders that are registered with mmengine's CheckpointLoader, by prefix of the names."""
    return dict(CheckpointLoader._schemes)


def mmengine_home() -> Path:
    """Folder of files that belong to mmengine's ``open-mmlab://`` names."""
    return Path(checkpoint._get_mmengine_home())


StateDictHook = Callable[..., None]


def load_state_dict_pre_hooks(module: nn.Module) -> list[StateDictHook]:
    """The hooks that run before ``module`` loads a state dict."""
    return [getattr(known, "hook", known) for known in module._load_state_dict_pre_hooks.values()]


def add_load_state_dict_pre_hook(module: nn.Module, hook: StateDictHook) -> None:
    """Call ``hook(module, state_dict, prefix, ...)`` before ``module`` and its children load a state dict.

    A hook that is already registered is not added again.
    """
    if hook in load_state_dict_pre_hooks(module):
        return
    if hasattr(module, "register_load_state_dict_pre_hook"):
        module.register_load_state_dict_pre_hook(hook)
    else:  # before torch 2.5
        module._register_load_state_dict_pre_hook(hook, with_module=True)


def with_versions(tensors: Mapping[str, Tensor], source: Any) -> dict[str, Tensor]:
    """A state dict of these tensors, with the versions of modules in ``source``, by which modules convert old names."""
    state_dict: Any = OrderedDict(tensors)
    if hasattr(source, "_metadata"):
        # A copy: load_state_dict(assign=True) writes into it, and the next load of the source would assign, too.
        state_dict._metadata = copy.deepcopy(source._metadata)
    return state_dict


# Counting kernels (mmgcvit.kernel_count)

#: The base class of modes that see every operation.
TorchDispatchMode = _python_dispatch.TorchDispatchMode


def tree_leaves(tree: Any) -> list[Any]:
    """Flatten nested lists, tuples and dicts into their leaves. torch 2.1 has no function of this name."""
    return _pytree.tree_flatten(tree)[0]


# Backward passes of torchvision's operators (mmgcvit.ops). They exist once torchvision has been imported.

Pair = tuple[int, int]


def torchvision_has_cuda() -> bool:
    """Whether torchvision's operators were built for a GPU."""
    return bool(torch.ops.torchvision._cuda_version() > 0)


def roi_align_gradient(
    gradient: Tensor,
    rois: Tensor,
    scale: float,
    size: Pair,
    shape: tuple[int, ...],
    sampling_ratio: int,
    aligned: bool,
) -> Tensor:
    """Gradient of torchvision's RoIAlign with respect to its map of this shape, (N, C, h, w) -> (B, C, H, W).

    Not available for tensors on a GPU under ``torch.use_deterministic_algorithms``.
    """
    return torch.ops.torchvision._roi_align_backward(gradient, rois, scale, *size, *shape, sampling_ratio, aligned)


def deform_conv2d_gradients(
    gradient: Tensor,
    maps: Tensor,
    weight: Tensor,
    offset: Tensor,
    mask: Tensor | None,
    stride: Pair,
    padding: Pair,
    dilation: Pair,
    groups: Pair,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of torchvision's deformable convolution: those of the maps, weights, offsets and factors (``mask``)."""
    factors = offset.new_zeros(len(offset), 1) if mask is None else mask
    geometry = (*stride, *padding, *dilation, *groups)
    bias = weight.new_zeros(len(weight))
    backward = torch.ops.torchvision._deform_conv2d_backward
    found = backward(gradient, maps, weight, offset, factors, bias, *geometry, mask is not None)
    return found[0], found[1], found[2], found[3]


# Runs and data (mmgcvit.engine, optim, tasks, analysis)

#: The base class of mmengine's parameter schedulers.
ParamScheduler = param_scheduler._ParamScheduler


def flash_attention_on_cpu() -> Any:
    """The operation of torch's fused attention on a CPU, or None if there is none (torch 2.1)."""
    return getattr(torch.ops.aten, "_scaled_dot_product_flash_attention_for_cpu", None)


def has_train_loop(runner: Any) -> bool:
    """Whether the training loop of an mmengine Runner has been built; ``runner.train_loop`` itself would build it."""
    return not (runner._train_loop is None or isinstance(runner._train_loop, dict))


def load_from(runner: Any) -> str:
    """The checkpoint that an mmengine Runner loads or resumes, '' if there is none."""
    return str(getattr(runner, "_load_from", None) or "")


def skipped_batch_size(iterator: Any) -> int | None:
    """Batch size if mmengine's iterator of an IterBasedTrainLoop will skip indices when a run is resumed.

    None if it loads the skipped data again (before mmengine 0.10.12, or with another class of batch sampler), or has
    already started its workers.
    """
    if not hasattr(iterator, "_resolve_sampler") or iterator._resolve_sampler() is None:
        return None
    return None if iterator._iterator is not None else iterator._resolve_batch_size()


def end_workers(runner: Any) -> None:
    """End the workers of the data loaders that an mmengine Runner has built; the loaders can be used again.

    Left to the garbage collector, workers would often not get torch's notice, as its queue is collected, too. torch
    would wait 5 s for each of them.
    """
    for name in ("_train_loop", "_val_loop", "_test_loop"):
        loop = getattr(runner, name, None)  # a dict or None if it was not built
        loader: Any = getattr(loop, "dataloader", None)
        persistent = getattr(loader, "_iterator", None)
        if persistent is not None:
            loader._iterator = None
        infinite = getattr(getattr(loop, "dataloader_iterator", None), "_iterator", None)  # of an IterBasedTrainLoop
        iterator: Any
        for iterator in (persistent, infinite):
            if hasattr(iterator, "_shutdown_workers"):  # there are worker processes
                iterator._shutdown_workers()


def dataset_metainfo(dataset_class: Any, metainfo: dict) -> dict:
    """Meta information of a data set class, updated by a config's ``metainfo``; class names in a file are read."""
    return dataset_class._load_metainfo(metainfo) if hasattr(dataset_class, "_load_metainfo") else metainfo


def forward_box_head(roi_head: Any, *args: Any) -> Any:
    """Run the box head of mmdet's roi head on (stage if it is a cascade, maps, rois)."""
    return roi_head._bbox_forward(*args)


def forward_mask_head(roi_head: Any, *args: Any) -> Any:
    """Run the mask head of mmdet's roi head on (stage if it is a cascade, maps, rois)."""
    return roi_head._mask_forward(*args)


def dino_coordinate_features(channels: int) -> int:
    """Numbers by which the decoder of the installed mmdet's DINO encodes each coordinate of a box.

    mmdet 3.3 has 128, OneDL's mmdet as many as ``channels``. Without mmdet, it is that of mmdet 3.3.
    """
    try:
        from mmdet.models.layers import DinoTransformerDecoder
    except ImportError:
        return 128
    attention = dict(embed_dims=channels, num_heads=8)
    layer = dict(self_attn_cfg=attention, cross_attn_cfg=attention,
                 ffn_cfg=dict(embed_dims=channels, feedforward_channels=8))  # fmt: skip
    decoder = DinoTransformerDecoder(num_layers=1, layer_cfg=layer, post_norm_cfg=None, return_intermediate=True)
    return decoder.ref_point_head.layers[0].in_features // 4


#: Private methods and attributes of other libraries, by class, that the package overrides or sets in subclasses.
OVERRIDDEN = {
    "mmengine.hooks.CheckpointHook": ("_save_best_checkpoint", "_save_checkpoint_with_step"),
    "mmengine.infer.BaseInferencer": ("_init_model", "_load_weights_to_model"),
    "mmengine.optim.AmpOptimWrapper": ("_clip_grad",),
    "mmengine.optim.DefaultOptimWrapperConstructor": ("_validate_cfg",),
    "mmengine.optim.OptimWrapper": ("_clip_grad",),
    "mmengine.optim.scheduler.param_scheduler._ParamScheduler": ("_get_value",),
    "mmengine.runner.EpochBasedTrainLoop": ("_epoch", "_iter"),
    "timm.data.readers.reader.Reader": ("_filename",),
}
