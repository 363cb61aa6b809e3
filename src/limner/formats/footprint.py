"""What a run's weights weigh in memory, phase by phase, told from the files' headers. Activations come on top."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import isqrt, prod
from typing import Any

from limner.config import Config, Data, Full, Glora, Ia3, Loha, Lokr, Oft, defaults, rules
from limner.config.optimizers import facts
from limner.formats.base import Base, weight_files
from limner.formats.header import TensorInfo
from limner.formats.known import FAMILIES
from limner.formats.single import header_of

BYTES = {"fp32": 4, "bf16": 2, "fp16": 2}
_STORED_BYTES = {"fp8": 1.0, "int8": 1.0, "nf4": 0.5 + 4 / 64}
_BLOCKS = ("transformer_blocks.", "double_blocks.", "single_blocks.", "joint_blocks.")


@dataclass(frozen=True)
class Footprint:
    """MiB of weights, part by part. Parts are in memory one after the other."""

    text_mib: int
    vae_mib: int
    denoiser_mib: int
    trained_mib: int
    """What is trained, with its gradients and the optimiser's state; of a LoRA at most so much."""
    staying_mib: int
    """Of the other parts what stays beside the denoiser, because it is trained or nothing is cached."""

    @property
    def most_mib(self) -> int:
        return max(self.text_mib, self.vae_mib, self.denoiser_mib + self.trained_mib + self.staying_mib)


def footprint(config: Config, base: Base, precision: str, settings: Sequence[Data] = ()) -> Footprint:
    """Of a run in this precision. Raises UserError if a file cannot be read."""
    known, memory, width = FAMILIES[base.family], config.memory, BYTES[precision]
    parts = {name: tensors_of(base, name) for name in known.parts if name not in base.absent}
    denoiser = parts[known.denoiser]
    text = sum(_numbers(t) for name, t in parts.items() if name not in (known.denoiser, "vae"))
    stored = _numbers({n: i for n, i in denoiser.items() if len(i.shape) == 2 and any(b in n for b in _BLOCKS)})
    saved = stored * (width - _STORED_BYTES[memory.quantize]) if memory.quantize != "off" else 0
    is_trained = config.adapter.trains_base and config.adapter.denoiser
    vae = _numbers(parts["vae"]) * BYTES[memory.vae_dtype]
    stays = 0 if memory.cache_latents else vae
    stays += 0 if defaults.caches_text(config, settings) else text * width
    return Footprint(
        _mib(text * width),
        _mib(vae),
        0 if is_trained else _mib(_numbers(denoiser) * width - saved),
        _mib(num_trained(config, base) * trained_bytes(config)),
        _mib(stays),
    )


def trained_bytes(config: Config) -> float:
    """Of each trained number: weight, gradient and the optimiser's state; the average, if it is kept beside them."""
    weight = 4 if config.adapter.trains_in_fp32 or not config.adapter.trains_base else 2
    gradient = 0 if config.optimizer.in_backward else weight
    average = 4 if config.train.ema != "off" and config.train.ema_device == "same" else 0
    return weight + gradient + facts(config.optimizer).state_bytes + average


def num_trained(config: Config, base: Base) -> int:
    """How many numbers are trained: of an adapter as if every layer of the model had one: an upper bound."""
    adapter, parts = config.adapter, list[str]()
    known = FAMILIES[base.family]
    if adapter.denoiser:
        parts.append(known.denoiser)
    if adapter.text_encoder:
        parts += [n for n in known.parts if n not in (known.denoiser, "vae", base.t5, *base.absent)]
    tensors = [info.shape for part in parts for info in tensors_of(base, part).values()]
    if adapter.trains_base or isinstance(adapter, Full):
        return sum(prod(s) for s in tensors)
    return sum(_of_a_layer(adapter, s[0], s[1], prod(s[1:])) for s in tensors if len(s) in (2, 4))


def num_stored(base: Base) -> int:
    """How many numbers the whole model has. Raises UserError if a file cannot be read."""
    return sum(_numbers(tensors_of(base, part)) for part in FAMILIES[base.family].parts if part not in base.absent)


def _of_a_layer(adapter: Any, outputs: int, inputs: int, columns: int) -> int:
    """How many numbers an adapter has for a layer at most; `columns`: inputs times the kernel."""
    if isinstance(adapter, Ia3):
        return max(outputs, inputs)
    if isinstance(adapter, Oft):
        turns = 1 + (outputs // adapter.block).bit_length() if adapter.butterfly else 1
        return outputs * adapter.block * turns
    rank = rules.highest_rank(adapter.rules, adapter.rank)
    if isinstance(adapter, Lokr):
        most = [min(isqrt(n), adapter.factor if adapter.factor > 0 else n) for n in (outputs, inputs)]
        small_out, small_in = (
            next(d for d in range(m, 0, -1) if n % d == 0) for n, m in zip((outputs, inputs), most, strict=True)
        )
        large_out, large_in = outputs // small_out, columns // small_in
        is_whole = 2 * rank >= max(large_out, inputs // small_in)
        return small_out * small_in + (large_out * large_in if is_whole else rank * (large_out + large_in))
    if isinstance(adapter, Loha):
        return 2 * rank * (outputs + columns)
    if isinstance(adapter, Glora):
        return rank * (outputs + columns + 2 * inputs)
    return rank * (outputs + columns) + (inputs if getattr(adapter, "dora", False) else 0)


def tensors_of(base: Base, part: str) -> dict[str, TensorInfo]:
    """What the headers say of one part's tensors."""
    assert base.path is not None
    if part not in base.others and base.layout == "folder":
        return {n: info for file in weight_files(base.path, part) for n, info in header_of(file).tensors.items()}
    header = header_of(base.others.get(part, base.path))
    prefix = FAMILIES[base.family].parts[part].prefix_in(header.tensors) or ""
    return {n: info for n, info in header.tensors.items() if n.startswith(prefix)}


def _numbers(tensors: dict[str, TensorInfo]) -> int:
    return sum(prod(info.shape) for info in tensors.values())


def _mib(count: float) -> int:
    return round(count / 2**20)
