"""Opening and running model files: ONNX with onnxruntime, OpenVINO's .xml with openvino."""

from __future__ import annotations

import importlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from mmgcvit.errors import UsageError
from mmgcvit.runtime.metadata import KEY, ModelInfo
from mmgcvit.utils.text import describe

Shape = tuple[int | None, ...]


@dataclass(frozen=True)
class Port:
    """Input or output of a graph; ``name`` may be '', and sizes are None where any is allowed."""

    name: str
    dtype: str
    shape: Shape


class Session(ABC):
    """An opened model file.

    Args:
        file: the file, which exists.
        threads: number of threads; by default the library's choice.

    Attributes:
        info: description of the model.

    Raises:
        UsageError: the file is damaged or was not written by ``mmgcvit export``, or the library is not installed.
    """

    def __init__(self, file: Path, threads: int | None = None) -> None:
        self.file = file
        text, inputs, outputs = self._open(threads)
        self.info = ModelInfo.from_json(text, str(file))
        self._check(inputs, outputs)

    @abstractmethod
    def _open(self, threads: int | None) -> tuple[str | None, Sequence[Port], Sequence[Port]]:
        """Open the file; returns the description, the inputs and the outputs."""

    @abstractmethod
    def _run(self, images: np.ndarray) -> Sequence[np.ndarray]:
        """Return the outputs in the order of the graph."""

    def _check(self, inputs: Sequence[Port], outputs: Sequence[Port]) -> None:
        """Compare the graph with its description."""
        info = self.info
        wanted: Shape = (info.shape[0], info.channels, *info.shape[1:])
        if [(port.dtype, port.shape) for port in inputs] != [(info.dtype, wanted)]:
            raise UsageError(
                f"{self.file}: has the inputs {_listed(inputs)}, which its description does not fit; allowed: one "
                f"input, {_listed([Port('images', info.dtype, wanted)])}"
            )
        names = tuple(port.name or name for port, name in zip(outputs, info.outputs, strict=False))
        if len(outputs) != len(info.outputs) or names != info.outputs:
            raise UsageError(
                f"{self.file}: has the outputs {', '.join(port.name or '?' for port in outputs)}, which its "
                f"description does not fit; allowed: {', '.join(info.outputs)}"
            )

    def __call__(self, images: np.ndarray) -> dict[str, np.ndarray]:
        """Run the model.

        Args:
            images: (B, channels, H, W) of the type and shape that ``info`` says.

        Returns:
            The outputs by name, see :class:`~mmgcvit.runtime.metadata.ModelInfo`.

        Raises:
            UsageError: the type or shape is another one, or the library cannot run the model on this input.
        """
        info = self.info
        wanted: Shape = (info.shape[0], info.channels, *info.shape[1:])
        fits = images.ndim == 4 and all(size in (None, there) for size, there in zip(wanted, images.shape, strict=True))
        if images.dtype != info.dtype or not fits:
            raise UsageError(
                f"images: {images.dtype} of shape {images.shape}; allowed: {_listed([Port('', info.dtype, wanted)])}"
            )
        try:
            outputs = self._run(images)
        except Exception as error:  # the libraries raise errors of their own types
            raise UsageError(f"{self.file}: cannot run on images of shape {images.shape}: {describe(error)}") from error
        return dict(zip(info.outputs, outputs, strict=True))


class OnnxSession(Session):
    """An ONNX file in onnxruntime, on the CPU."""

    def _open(self, threads: int | None) -> tuple[str | None, Sequence[Port], Sequence[Port]]:
        ort: Any = _require("onnxruntime")
        options = ort.SessionOptions()
        options.log_severity_level = 3  # errors
        if threads is not None:
            options.intra_op_num_threads = threads
        self.session = reading(
            self.file, lambda: ort.InferenceSession(str(self.file), options, providers=["CPUExecutionProvider"])
        )

        def ports(nodes: Any) -> list[Port]:
            return [
                Port(
                    node.name,
                    {"float": "float32"}.get(kind := node.type.removeprefix("tensor(").removesuffix(")"), kind),
                    tuple(size if isinstance(size, int) else None for size in node.shape),
                )
                for node in nodes
            ]

        inputs = ports(self.session.get_inputs())
        self.input = inputs[0].name if inputs else ""
        text = self.session.get_modelmeta().custom_metadata_map.get(KEY)
        return text, inputs, ports(self.session.get_outputs())

    def _run(self, images: np.ndarray) -> Sequence[np.ndarray]:
        return self.session.run(None, {self.input: images})


class OpenVinoSession(Session):
    """An OpenVINO model (.xml with a .bin beside it) on the CPU, in float32."""

    def _open(self, threads: int | None) -> tuple[str | None, Sequence[Port], Sequence[Port]]:
        ov: Any = _require("openvino")
        if not (weights := self.file.with_suffix(".bin")).is_file():
            raise UsageError(f"model {str(self.file)!r}: {weights.name}, which has its weights, is not beside it")
        core = ov.Core()
        model = reading(self.file, lambda: core.read_model(str(self.file)))

        def ports(nodes: Any) -> list[Port]:
            return [
                Port(
                    node.get_any_name() if node.get_names() else "",
                    {"f32": "float32", "u8": "uint8"}.get(kind := node.get_element_type().get_type_name(), kind),
                    tuple(size.get_length() if size.is_static else None for size in node.get_partial_shape()),
                )
                for node in nodes
            ]

        text = str(model.get_rt_info(KEY).astype(str)) if model.has_rt_info(KEY) else None
        # On some CPUs the default is bfloat16.
        settings: dict[str, Any] = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": "f32"}
        if threads is not None:
            settings["INFERENCE_NUM_THREADS"] = threads
        self.compiled = reading(self.file, lambda: core.compile_model(model, "CPU", settings))
        return text, ports(model.inputs), ports(model.outputs)

    def _run(self, images: np.ndarray) -> Sequence[np.ndarray]:
        found = self.compiled([images])
        return [np.array(found[i]) for i in range(len(found))]


SESSIONS: dict[str, type[Session]] = {".onnx": OnnxSession, ".xml": OpenVinoSession}


def open_session(file: str | Path, threads: int | None = None) -> Session:
    """Open a model file.

    Args:
        file: .onnx, or OpenVINO's .xml.
        threads: number of threads; by default the library's choice.

    Raises:
        UsageError: the file does not exist, is damaged, or was not written by ``mmgcvit export``; or the library that
            runs it is not installed.
    """
    path = Path(file)
    if path.suffix.lower() not in SESSIONS:
        raise UsageError(f"model {str(file)!r}: suffix {path.suffix!r}; allowed: {', '.join(SESSIONS)}")
    if not path.is_file():
        raise UsageError(f"model {str(file)!r}: no such file")
    if threads is not None and threads < 1:
        raise UsageError(f"threads={threads}; allowed: at least 1")
    return SESSIONS[path.suffix.lower()](path, threads)


def _require(package: str) -> ModuleType:
    try:
        return importlib.import_module(package)
    except ImportError as error:
        missing = isinstance(error, ModuleNotFoundError) and error.name == package
        problem = "not installed" if missing else f"cannot be imported: {describe(error)}"
        raise UsageError(f"{package}: {problem}; run `pip install {package}`") from error


def reading(file: Path, read: Callable[[], Any]) -> Any:
    """Return what a library reads from a file; its errors become a UsageError."""
    try:
        return read()
    except Exception as error:  # the libraries raise errors of their own types
        raise UsageError(f"model {str(file)!r}: cannot be opened; is it damaged? {describe(error)}") from error


def _listed(ports: Sequence[Port]) -> str:
    return ", ".join(
        f"{port.name or 'images'} {port.dtype} ({', '.join('any' if s is None else str(s) for s in port.shape)})"
        for port in ports
    )
