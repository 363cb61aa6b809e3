"""Precision, caches and what is moved to save memory <-> [memory] and train.precision."""

from __future__ import annotations

from limner.config.defaults import caches_text
from limner.config.kohya.reader import Reader
from limner.config.kohya.writer import Writer

ARGUMENTS = (
    "mixed_precision", "full_fp16", "full_bf16", "fp8_base", "fp8_base_unet", "no_half_vae", "cache_latents",
    "cache_latents_to_disk", "cache_text_encoder_outputs", "cache_text_encoder_outputs_to_disk",
)  # fmt: skip
OPTIONS = ("train.precision", "memory.quantize", "memory.vae_dtype", "memory.cache_latents", "memory.cache_text")


def read(r: Reader) -> None:
    """Set precision and caches."""
    precision = r.text("mixed_precision")
    if precision is not None:
        r.take("mixed_precision", {"train.precision": "fp32" if precision == "no" else precision})
    _read_weights(r)
    _read_vae(r, precision)
    _read_caches(r)


def _read_weights(r: Reader) -> None:
    if r.kind not in ("none",):
        for name in ("full_fp16", "full_bf16"):
            if r.flag(name):
                r.unsupported(name, "What is trained is kept in fp32; the rest follows train.precision.")
            else:
                r.idle(name, "It is off.")
    base, unet = r.flag("fp8_base"), r.flag("fp8_base_unet")
    for name, is_on in (("fp8_base", base), ("fp8_base_unet", unet)):
        if is_on and r.kind != "none":
            r.take(name, {"memory.quantize": "fp8"})
        else:
            r.idle(name, "It does nothing where the model itself is trained." if is_on else "It is off.")


def _read_vae(r: Reader, precision: str | None) -> None:
    whole = r.flag("no_half_vae")
    if whole:
        r.take("no_half_vae", {"memory.vae_dtype": "fp32"})
    elif r.script and not r.knows("no_half_vae"):
        if r.complete and precision in ("fp16", "bf16"):
            r.put("memory.vae_dtype", precision)
        r.idle("no_half_vae", f"{r.script.name} does not know it.")
    elif whole is not None and precision in ("fp16", "bf16"):
        r.take("no_half_vae", {"memory.vae_dtype": precision}, "The VAE has the training's precision there.")
    else:
        r.idle("no_half_vae", "It is off.")


def _read_caches(r: Reader) -> None:
    for option, names in (
        ("memory.cache_latents", ("cache_latents", "cache_latents_to_disk")),
        ("memory.cache_text", ("cache_text_encoder_outputs", "cache_text_encoder_outputs_to_disk")),
    ):
        found = {name: r.flag(name) for name in names}
        is_on = any(found.values())
        for name, value in found.items():
            if value is None:
                continue
            if value == is_on:
                r.take(name, {option: is_on}, "What is encoded is kept on disk." if is_on and name == names[0] else "")
            else:
                r.idle(name, "What is encoded is kept on disk in any case.")


def write(w: Writer) -> None:
    """The arguments of precision and caches."""
    memory, precision = w.config.memory, w.config.train.precision or w.facts.precision
    w.put("mixed_precision", "no" if precision == "fp32" else precision, "train.precision")
    if memory.quantize != "off" and w.config.adapter.kind == "none":
        w.lose("memory.quantize", "the model itself is trained, which needs whole numbers.")
    elif memory.quantize == "fp8":
        w.put("fp8_base", True, "memory.quantize")
    elif memory.quantize != "off":
        w.lose("memory.quantize", "sd-scripts stores weights in fp8 alone.", 'Set it to "fp8" or "off".')
    if memory.vae_dtype == "fp32" and precision != "fp32" and w.knows("no_half_vae"):
        w.put("no_half_vae", True, "memory.vae_dtype")
    elif memory.vae_dtype != precision:
        said = f"sd-scripts encodes in the training's precision, {precision}."
        w.lose("memory.vae_dtype", said, f'Set it to "{precision}".', severity="warning")
    w.put("sdpa", True, "memory.checkpointing")  # PyTorch's own attention, as Limner has it
    _write_caches(w)


def _write_caches(w: Writer) -> None:
    config = w.config
    varies = config.data.random_crop or config.data.colour
    if config.memory.cache_latents and varies:
        said = "sd-scripts keeps no latents of pictures that are cut or coloured by chance: each is encoded anew."
        w.lose("memory.cache_latents", said, "Set it to false.", severity="warning")
    elif config.memory.cache_latents:
        w.put("cache_latents", True, "memory.cache_latents")
        w.put("cache_latents_to_disk", True, "memory.cache_latents")
    # sd-scripts refuses to keep encoded captions that are sometimes left out
    if caches_text(config) and not config.data.caption_dropout and w.knows("cache_text_encoder_outputs"):
        w.put("cache_text_encoder_outputs", True, "memory.cache_text")
        w.put("cache_text_encoder_outputs_to_disk", True, "memory.cache_text")
