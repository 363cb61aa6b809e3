"""How a step is computed: compiled by Dynamo, and with which attention <-> [speed].

sd-scripts compiles with --torch_compile and --dynamo_backend; the GUI has accelerate's own --dynamo_backend and the like. Both
compile the whole model, where Limner compiles its blocks.
"""

from __future__ import annotations

from collections.abc import Mapping

from limner.config.kohya.reader import Reader
from limner.config.kohya.writer import Writer

ARGUMENTS = ("torch_compile", "dynamo_backend", "sdpa", "xformers", "mem_eff_attn", "diffusers_xformers")
OPTIONS = (
    "speed.compile", "speed.compile_backend", "speed.compile_mode", "speed.compile_fullgraph", "speed.compile_dynamic",
    "speed.attention",
)  # fmt: skip
DYNAMO = ("dynamo_backend", "dynamo_mode", "dynamo_use_fullgraph", "dynamo_use_dynamic")
"""accelerate's flags, after "accelerate." where they stood on its command line."""
BACKENDS = ("inductor", "aot_eager", "eager", "cudagraphs")
"""Of Dynamo's, those that Limner has."""
OFF, BLOCKS = "The model is not compiled.", "Limner compiles the denoiser's blocks."
ATTENTION = "PyTorch's own attention is used, the fastest that suits."
OTHER = "Limner has no such backend: see speed.compile_backend."
_PLACES: Mapping[str, str] = {
    "dynamo_mode": "speed.compile_mode",
    "dynamo_use_fullgraph": "speed.compile_fullgraph",
    "dynamo_use_dynamic": "speed.compile_dynamic",
}


def read(r: Reader) -> None:
    """Set whether and how blocks are compiled."""
    _read_launcher(r)
    backend = (r.text("dynamo_backend") or "inductor").lower()
    if not r.flag("torch_compile"):
        r.idle("torch_compile", "It is off.")
        r.idle("dynamo_backend", OFF)
    elif backend in BACKENDS:
        r.take("torch_compile", {"speed.compile": "blocks"}, BLOCKS)
        r.take("dynamo_backend", {"speed.compile_backend": backend})
    else:
        r.unsupported("torch_compile", OTHER)
        r.unsupported("dynamo_backend", OTHER)
    for name in ARGUMENTS[2:]:
        if r.flag(name):
            r.take(name, {"speed.attention": "auto"}, ATTENTION)
        else:
            r.idle(name, "It is off.")


def _read_launcher(r: Reader) -> None:
    first, *others = (f"accelerate.{name}" for name in DYNAMO)
    backend = (r.text(first) or "no").lower()
    if backend in BACKENDS:
        r.take(first, {"speed.compile": "blocks", "speed.compile_backend": backend}, BLOCKS)
    elif backend != "no":
        r.unsupported(first, OTHER)
    for name in (first, *others):
        place = _PLACES.get(name.removeprefix("accelerate."))
        if backend in BACKENDS and place is not None and r.has(name):
            r.take(name, {place: r.text(name) if place == "speed.compile_mode" else r.flag(name)})
        r.idle(name, OFF)


def write(w: Writer) -> None:
    """The arguments of [speed]."""
    speed = w.config.speed
    if speed.compile != "off":
        w.put("torch_compile", True, "speed.compile")
        w.put("dynamo_backend", speed.compile_backend, "speed.compile_backend")
        for option in _PLACES.values():
            if getattr(speed, option.removeprefix("speed.")) not in ("default", False):
                w.lose(option, "sd-scripts has no argument for it.", severity="warning")
    if speed.attention != "auto":
        w.lose("speed.attention", "sd-scripts leaves the choice to PyTorch.", severity="warning")
