"""An unpickler that runs nothing from a file, and allocates little more than its size.

Only the pickle steps that checkpoints contain are executed, each on the types it is meant for, and all are counted.
"""

from __future__ import annotations

import pickle
import re
from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Callable, Iterable
from typing import Any, BinaryIO, ClassVar

import numpy as np
import torch
from mmengine.logging import HistoryBuffer

from mmgcvit.checkpoint.limits import MAX_OBJECTS, MIB, RefusedError
from mmgcvit.checkpoint.stand_ins import (
    Holder,
    Name,
    Storage,
    check_byte_order,
    check_int,
    check_key,
    known_names,
    refused,
    set_array,
    set_history,
)
from mmgcvit.compat import PythonUnpickler

_LONGEST_INT = 32  # bytes


def _refuse(code: int) -> Callable[[Any], None]:
    def step(_: Any) -> None:
        raise refused(f"the pickle step {chr(code)!r}")

    return step


def _metered(step: Callable[[Any], None], cost: int) -> Callable[[Any], None]:
    def run(unpickler: Any) -> None:
        unpickler.left -= cost
        if unpickler.left < 0:
            raise RefusedError("its pickle creates more objects than any checkpoint has")
        step(unpickler)

    return run


_STEPS = (
    "PROTO", "FRAME", "STOP", "MARK", "POP", "POP_MARK", "NONE", "NEWTRUE", "NEWFALSE", "BININT", "BININT1",
    "BININT2", "LONG1", "LONG4", "BINFLOAT", "SHORT_BINSTRING", "BINSTRING", "SHORT_BINUNICODE", "BINUNICODE",
    "BINUNICODE8", "SHORT_BINBYTES", "BINBYTES", "BINBYTES8", "EMPTY_TUPLE", "TUPLE", "TUPLE1", "TUPLE2", "TUPLE3",
    "EMPTY_LIST", "APPEND", "APPENDS", "EMPTY_DICT", "SETITEM", "SETITEMS", "EMPTY_SET", "ADDITEMS", "FROZENSET",
    "BINGET", "LONG_BINGET", "BINPUT", "LONG_BINPUT", "MEMOIZE", "GLOBAL", "STACK_GLOBAL", "BINPERSID", "REDUCE",
    "NEWOBJ", "NEWOBJ_EX", "BUILD",
)  # fmt: skip
_COST = 96  # bytes of a small object with its place in a container or in the memo
_COSTS = dict(EMPTY_DICT=256, EMPTY_SET=256, FROZENSET=256, BINPERSID=512, REDUCE=1024, NEWOBJ=512, NEWOBJ_EX=512)


class RestrictedUnpickler(PythonUnpickler):
    """Unpickler for checkpoints: a file can neither run code nor allocate much more memory than its size.

    Args:
        file: the pickle.
        size: of the whole file that it belongs to, in bytes.
        storage_of: (kind, key, number of elements, what else the file says) -> a storage of the file.
    """

    dispatch: ClassVar[dict] = {code: _refuse(code) for code in PythonUnpickler.dispatch}

    def __init__(self, file: BinaryIO, size: int, storage_of: Callable[..., Storage] | None = None) -> None:
        super().__init__(file, encoding="latin1")
        self.left = MAX_OBJECTS + size
        self.names, self.storage_of = known_names(size), storage_of

    def find_class(self, module: str, name: str) -> Any:
        """Return what stands for a name."""
        old = {"__builtin__": "builtins", "numpy._core.multiarray": "numpy.core.multiarray"}
        try:
            return self.names[f"{old.get(module, module)}.{name}"]
        except KeyError:
            raise refused(f"{module[:100]}.{name[:100]}") from None

    def persistent_load(self, pid: Any) -> Storage:
        """Return the storage that a file refers to."""
        if self.storage_of is None or not isinstance(pid, tuple) or len(pid) < 5 or pid[0] != "storage":
            raise refused("something other than a storage outside of its pickle")
        _, kind, key, _, count = pid[:5]
        if not isinstance(kind, Name) or not isinstance(kind.value, torch.dtype) or not isinstance(key, str):
            raise refused("a storage without a type and name")
        check_int("number of elements", count)
        return self.storage_of(kind.value, key, count, *pid[5:])

    # Steps that differ from those of the base class

    def load_reduce(self) -> None:
        """Call a function of ours."""
        args = self.stack.pop()
        self.stack[-1] = self._call(self.stack[-1], args)

    def load_newobj(self) -> None:
        """Create an object of a class of ours."""
        args = self.stack.pop()
        self.stack[-1] = self._call(self.stack[-1], args)

    def load_newobj_ex(self) -> None:
        """Like :meth:`load_newobj`; keyword arguments are of placeholders only, which discard them."""
        self.stack.pop()
        self.load_newobj()

    def _call(self, function: Any, args: Any) -> Any:
        if isinstance(function, Name) and function.value is Holder:
            return function()
        if not isinstance(function, Name) or not isinstance(args, tuple):
            raise refused(f"a call of a {type(function).__name__}")
        try:
            return function(*args)
        except TypeError as error:
            raise refused(f"a call of {function.name} with other arguments ({error})") from error

    def load_build(self) -> None:
        """Set the state of an object, but never that of a class or function."""
        state = self.stack.pop()
        target = self.stack[-1]
        kind = type(target)
        if kind is Holder:
            target.state = state
        elif kind is OrderedDict:
            if isinstance(state, dict) and isinstance(versions := state.get("_metadata"), dict):
                target._metadata = versions
        elif kind is np.ndarray:
            set_array(target, state)
        elif isinstance(target, np.dtype):
            check_byte_order(state)
        elif kind is HistoryBuffer:
            set_history(target, state)
        else:
            raise refused(f"a change to {target.name if kind is Name else f'a {kind.__name__}'}")

    def load_append(self) -> None:
        """Append a value to a list."""
        value = self.stack.pop()
        self._extend(self.stack[-1], [value])

    def load_appends(self) -> None:
        """Append values to a list."""
        values = self.pop_mark()
        self._extend(self.stack[-1], values)

    @staticmethod
    def _extend(target: Any, values: Iterable[Any]) -> None:
        if type(target) in (list, deque):
            target.extend(values)
        elif type(target) is not Holder:  # which discards them
            raise refused(f"items for a {type(target).__name__}")

    def load_setitem(self) -> None:
        """Set an item of a dict."""
        value, key = self.stack.pop(), self.stack.pop()
        self._set_items([key, value])

    def load_setitems(self) -> None:
        """Set items of a dict."""
        self._set_items(self.pop_mark())

    def _set_items(self, items: list[Any]) -> None:
        target = self.stack[-1]
        if type(target) not in (dict, OrderedDict, defaultdict, Counter, Holder):
            raise refused(f"items for a {type(target).__name__}")
        for key, value in zip(items[::2], items[1::2], strict=True):
            target[check_key(key)] = value

    def load_additems(self) -> None:
        """Add items to a set."""
        items = self.pop_mark()
        if type(self.stack[-1]) is not set:
            raise refused(f"items for a {type(self.stack[-1]).__name__}")
        self.stack[-1].update(map(check_key, items))

    def load_frozenset(self) -> None:
        """Create a frozenset."""
        self.append(frozenset(map(check_key, self.pop_mark())))

    def load_long1(self) -> None:
        """Read an integer of up to 32 bytes."""
        self._load_int(self.read(1)[0])

    def load_long4(self) -> None:
        """Like :meth:`load_long1`."""
        self._load_int(int.from_bytes(self.read(4), "little"))

    def _load_int(self, length: int) -> None:
        if length > _LONGEST_INT:
            raise refused(f"an integer of {length:,} bytes")
        self.append(int.from_bytes(self.read(length), "little", signed=True))

    def load_binunicode(self) -> None:
        """Read text. A long one holds the bytes of an array: it has no character that would take four bytes."""
        self._load_text(int.from_bytes(self.read(4), "little"))

    def load_binunicode8(self) -> None:
        """Like :meth:`load_binunicode`."""
        self._load_text(int.from_bytes(self.read(8), "little"))

    def _load_text(self, length: int) -> None:
        self._check_length(length)
        data = self.read(length)
        if length > MIB and re.search(rb"[\xc4-\xff]", data):
            raise refused(f"a text of {length:,} bytes")
        self.append(str(data, "utf-8", "surrogatepass"))

    def load_binbytes8(self) -> None:
        """Read bytes."""
        length = int.from_bytes(self.read(8), "little")
        self._check_length(length)
        self.append(self.read(length))

    @staticmethod
    def _check_length(length: int) -> None:
        if length > 1 << 40:
            raise refused(f"a value of {length:,} bytes")

    for _name in _STEPS:
        _code = getattr(pickle, _name)[0]
        dispatch[_code] = _metered(
            locals().get(f"load_{_name.lower()}", PythonUnpickler.dispatch[_code]), _COSTS.get(_name, _COST)
        )
    dispatch[pickle.STOP[0]] = PythonUnpickler.dispatch[pickle.STOP[0]]
    del _name, _code
