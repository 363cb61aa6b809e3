"""What an adapter is asked to be: rules, sizes that do not fit each other, and files to begin with."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from limner.config import Config, Dylora, Lora, rules
from limner.config.model import merges
from limner.errors import Finding, UserError
from limner.formats.header import read_header
from limner.formats.lora_file import require_family
from limner.formats.lora_names import is_adapter
from limner.machine import Machine
from limner.preflight.records import Records


def check_layers(config: Config, machine: Machine | None, records: Records) -> Iterable[Finding]:
    del machine, records
    adapter: Any = config.adapter
    parsed = rules.parse(getattr(adapter, "rules", ()), ranks=hasattr(adapter, "rank"))
    if config.output.lora_names == "diffusers":
        if isinstance(adapter, Lora) and adapter.dora:
            said = "diffusers means another norm by DoRA's magnitudes than A1111 and ComfyUI."
            yield Finding("output.lora_names", said, 'Set it to "kohya", or adapter.dora = false.')
        elif hasattr(adapter, "rules") and not adapter.trains_base and adapter.kind not in ("lora", "dylora"):
            said = f"diffusers has no names for adapters of the kind {adapter.kind}."
            yield Finding("output.lora_names", said, 'Set it to "kohya".')
    if isinstance(adapter, Lora) and adapter.dora and adapter.dropout:
        said = "has no effect with DoRA, which builds each weight whole."
        yield Finding("adapter.dropout", said, "Set it to 0, or use adapter.rank_dropout.")
    if isinstance(adapter, Dylora):
        ranks = {"adapter.rank": adapter.rank, "adapter.conv_rank": adapter.conv_rank or adapter.unit}
        for field, rank in [*ranks.items(), *((rules.FIELD, r.values["rank"]) for r in parsed if "rank" in r.values)]:
            if rank % adapter.unit:
                said = f"{rank} does not divide into units of {adapter.unit}."
                yield Finding(field, said, f"Use a multiple of {adapter.unit}, or another adapter.unit.")


def check_files(config: Config, machine: Machine | None, records: Records) -> Iterable[Finding]:
    """Whether the files to begin with are there, whole, and the model's own."""
    del machine
    family = records.base.family if records.base is not None else None
    start = getattr(config.adapter, "start", None)
    asked = [("adapter.start", start)] if start is not None else []
    for field, path in [*asked, *(("model.merge", path) for path, _ in merges(config.model))]:
        yield from _of_file(field, path, family)


def _of_file(field: str, path: Path, family: str | None) -> Iterable[Finding]:
    if not path.is_file():
        yield Finding(field, f"{path} is not a file.", "Give the path of a .safetensors file.")
        return
    try:
        header = read_header(path, field)
        if not is_adapter(header.tensors):
            yield Finding(field, f"{path.name} holds no LoRA that Limner knows.", "Give the file of an adapter.")
            return
        if family is not None:
            require_family(header, family, path.name, field)
    except UserError as error:
        yield from error.findings
