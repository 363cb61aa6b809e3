"""The base model of a run: where it lies, fetched first if it is not here, and how its parts are to be kept."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from limner.config import Config
from limner.errors import UserError, wrong
from limner.formats.base import T5_SOURCE, T5_TOKENIZER, Base, base_of
from limner.formats.known import FAMILIES as KNOWN
from limner.formats.suited import unsuited
from limner.models.family import Keep
from limner.models.weights import PRECISIONS


def find_base(config: Config) -> Base:
    """The base model, fetched from the Hugging Face hub first if it is not here."""
    section = config.model
    base = base_of(section)
    if base.path is None:
        fetch(section.base, section.revision)
        base = base_of(section)
    if base.t5 and base.t5_tokenizer is None:
        base = replace(base, t5_tokenizer=fetch_t5_tokenizer())
    # what was seen before the start may have been a model that was not here yet
    if errors := [f for f in unsuited(config, base) if f.severity == "error"]:
        raise UserError(errors)
    if config.objective.prediction is not None:
        base = replace(base, prediction=config.objective.prediction)
    if config.objective.zero_terminal_snr:
        base = replace(base, has_zero_snr=True)
    if KNOWN[base.family].skips_layers:
        base = replace(base, clip_skip=section.clip_skip or 1)
    if base.prediction == "flow":
        return base
    return replace(base, text_chunks=section.text_chunks, weighted_captions=config.data.weighted_captions)


def keep_of(config: Config) -> Keep:
    """How the parts are kept in memory."""
    memory = config.memory
    return Keep(
        memory.quantize, memory.swap_blocks, memory.checkpoint_every, PRECISIONS[memory.vae_dtype], memory.vae_tiling,
        config.speed.channels_last,
    )  # fmt: skip


def fetch(name: str, revision: str | None) -> None:
    """Download a diffusers model: configurations and safetensors only, nothing that could hold code."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    patterns = ["model_index.json", "*/*.json", "tokenizer*/*"]
    patterns += [f"{part}/*.safetensors" for part in {p for known in KNOWN.values() for p in known.parts}]
    try:
        snapshot_download(name, revision=revision, allow_patterns=patterns)
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        reason = str(error).strip().split("\n")[0]
        remedy = "Check the name and the network, or give a local folder or .safetensors file."
        raise wrong("model.base", f"{name} cannot be fetched from the Hugging Face hub: {reason}", remedy) from error


def fetch_t5_tokenizer() -> Path:
    """Download T5's tokenizer; returns its folder. Raises UserError that says which file to put where."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        return Path(hf_hub_download(T5_SOURCE, "tokenizer.json")).parent
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        reason = str(error).strip().split("\n")[0]
        remedy = f"Get {T5_TOKENIZER}, and put it beside the T5 file, or give its path here."
        said = f"T5's tokenizer is not on this machine and cannot be fetched from the Hugging Face hub: {reason}"
        raise wrong("model.t5_tokenizer", said, remedy) from error
