"""Reading of checkpoint files without executing code from them."""

from __future__ import annotations

import math
import os
import pickle
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from mmgcvit.compat import PythonUnpickler
from mmgcvit.errors import CheckpointError

# Unpickling can call any function that the file names. Files that torch's safe loader refuses are read by an unpickler
# with an allow-list: constructors of tensors and NumPy values, which are harmless, and settings objects, which are
# replaced by inert placeholders.
_BUILDERS = {
    "collections": ("OrderedDict", "defaultdict", "Counter", "deque"),
    "torch._utils": ("_rebuild_tensor", "_rebuild_tensor_v2", "_rebuild_parameter", "_rebuild_parameter_with_state"),
    "torch": ("Size", "device", "Tensor", "FloatStorage", "HalfStorage", "BFloat16Storage", "DoubleStorage",
              "LongStorage", "IntStorage", "ShortStorage", "CharStorage", "ByteStorage", "BoolStorage",
              "float32", "float16", "bfloat16", "float64", "int64", "int32", "int16", "int8", "uint8", "bool"),
    "torch.nn.parameter": ("Parameter",),
    "torch.storage": ("UntypedStorage", "TypedStorage"),
    "numpy": ("ndarray", "dtype"),
    "numpy.core.multiarray": ("_reconstruct", "scalar"),
    "numpy._core.multiarray": ("_reconstruct", "scalar"),
    "_codecs": ("encode",),
    "builtins": ("int", "float", "bool", "complex", "list", "dict", "tuple", "set", "frozenset"),
}  # fmt: skip
_BUILDERS["__builtin__"] = _BUILDERS["builtins"]  # in pickles of Python 2
_HOLDERS = {
    "argparse": ("Namespace",),
    "types": ("SimpleNamespace",),
    "pathlib": ("Path", "PosixPath", "WindowsPath", "PurePosixPath", "PureWindowsPath"),
    "pathlib._local": ("Path", "PosixPath", "WindowsPath"),
    "yacs.config": ("CfgNode",),
    "easydict": ("EasyDict",),
    "addict.addict": ("Dict",),
    "mmcv.utils.config": ("ConfigDict", "Config"),
    "mmengine.config.config": ("ConfigDict", "Config"),
    "mmengine.logging.history_buffer": ("HistoryBuffer",),
    "omegaconf.dictconfig": ("DictConfig",),
    "omegaconf.listconfig": ("ListConfig",),
    "timm.utils.model_ema": ("ModelEma", "ModelEmaV2"),
}
_REFUSED = "the file asks for {}, which no checkpoint needs: refused without executing anything"


class _Holder(dict):
    """Placeholder for a settings object in a file; no code of the real class runs."""

    def __new__(cls, *args: Any, **kwargs: Any) -> _Holder:
        return super().__new__(cls)

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__()

    def __setstate__(self, state: object) -> None:
        self.state = state

    def append(self, _: object) -> None:
        """Discard an item of a pickled list."""

    def extend(self, _: object) -> None:
        """Discard items of a pickled list."""


def _attribute_of_holder(holder: object, *_: object) -> _Holder:
    """Replacement for ``getattr``, which mmengine's HistoryBuffer uses to refer to its own methods."""
    if holder is not _Holder:
        raise CheckpointError(_REFUSED.format("builtins.getattr"))
    return _Holder()


def _empty_array(_: type, __: tuple, code: bytes | str) -> np.ndarray:
    """Replacement for NumPy's ``_reconstruct``, which allocates any size although pickles only need an empty array."""
    return np.ndarray((0,), code.decode() if isinstance(code, bytes) else code)


class _Unpickler(PythonUnpickler):
    """Unpickler that resolves only allowed names; a file can neither modify them nor allocate memory through them."""

    dispatch: ClassVar[dict] = dict(PythonUnpickler.dispatch)

    def load_build(self) -> None:
        """Set the state of an object, but never that of a class or function."""
        if not isinstance(self.stack[-2], (dict, list, Tensor, np.ndarray, np.dtype)):
            raise CheckpointError(_REFUSED.format(f"a change to {self.stack[-2]!r}"))
        super().load_build()

    def load_reduce(self) -> None:
        """Call an allowed name, except for classes that are allowed as arguments only."""
        if self.stack[-2] in _ARGUMENTS:
            raise CheckpointError(_REFUSED.format(f"a {self.stack[-2].__name__} of arbitrary size"))
        super().load_reduce()

    def load_newobj(self) -> None:
        """Like :meth:`load_reduce`."""
        if self.stack[-2] in _ARGUMENTS:
            raise CheckpointError(_REFUSED.format(f"a {self.stack[-2].__name__} of arbitrary size"))
        super().load_newobj()

    dispatch[pickle.BUILD[0]] = load_build
    dispatch[pickle.REDUCE[0]] = load_reduce
    dispatch[pickle.NEWOBJ[0]] = load_newobj

    def find_class(self, module: str, name: str) -> Any:
        """Resolve a name through the allow-list."""
        if (module, name) in (("builtins", "getattr"), ("__builtin__", "getattr")):
            return _attribute_of_holder
        if name in _HOLDERS.get(module, ()):
            return _Holder
        if name == "_reconstruct":
            return _empty_array
        if name in _BUILDERS.get(module, ()):
            return super().find_class(module, name)
        raise CheckpointError(_REFUSED.format(f"{module}.{name}"))


def _load(file: Any, **kwargs: Any) -> Any:
    return _Unpickler(file, **kwargs).load()


_ARGUMENTS = (np.ndarray, Tensor, torch.UntypedStorage, torch.storage.TypedStorage)

# Passed to torch.load in place of the module `pickle`.
_RESTRICTED = SimpleNamespace(Unpickler=_Unpickler, load=_load, __name__="restricted pickle")


def read_checkpoint(path: str | os.PathLike, map_location: str | torch.device = "cpu") -> dict[str, Any]:
    """Read a checkpoint: torch's (.pth, .pth.tar, ...), .safetensors or Keras' .h5, detected by content.

    Args:
        path: the file.
        map_location: device for the tensors.

    Returns:
        The contents of the file: a dict of tensors by name, or a dict that contains such a dict among other entries.

    Raises:
        CheckpointError: the file does not exist, is not a checkpoint, is truncated, claims more bytes than it has, or
            asks for code to be executed.
    """
    path = Path(path).expanduser()
    if not path.is_file():
        raise CheckpointError(f"checkpoint {str(path)!r}: no such file")
    size = path.stat().st_size
    with path.open("rb") as file:
        head = file.read(512)
    try:
        if head.startswith(b"\x89HDF\r\n\x1a\n"):
            found = _read_h5(path, size)
        elif head.lstrip()[:1] == b"<":
            raise CheckpointError("it is a web page (HTML or XML), not a checkpoint: check the URL or path")
        elif head.startswith(b"PK\x03\x04"):
            found = _read_torch_zip(path, size)
        elif len(head) > 8 and head[8:9] == b"{":
            found = _read_safetensors(path)
        elif head.startswith(b"\x80"):
            found = _read_torch(path)
        else:
            raise CheckpointError(
                f"not a checkpoint; allowed: torch's .pth, .safetensors, Keras' .h5. It begins with {head[:16]!r}"
            )
    except CheckpointError as error:
        raise CheckpointError(f"checkpoint {str(path)!r} ({size:,} bytes): {error}") from error
    except Exception as error:  # readers do not document what they raise for a damaged file
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        raise CheckpointError(f"checkpoint {str(path)!r} ({size:,} bytes): truncated or damaged ({reason})") from error
    return _to(found, map_location)


def _read_torch_zip(path: Path, size: int) -> Any:
    with zipfile.ZipFile(path) as archive:
        entries = archive.infolist()
        claimed = sum(entry.file_size for entry in entries)
        if claimed > size:
            raise CheckpointError(f"its entries claim {claimed:,} bytes")
        if any(entry.filename.endswith("/constants.pkl") for entry in entries):
            raise CheckpointError("it is a TorchScript program, not weights")
    return _read_torch(path)


def _read_torch(path: Path) -> Any:
    try:
        found = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        if os.environ.get("TORCH_FORCE_WEIGHTS_ONLY_LOAD", "").lower() in ("1", "y", "yes", "true"):
            reason = str(error).splitlines()[0]
            raise CheckpointError(
                f"torch's safe loader refuses it ({reason}), and TORCH_FORCE_WEIGHTS_ONLY_LOAD forbids any other"
            ) from error
        found = torch.load(path, map_location="cpu", weights_only=False, pickle_module=_RESTRICTED)
    # torch 2.1 trusts the storage lengths in a file, which may exceed the allocated memory.
    size = path.stat().st_size
    for tensor in _tensors(found):
        if tensor.is_meta or tensor.layout != torch.strided or tensor.is_nested:
            continue  # not weights; rejected on loading
        # an expanded view may also claim more than its storage
        claimed = max(tensor.untyped_storage().nbytes(), tensor.numel() * tensor.element_size())
        if claimed > size:
            raise CheckpointError(f"a tensor in it claims {claimed:,} bytes")
    return found


def _tensors(found: Any) -> Iterator[Tensor]:
    if isinstance(found, Tensor):
        yield found
    elif isinstance(found, Mapping):
        for value in found.values():
            yield from _tensors(value)
    elif isinstance(found, (list, tuple)):
        for value in found:
            yield from _tensors(value)


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    from safetensors.torch import load_file

    return load_file(path)


def _read_h5(path: Path, size: int) -> dict[str, Tensor]:
    """Tensors of a Keras file by weight name, in Keras' memory layouts."""
    try:
        import h5py
    except ImportError:
        raise CheckpointError("it is a Keras file, but h5py is not installed: pip install h5py") from None

    tensors: dict[str, Tensor] = {}
    claimed = 0

    def visit(group: Any, path: str) -> None:
        for key in group:
            name = f"{path}/{key}" if path else key
            if not isinstance(group.get(key, getlink=True), h5py.HardLink):
                raise CheckpointError(f"{name} is an external link: refused")
            item = group[key]
            if isinstance(item, h5py.Group):
                visit(item, name)
                continue
            if item.is_virtual or item.external:
                raise CheckpointError(f"{name} is stored in external files: refused")
            nonlocal claimed
            claimed += math.prod(item.shape) * item.dtype.itemsize
            if claimed > size:
                raise CheckpointError(f"its data sets claim {claimed:,} bytes or more")
            if item.dtype.kind not in "fiu":
                raise CheckpointError(f"{name} has the type {item.dtype}; allowed: numbers")
            tensors[_weight_name(name)] = torch.from_numpy(item[()])

    with h5py.File(path, "r") as file:
        visit(file.get("model_weights", file), "")  # a saved model has its weights in this group
    if not tensors:
        raise CheckpointError("it is a Keras file without weights")
    return tensors


def _weight_name(path: str) -> str:
    """``a/b/a/b/c:0`` -> ``a/b/c``: Keras stores a weight under its layer's name, followed by its own full name."""
    parts = path.removesuffix(":0").split("/")
    for cut in range(len(parts) // 2, 0, -1):
        if parts[:cut] == parts[cut : 2 * cut]:
            return "/".join(parts[cut:])
    return "/".join(parts)


def _to(found: Any, device: str | torch.device) -> Any:
    if torch.device(device).type == "cpu":
        return found
    if isinstance(found, Tensor):
        return found.to(device)
    if isinstance(found, dict):
        return {key: _to(value, device) for key, value in found.items()}
    return found
