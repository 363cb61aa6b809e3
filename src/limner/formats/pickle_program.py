"""Follow the program in a pickle without running it, as far as a state dict needs it. No torch, and no `pickle` either.

A pickle is a program: it names functions and calls them. `pickle.Unpickler` stays dangerous even where it may look up no name
at all: nine bytes make it ask for 16 GiB (a memo index), 200 bytes keep it busy for ever (the hash of a pair of twice the same
pair, and so on) and 3 MB end the process (the hash of a deep tuple). So the opcodes are followed here: whatever they
name stands for itself, what is built is inert, and what costs more than its opcode is refused. What passes does no harm
to `torch.load(weights_only=True)` either, which really makes the calls and hashes the keys.
"""

from __future__ import annotations

import pickletools
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from math import prod
from typing import Any, TypeGuard

from limner.formats.header import BITS, TensorInfo

MAX_OPCODES = 500_000  # a tensor takes 32; worst cases measured: 2 seconds, 130 MB
_MAX_DIMENSIONS, _MAX_TEXT = 64, 1024
_DTYPES = {
    "torch.float64": "F64", "torch.float32": "F32", "torch.float16": "F16", "torch.bfloat16": "BF16",
    "torch.int64": "I64", "torch.int32": "I32", "torch.int16": "I16", "torch.int8": "I8", "torch.uint8": "U8",
    "torch.uint64": "U64", "torch.uint32": "U32", "torch.uint16": "U16", "torch.bool": "BOOL", "torch.complex64": "C64",
    "torch.float8_e4m3fn": "F8_E4M3", "torch.float8_e5m2": "F8_E5M2", "torch.float8_e8m0fnu": "F8_E8M0",
    "torch.float8_e4m3fnuz": "F8_E4M3FNUZ", "torch.float8_e5m2fnuz": "F8_E5M2FNUZ",
}  # fmt: skip
_STORAGES = {
    "torch.DoubleStorage": "F64", "torch.FloatStorage": "F32", "torch.HalfStorage": "F16", "torch.BFloat16Storage": "BF16",
    "torch.LongStorage": "I64", "torch.IntStorage": "I32", "torch.ShortStorage": "I16", "torch.CharStorage": "I8",
    "torch.ByteStorage": "U8", "torch.BoolStorage": "BOOL", "torch.ComplexFloatStorage": "C64",
    "torch.storage.UntypedStorage": "U8",
}  # fmt: skip
_CALLS = {
    "collections.OrderedDict", "torch._utils._rebuild_tensor_v2", "torch._utils._rebuild_tensor_v3",
    "torch._utils._rebuild_parameter", "torch.Size", "torch.device", "_codecs.encode",
}  # fmt: skip
# What trainers leave beside the weights (a step as a numpy number, Lightning's callbacks): never theirs, always `Inert`.
_BESIDE = re.compile(
    r"numpy\.(dtype|ndarray)|numpy\.(core|_core)\.multiarray\.(scalar|_reconstruct)|pytorch_lightning\.callbacks(\.\w+)+"
)


class Unusable(Exception):
    """What is wrong with a file, in words that can follow its name and a colon."""


class Forbidden(Exception):
    """The program names something that a state dict has no need of. The argument is the name, such as "os.system"."""


class Inert:
    """Stands for an object of which nothing is wanted: takes whatever it is given, and keeps none of it."""

    def __init__(self, *given: object) -> None:
        pass

    def __setstate__(self, state: object) -> None:
        pass


@dataclass(frozen=True, slots=True)
class _Name:
    path: str


@dataclass(frozen=True, slots=True)
class _Storage:
    dtype: str
    count: int


_MARK = object()


@dataclass
class Program:
    """Follows the pickle `code`; `sizes` are the bytes of each storage that it may refer to, by key.

    `result` is what it builds, of which dicts are dicts and tensors `TensorInfo`; `beside` are the names that have to be
    `Inert`. Raises Forbidden and Unusable.
    """

    code: bytes
    sizes: Mapping[str, int]
    result: Any = None
    beside: set[str] = field(default_factory=set)
    _stack: list[Any] = field(default_factory=list)
    _memo: dict[int, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        is_late = False
        try:
            for number, (opcode, argument, _) in enumerate(pickletools.genops(self.code)):
                if number >= MAX_OPCODES:
                    raise Unusable(f"its list of tensors takes more than {MAX_OPCODES} steps to build")
                is_late |= opcode.proto > 3
                self._step(opcode.name, argument)
            self.result = self._pop()
        except (IndexError, KeyError, ValueError):  # an empty stack, an empty place of the memo, half an opcode
            raise Unusable("its list of tensors is damaged") from None
        if is_late:
            raise Unusable("it was saved with a pickle protocol that PyTorch does not read safely")

    def _step(self, opcode: str, argument: Any) -> None:
        if opcode in _PUSHED:
            self._stack.append(argument)
        elif opcode in _NEW:
            self._stack.append(_NEW[opcode]())
        elif opcode in _HANDLERS:
            _HANDLERS[opcode](self, argument)
        elif opcode not in _SKIPPED:
            raise Unusable(f"its list of tensors uses pickle's {opcode}, which PyTorch never writes")

    def _top(self) -> Any:
        if self._stack[-1] is _MARK:
            raise IndexError  # a mark is the bottom of a stack of its own
        return self._stack[-1]

    def _pop(self) -> Any:
        self._top()
        return self._stack.pop()

    def _since_mark(self) -> list[Any]:
        items = []
        while (item := self._stack.pop()) is not _MARK:
            items.append(item)
        return items[::-1]

    def _name(self, path: str) -> None:
        if _BESIDE.fullmatch(path):
            self.beside.add(path)
        elif path not in _CALLS and path not in _STORAGES and path not in _DTYPES:
            raise Forbidden(path)
        self._stack.append(_Name(path))

    def _name_of_two(self, _: None) -> None:
        name, module = self._pop(), self._pop()
        is_short = all(isinstance(part, str) and len(part) <= _MAX_TEXT for part in (module, name))
        self._name(f"{module}.{name}" if is_short else "something without a name")

    def _get(self, index: int) -> None:
        self._stack.append(self._memo[index])

    def _put(self, index: int | None) -> None:
        self._memo[len(self._memo) if index is None else index] = self._top()

    def _tuple(self, length: int) -> None:
        self._stack.append(tuple([self._pop() for _ in range(length)][::-1]))

    def _append(self, items: list[Any]) -> None:
        if not isinstance(self._top(), list):
            raise Unusable("its list of tensors appends to what is no list")
        self._top().extend(items)

    def _set(self, items: list[Any]) -> None:
        table = self._top()
        if not isinstance(table, dict) or len(items) % 2:
            raise Unusable("its list of tensors fills what is no table")
        for key, value in zip(items[::2], items[1::2], strict=True):
            # nothing whose hash takes long or can be made to collide
            if not (key is None or isinstance(key, str | _Name) or (isinstance(key, int) and abs(key) < 1 << 60)):
                raise Unusable("its list of tensors has a key that is neither a text nor a number")
            table[key] = value

    def _build(self, _: None) -> None:
        state, built = self._pop(), self._top()
        if isinstance(built, Inert):
            return
        if not isinstance(built, dict) or not isinstance(state, dict) or not state.keys() <= {"_metadata"}:
            raise Unusable("its list of tensors gives attributes to what has none")

    def _new(self, _: None) -> None:
        arguments, made = self._pop(), self._pop()
        if not isinstance(made, _Name) or made.path not in self.beside or not isinstance(arguments, tuple):
            raise Unusable("its list of tensors makes an object that has no class")
        self._stack.append(Inert())

    def _call(self, _: None) -> None:
        arguments, called = self._pop(), self._pop()
        if not isinstance(called, _Name) or not isinstance(arguments, tuple):
            raise Unusable("its list of tensors calls what is no function")
        self._stack.append(Inert() if called.path in self.beside else _result(called.path, arguments))

    def _storage(self, _: None) -> None:
        match self._pop():
            case ("storage", _Name(path), str(key), str(), int(count)) if path in _STORAGES and key in self.sizes:
                dtype = _STORAGES[path]
            case _:
                raise Unusable("it lacks numbers that its list of tensors names")
        if count * BITS[dtype] != self.sizes[key] * 8:
            raise Unusable(f"it has {self.sizes[key]} bytes of numbers where its list of tensors tells of {count} {dtype}")
        self._stack.append(_Storage(dtype, count))


_PUSHED = {"BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT", "BINUNICODE", "SHORT_BINUNICODE", "SHORT_BINSTRING"}
_NEW = {
    "NONE": lambda: None, "NEWTRUE": lambda: True, "NEWFALSE": lambda: False,
    "EMPTY_TUPLE": tuple, "EMPTY_LIST": list, "EMPTY_DICT": dict, "MARK": lambda: _MARK,
}  # fmt: skip
_SKIPPED = {"PROTO", "FRAME", "STOP"}
_HANDLERS: Mapping[str, Any] = {
    "GLOBAL": lambda program, text: program._name(text.replace(" ", ".", 1)),
    "STACK_GLOBAL": Program._name_of_two,
    "BINGET": Program._get,
    "LONG_BINGET": Program._get,
    "BINPUT": Program._put,
    "LONG_BINPUT": Program._put,
    "MEMOIZE": Program._put,
    "TUPLE1": lambda program, _: program._tuple(1),
    "TUPLE2": lambda program, _: program._tuple(2),
    "TUPLE3": lambda program, _: program._tuple(3),
    "TUPLE": lambda program, _: program._stack.append(tuple(program._since_mark())),
    "APPEND": lambda program, _: program._append([program._pop()]),
    "APPENDS": lambda program, _: program._append(program._since_mark()),
    "SETITEM": lambda program, _: program._set([program._pop(), program._pop()][::-1]),
    "SETITEMS": lambda program, _: program._set(program._since_mark()),
    "BUILD": Program._build,
    "NEWOBJ": Program._new,
    "REDUCE": Program._call,
    "BINPERSID": Program._storage,
}


def _result(called: str, arguments: tuple[Any, ...]) -> Any:
    """What a call gives; only with the arguments that PyTorch writes. (As a pattern, {} would match every table.)"""
    match called, arguments:
        case "collections.OrderedDict", ():
            return {}
        case "torch._utils._rebuild_tensor_v2", (_Storage() as storage, offset, shape, strides, bool(), hooks) if hooks == {}:
            return _tensor(storage.dtype, storage.count, offset, shape, strides)
        case "torch._utils._rebuild_tensor_v3", (
            _Storage() as storage,
            offset,
            shape,
            strides,
            bool(),
            {},
            _Name(dtype),
            *rest,
        ):
            if dtype in _DTYPES and not any(rest):
                found = _DTYPES[dtype]
                return _tensor(found, storage.count * BITS[storage.dtype] // BITS[found], offset, shape, strides)
        case "torch._utils._rebuild_parameter", (TensorInfo() as tensor, bool(), hooks) if hooks == {}:
            return tensor
        case "torch.Size", (tuple() | list() as shape,) if _counts(tuple(shape[: _MAX_DIMENSIONS + 1])):
            return tuple(shape)
        case ("torch.device", (str() as text,) | (str() as text, int())) if len(text) <= _MAX_TEXT:
            return Inert()
        case "_codecs.encode", (str() as text, "latin1") if len(text) <= _MAX_TEXT:
            return Inert()
    raise Unusable(f"its list of tensors calls {called} in a way that PyTorch does not")


def _tensor(dtype: str, count: int, offset: Any, shape: Any, strides: Any) -> TensorInfo:
    """A view of a storage of `count` numbers, if it lies within."""
    if _counts(shape) and _counts(strides) and len(shape) == len(strides) and _counts((offset,)):
        last = sum((length - 1) * stride for length, stride in zip(shape, strides, strict=True))
        if 0 in shape or (prod(shape) <= count and offset + last < count):
            return TensorInfo(dtype, shape)
    raise Unusable("its list of tensors has one that reaches beyond its numbers")


def _counts(value: object) -> TypeGuard[tuple[int, ...]]:
    return (
        isinstance(value, tuple) and len(value) <= _MAX_DIMENSIONS and all(type(i) is int and 0 <= i < 1 << 62 for i in value)
    )
