"""What a merged file says about itself: what it was made of, and what still holds of that.

Hashes are those that kohya's trainer writes into a LoRA, of the files' numbers (see `formats.metadata`).
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from limner import parsing
from limner.formats.base import Base
from limner.formats.metadata import ARCHITECTURES, BASE_VERSIONS, MODULES, TRIGGER, add_hashes

if TYPE_CHECKING:
    from limner.tools.loras import Given

MERGED = "limner_merged"
"""JSON: how, and of each file its name, strength and hashes."""
_SAME = (
    "ss_sd_model_name", "ss_sd_model_hash", "ss_new_sd_model_hash", "ss_vae_name", "ss_vae_hash", "ss_new_vae_hash",
    "ss_clip_skip", "ss_max_token_length", "ss_zero_terminal_snr", "ss_noise_offset", "ss_resolution", "modelspec.architecture",
    "modelspec.prediction_type", "modelspec.resolution", "modelspec.license", "modelspec.author",
)  # fmt: skip
"""Kept where all files say the same."""
_MOST_TAGS, _MOST_TRIGGERS = 2000, 4000
_SPEC = "1.0.1"


def of_model(base: Base, before: Mapping[str, str], given: Sequence[Given], title: str, date: str) -> dict[str, str]:
    """Of a model's single file with LoRAs in it."""
    names = ", ".join([base.path.name if base.path else base.source, *(its.title for its in given)])
    out = {k: v for k, v in before.items() if k != "modelspec.hash_sha256"} | {"format": "pt"}
    if base.is_prediction_known:
        out.setdefault("modelspec.architecture", ARCHITECTURES[base.family, base.prediction])
    out |= {"modelspec.sai_model_spec": before.get("modelspec.sai_model_spec", _SPEC), "modelspec.title": title}
    out |= {"modelspec.date": date, "modelspec.merged_from": names}
    triggers = _triggers([before, *(its.header.metadata for its in given)])
    return out | ({TRIGGER: triggers} if triggers else {}) | {MERGED: _merged("model", given)}


def of_lora(
    family: str,
    given: Sequence[Given],
    method: str,
    title: str,
    date: str,
    rank: int | None,
    scale: float,
    is_plain: bool,
) -> dict[str, str]:
    """Of LoRAs merged with each other. `rank`: of all layers, None if they differ; `scale`: alpha / rank; `is_plain`: whether
    all are LoRA."""
    said = [its.header.metadata for its in given]
    out = {key: said[0][key] for key in _SAME if key in said[0] and all(m.get(key) == said[0][key] for m in said)}
    # kohya's resize_lora says "Dynamic" for layers of several ranks
    size, alpha = ("Dynamic", "Dynamic") if rank is None else (str(rank), f"{rank * scale:g}")
    out |= {
        "format": "pt",
        "ss_network_module": MODULES.get(family, "networks.lora") if is_plain else "lycoris.kohya",
        "ss_network_dim": size,
        "ss_network_alpha": alpha,
        "ss_base_model_version": BASE_VERSIONS[family],
        "ss_v2": str(family == "sd2"),
        "ss_output_name": title,
        "modelspec.sai_model_spec": _SPEC,
        "modelspec.title": title,
        "modelspec.date": date,
        "modelspec.merged_from": ", ".join(its.title for its in given),
        MERGED: _merged(method, given),
    }
    if triggers := _triggers(said):
        out[TRIGGER] = triggers
    if tags := _tags(said):
        out["ss_tag_frequency"] = json.dumps(tags, ensure_ascii=False)
    return out


def _merged(method: str, given: Sequence[Given]) -> str:
    files = [{"file": its.path.name, "strength": its.strength, **add_hashes(its.path)} for its in given]
    return json.dumps({"method": method, "files": files}, ensure_ascii=False)


def _triggers(said: Iterable[Mapping[str, str]]) -> str:
    """All trigger words, each once."""
    return ", ".join(dict.fromkeys(m[TRIGGER].strip() for m in said if m.get(TRIGGER, "").strip()))[:_MOST_TRIGGERS]


def _tags(said: Iterable[Mapping[str, str]]) -> dict[str, dict[str, int]]:
    """kohya's {folder: {tag: times}}, added up; what is of another form is left out."""
    out = dict[str, Counter[str]]()
    for metadata in said:
        for folder, counts in _table(metadata.get("ss_tag_frequency", "")).items():
            its = out.setdefault(folder, Counter())
            if isinstance(counts, dict):
                its.update({tag: n for tag, n in counts.items() if type(n) is int and n > 0})
    return {folder: dict(counts.most_common(_MOST_TAGS)) for folder, counts in list(out.items())[:100] if counts}


def _table(text: str) -> dict[str, Any]:
    try:
        found = parsing.json_value(text)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}
