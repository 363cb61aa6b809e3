"""Paint pictures outside a run: `limner sample`, and the demo's examination."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from limner import disk
from limner.adapters import reading
from limner.adapters.embedding import PREFIX, EmbeddingAdapter
from limner.adapters.layered import LayerAdapter
from limner.config import Config, Embedding, files
from limner.config.prompts import all_prompts
from limner.engine import fetching, paint
from limner.engine.runtime import Runtime
from limner.errors import wrong
from limner.formats.base import Base
from limner.formats.embedding_file import by_encoder
from limner.formats.header import read_header
from limner.formats.known import FAMILIES as KNOWN
from limner.formats.metadata import TRIGGER
from limner.formats.suited import require_suited
from limner.models import family as families
from limner.models.family import Family


def load_whole(config: Config, runtime: Runtime) -> Family:
    """All parts of a config's base model, on the device."""
    family = families.make(fetching.find_base(config))
    family.load("text", runtime.dtype, runtime.device)
    family.load("denoiser", runtime.dtype, runtime.device)
    family.load("vae", torch.float32, runtime.device)
    return family


def load_lora(family: Family, path: Path, strength: float = 1.0) -> LayerAdapter | None:
    """Attach an adapter file at a strength to the parts that are loaded; None if it changes none of them.

    Raises UserError if it is none or belongs to another model.
    """
    state = reading.read(path, family, "--lora")
    if not state:
        return None
    adapter = LayerAdapter.of_file(family, state, "--lora")
    for _, layer in adapter.layers.values():
        layer.strength = strength
    return adapter


def load_embedding(family: Family, asked: str) -> EmbeddingAdapter:
    """Attach an embedding file, given as FILE or FILE=word, to the text encoders, which must be loaded.

    Without a word it is called as its file says, else by the file's name. Raises UserError if it is for another model.
    """
    name, _, word = asked.partition("=") if not Path(asked).is_file() else (asked, "", "")
    path = Path(name)
    if not path.is_file():
        raise wrong("--embedding", f"{path} is not a file.", "Give the path of an embedding's .safetensors file.")
    if not family.trainable_text or family.base.prediction == "flow":
        raise wrong("--embedding", "this model takes none.", "Use Stable Diffusion 1, 2 or XL.")
    said = read_header(path, "--embedding").metadata.get(TRIGGER)
    try:
        state = by_encoder(load_file(path), family.trainable_text, "--embedding")
    except (OSError, SafetensorError) as error:
        raise wrong("--embedding", f"{path.name} cannot be read ({error}).", "Download or copy it again.") from None
    first = next(iter(state.values()))
    if any(t.ndim != 2 or len(t) != len(first) for t in state.values()):
        raise wrong("--embedding", f"{path.name} holds no embedding.", "Give a .safetensors file of vectors.")
    adapter = EmbeddingAdapter(Embedding.model_construct(token=word or said or path.stem, vectors=len(first)))
    adapter.attach(family, 0)
    adapter.load_state_dict({PREFIX + encoder: vectors.float() for encoder, vectors in state.items()})
    return adapter


def paint_one(
    *,
    model: str,
    lora: Path | None,
    strength: float,
    embedding: str | None,
    out: Path,
    device: str | None,
    values: dict[str, Any],
) -> int:
    """`limner sample`: one prompt, one PNG."""
    if out.suffix.lower() != ".png":
        raise wrong("--out", f"{out.name} does not end in .png.", "Pictures are written as PNG.")
    if device is not None and device not in ("cpu", best_device()):
        raise wrong("--device", f"this machine has no {device} that torch can use.", "See `limner doctor`.")
    chosen = {k: v for k, v in values.items() if k != "prompt" and v is not None}
    sample = {**chosen, "prompts": [values["prompt"]]}
    config = files.build({"model": {"base": model}, "sample": sample}, {})
    kind = device or best_device()
    runtime = Runtime(torch.device(kind), "bf16" if kind == "cuda" and torch.cuda.is_bf16_supported() else "fp32")
    base = fetching.find_base(config)
    prompts = all_prompts(config, base.resolution_px, base.bucket_step_px)
    require_suited(prompts, base)
    family = families.make(base if lora is None else _as_taught(base, lora))
    # one part after the other: together they need not fit
    family.load("text", runtime.dtype, runtime.device)
    if lora is not None:
        load_lora(family, lora, strength)
    if embedding is not None:
        load_embedding(family, embedding)
    encoded = paint.encode_prompts(family, runtime, prompts)
    family.free("text")
    family.load("denoiser", runtime.dtype, runtime.device)
    if lora is not None:
        load_lora(family, lora, strength)
    family.load("vae", torch.float32, runtime.device)
    pixels = next(paint.paint(family, runtime, prompts, encoded))
    with disk.replacing(out) as temporary:
        paint.to_image(pixels).save(temporary, format="PNG")
    print(f"Wrote {out}")
    return 0


def _as_taught(base: Base, lora: Path) -> Base:
    """The base model as a LoRA was taught on it, as far as its file says: which of CLIP's layers it attends to, and whether it
    was trained down to pure noise, which only a model that predicts v can be. Raises UserError if it cannot be read."""
    if not lora.is_file():
        return base  # whoever loads it says so
    said, known = read_header(lora, "--lora").metadata, KNOWN[base.family]
    layer = said.get("ss_clip_skip", "")
    if known.skips_layers and layer.isdecimal() and 1 <= int(layer) <= 12:
        base = replace(base, clip_skip=int(layer))
    if base.prediction != "flow" and said.get("ss_zero_terminal_snr") == "True":
        base = replace(base, has_zero_snr=True, prediction="v_prediction")
    return base


def best_device() -> str:
    """cuda, mps or cpu."""
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"
