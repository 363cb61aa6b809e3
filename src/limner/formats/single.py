"""What a single file holds, told from its header: the family, its variant, which parts. And the parts' files beside it."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping
from functools import lru_cache
from math import isqrt
from pathlib import Path
from typing import Any

from limner.errors import UserError, wrong
from limner.formats.header import Header, TensorInfo, read_header
from limner.formats.known import FAMILIES, Known, Prediction, Stored
from limner.formats.original import UNET
from limner.formats.pickled import read_pickled

_CHECKPOINTS = ("diffusion_models", "unet", "checkpoints", "Stable-diffusion")
"""Where ComfyUI and A1111 keep models; the folders of parts are their neighbours."""
_PARTS = ("vae", "VAE", "text_encoders", "clip", "text_encoder")
_MOST_BESIDE = 200


def is_pickled(path: Path) -> bool:
    return path.suffix.lower() in (".ckpt", ".pt", ".pth", ".bin")


def header_of(path: Path, field: str | None = None) -> Header:
    """What a file of either kind holds. Raises UserError if it cannot be trusted, or is of another kind."""
    try:
        facts = path.stat()
    except OSError:
        return _header_of(path, field, 0, 0)  # which says why
    return _header_of(path, field, facts.st_size, facts.st_mtime_ns)


@lru_cache(maxsize=16)  # each look at a configuration asks several times
def _header_of(path: Path, field: str | None, size: int, changed: int) -> Header:
    del size, changed
    if is_pickled(path):
        return read_pickled(path, field)
    if path.suffix.lower() != ".safetensors":
        raise wrong(field or str(path), f"{path.name} is not a .safetensors file.", "Choose a .safetensors or .ckpt file.")
    return read_header(path, field)


def family_of(header: Header, described: tuple[str, int] | None = None) -> str:
    """What a single file holds, in words, or a key of `FAMILIES` if it is a base model: by its tensors' names and widths.

    `described` is, for models of unusual shape, the family and the width of the captions' vectors that the UNet attends to.
    """
    names = header.tensors
    if any(n.startswith(("lora_unet_", "lora_te", "lora_transformer_")) or ".lora_" in n for n in names):
        return "a LoRA"
    for family, known in FAMILIES.items():
        if not known.text_width and known.parts[known.denoiser].prefix_in(header.tensors) is not None:
            return family
    widths = {info.shape[1] for n, info in names.items() if _takes_text(n, info)}
    if not widths:
        return _part_alone(header)
    width = max(widths)
    widths_of = dict([described]) if described else {f: known.text_width for f, known in FAMILIES.items() if known.text_width}
    family = next((f for f, usual in widths_of.items() if usual == width), None)
    if family is None:
        if width == 1280 and not described:
            return "SDXL's refiner"
        usual = ", ".join(f"{width} ({f})" for f, width in widths_of.items())
        return f"a model with text width {width} instead of {usual}"
    first = names.get(f"{UNET}input_blocks.0.0.weight")
    if first is None or len(first.shape) != 4 or first.shape[1] != 4:
        return f"an inpainting or damaged {FAMILIES[family].title} model"
    return family


def _part_alone(header: Header) -> str:
    for known in FAMILIES.values() if not any(n.startswith(UNET) for n in header.tensors) else ():
        for name, part in known.parts.items():
            if name != known.denoiser and part.prefix_in(header.tensors) is not None:
                return f"a {part.title} and nothing else"
    return "no checkpoint that Limner recognises"


def _takes_text(name: str, info: TensorInfo) -> bool:
    return name.startswith(UNET) and name.endswith(".attn2.to_k.weight") and len(info.shape) == 2


def prediction_of(header: Header) -> Prediction | None:
    """What the denoiser predicts, if the file says it: in Stability's metadata, or by SDXL's marks `v_pred`."""
    said = header.metadata.get("modelspec.prediction_type")
    if said in ("v", "v_prediction") or "v_pred" in header.tensors:
        return "v_prediction"
    return "epsilon" if said == "epsilon" else None


# --- parts ------------------------------------------------------------------------------------------------------------


def parts_inside(path: Path, known: Known, field: str, *, is_usual: bool) -> list[str]:
    """The parts that a single file holds. Raises UserError if one of them, of the usual size, is not whole."""
    header, inside = header_of(path, field), []
    for name, part in known.parts.items():
        prefix = part.prefix_in(header.tensors)
        if prefix is None:
            continue
        inside.append(name)
        if is_usual and (fault := _fault(header, part, prefix)):
            raise wrong(field, f"{path.name}: {fault}", "Download the model again.")
    return inside


def check_part(path: Path, part: Stored, field: str) -> None:
    """Raises UserError unless a file holds this part."""
    if not path.is_file():
        raise wrong(field, f"{path} is not a file.", f"Give the path of the {part.title}'s .safetensors file.")
    header = header_of(path, field)
    bare = part.marker.removeprefix("text_model.")  # transformers >= 5.6 writes CLIP without the level that all others have
    found = [header.tensors[n] for p in (*part.prefixes, "") for n in (p + part.marker, p + bare) if n in header.tensors]
    if not found:
        raise wrong(field, f"{path.name} holds no {part.title}.", f"Give the path of the {part.title}'s .safetensors file.")
    shape = found[0].shape[:2]
    # as wide and of another vocabulary: Wan's T5, say. Models of unusual width are for their configuration to tell
    if part.option != "vae" and part.shape is not None and shape[1] == part.shape[1] and shape[0] != part.shape[0]:
        raise wrong(field, f"{path.name} is another model's {part.title}.", f"Give the {part.title} that belongs to the model.")


def _fault(header: Header, part: Stored, prefix: str) -> str | None:
    """What is missing of a part, in words."""
    names = [n.removeprefix(prefix) for n in header.tensors if n.startswith(prefix)]
    if part.count:
        # in a file of its own nothing tells them from others; names are then compared when it is loaded
        lacking = part.count - len(names)
        return f"{lacking} of the {part.count} tensors of the {part.title} are missing." if lacking > 0 else None
    # some blocks of SD 3.5 medium attend twice
    blocks = Counter(".".join(n.split(".")[:2]) for n in names if "_blocks." in n and ".attn2." not in n)
    most = Counter[str]()
    for block, count in blocks.items():
        most[block.split(".")[0]] = max(most[block.split(".")[0]], count)
    for block, count in blocks.items():
        kind, number = block.split(".")
        is_last = kind == "joint_blocks" and f"{kind}.{int(number) + 1}" not in blocks  # its text side leads nowhere
        if count < most[kind] and not is_last:
            return f"{most[kind] - count} tensors of {block} are missing."
    return None


def beside(path: Path, wanted: Mapping[str, Stored]) -> dict[str, Path]:
    """The files that hold the wanted parts, in the model's folder or where ComfyUI and A1111 keep them; of several the largest.

    The shape of their marker must be the family's, so that no other model's part is taken. Raises UserError for several VAEs,
    since those of two families may differ in nothing but their numbers.
    """
    looked_for = {name: part for name, part in wanted.items() if part.shape}
    if not looked_for:
        return {}
    folders = [path.parent]
    if path.parent.name in _CHECKPOINTS:
        folders += [path.parent.parent / name for name in _PARTS]
    files = [f for folder in folders for f in _safetensors(folder) if f != path][:_MOST_BESIDE]
    found = dict[str, list[Path]]()
    for file in sorted(files, key=lambda f: (-f.stat().st_size, f.name)):
        try:
            header = read_header(file)
        except UserError:
            continue  # not asked for, so nothing is said of it
        for name, part in looked_for.items():
            info = header.tensors.get(part.marker)
            if info is not None and info.shape[:2] == part.shape:
                found.setdefault(name, []).append(file)
    if len(vaes := found.get("vae", [])) > 1:
        said = f"{vaes[0].name} and {vaes[1].name} both lie beside the model and fit."
        raise wrong("model.vae", said, "Give the path of the one that belongs to it.")
    return {name: files[0] for name, files in found.items()}


def _safetensors(folder: Path) -> list[Path]:
    try:
        return sorted(Path(e.path) for e in os.scandir(folder) if e.name.endswith(".safetensors") and e.is_file())
    except OSError:
        return []


# --- variants ---------------------------------------------------------------------------------------------------------


def variant(family: str, header: Header, name: str) -> dict[str, dict[str, Any]]:
    """What the shapes of a transformer say of it, as entries of its configuration (and of the schedule that goes with it).

    Raises UserError if it takes more than noisy pictures.
    """
    part = FAMILIES[family].parts["transformer"]
    prefix = part.prefix_in(header.tensors)
    assert prefix is not None
    shapes = {n.removeprefix(prefix): info.shape for n, info in header.tensors.items() if n.startswith(prefix)}
    found, takes = (_sd3 if family == "sd3" else _flux)(shapes)
    if takes:
        raise wrong(
            "model.base", f"{name} takes more than noisy pictures, and cannot be trained yet.", "Choose the plain model."
        )
    return found


def _count(shapes: Mapping[str, Any], blocks: str) -> int:
    return len({n.split(".")[1] for n in shapes if n.startswith(f"{blocks}.")})


def _flux(shapes: Mapping[str, tuple[int, ...]]) -> tuple[dict[str, dict[str, Any]], bool]:
    told = "guidance_in.in_layer.weight" in shapes
    transformer = {
        "num_layers": _count(shapes, "double_blocks"),
        "num_single_layers": _count(shapes, "single_blocks"),
        "guidance_embeds": told,
    }
    # schnell, which is told no guidance, was distilled without a shift
    scheduler = {} if told else {"shift": 1.0, "use_dynamic_shifting": False}
    return {"transformer": transformer, "scheduler": scheduler}, shapes.get("img_in.weight", (0, 64))[1] != 64


def _sd3(shapes: Mapping[str, tuple[int, ...]]) -> tuple[dict[str, dict[str, Any]], bool]:
    first = shapes.get("x_embedder.proj.weight", (1536, 16))
    twice = sorted({int(n.split(".")[1]) for n in shapes if ".x_block.attn2." in n})
    transformer = {
        "num_layers": _count(shapes, "joint_blocks"),
        "num_attention_heads": first[0] // 64,
        "caption_projection_dim": first[0],
        "pos_embed_max_size": isqrt(shapes.get("pos_embed", (1, 192**2))[1]),
        "qk_norm": "rms_norm" if "joint_blocks.0.x_block.attn.ln_q.weight" in shapes else None,
        "dual_attention_layers": twice,
    }
    return {"transformer": transformer}, first[1] != 16
