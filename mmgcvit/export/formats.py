"""Writing a graph as an ONNX, OpenVINO or torch.export file."""

from __future__ import annotations

import contextlib
import logging
import re
import warnings
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mmgcvit.errors import ExportError, UsageError
from mmgcvit.export.graph import ExportGraph
from mmgcvit.runtime.metadata import KEY, ModelInfo

#: Formats by suffix, with the packages that writing needs.
PACKAGES = {".onnx": ("onnx", "onnxscript", "onnxruntime"), ".xml": ("onnx", "onnxscript", "openvino"), ".pt2": ()}
SUFFIXES = tuple(PACKAGES)
OPSET = 20
#: Operators that are computed with less precision on request.
PRODUCTS = ("Conv", "Gemm", "MatMul")
#: Parts of a model whose weights and products may have less precision. Boxes and scores are computed in float32.
NETWORK = ("backbone", "neck", "decode_head")


def example_input(info: ModelInfo) -> tuple[torch.Tensor, dict[int, Any]]:
    """Return images to trace a graph with, and which of their dimensions may vary."""
    # A dimension of length 1 would be taken for a constant; equal lengths, for one and the same.
    default = (2, 160, 224)
    shape = [given or free for given, free in zip(info.shape, default, strict=True)]
    dynamic = {
        place: torch.export.Dim.DYNAMIC for place, given in zip((0, 2, 3), info.shape, strict=True) if given is None
    }
    images = torch.randint(0, 256, (shape[0], info.channels, *shape[1:]), generator=torch.Generator().manual_seed(0))
    return images.to(getattr(torch, info.dtype)), dynamic


def write_pt2(graph: ExportGraph, info: ModelInfo, path: Path) -> None:
    """Write a file for ``torch.export.load``, with the description as the extra file ``mmgcvit``.

    Raises:
        ExportError: torch cannot capture the graph.
    """
    example, dynamic = example_input(info)
    try:
        with torch.no_grad(), _quiet():
            program = torch.export.export(graph, (example,), dynamic_shapes=(dynamic,), strict=False)
    except Exception as error:  # torch raises many types
        raise ExportError(f"torch.export cannot capture {info.model}: {_short(error)}") from error
    torch.export.save(program, path, extra_files={KEY: info.to_json()})


def write_onnx(
    graph: ExportGraph,
    info: ModelInfo,
    path: Path,
    half: bool = False,
    calibration: Iterable[np.ndarray] | None = None,
) -> None:
    """Write an ONNX file with the description in its metadata.

    Args:
        graph: the model.
        info: the description; the input has the sizes of ``info.shape`` (None: any).
        path: the file.
        half: whether the network computes in float16; inputs, outputs and post-processing stay in float32.
        calibration: inputs to quantize the network's weights and activations to 8 bits with; None: no quantization.

    Raises:
        ExportError: torch cannot capture the graph, an operator has no translation, or the model exceeds 2 GB.
    """
    import onnx

    example, dynamic = example_input(info)
    try:
        with torch.no_grad(), _quiet():
            written = torch.onnx.export(
                graph,
                (example,),
                dynamic_shapes=(dynamic,),
                input_names=["images"],
                output_names=list(info.outputs),
                opset_version=OPSET,
                custom_translation_table=graph.translations(),
                dynamo=True,
                verbose=False,
            )
    except Exception as error:
        raise ExportError(f"torch.onnx.export cannot export {info.model}: {_short(error)}") from error
    if written is None:
        raise ExportError(f"torch.onnx.export returned nothing for {info.model}")
    model = written.model_proto
    names = dict(zip((0, 2, 3), ("batch", "height", "width"), strict=True))
    for place, dim in enumerate(model.graph.input[0].type.tensor_type.shape.dim):
        if dim.dim_param:
            dim.dim_param = names[place]
    try:
        if half:
            model = _half(model)
        if calibration is not None:
            model = _quantized(model, calibration, path)
    except (UsageError, OSError):
        raise
    except Exception as error:  # onnxruntime raises many types
        raise ExportError(f"onnxruntime cannot convert {info.model}: {_short(error)}") from error
    if half and not any(weight.data_type == onnx.TensorProto.FLOAT16 for weight in model.graph.initializer):
        raise ExportError(f"{info.model}: nothing was converted to float16")
    if calibration is not None and not any(node.op_type == "QuantizeLinear" for node in model.graph.node):
        raise ExportError(f"{info.model}: nothing was quantized")
    onnx.helper.set_model_props(model, {KEY: info.to_json()})
    model.producer_name, model.producer_version = "mmgcvit", info.version
    if model.ByteSize() >= onnx.checker.MAXIMUM_PROTOBUF:
        raise ExportError(f"the model has {model.ByteSize()} bytes; allowed in one ONNX file: 2 GB")
    onnx.save(model, path)


def write_openvino(onnx_file: Path, info: ModelInfo, path: Path, half: bool = False) -> None:
    """Convert an ONNX file to OpenVINO's ``.xml`` and ``.bin``.

    Args:
        onnx_file: the file to convert. If it is quantized, OpenVINO computes in 8 bits, too.
        info: the description, stored in the runtime information of the model.
        path: the ``.xml`` file.
        half: whether weights are stored in float16.
    """
    import openvino

    try:
        model = openvino.convert_model(onnx_file)
    except Exception as error:
        raise ExportError(f"OpenVINO cannot convert {info.model}: {_short(error)}") from error
    model.set_rt_info(info.to_json(), KEY)
    openvino.save_model(model, path, compress_to_fp16=half)


def _scopes(node: Any) -> str:
    """Names of the modules that a node was made by, such as 'model.backbone.stages.0'."""
    return next((prop.value for prop in node.metadata_props if prop.key == "pkg.torch.onnx.name_scopes"), "")


def _in_network(node: Any) -> bool:
    return any(f"model.{part}" in _scopes(node) for part in NETWORK)


def _half(model: Any) -> Any:
    """Let the products of the network multiply in float16.

    As under autocast, everything between them stays in float32: residuals and norms would lose digits that add up over
    the depth, and float16 cannot tell 500 pixels from 500.2. onnxruntime's own converter rounds every value of the
    graph to float16 at some point, also between the operators that it is told to leave in float32.

    Raises:
        ExportError: a weight is too large for float16.
    """
    from onnx import TensorProto, helper

    weights = {weight.name: weight for weight in model.graph.initializer}
    casts: dict[str, str] = {}  # name of the float16 copy by name of the value
    nodes: list[Any] = []
    for node in model.graph.node:
        if node.op_type not in PRODUCTS or not _in_network(node):
            nodes.append(node)
            continue
        for place, name in enumerate(node.input):
            if not name:  # no bias
                continue
            if name not in casts:
                casts[name] = f"{name}_float16"
                if name in weights:
                    model.graph.initializer.append(_half_weight(weights[name], casts[name]))
                else:
                    nodes.append(helper.make_node("Cast", [name], [casts[name]], to=TensorProto.FLOAT16))
            node.input[place] = casts[name]
        [output] = node.output
        node.output[0] = f"{output}_float16_product"
        nodes += [node, helper.make_node("Cast", [node.output[0]], [output], to=TensorProto.FLOAT)]
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    used = _used(model.graph)
    left = [weight for weight in model.graph.initializer if weight.name in used]
    del model.graph.initializer[:]
    model.graph.initializer.extend(left)
    return model


def _half_weight(weight: Any, name: str) -> Any:
    from onnx import numpy_helper

    values = numpy_helper.to_array(weight)
    largest = float(np.abs(values).max(initial=0))
    limit = float(np.finfo(np.float16).max)
    if largest > limit:
        raise ExportError(f"weight {weight.name} has the value {largest:g}; allowed in float16: up to {limit:g}")
    return numpy_helper.from_array(values.astype(np.float16), name)


def _used(graph: Any) -> set[str]:
    """Names of all values that something in a graph reads, branches of its nodes included."""
    names = {output.name for output in graph.output}
    for node in graph.node:
        names.update(node.input)
        for attribute in node.attribute:
            if attribute.HasField("g"):
                names |= _used(attribute.g)
    return names


def _quantized(model: Any, inputs: Iterable[np.ndarray], path: Path) -> Any:
    import onnx
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, quantize_static

    class Reader(CalibrationDataReader):
        """Gives the inputs one after the other."""

        def __init__(self) -> None:
            self.left = iter(inputs)

        def get_next(self) -> dict | None:
            """Return the next input."""
            images = next(self.left, None)
            return None if images is None else {"images": images}

    for index, node in enumerate(model.graph.node):
        node.name = node.name or f"node_{index}"
    outside = [node.name for node in model.graph.node if not _in_network(node)]
    target = path.with_name(f"{path.stem}.int8.onnx")
    try:
        with _quiet():
            quantize_static(
                model,
                target,
                Reader(),
                quant_format=QuantFormat.QDQ,
                per_channel=True,
                op_types_to_quantize=list(PRODUCTS),
                nodes_to_exclude=outside,
                # CalibMaxIntermediateOutputs would drop inputs, and saves little: only minima and maxima are kept.
                extra_options={"MatMulConstBOnly": True},
            )
        return onnx.load(target)
    finally:
        target.unlink(missing_ok=True)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Hide warnings and messages of the exporters that a user cannot act on; onnxruntime uses the root logger."""
    loggers = [logging.getLogger(name) for name in (None, "torch.onnx", "onnxscript", "onnx_ir", "torch.export")]
    levels = [logger.level for logger in loggers]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)


def _short(error: BaseException) -> str:
    """The first lines of an error of torch, which may be pages long, and of its cause."""
    root = error
    while root.__cause__ is not None:
        root = root.__cause__
    text = f"{type(root).__name__}: {root}"
    lines = [line.strip() for line in re.sub(r"\x1b\[[0-9;]*m", "", text).splitlines() if line.strip()]
    return " ".join(lines[:3])[:600]
