"""Weights straight from files into models that were built without any, and back into a file's layout.

A model is built on the meta device, which takes no memory and no time, and each of its tensors is then read once, into its
dtype and onto its device: beside the part itself, never more than a few tensors are in memory.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from limner.formats.ahead import READERS, Ahead, Turn
from limner.formats.header import TensorInfo
from limner.formats.layout import Lies, Names, There
from limner.formats.numbers import ROOM_BYTES, Numbers, NumbersFile
from limner.formats.single import is_pickled
from limner.models.pickled_weights import PickledWeights

DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2, "I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8,
    "U8": torch.uint8, "BOOL": torch.bool,
}  # fmt: skip
"""What files call the kinds of numbers."""

PRECISIONS = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
"""What options call those that weights are computed and written in."""

_OLD_ATTENTION = {".to_q.": ".query.", ".to_k.": ".key.", ".to_v.": ".value.", ".to_out.0.": ".proj_attn."}


def roomy(num_bytes: int) -> Tensor:
    """Memory with some room behind it (`formats.numbers`)."""
    return torch.empty(num_bytes + ROOM_BYTES, dtype=torch.uint8)[:num_bytes]


def in_dtype(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """A tensor in another precision, if it has not that one, in `roomy` memory."""
    if tensor.dtype == dtype:
        return tensor
    return roomy(tensor.numel() * dtype.itemsize).view(dtype).view(tensor.shape).copy_(tensor)


def is_roomy(tensor: Tensor) -> bool:
    """Whether a tensor lies in `roomy` memory."""
    return tensor.untyped_storage().nbytes() >= tensor.nbytes + ROOM_BYTES


def as_tensor(read: Numbers, info: TensorInfo) -> Tensor:
    """A tensor of a file over its bytes, that knows of all the memory they lie in."""
    assert read.base is not None
    start = read.ctypes.data - read.base.ctypes.data
    return torch.from_numpy(read.base)[start : start + len(read)].view(DTYPES[info.dtype]).view(info.shape)


def kept_in(dtype: torch.dtype) -> Turn:
    """For what is read ahead: makes tensors of bytes, in the precision that they will be kept in."""

    def kept(read: Numbers, info: TensorInfo) -> Tensor:
        tensor = as_tensor(read, info)
        return in_dtype(tensor, dtype) if tensor.is_floating_point() else tensor

    return kept


class Weights(Mapping[str, Tensor]):
    """The tensors of files by name, read when they are asked for; later files win.

    Some may have been read `ahead`. Raises UserError for files that are not to be trusted, and OSError and ValueError for those
    that change while they are read.
    """

    def __init__(self, files: Sequence[Path], ahead: Ahead | None = None) -> None:
        self._where: dict[str, Callable[[str], Tensor]] = {}
        for file in files:
            if is_pickled(file):
                pickled = PickledWeights(file)
                self._where |= dict.fromkeys(pickled, pickled.__getitem__)
            else:
                opened = NumbersFile(file)
                self._where |= dict.fromkeys(opened.tensors, partial(_read, opened, ahead))

    def __getitem__(self, name: str) -> Tensor:
        return self._where[name](name)

    def __contains__(self, name: object) -> bool:
        return name in self._where  # Mapping's own would read the tensor

    def __iter__(self) -> Iterator[str]:
        return iter(self._where)

    def __len__(self) -> int:
        return len(self._where)


def _read(file: NumbersFile, ahead: Ahead | None, name: str) -> Tensor:
    info = file.tensors[name]
    if info.dtype not in DTYPES:
        raise ValueError(f"{name} is stored as {info.dtype}, which is not read yet")
    found = ahead.take(name) if ahead is not None else None
    return found if isinstance(found, Tensor) else as_tensor(file.read(name) if found is None else found, info)


def fill(
    model: nn.Module,
    weights: Mapping[str, Tensor],
    places: Names,
    dtype_of: Callable[[str], torch.dtype],
    device_of: Callable[[nn.Module], torch.device],
) -> None:
    """Give a model on the meta device its weights; then it is frozen and in eval mode.

    `dtype_of` is asked for each tensor's name, `device_of` for each module. Modules that store their weight otherwise have a
    method `take` for it. Raises ValueError that names what is missing or misshapen.
    """
    own, together = model.state_dict(), dict[There, list[str]]()
    for name, there in places(own).items():
        together.setdefault(there, []).append(name)
    if lacking := sorted({there.name for there in together} - weights.keys()):
        raise ValueError(f"{len(lacking)} tensors are missing, the first is {lacking[0]}")
    state = {}
    for (there, members), whole in zip(together.items(), _some_ahead(weights, together), strict=True):
        needed = sum(own[m].numel() for m in members)
        if whole.numel() != needed:
            raise ValueError(f"{there.name} has shape {tuple(whole.shape)}, {needed} numbers are needed")
        parts = whole.split([len(own[m]) for m in members]) if len(members) > 1 else [whole]
        for member, part in zip(members, parts, strict=True):
            module = model.get_submodule(member.rpartition(".")[0])
            kept = dtype_of(member) if part.is_floating_point() else part.dtype
            part, device = part.reshape(own[member].shape).contiguous(), device_of(module)
            own_part = in_dtype(part, kept) if device.type == "cpu" else part
            # rows of one tensor shall not share its memory
            tensor = own_part.to(device, kept, copy=len(members) > 1 and own_part is part)
            if hasattr(module, "take") and member.endswith(".weight"):
                module.take(tensor)  # type: ignore[operator]
                own.pop(member)
            else:
                state[member] = tensor
    model.load_state_dict(state, strict=False, assign=True)
    if own.keys() - state.keys():
        model.tie_weights()  # type: ignore[operator]
    for name, buffer in model.named_buffers():
        if buffer.is_meta:  # in no file: transformers makes it when a model is built
            if not name.endswith("position_ids"):
                raise ValueError(f"{name} is missing")
            owner = model.get_submodule(name.rpartition(".")[0])
            numbers = torch.arange(buffer.shape[-1], device=device_of(owner))
            owner.register_buffer("position_ids", numbers[None], persistent=False)
    model.eval().requires_grad_(False)


def _some_ahead(weights: Mapping[str, Tensor], places: Iterable[There]) -> Iterator[Tensor]:
    """`in_model` of each place, some before they are asked for."""
    with ThreadPoolExecutor(READERS) as readers:
        begun = deque[Future[Tensor]]()
        for there in places:
            begun.append(readers.submit(in_model, weights, there))
            if len(begun) > READERS:
                yield begun.popleft().result()
        while begun:
            yield begun.popleft().result()


def in_model(weights: Mapping[str, Tensor], there: There) -> Tensor:
    """A tensor of a file as it lies in the model: of stacked layers all, as a 1x1 convolution where the file has one."""
    return turned(unscaled(weights, there.name), there.lies)


def unscaled(weights: Mapping[str, Tensor], name: str) -> Tensor:
    """A tensor of the file; one that was scaled to fit into 8 bits (ComfyUI, in two spellings), at its own size again."""
    stem = name.removesuffix("weight")
    if name == stem:
        return weights[name]
    scales = [weights[s] for s in (f"{stem}scale_weight", f"{stem}weight_scale") if s in weights]
    if f"{stem}weight_scale_2" in weights or any(s.numel() != 1 for s in scales):
        raise ValueError(f"{name} is stored with a scale for each of its parts, which is not read yet")
    return weights[name].float() * scales[0].float() if scales else weights[name]


def turned(tensor: Tensor, lies: Lies) -> Tensor:
    """From how it lies in the file to how it lies in the model, and back."""
    if lies == "transposed":
        return tensor.T
    return torch.cat(tensor.chunk(2)[::-1]) if lies == "swapped" else tensor


def laid_out(state: Mapping[str, Tensor], names: Names, dtype: torch.dtype) -> dict[str, Tensor]:
    """The inverse of `fill`: a model's tensors as they stand in a file, on the CPU in `dtype`, copies where need be."""
    together = dict[There, list[Tensor]]()
    for name, there in names(state).items():
        together.setdefault(there, []).append(state[name].detach().to("cpu", dtype))
    out = {}
    for there, parts in together.items():
        whole = turned(torch.cat(parts) if len(parts) > 1 else parts[0], there.lies)
        is_linear = there.lies == "pointwise" and whole.ndim == 2
        out[there.name] = (whole[..., None, None] if is_linear else whole).contiguous()
    return out


def placed(own: Iterable[str], weights: Mapping[str, Any], names: Names, prefixes: Sequence[str]) -> dict[str, There]:
    """Where a model's tensors lie among `weights`: by `names` behind one of the prefixes, or as diffusers' folders have it,
    whichever fits best."""
    own = list(own)
    options = [{name: There(_in_folder(name, weights)) for name in own}]
    original = names(own) if prefixes else {}
    options += [with_prefix(original, prefix) for prefix in prefixes]
    return max(options, key=lambda places: sum(there.name in weights for there in places.values()))


def with_prefix(places: Mapping[str, There], prefix: str) -> dict[str, There]:
    """The places of one part in a file that holds several."""
    return {name: There(prefix + there.name, there.lies) for name, there in places.items()}


def _in_folder(name: str, weights: Mapping[str, Any]) -> str:
    """The name in a diffusers folder. Others than ours are written by other versions of the libraries."""
    if name in weights:
        return name
    # transformers >= 5.6 has no `text_model.` level in CLIPTextModel; every file written by others has one
    if f"text_model.{name}" in weights:
        return f"text_model.{name}"
    for new, old in _OLD_ATTENTION.items():  # VAEs written by diffusers < 0.17
        if new in name and name.replace(new, old) in weights:
            return name.replace(new, old)
    return name
