"""How a step is computed: what a device, a family or another option does not allow, or takes no notice of."""

from __future__ import annotations

import importlib.util
import os
import shutil
from collections.abc import Iterable, Iterator

from limner.config import Config, defaults
from limner.errors import Finding
from limner.formats.known import FAMILIES
from limner.machine import Device, Machine
from limner.preflight.records import Records

_MANY_SHAPES = 8
_COMPILERS = ("c++", "g++", "clang++", "cl")


def check_speed(config: Config, machine: Machine | None, records: Records) -> Iterable[Finding]:
    device = machine.first(machine.kind(config.launch.device)) if machine is not None else None
    if config.speed.compile != "off":
        yield from _compile(config, device, records)
    if config.speed.cuda_graph:
        yield from _graph(config, device)
    if config.speed.channels_last and records.base is not None and FAMILIES[records.base.family].denoiser != "unet":
        yield Finding("speed.channels_last", "has no effect: this model has no UNet.", "Set it to false.", "warning")
    if config.speed.channels_last and config.adapter.trains_base and device is not None and device.kind == "cpu":
        said = "PyTorch breaks down on a CPU where the first layers of a model that is trained so are frozen."
        yield Finding("speed.channels_last", said, "Set it to false: it is for GPUs.")
    if config.speed.attention != "auto":
        yield from _attention(config, device)


def _compile(config: Config, device: Device | None, records: Records) -> Iterator[Finding]:
    field, off = "speed.compile", 'Set it to "off".'
    if config.memory.swap_blocks:
        yield Finding(field, "blocks that are swapped cannot be compiled.", "Set memory.swap_blocks = 0, or this to off.")
    if config.adapter.draws:
        yield Finding(field, "layers that are other ones in each step would be compiled in each step.", off)
    if device is not None and config.speed.compile_backend == "inductor":
        if device.kind == "cuda" and importlib.util.find_spec("triton") is None:
            yield Finding(field, "inductor needs Triton to make kernels for a GPU.", f"Install it: pip install triton. {off}")
        own = os.environ.get("CXX")
        if device.kind != "mps" and not any(map(shutil.which, (own,) if own else _COMPILERS)):
            yield Finding(field, "inductor needs a C++ compiler, and there is none.", f"Install g++. {off}")
    if records.dataset is not None and not config.speed.compile_dynamic:
        counts = records.dataset.bucket_counts().values()
        shapes = sum(1 + (n > config.train.batch_size and n % config.train.batch_size > 0) for n in counts)
        if shapes > _MANY_SHAPES:
            said = f"the model is compiled anew for each of {shapes} sizes of pictures and batches, which takes minutes each."
            yield Finding(field, said, "Raise data.bucket_step_px, or set speed.compile_dynamic = true.", "warning")


def _graph(config: Config, device: Device | None) -> Iterator[Finding]:
    """Refuse what reads from the device in a step, or is not the same work each time."""
    memory, speed = config.memory, config.speed
    precision = defaults.precision(config, device.kind, device.bf16) if device is not None else config.train.precision
    moves_at_once = config.optimizer.in_backward or getattr(config.adapter, "weights", "") == "bf16"
    for holds, why, remedy in (
        (device is not None and device.kind != "cuda", "there is no GPU of NVIDIA or AMD.", ""),
        (config.launch.num_processes > 1, "several processes exchange gradients.", "launch.num_processes = 1"),
        (memory.swap_blocks > 0, "swapped blocks are waited for.", "memory.swap_blocks = 0"),
        (config.trains_text, "captions are encoded anew in each step.", "adapter.text_encoder = false"),
        (config.adapter.draws, "layers are other ones in each step.", "the adapter's dropouts to 0"),
        (precision == "fp16", "fp16 looks at the gradients in each step.", 'train.precision = "bf16"'),
        (moves_at_once, "weights are moved one by one, and their gradients forgotten.", "optimizer.in_backward = false"),
        (
            speed.compile != "off"
            and (speed.compile_backend == "cudagraphs" or speed.compile_mode in ("reduce-overhead", "max-autotune")),
            "torch.compile makes CUDA graphs of its own.",
            'speed.compile_mode = "default"',
        ),
    ):
        if holds:
            yield Finding("speed.cuda_graph", why, f"Set {remedy}, or this to false." if remedy else "Set it to false.")


def _attention(config: Config, device: Device | None) -> Iterator[Finding]:
    kernel, remedy = config.speed.attention, 'Set it to "auto".'
    if device is None or kernel == "math":
        return
    if device.kind != "cuda" and (device.kind, kernel) != ("cpu", "flash"):
        yield Finding("speed.attention", f'PyTorch has no "{kernel}" for {device.kind}.', remedy)
    elif device.kind == "cuda" and kernel in ("flash", "cudnn"):
        if not device.bf16:
            yield Finding("speed.attention", f'"{kernel}" needs a newer GPU than {device.name}.', remedy)
        if defaults.precision(config, device.kind, device.bf16) == "fp32":
            yield Finding(
                "speed.attention", f'"{kernel}" computes in 16 bits alone.', f'Use train.precision = "bf16". {remedy}'
            )
