"""What a run leaves behind: checkpoints (weights to use) and training states (to resume from)."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from limner import disk
from limner.adapters.adapter import Adapter
from limner.adapters.together import Together
from limner.config import Config
from limner.engine.aside import Copies
from limner.engine.average import Average
from limner.engine.finite import all_finite
from limner.engine.one_by_one import OneByOne
from limner.engine.optimizer_state import pack, unpack
from limner.engine.runtime import Runtime
from limner.engine.shards import is_sharded, load, local, share_like, whole, whole_like
from limner.errors import UserError, wrong
from limner.formats.embedding_file import file_name
from limner.formats.header import read_header
from limner.formats.metadata import TRIGGER, adapter_metadata, add_hashes, model_spec
from limner.models.family import Family
from limner.models.weights import PRECISIONS, Weights

_KEPT_STATES = 2
_STATE = re.compile(r"step-[0-9]{1,12}", re.ASCII)


# --- checkpoints ------------------------------------------------------------------------------------------------------


def output_folder(config: Config, run_checkpoints: Path) -> Path:
    """Where finished files go."""
    return config.output.path or run_checkpoints


def checkpoint_name(config: Config, step: int, total: int) -> str:
    """kohya's names: `<name>-step00000100` on the way, `<name>` at the end."""
    return config.output.name if step >= total else f"{config.output.name}-step{step:08d}"


Write = Callable[[], None]
"""Writes a file, or the folder of a whole model, whole or not at all."""


def checkpoint_writers(
    config: Config, family: Family, adapter: Adapter, folder: Path, facts: dict[str, Any]
) -> dict[Path, Write]:
    """What writes the weights to use at this step: first the checkpoint; an embedding learnt beside it follows.

    An adapter's are copied now and may be written later; a whole model is written as it is then.
    """
    name = checkpoint_name(config, facts["step"], facts["total_steps"])
    if config.adapter.trains_base:
        path = folder / (name if config.output.layout == "diffusers" else f"{name}.safetensors")
        writers: dict[Path, Write] = {path: lambda: _save_model(config, family, path, facts)}
    else:
        path = folder / f"{name}.safetensors"
        write = write_embedding if config.adapter.kind == "embedding" else write_adapter
        writers = {path: _later(write, path, adapter.exported(config.output.lora_names), config, facts)}
    if isinstance(adapter, Together):
        beside = folder / file_name(name)
        writers[beside] = _later(write_embedding, beside, adapter.embedding.exported(), config, facts)
    return writers


def _later(write: Callable[..., None], path: Path, state: dict[str, Tensor], config: Config, facts: dict[str, Any]) -> Write:
    """Writes a file of these tensors as they are now."""
    copies = Copies()
    kept = {k: copies.take(v) for k, v in state.items()}

    def writer() -> None:
        copies.wait()
        write(path, kept, config, facts)

    return writer


def _save_model(config: Config, family: Family, target: Path, facts: dict[str, Any]) -> None:
    """Write the whole model, as a file or a folder."""
    dtype = PRECISIONS[config.output.dtype]
    if config.output.layout == "diffusers":
        disk.write_folder(target, lambda temporary: family.save(temporary, dtype))
        return
    with disk.replacing(target) as temporary:
        family.save_file(temporary, dtype, model_spec(config, facts, suffix=""))


def write_adapter(path: Path, state: dict[str, Tensor], config: Config, facts: dict[str, Any]) -> None:
    """A LoRA file with its metadata."""
    dtype = PRECISIONS[config.output.dtype]
    # alpha stays in float32: it is the scale of everything, and may not fit into fp16
    dtypes = {
        k: torch.float32 if k.endswith(".alpha") else dtype if v.is_floating_point() else v.dtype for k, v in state.items()
    }
    tensors = {k: v.cpu().to(dtypes[k]).contiguous() for k, v in state.items()}
    if not all_finite(tensors.values()):
        raise too_large(config)
    kohya = adapter_metadata(config, facts)
    with disk.replacing(path) as temporary:
        # the hashes are those of the file with the ss_ keys alone (sd-scripts' rule), so it is written twice
        save_file(tensors, temporary, kohya)
        save_file(tensors, temporary, kohya | add_hashes(temporary) | model_spec(config, facts))


def write_embedding(path: Path, state: dict[str, Tensor], config: Config, facts: dict[str, Any]) -> None:
    """An embedding file with its metadata; kohya writes no keys of its own into one."""
    tensors = {k: v.cpu().to(PRECISIONS[config.output.dtype]).contiguous() for k, v in state.items()}
    if not all_finite(tensors.values()):
        raise too_large(config)
    spec = model_spec(config, facts, suffix="/textual-inversion") | {TRIGGER: str(config.embedding.token)}
    with disk.replacing(path) as temporary:
        save_file(tensors, temporary, spec)


def too_large(config: Config) -> UserError:
    """The message for finite weights that are not in the file's precision."""
    said = f"the weights do not fit into {config.output.dtype}: the file would hold infinities."
    return wrong("output.dtype", said, 'Set "bf16" or "fp32"; weights so large also ask for a lower learning rate.')


def superfluous(config: Config, written: list[str]) -> list[str]:
    """The oldest of the checkpoints this run wrote on the way, beyond those to keep."""
    keep = config.output.keep_last
    return [] if keep is None else written[:-keep]


def delete_checkpoints(config: Config, folder: Path, names: list[str]) -> None:
    """Delete these of them."""
    for name in names:
        disk.remove(folder / name)
        if config.adapter.kind != "embedding" and config.embedding.token is not None:
            disk.remove(folder / file_name(name))


def verify(path: Path) -> None:
    """Read back what was written. Raises UserError if it is not whole: then nothing older is deleted."""
    if path.is_dir():
        if faults := disk.manifest_faults(path):
            raise wrong(str(path), f"was not written whole: {faults[0]}.", "Check the disk, and resume the run.")
    else:
        read_header(path)


# --- training states --------------------------------------------------------------------------------------------------


Part = tuple[str, dict[str, Tensor], dict[str, Any] | None]
"""A file of a state: its name, its tensors, and what is told beside them."""


def save_state(folder: Path, step: int, parts: Iterable[Part], extra: dict[str, Any], copies: Copies) -> None:
    """Write everything that resuming at `step` needs, then prune older states. `parts` are of `parts_of_state`, all made before
    or each when it is written; their tensors are `copies`."""

    def fill(temporary: Path) -> None:
        for name, tensors, told in parts:
            copies.wait()
            save_file(tensors, temporary / f"{name}.safetensors")
            if told is not None:
                (temporary / f"{name}.json").write_text(json.dumps(told), encoding="utf-8")
            del tensors  # before the next are made
        (temporary / "state.json").write_text(json.dumps({"step": step, "version": 2, **extra}), encoding="utf-8")

    target = folder / f"step-{step:08d}"
    disk.write_folder(target, fill)
    if not disk.manifest_faults(target):
        every, doubted = _by_step(folder), extra["watch"]["above"]
        # a loss that is exploding may make the newest worth nothing
        kept = [p for p in every if doubted and step_of(p) < doubted[0]][-1:]
        for old in every[:-_KEPT_STATES]:
            if old not in kept:
                disk.remove(old)


def has_state(folder: Path, step: int) -> bool:
    """Whether the whole state of a step is there already."""
    target = folder / f"step-{step:08d}"
    return target.exists() and not disk.manifest_faults(target)


def parts_of_state(
    adapter: Adapter, optimizer: torch.optim.Optimizer | OneByOne, average: Average | None, copies: Copies
) -> Iterator[Part]:
    """The files of a state, one after the other in memory. Of weights that are shared out among processes, all must go through
    them."""
    yield "weights", {k: copies.take(whole(v.detach())) for k, v in adapter.state_dict().items()}, None
    yield "optimizer", *pack(optimizer, copies.take)
    if average is not None:
        both = zip(average.values, average.params, strict=True)
        yield "average", {str(i): copies.take(whole_like(v, p)) for i, (v, p) in enumerate(both)}, None


def _by_step(folder: Path) -> list[Path]:
    found = [p for p in folder.glob("step-*") if _STATE.fullmatch(p.name) and p.is_dir()]
    return sorted(found, key=lambda p: (step_of(p), p.name))


def states_from(folder: Path, step: int) -> list[Path]:
    """The states of this step and later ones."""
    return [p for p in _by_step(folder) if step_of(p) >= step]


def step_of(path: Path) -> int:
    """The step of a training state, from its folder's name."""
    return int(path.name.removeprefix("step-"))


def newest_state(folder: Path) -> tuple[Path | None, list[str]]:
    """The newest undamaged state, and what is wrong with newer ones that had to be passed over."""
    faults = []
    for path in reversed(_by_step(folder)):
        wrongs = disk.manifest_faults(path)
        if not wrongs:
            return path, faults
        faults.append(f"{path.name}: {'; '.join(wrongs)}")
    return None, faults


def refuse_other_circumstances(saved: dict[str, Any], here: dict[str, Any]) -> None:
    """Raises UserError if a run would go on under circumstances that change its numbers."""
    before = saved.get("circumstances", here)
    differing = [k for k in here if k in before and before[k] != here[k]]
    if differing:
        said = "; ".join(f"its {k} was {before.get(k)}, now it is {here[k]}" for k in differing)
        raise wrong("run", f"it cannot go on as it began: {said}.", "Bring back what was there, or start a new run.")


def load_state(
    path: Path, adapter: Adapter, optimizer: torch.optim.Optimizer | OneByOne, average: Average | None, runtime: Runtime
) -> dict[str, Any]:
    """Take over a training state; returns its `state.json`. Processes that do not see its folder (another machine's) are sent
    it. Raises UserError, with nothing changed silently, if a part of it is missing."""
    read, read_json = _readers(path, runtime)
    try:
        facts = read_json("state.json")
        if runtime.is_sharded:
            load(adapter.state_dict(), read("weights.safetensors"))
        else:
            adapter.load_state_dict(dict(read("weights.safetensors")))
        unpack(optimizer, read("optimizer.safetensors"), read_json("optimizer.json"))
        if average is not None:
            saved = read("average.safetensors")
            for i, (value, p) in enumerate(zip(average.values, average.params, strict=True)):
                whole_value = saved[str(i)]
                value.copy_(local(share_like(whole_value, p)) if is_sharded(p) else whole_value)
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        raise wrong(
            str(path), f"the training state lacks a part ({error}).", "Start a new run; its weights are in checkpoints/."
        ) from None
    return facts


def _readers(path: Path, runtime: Runtime) -> tuple[Callable[[str], Mapping[str, Tensor]], Callable[[str], Any]]:
    """What reads a file of tensors, and one of JSON, of a training state's folder."""

    def read_json(name: str) -> Any:
        return json.loads((path / name).read_text(encoding="utf-8"))

    if not runtime.any(not path.is_dir()):
        # of weights that are shared out no process needs all at once
        return (lambda name: Weights([path / name]) if runtime.is_sharded else load_file(path / name)), read_json
    main = runtime.is_main
    return (
        lambda name: runtime.share_tensors(load_file(path / name) if main else None),
        lambda name: runtime.share(read_json(name) if main else None),
    )
