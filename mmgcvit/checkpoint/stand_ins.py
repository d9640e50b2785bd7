"""What stands for the names in a checkpoint: functions of our own, which check every value from the file.

Names in a file are never imported, and no function of another library gets values before they have been checked.
"""

from __future__ import annotations

import re
from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from mmengine.logging import HistoryBuffer
from torch import Tensor, nn

from mmgcvit.checkpoint.limits import MAX_DIMS, RefusedError, largest_contents

_REFUSED = "the file asks for {}, which no checkpoint needs: refused without executing anything"
_LARGEST_KEY = 1 << 31


def refused(what: str) -> RefusedError:
    """Return the error about something that a file asks for."""
    return RefusedError(_REFUSED.format(what))


class Holder(dict):
    """Placeholder for a settings object in a file; no code of the real class runs.

    Args:
        name: name of the class.
    """

    state: object = None

    def __init__(self, name: str = "") -> None:
        super().__init__()
        self.name = name

    def __reduce__(self) -> tuple[type, tuple[dict]]:
        """Become a plain dict in a copy or another file, such as the next checkpoint of a resumed run."""
        return dict, ({**self, **(self.state if isinstance(self.state, dict) else {})},)


class Name:
    """A name in a file: what the file may use as an argument, and may call if there is a function of ours for it."""

    def __init__(self, name: str, function: Callable[..., Any] | None = None, value: Any = None) -> None:
        self.name, self.function, self.value = name, function, value

    def __repr__(self) -> str:
        return self.name

    def __reduce__(self) -> tuple[type, tuple[str]]:
        """Become text in a copy or another file, if a name is left among the contents."""
        return str, (self.name,)

    def __call__(self, *args: Any) -> Any:
        """Call our function for the name."""
        if self.function is None:
            raise refused(f"a call of {self.name}")
        return self.function(*args)


class Storage:
    """Numbers of a file, from which tensors are made: bytes, and the type that the file gives them."""

    def __init__(self, data: Tensor, dtype: torch.dtype) -> None:
        self.data, self.dtype = data, dtype


# Functions that stand in for those named in files. Tensors

_NUMBERS = {
    f"{kind}Storage": dtype
    for kind, dtype in dict(
        Double=torch.float64, Float=torch.float32, Half=torch.float16, BFloat16=torch.bfloat16, Long=torch.int64,
        Int=torch.int32, Short=torch.int16, Char=torch.int8, Byte=torch.uint8, Bool=torch.bool,
        ComplexDouble=torch.complex128, ComplexFloat=torch.complex64, Untyped=torch.uint8).items()
}  # fmt: skip
_DTYPES = {name: value for name, value in vars(torch).items() if isinstance(value, torch.dtype)}


def check_int(what: str, *values: Any) -> None:
    """Refuse values that are not integers from 0."""
    for value in values:
        if type(value) is not int or not 0 <= value < 1 << 62:
            raise refused(f"a tensor with an impossible {what}")


def _tensor(storage: Any, offset: Any, size: Any, stride: Any, dtype: torch.dtype | None = None) -> Tensor:
    """A view of a storage; it lies inside of the storage."""
    if not isinstance(storage, Storage) or not isinstance(size, tuple) or not isinstance(stride, tuple):
        raise refused("a tensor without a storage, size or stride")
    if len(size) != len(stride) or len(size) > MAX_DIMS:
        raise refused(f"a tensor with {len(size)} dimensions and {len(stride)} strides")
    check_int("size, stride or offset", offset, *size, *stride)
    dtype = dtype or storage.dtype
    count, last = 1, offset
    for length, step in zip(size, stride, strict=True):
        count, last = count * length, last + (length - 1) * step
    if count and (last + 1) * dtype.itemsize > storage.data.numel():
        raise refused("a tensor beyond the end of its storage")
    if not count:
        return torch.empty(size, dtype=dtype, device=storage.data.device)
    return torch.empty(0, dtype=dtype, device=storage.data.device).set_(
        storage.data.untyped_storage(), offset, size, stride
    )


class _Tensors:
    """The functions of ``torch._utils`` for one file, which limit the size of each tensor."""

    def __init__(self, size: int) -> None:
        self.most = largest_contents(size)

    def plain(self, storage: Any, offset: Any, size: Any, stride: Any, *_: Any) -> Tensor:
        return self._check(_tensor(storage, offset, size, stride))

    def v2(self, storage: Any, offset: Any, size: Any, stride: Any, requires_grad: Any = False, *more: Any) -> Tensor:
        """Like ``_rebuild_tensor_v2``; its hooks are ignored."""
        if len(more) > 1 and more[1]:
            raise refused("a tensor with lazy conjugation or negation")
        return self.plain(storage, offset, size, stride).requires_grad_(requires_grad is True)

    def v3(self, storage: Any, offset: Any, size: Any, stride: Any, grad: Any, _: Any, dtype: Any, *__: Any) -> Tensor:
        """Like ``_rebuild_tensor_v3``, for types without a storage class."""
        if not isinstance(dtype, torch.dtype):
            raise refused("a tensor without a type")
        return self._check(_tensor(storage, offset, size, stride, dtype)).requires_grad_(grad is True)

    def meta(self, dtype: Any, size: Any, stride: Any, requires_grad: Any) -> Tensor:
        """A tensor without values."""
        if not isinstance(dtype, torch.dtype) or not isinstance(size, tuple) or len(size) > MAX_DIMS:
            raise refused("a tensor without a type or size")
        check_int("size", *size)
        return self._check(torch.empty(size, dtype=dtype, device="meta"))

    def _check(self, tensor: Tensor) -> Tensor:
        claimed = tensor.numel() * tensor.element_size()
        if claimed > self.most:
            raise RefusedError(f"a tensor in it claims {claimed:,} bytes")
        return tensor


def _parameter(data: Any, requires_grad: Any = True, *_: Any) -> nn.Parameter:
    if not isinstance(data, Tensor):
        raise refused("a parameter without a tensor")
    return nn.Parameter(data.detach(), requires_grad=requires_grad is True)


def _subclass(rebuild: Any, _: Any, args: Any, *__: Any) -> Any:
    """A tensor with attributes, which are ignored."""
    if not isinstance(rebuild, Name) or not rebuild.name.startswith("torch._utils.") or not isinstance(args, tuple):
        raise refused("a tensor subclass")
    return rebuild(*args)


def _size(values: Any = ()) -> torch.Size:
    if not isinstance(values, (tuple, list)):
        raise refused("a torch.Size without numbers")
    check_int("size", *values)
    return torch.Size(values)


def _device(kind: Any, index: Any = None) -> torch.device:
    if not isinstance(kind, str) or not isinstance(index, (int, type(None))) or len(kind) > 32:
        raise refused("a torch.device without a name")
    return torch.device(kind) if index is None else torch.device(kind, index)


# NumPy values: numbers of at most 16 bytes, whatever else a file says about their type


def _dtype(text: Any, *_: Any) -> np.dtype:
    if not isinstance(text, str) or not re.fullmatch(r"[<=|]?[biufc](1|2|4|8|16)", text):
        raise refused(f"NumPy values of the type {text!r:.40}; allowed: numbers")
    return np.dtype(text)


def _raw(data: Any) -> bytes:
    if isinstance(data, str):  # written by Python 2
        return data.encode("latin1")
    if not isinstance(data, (bytes, bytearray)):
        raise refused("NumPy values without data")
    return bytes(data)


def _scalar(dtype: Any, data: Any = b"") -> Any:
    raw = _raw(data)
    if not isinstance(dtype, np.dtype) or len(raw) != dtype.itemsize:
        raise refused("a NumPy number without a type and value")
    return np.frombuffer(raw, dtype)[0]


def set_array(array: np.ndarray, state: Any) -> None:
    """Set shape, type and values of an array, all of which the file has."""
    if not isinstance(state, tuple) or len(state) != 5:
        raise refused("a NumPy array without a state")
    _, shape, dtype, is_fortran, data = state
    if not isinstance(shape, tuple) or len(shape) > MAX_DIMS // 2 or not isinstance(dtype, np.dtype):
        raise refused("a NumPy array without a shape and type")
    check_int("shape", *shape)
    raw, count = _raw(data), 1
    for length in shape:
        count *= length
    if count * dtype.itemsize != len(raw):
        raise refused(f"a NumPy array of {count * dtype.itemsize:,} bytes that has {len(raw):,}")
    # numpy's annotation of the flag is np.bool
    array.__setstate__((1, shape, dtype, is_fortran is True, raw))  # type: ignore[arg-type]


def check_byte_order(state: Any) -> None:
    """Refuse the state of a NumPy type that is not in the byte order of the machine; the rest of it is ignored."""
    if not isinstance(state, tuple) or len(state) < 2 or state[1] not in ("<", "|", "="):
        raise refused("NumPy values in another byte order")


# Containers and the rest


def check_key(key: Any) -> Any:
    """Return a key of a dict or an item of a set whose hash takes little time and cannot be made to collide."""
    if type(key) in (str, bytes, bool, type(None)) or (type(key) is int and abs(key) < _LARGEST_KEY):
        return key
    raise refused(f"a {type(key).__name__} as a key; allowed: text, and integers below {_LARGEST_KEY:,}")


def _filled(target: dict, items: Any = ()) -> Any:
    """Put (key, value) pairs, or the items of a dict, into a dict."""
    for pair in items.items() if isinstance(items, dict) else _sequence(items):
        if not isinstance(pair, (tuple, list)) or len(pair) != 2:
            raise refused("a dict without pairs")
        target[check_key(pair[0])] = pair[1]
    return target


def _sequence(items: Any) -> Any:
    if not isinstance(items, (list, tuple, set, frozenset, deque)):
        raise refused(f"a container of a {type(items).__name__}")
    return items


def _default_dict(factory: Any = None, items: Any = ()) -> defaultdict:
    known = factory.value if isinstance(factory, Name) and isinstance(factory.value, type) else None
    return _filled(defaultdict(known), items)


def _counter(items: Any = ()) -> Counter:
    return _filled(Counter(), items)


def _deque(items: Any = (), length: Any = None) -> deque:
    if type(length) is not int:
        length = None
    return deque(_sequence(items), length)


def _set(items: Any = ()) -> set:
    return set(map(check_key, _sequence(items)))


def _latin1(text: Any, encoding: Any = "latin1") -> bytes:
    if not isinstance(text, str) or encoding not in ("latin1", "latin-1"):
        raise refused(f"an encoding {encoding!r:.40}; allowed: 'latin1'")
    return text.encode("latin1")


def _bytes(data: Any = b"", encoding: Any = "latin1") -> bytes:
    return data if isinstance(data, bytes) else _latin1(data, encoding)


def _complex(real: Any, imaginary: Any) -> complex:
    if not isinstance(real, float) or not isinstance(imaginary, float):
        raise refused("a complex number without two numbers")
    return complex(real, imaginary)


def _attribute(holder: object, *_: object) -> Holder:
    """``getattr``, by which mmengine's HistoryBuffer refers to its own methods."""
    if not isinstance(holder, Name) or holder.value not in (Holder, HistoryBuffer):
        raise refused("builtins.getattr")
    return Holder()


def set_history(history: HistoryBuffer, state: Any) -> None:
    """Set the values of a loss curve; its methods are those of the class."""
    values = [state.get(f"_{name}_history") if isinstance(state, dict) else None for name in ("log", "count")]
    length = state.get("_max_length", state.get("max_length")) if isinstance(state, dict) else None
    if type(length) is not int or not all(isinstance(x, np.ndarray) and x.ndim == 1 for x in values):
        raise refused("a HistoryBuffer without values")
    history.__init__(*values, max_length=length)


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
    "omegaconf.dictconfig": ("DictConfig",),
    "omegaconf.listconfig": ("ListConfig",),
    "timm.utils.model_ema": ("ModelEma", "ModelEmaV2"),
    # tensors that are no weights
    "torch._utils": ("_rebuild_sparse_tensor", "_rebuild_qtensor", "_rebuild_nested_tensor"),
}


def known_names(size: int) -> dict[str, Any]:
    """What stands for the names in a file, by ``module.name``.

    Args:
        size: of the file, in bytes.
    """
    tensors = _Tensors(size)
    functions: dict[str, Callable[..., Any] | None] = {
        "torch._utils._rebuild_tensor": tensors.plain,
        "torch._utils._rebuild_tensor_v2": tensors.v2,
        "torch._utils._rebuild_tensor_v3": tensors.v3,
        "torch._utils._rebuild_meta_tensor_no_storage": tensors.meta,
        "torch._utils._rebuild_parameter": _parameter,
        "torch._utils._rebuild_parameter_with_state": _parameter,
        "torch._tensor._rebuild_from_type_v2": _subclass,
        "torch.Size": _size, "torch.device": _device, "torch.Tensor": None, "torch._tensor.Tensor": None,
        "torch.nn.parameter.Parameter": None, "torch.storage.UntypedStorage": None, "torch.storage.TypedStorage": None,
        "numpy.ndarray": None, "numpy.dtype": _dtype,
        "numpy.core.multiarray._reconstruct": lambda *_: np.empty(0, np.uint8),
        "numpy.core.multiarray.scalar": _scalar,
        "collections.OrderedDict": lambda *items: _filled(OrderedDict(), *items),
        "collections.defaultdict": _default_dict, "collections.Counter": _counter, "collections.deque": _deque,
        "_codecs.encode": _latin1,
        "builtins.getattr": _attribute, "builtins.complex": _complex, "builtins.bytes": _bytes,
        "builtins.bytearray": lambda *data: bytearray(_bytes(*data)),
        "builtins.set": _set, "builtins.frozenset": lambda *items: frozenset(_set(*items)),
    }  # fmt: skip
    known: dict[str, Any] = {name: Name(name, function) for name, function in functions.items()}
    known |= {f"torch.{name}": Name(f"torch.{name}", value=dtype) for name, dtype in _NUMBERS.items()}
    known |= {f"torch.cuda.{name}": Name(f"torch.cuda.{name}", value=dtype) for name, dtype in _NUMBERS.items()}
    known["torch.storage.UntypedStorage"] = known["torch.UntypedStorage"]
    known |= {f"torch.{name}": dtype for name, dtype in _DTYPES.items()}
    known |= {
        f"builtins.{kind.__name__}": Name(f"builtins.{kind.__name__}", kind_of, kind)
        for kind, kind_of in ((int, None), (float, None), (bool, None), (list, lambda *x: list(_sequence(*x or ((),)))),
                              (dict, lambda *x: _filled({}, *x)), (tuple, lambda *x: tuple(_sequence(*x or ((),)))))
    }  # fmt: skip
    known["mmengine.logging.history_buffer.HistoryBuffer"] = Name(
        "HistoryBuffer", lambda *_: HistoryBuffer(), HistoryBuffer
    )
    settings = [f"{module}.{name}" for module, names in _HOLDERS.items() for name in names]
    known |= {name: Name(name, lambda *_, name=name: Holder(name), Holder) for name in settings}
    return known


def find_placeholders(found: object) -> dict[str, str]:
    """Names of the classes of all placeholders in the contents of a file, by their place, such as ``meta.args``."""
    names, seen, waiting = {}, set(), [("", found)]
    while waiting:
        place, item = waiting.pop()
        if id(item) in seen:
            continue
        seen.add(id(item))
        if isinstance(item, Holder):
            names[place] = item.name
        elif isinstance(item, dict):
            waiting += [(f"{place}.{key}".lstrip("."), value) for key, value in item.items()]
        elif isinstance(item, (list, tuple)):
            waiting += [(f"{place}[{i}]", value) for i, value in enumerate(item)]
    return names
