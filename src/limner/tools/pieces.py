"""Tensors that are yet to be read: what is known of each, and how it is made when its turn to be written comes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from math import prod

import torch
from torch import Tensor

from limner.errors import wrong
from limner.formats.header import BITS, TensorInfo
from limner.formats.layout import Names, There
from limner.models.weights import DTYPES, in_model, laid_out

_CHUNK_BYTES = 1 << 24
_NAMES = {dtype: name for name, dtype in DTYPES.items()}


@dataclass(frozen=True)
class Piece:
    """A tensor as it is to be written, but for its precision."""

    info: TensorInfo
    make: Callable[[], Tensor]


@dataclass
class Precision:
    """What numbers become; remembers what did not survive it."""

    dtype: torch.dtype | None
    """None: as they are."""
    overflowed: list[str] = field(default_factory=list)
    """Tensors with numbers that became infinite."""

    def of(self, info: TensorInfo) -> TensorInfo:
        """What a tensor becomes."""
        is_float = info.dtype not in DTYPES or DTYPES[info.dtype].is_floating_point
        return TensorInfo(_NAMES[self.dtype], info.shape) if self.dtype is not None and is_float else info

    def numbers(self, name: str, piece: Piece) -> Iterator[memoryview]:
        """The bytes of a tensor as it is written."""
        tensor, dtype = piece.make(), DTYPES.get(self.of(piece.info).dtype)
        made = tensor if dtype is None else tensor.to(dtype)
        if overflows(tensor, made):
            self.overflowed.append(name)
        flat = made.contiguous().reshape(-1).view(torch.uint8)
        for start in range(0, len(flat), _CHUNK_BYTES):
            yield memoryview(flat[start : start + _CHUNK_BYTES].numpy().data)


def overflows(before: Tensor, after: Tensor) -> bool:
    """Whether numbers became infinite as fp16. 8 bits, which know no `isinf`, hold none that do."""
    is_narrower = after.dtype == torch.float16 and before.dtype != after.dtype and before.itemsize > 1
    return is_narrower and bool((after.isinf() & ~before.isinf()).any())


class OneAtATime:
    """Makes stacked tensors once for all their rows, which are written one after the other."""

    def __init__(self) -> None:
        self._key: object = None
        self._made: Tensor | None = None

    def get(self, key: object, make: Callable[[], Tensor]) -> Tensor:
        if self._key != key or self._made is None:
            self._made = None  # let go of the one before, first
            self._made, self._key = make(), key
        return self._made


def taken(
    shapes: Mapping[str, tuple[int, ...]],
    places: Mapping[str, There],
    weights: Mapping[str, Tensor],
    infos: Mapping[str, TensorInfo],
) -> dict[str, Piece]:
    """A model's own tensors from where they lie in files. Raises UserError if one is missing or of another size."""
    together, one, out = dict[There, list[str]](), OneAtATime(), dict[str, Piece]()
    for name, there in places.items():
        together.setdefault(there, []).append(name)
    if lacking := sorted({there.name for there in together} - weights.keys()):
        said = f"{len(lacking)} tensors are missing, the first is {lacking[0]}."
        raise wrong("convert.file", said, "Give convert.config if it is of unusual shape, or download it again.")
    usual = next(iter(infos.values()))
    for there, members in together.items():
        info, needed = infos.get(there.name, usual), sum(prod(shapes[m]) for m in members)
        if there.name in infos and prod(info.shape) != needed:
            said = f"{there.name} has shape {info.shape}, {needed} numbers are needed."
            raise wrong("convert.file", said, "Give convert.config if it is of unusual shape.")
        counts = [shapes[m][0] if shapes[m] else 1 for m in members]

        def whole(there: There = there) -> Tensor:
            return one.get(there, lambda: in_model(weights, there))

        for i, member in enumerate(members):

            def make(whole=whole, i: int = i, counts: list[int] = counts, shape: tuple[int, ...] = shapes[member]) -> Tensor:
                made = whole()
                return (made.split(counts)[i] if len(counts) > 1 else made).reshape(shape)

            out[member] = Piece(TensorInfo(info.dtype, shapes[member]), make)
    return out


def laid(own: Mapping[str, Piece], names: Names, prefix: str) -> dict[str, Piece]:
    """The inverse: pieces as they lie in a single file, from a model's own."""
    places, together, out = names(own), dict[There, list[str]](), dict[str, Piece]()
    for name, there in places.items():
        together.setdefault(there, []).append(name)
    for there, members in together.items():
        dtype = max((own[m].info.dtype for m in members), key=lambda d: BITS[d])

        def make(there: There = there, members: list[str] = members, dtype: str = dtype) -> Tensor:
            parts = {m: own[m].make() for m in members}
            return laid_out(parts, lambda _: {m: places[m] for m in members}, DTYPES[dtype])[there.name]

        out[prefix + there.name] = Piece(TensorInfo(dtype, _shape([own[m].info.shape for m in members], there)), make)
    return out


def _shape(shapes: list[tuple[int, ...]], there: There) -> tuple[int, ...]:
    shape = (sum(s[0] for s in shapes), *shapes[0][1:]) if len(shapes) > 1 else shapes[0]
    if there.lies == "transposed":
        return shape[::-1]
    return (*shape, 1, 1) if there.lies == "pointwise" and len(shape) == 2 else shape


def filled(tensor: Tensor) -> Piece:
    """A tensor of no meaning that readers expect: zeros."""
    return Piece(TensorInfo(_NAMES[tensor.dtype], tuple(tensor.shape)), lambda: torch.zeros(tensor.shape, dtype=tensor.dtype))
