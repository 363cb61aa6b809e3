"""Say what a file is, what it was trained with, whether its numbers are sound, and who loads it. Nothing in it is run."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from limner.config.tools.files import Inspect
from limner.errors import Finding, printable, wrong
from limner.formats.header import Header
from limner.formats.known import FAMILIES
from limner.formats.lora_names import is_adapter
from limner.formats.single import header_of, is_pickled
from limner.formats.streamed import body
from limner.tools.told import trained_with
from limner.tools.tool import Progress, Report

_CHUNK_BYTES = 1 << 22
_EMBEDDING = {"emb_params", "clip_l", "clip_g"}


def look(section: Inspect) -> Report:
    """What the header says, in a moment."""
    return _report(section, *_known(section))


def run(section: Inspect, progress: Progress) -> Report:
    """All of it: the numbers are read, and the file is hashed."""
    from limner.tools.numbers import numbers_of_a_lora, numbers_of_a_model

    header = _header(section)
    facts, remarks = _known(section)
    if facts["what"] == "LoRA":
        numbers, more = numbers_of_a_lora(section, header, progress)
    else:
        numbers, more = numbers_of_a_model(section, header, progress)
    facts |= numbers
    facts["hashes"] = _hashes(section.file, header, progress)
    return _report(section, facts, [*remarks, *more, *_stale(header, facts["hashes"])])


def _header(section: Inspect) -> Header:
    if section.file.is_dir():
        raise wrong("inspect.file", f"{section.file} is a folder.", "Give one of the files in it.")
    return header_of(section.file, "inspect.file")


def _known(section: Inspect) -> tuple[dict[str, Any], list[Finding]]:
    header = _header(section)
    names, remarks = header.tensors, list[Finding]()
    size = section.file.stat().st_size
    facts: dict[str, Any] = {"file": str(section.file), "bytes": size, "num_tensors": len(names)}
    facts["dtypes"] = dict(Counter(info.dtype for info in names.values()).most_common())
    if is_adapter(names):
        from limner.tools.numbers import lora_facts

        more, remarks = lora_facts(section, header)
        facts |= {"what": "LoRA"} | more
    elif names and names.keys() <= _EMBEDDING:
        shapes = [info.shape for info in names.values()]
        facts |= {"what": "embedding", "vectors": [list(shape) for shape in shapes]}
    else:
        facts |= {"what": "model"} | _model_facts(section, header, remarks)
    facts["trained with"] = trained_with(header.metadata)
    if section.as_json:
        facts["metadata"] = header.metadata
    return facts, remarks


def _model_facts(section: Inspect, header: Header, remarks: list[Finding]) -> dict[str, Any]:
    from limner.errors import UserError
    from limner.formats import single

    found = single.family_of(header)
    if found not in FAMILIES:
        return {"family": None, "kind": found}
    known, parts = FAMILIES[found], {}
    for part in known.parts.values():
        if (prefix := part.prefix_in(header.tensors)) is not None:
            parts[part.title] = sum(n.startswith(prefix) for n in header.tensors)
    try:
        single.parts_inside(section.file, known, "inspect.file", is_usual=True)
    except UserError as error:
        remarks += error.findings
    averaged = sum(n.startswith("model_ema.") for n in header.tensors)
    said = single.prediction_of(header)
    facts = {"family": found, "kind": f"{known.title}, {known.prediction if said is None else said}", "parts": parts}
    return facts | ({"averaged weights": averaged} if averaged else {})


def _hashes(file: Path, header: Header, progress: Progress) -> dict[str, str]:
    """As A1111 and Civitai count them (kohya.md 2.10): AutoV1, AutoV2, AutoV3, and the whole ones."""
    whole, tensors, size = hashlib.sha256(), hashlib.sha256(), file.stat().st_size
    start, at = body(header, size) if header.places else size, 0
    with file.open("rb") as opened:
        while piece := opened.read(_CHUNK_BYTES):
            whole.update(piece)
            tensors.update(piece[max(0, start - at) :])
            at += len(piece)
            progress(at, size, "Hashing")
        opened.seek(0x100000)
        old = hashlib.sha256(opened.read(0x10000)).hexdigest()[:8]
    out = {"sha256": whole.hexdigest(), "AutoV1": old, "AutoV2": whole.hexdigest()[:10]}
    if not is_pickled(file):
        out |= {"AutoV3": tensors.hexdigest()[:12], "sha256 of the tensors": tensors.hexdigest()}
    return out


def _stale(header: Header, hashes: Mapping[str, str]) -> list[Finding]:
    said = header.metadata.get("sshs_model_hash")
    if said is None or said == hashes.get("sha256 of the tensors"):
        return []
    text = "its sshs_model_hash is not that of its tensors: they were changed after it was written."
    return [Finding("inspect.file", text, severity="warning")]


# --- words ------------------------------------------------------------------------------------------------------------


def _report(section: Inspect, facts: dict[str, Any], remarks: list[Finding]) -> Report:
    if section.as_json:
        return Report(lines=json.dumps(facts, indent=1, ensure_ascii=True, default=str).splitlines(), remarks=remarks)
    lines = [f"{section.file.name}: {_what(facts)}"]
    for key, value in facts.items():
        if key in ("file", "what", "layers", "family", "kind"):
            continue
        lines += _lines(key.replace("num_tensors", "tensors"), value)
    return Report(lines=[printable(line, 400) for line in lines], remarks=remarks)


def _what(facts: Mapping[str, Any]) -> str:
    family = FAMILIES[facts["family"]].title if facts.get("family") in FAMILIES else None
    if facts["what"] == "LoRA":
        return f"a {facts['kind']} file for {family or 'a model that its layers do not tell'}"
    return "an embedding" if facts["what"] == "embedding" else facts["kind"]


def _lines(key: str, value: Any) -> list[str]:
    if isinstance(value, dict):
        rows = [f"  {printable(k, 110)}: {v if not isinstance(v, float) else f'{v:.4g}'}" for k, v in value.items()]
        return [f"{key}:", *rows] if rows else []
    if isinstance(value, list):
        return [f"{key}:", *(f"  {row}" for row in value)] if value else []
    if isinstance(value, int | float):
        return [f"{key}: {value:,}" if isinstance(value, int) else f"{key}: {value:.4g}"]
    return [f"{key}: {value}"]
