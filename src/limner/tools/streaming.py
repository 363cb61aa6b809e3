"""A model's files written anew, tensor by tensor: adapters' layers merged into some, the others copied.

Each number is computed in float32 and rounded once. Of the model never more than one tensor is in memory.
"""

from __future__ import annotations

import contextlib
import ctypes
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import prod
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from limner.adapters.reading import Found
from limner.errors import wrong
from limner.formats.base import Base
from limner.formats.header import Header, TensorInfo
from limner.formats.known import FAMILIES, is_scale
from limner.formats.layout import Lies, There
from limner.formats.single import header_of, is_pickled
from limner.formats.streamed import Writer, num_bytes
from limner.models.saving import is_left_out
from limner.models.weights import DTYPES, Weights, turned, unscaled
from limner.tools.loras import Given

_FLOATING = {"F64", "F32", "F16", "BF16", "F8_E4M3", "F8_E5M2"}
_MMAP_THRESHOLD = -3  # M_MMAP_THRESHOLD of malloc.h
Added = list[tuple[Found, Given]]
"""Layers of adapters and the files that they are from, in the order in which they are merged."""


@dataclass(frozen=True)
class Rows:
    """One tensor of the model: some rows of a file's, or all."""

    module: nn.Module
    kind: str
    """weight or bias."""
    shape: torch.Size
    added: Added


@dataclass(frozen=True)
class Change:
    """What becomes of one tensor of a file."""

    lies: Lies
    rows: Sequence[Rows]


@dataclass(frozen=True)
class Group:
    """Files whose tensors belong together."""

    files: Sequence[Path]
    changes: dict[str, Change] = field(default_factory=dict)

    def headers(self) -> list[Header]:
        return [header_of(file) for file in self.files]


def planned(base: Base, family: Any, given: Sequence[Given], where: str) -> list[Group]:
    """The files of a model, outlined as `family`, and what adapters change in them; of a folder a group for each part.

    Raises UserError, under `where`, if a tensor that is to be changed is missing, misshapen, or stored in a way that cannot be
    changed.
    """
    added = dict[tuple[str, str], Added]()
    for its in given:
        for found in its.layers:
            part = family.denoiser_folder if found.target.part == "denoiser" else found.target.part
            added.setdefault((part, found.target.name), []).append((found, its))
    models = {family.denoiser_folder: family.denoiser, **family.text_encoders}
    if base.layout == "file":
        assert base.path is not None
        whole = Group([base.path])
        groups = dict.fromkeys(models, whole)
        every = [whole]
    else:
        groups = {n: Group(family.weight_files(n)) for n in FAMILIES[base.family].parts if n not in base.absent}
        every = list(groups.values())
    for folder, model in models.items():
        own = {name: layers for (part, name), layers in added.items() if part == folder}
        if own:
            groups[folder].changes.update(_changes(family, folder, model, groups[folder], own, where))
    return every


def _changes(
    family: Any, folder: str, model: nn.Module, group: Group, added: Mapping[str, Added], where: str
) -> Iterator[tuple[str, Change]]:
    infos = {name: info for header in group.headers() for name, info in header.tensors.items()}
    state, together = model.state_dict(), dict[There, list[str]]()
    for own, there in family.places(folder, state, infos).items():
        together.setdefault(there, []).append(own)
    for there, members in together.items():
        rows = [_rows(model, name, state[name].shape, added) for name in members]
        if not any(r.added for r in rows):
            continue
        info, needed = infos.get(there.name), sum(state[m].numel() for m in members)
        if info is None or prod(info.shape) != needed:
            said = f"{there.name} is missing" if info is None else f"{there.name} has shape {info.shape}, not {needed} numbers"
            raise wrong(where, f"the model does not have the usual layers: {said}.", "Set config, or download it again.")
        if fault := _fault(there.name, info, infos):
            raise wrong(where, f"{there.name} {fault}, which nothing can be merged into.", "Use the model in 16 bits.")
        yield there.name, Change(there.lies, rows)


def _rows(model: nn.Module, name: str, shape: torch.Size, added: Mapping[str, Added]) -> Rows:
    owner, _, kind = name.rpartition(".")
    layers = added.get(owner, []) if kind in ("weight", "bias") else []
    if kind == "bias":
        layers = [(found, its) for found, its in layers if "diff_b" in found.tensors]
    return Rows(model.get_submodule(owner), kind, shape, layers)


def _fault(name: str, info: TensorInfo, infos: Mapping[str, TensorInfo]) -> str | None:
    if info.dtype not in _FLOATING:
        return f"is stored as {info.dtype}"
    scales = [infos[s] for s in _scale_names(name) if s in infos]
    if f"{name}_scale_2" in infos or any(prod(s.shape) != 1 or s.dtype not in _FLOATING for s in scales):
        return "is stored with a scale for each of its parts"
    return None


def _scale_names(name: str) -> tuple[str, ...]:
    stem = name.removesuffix("weight")
    return (f"{stem}scale_weight", f"{stem}weight_scale") if stem != name else ()


# --- one tensor -------------------------------------------------------------------------------------------------------


@torch.no_grad()
def merged(change: Change, stored: Tensor) -> Tensor:
    """A file's tensor with its layers merged, in float32 and in the shape that it has there. `stored` may be written to."""
    whole = turned(stored.float(), change.lies).contiguous()
    sizes = [r.shape[0] for r in change.rows]
    for rows, part in zip(change.rows, whole.split(sizes) if len(sizes) > 1 else [whole], strict=True):
        weight = part.view(rows.shape)
        for found, its in rows.added:
            # formulas of some kinds ask for the weight: they see what was merged before
            if rows.kind == "weight":
                rows.module.weight = nn.Parameter(weight, requires_grad=False)
            layer = found.build(torch.device("cpu"))
            delta = layer.delta() if rows.kind == "weight" else layer.bias_delta()
            assert delta is not None, "only layers that change it are asked"
            if not delta.isfinite().all():
                said = f"{its.path.name}: {found.name} holds numbers that are not finite, the file is damaged."
                raise wrong(its.field, said, "Leave it out.")
            weight.add_(delta.view(rows.shape), alpha=its.strength)
        if rows.kind == "weight":
            rows.module.weight = nn.Parameter(torch.empty(rows.shape, device="meta"), requires_grad=False)
    return turned(whole, change.lies).contiguous().view(stored.shape)


def narrowed(numbers: Tensor, dtype: torch.dtype) -> Tensor:
    """Rounded to nearest; what 8 bits cannot hold becomes the largest that they can. Raises ValueError for numbers that are
    too large for fp16."""
    if numbers.dtype == dtype:
        return numbers
    if dtype in (torch.float8_e4m3fn, torch.float8_e5m2):
        limit = torch.finfo(dtype).max
        numbers = numbers.clamp(-limit, limit)
    narrow = numbers.to(dtype)
    if dtype == torch.float16 and narrow.isinf().any() and not numbers.isinf().any():
        raise ValueError("there are numbers that are too large for fp16; use bf16")
    return narrow


def _scaled(numbers: Tensor, scale: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """(numbers in 8 bits, their scale), the scale as it was if the numbers still fit: then those that did not change stay."""
    limit = torch.finfo(dtype).max
    if numbers.abs().max() > limit * scale.float():
        scale = (numbers.abs().max() / limit).to(scale.dtype).view(scale.shape)
    return narrowed(numbers / scale.float(), dtype), scale


# --- files ------------------------------------------------------------------------------------------------------------


def described(header: Header, dtype: str | None) -> dict[str, TensorInfo]:
    """What will be in the new file; `dtype` as the header calls it, None: each tensor as it is stored."""
    out = {}
    for name, info in header.tensors.items():
        if is_scale(name) and dtype is None:
            out[name] = info
        elif not is_left_out(name):
            out[name] = replace(info, dtype=dtype) if dtype and info.dtype in _FLOATING else info
    return out


def size_of(tensors: Mapping[str, TensorInfo]) -> int:
    """In bytes."""
    return sum(map(num_bytes, tensors.values()))


def return_memory() -> None:
    """Have glibc give each large block back to the system when it is freed.

    Left to itself it does so only above 32 MiB once such blocks were freed, and keeps smaller ones in pieces between others:
    about 0.1 GiB more for every GiB of a model.
    """
    if sys.platform == "linux":
        with contextlib.suppress(OSError, AttributeError):  # another libc
            ctypes.CDLL(None).mallopt(_MMAP_THRESHOLD, 4 << 20)


def rewrite(
    group: Group,
    source: Path,
    target: Path,
    dtype: str | None,
    metadata: Mapping[str, str],
    tell: Callable[[int, str], None],
) -> None:
    """Write one file of a group anew. `tell` is given the bytes of each piece and the tensor's name.

    Raises UserError, and OSError and ValueError if a file changes while it is read.
    """
    header, weights = header_of(source), Weights(group.files)
    infos = described(header, dtype)
    with Writer(target, infos, metadata) as writer:
        written = set[str]()
        for name in [n for n in infos if n in group.changes]:
            written |= (done := _put(writer, name, infos, weights, group.changes[name]))
            tell(size_of({n: infos[n] for n in done}), name)
        for name, info in infos.items():
            if name in written:
                continue
            if info == header.tensors[name] and not is_pickled(source):
                writer.copy(name, source, header.places[name], lambda count, n=name: tell(count, n))
            else:
                writer.put(name, [_bytes(narrowed(unscaled(weights, name), DTYPES[info.dtype]))])
                tell(num_bytes(info), name)


def _put(writer: Writer, name: str, infos: Mapping[str, TensorInfo], weights: Weights, change: Change) -> set[str]:
    """Write a tensor that is changed, and its scale if it has one; their names."""
    numbers, dtype = merged(change, unscaled(weights, name)), DTYPES[infos[name].dtype]
    scales = [s for s in _scale_names(name) if s in infos][:1]
    for its in scales:
        numbers, scale = _scaled(numbers, weights[its], dtype)
        writer.put(its, [_bytes(scale)])
    writer.put(name, [_bytes(narrowed(numbers, dtype))])
    return {name, *scales}


def _bytes(tensor: Tensor) -> memoryview:
    return tensor.contiguous().flatten().view(torch.uint8).numpy().data
