"""Which model, and how captions are read <-> [model]."""

from __future__ import annotations

from limner.config.kohya.reader import Reader
from limner.config.kohya.writer import Writer
from limner.config.model import merges
from limner.errors import UserError

ARGUMENTS = (
    "pretrained_model_name_or_path", "v2", "vae", "ae", "clip_l", "clip_g", "t5xxl", "max_token_length", "base_weights", "base_weights_multiplier",
    "clip_skip", "t5xxl_max_token_length",
)  # fmt: skip
OPTIONS = (
    "model.clip_l",
    "model.clip_g",
    "model.t5",
    "model.family",
    "model.vae",
    "model.text_chunks",
    "model.merge",
    "model.clip_skip",
    "model.base",
)
_SKIPS = ("sd1", "sd2")


def read(r: Reader) -> None:
    """Set the model's files and how captions are read."""
    base = r.text("pretrained_model_name_or_path")
    if base:
        r.take("pretrained_model_name_or_path", {"model.base": base})
    second = r.flag("v2")
    if second and r.family == "sd2":
        r.take("v2", {"model.family": "sd2"})
    elif second:
        r.refuse("v2", "contradicts the script, which is not for Stable Diffusion 2.")
    else:
        r.idle("v2", "It is off.")
    if r.family and (r.complete or r.script):
        r.put("model.family", r.family)
    _read_vae(r)
    _read_text(r)
    _read_merges(r)


def _read_vae(r: Reader) -> None:
    for part, option in (("clip_l", "model.clip_l"), ("clip_g", "model.clip_g"), ("t5xxl", "model.t5")):
        if file := r.text(part):
            r.take(part, {option: file})
    name = "ae" if r.has("ae") or (r.script and not r.knows("vae")) else "vae"
    if r.family == "flux" and r.has("ae"):
        r.idle("vae", "Flux.1's is given by ae.")
    elif r.has("ae") and r.family:
        r.idle("ae", "It is for Flux.1.")
        name = "vae"
    path = r.text(name)
    if path and path.strip():
        r.take(name, {"model.vae": path})


def _read_text(r: Reader) -> None:
    skip = r.integer("clip_skip")
    if r.family and r.family not in _SKIPS:
        r.idle("clip_skip", "It has no effect for this family.")
    elif skip is not None and skip > 0:
        r.take("clip_skip", {"model.clip_skip": skip})
    else:
        r.idle("clip_skip", "It is off.")
        if r.complete and r.family in _SKIPS and "clip_skip" not in r.done:
            r.put("model.clip_skip", 1)
    length = r.integer("max_token_length")
    if length is not None and length > 0:
        # 75 is what the GUI calls its absence; 77 counts the two marks
        chunks = 1 if length == 77 else length // 75
        r.take("max_token_length", {"model.text_chunks": chunks})
    elif length is not None:
        r.idle("max_token_length", "It is not given.")
    tokens = r.integer("t5xxl_max_token_length")
    usual = {"flux": 512, "sd3": 256}.get(r.family)
    if tokens is None or tokens == usual:
        r.idle("t5xxl_max_token_length", "It is so in any case.")
    else:
        r.unsupported("t5xxl_max_token_length", f"T5 reads {usual or 'a fixed number of'} tokens here.")


def _read_merges(r: Reader) -> None:
    files, strengths = r.texts("base_weights"), r.numbers("base_weights_multiplier") or []
    if not files:
        r.idle("base_weights_multiplier", "There are no base_weights.")
        return
    strengths += [1.0] * (len(files) - len(strengths))
    merged = [f"{file} @ {strength}" if strength != 1 else file for file, strength in zip(files, strengths, strict=False)]
    if r.take("base_weights", {"model.merge": merged}) and r.has("base_weights_multiplier"):
        r.account("base_weights_multiplier", "converted", "model.merge", why="The strength stands behind each file.")


def write(w: Writer) -> None:
    """The model's arguments."""
    model = w.config.model
    base = w.facts.base or model.base
    if model.base.startswith("pocket"):
        w.lose("model.base", "sd-scripts does not know the small model that ships with Limner.", "Give another model.")
    w.put("pretrained_model_name_or_path", base, "model.base")
    w.put("v2", w.family == "sd2", "model.family")
    _write_parts(w)
    if w.family in _SKIPS:
        w.put("clip_skip", model.clip_skip or 1, "model.clip_skip")
    elif model.clip_skip is not None:
        w.lose("model.clip_skip", "has no effect for this family.", severity="warning")
    if model.text_chunks in (2, 3):
        w.put("max_token_length", 75 * model.text_chunks, "model.text_chunks")
    elif model.text_chunks > 3:
        w.lose("model.text_chunks", "sd-scripts reads at most 3.", "Set it to 3.")
    if model.merge:
        _write_merges(w)


def _write_parts(w: Writer) -> None:
    """Files of the VAE and the text encoders. Flux.1's are to be named, each; other models hold theirs."""
    names = {"vae": "ae" if w.family == "flux" else "vae", "clip_l": "clip_l", "clip_g": "clip_g", "t5": "t5xxl"}
    for option, name in names.items():
        own = getattr(w.config.model, option)
        path = w.facts.parts.get(option) if own is None else str(own)
        if path:
            w.put(name, path, f"model.{option}")
        elif w.family == "flux" and w.knows(name):
            w.lose(f"model.{option}", "is not given, and sd-scripts does not look for it.", "Give the file.")


def _write_merges(w: Writer) -> None:
    try:
        found = merges(w.config.model)
    except UserError as error:
        w.losses += error.findings
        return
    w.put("base_weights", [str(path) for path, _ in found], "model.merge")
    if w.knows("base_weights_multiplier"):
        w.put("base_weights_multiplier", [strength for _, strength in found], "model.merge")
