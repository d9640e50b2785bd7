"""The functions of ``mmcv._ext``, by name: the names, arguments and in-place results are those of mmcv's extension.

``__getattr__`` of this module is that of the stand-in. So ``mmcv.ops`` can be imported as a whole, and an operator that
is not here raises an error when it is called.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torchvision

from mmgcvit.compat import torchvision_has_cuda
from mmgcvit.errors import UsageError
from mmgcvit.ops.convolution import (
    deform_conv_backward_input,
    deform_conv_backward_parameters,
    deform_conv_forward,
    masked_col2im_forward,
    masked_im2col_forward,
    modulated_deform_conv_backward,
    modulated_deform_conv_forward,
)
from mmgcvit.ops.focal_loss import (
    sigmoid_focal_loss_backward,
    sigmoid_focal_loss_forward,
    softmax_focal_loss_backward,
    softmax_focal_loss_forward,
)
from mmgcvit.ops.nms import bbox_overlaps, nms, nms_match, softnms
from mmgcvit.ops.roi import roi_align_backward, roi_align_forward, roi_pool_backward, roi_pool_forward
from mmgcvit.ops.rotated import box_iou_rotated, nms_rotated, roi_align_rotated_backward, roi_align_rotated_forward
from mmgcvit.ops.sampling import (
    carafe_backward,
    carafe_forward,
    carafe_naive_backward,
    carafe_naive_forward,
    ms_deform_attn_backward,
    ms_deform_attn_forward,
    psamask_backward,
    psamask_forward,
)


def get_compiler_version() -> str:
    """What stands in for the compiler in mmengine's report of the environment."""
    return f"none (torchvision {torchvision.__version__})"


def get_compiling_cuda_version() -> str:
    """CUDA version of torch; 'not available' if torchvision was built for the CPU."""
    return torch.version.cuda or "not available" if torchvision_has_cuda() else "not available"


OPERATORS: dict[str, Callable[..., Any]] = {
    function.__name__: function
    for function in (
        bbox_overlaps,
        box_iou_rotated,
        carafe_backward,
        carafe_forward,
        carafe_naive_backward,
        carafe_naive_forward,
        deform_conv_backward_input,
        deform_conv_backward_parameters,
        deform_conv_forward,
        get_compiler_version,
        get_compiling_cuda_version,
        masked_col2im_forward,
        masked_im2col_forward,
        modulated_deform_conv_backward,
        modulated_deform_conv_forward,
        ms_deform_attn_backward,
        ms_deform_attn_forward,
        nms,
        nms_match,
        nms_rotated,
        psamask_backward,
        psamask_forward,
        roi_align_backward,
        roi_align_forward,
        roi_align_rotated_backward,
        roi_align_rotated_forward,
        roi_pool_backward,
        roi_pool_forward,
        sigmoid_focal_loss_backward,
        sigmoid_focal_loss_forward,
        softmax_focal_loss_backward,
        softmax_focal_loss_forward,
        softnms,
    )
}


def __getattr__(name: str) -> Callable[..., Any]:
    """Return an operator, or a function that raises UsageError when it is called."""
    if name.startswith("_"):
        raise AttributeError(f"mmcv's extension has no attribute {name!r}")
    if name in OPERATORS:
        return OPERATORS[name]

    def missing(*args: object, **kwargs: object) -> None:
        raise UsageError(
            f"mmcv's operator {name!r} needs mmcv's compiled operators, which are not installed; computed without them "
            f"are {', '.join(OPERATORS)}. To compile mmcv: `make install MMCV_OPS=compiled` in a checkout of mmgcvit, "
            "or see its docs/install.md"
        )

    missing.__name__ = name
    return missing
