"""[speed]: how the arithmetic is carried out. Nothing here changes what is learnt beyond rounding."""

from __future__ import annotations

from typing import Literal

from limner.config.base import Section, option

_COMPILES = "speed.compile"


class Speed(Section):
    """How a step is computed."""

    prepack: bool = option(True, advanced=True)
    """On a CPU: lay the frozen layers' weights out once, as its kernels want them, and not in every step anew."""

    compile: Literal["off", "blocks"] = option("off", advanced=True)
    """"blocks": have torch.compile make faster kernels of each block of the denoiser. The first step of each size of picture
    takes minutes; worth it for long runs on a GPU."""

    compile_backend: Literal["inductor", "aot_eager", "eager", "cudagraphs"] = option(
        "inductor", kohya="dynamo_backend", advanced=True, when=_COMPILES
    )
    """What torch.compile hands the blocks to. All but "inductor" are for finding faults."""

    compile_mode: Literal["default", "reduce-overhead", "max-autotune", "max-autotune-no-cudagraphs"] = option(
        "default", kohya="dynamo_mode", advanced=True, when=f"{_COMPILES} and speed.compile_backend = inductor"
    )
    """How long inductor looks for fast kernels ("max-autotune" tries many), and whether it records them in CUDA graphs
    ("reduce-overhead", "max-autotune"), which takes more memory."""

    compile_fullgraph: bool = option(False, kohya="dynamo_use_fullgraph", advanced=True, when=_COMPILES)
    """End the run where a block cannot be compiled as a whole, instead of in pieces."""

    compile_dynamic: bool = option(False, kohya="dynamo_use_dynamic", advanced=True, when=_COMPILES)
    """Compile for all sizes of pictures at once: slower kernels, but no waiting at each new size."""

    cuda_graph: bool = option(False, advanced=True)
    """On a GPU: record the kernels of a micro-batch once for each size of picture, and then start them all at once. For small
    batches, where the processor cannot keep the GPU busy."""

    channels_last: bool = option(False, advanced=True)
    """Lay pictures out in memory with their channels side by side, which GPUs convolve faster in 16 bits. For UNets: Stable
    Diffusion 1, 2 and XL."""

    attention: Literal["auto", "flash", "efficient", "cudnn", "math"] = option("auto", advanced=True)
    """Which of PyTorch's attention kernels trains the denoiser; where the chosen one cannot be used, plain arithmetic does
    ("math"). "auto" takes the fastest that suits."""
