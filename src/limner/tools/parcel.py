"""What is published: which files of a run, or which file or folder, and what their page says.

Only what is named here leaves the machine: finished weights, the samples of the last painting, and a page without the paths of
this machine.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from limner import disk, runs
from limner.config import Config, files
from limner.config.fields import values
from limner.config.tools.publish import Publish
from limner.errors import Finding, UserError, wrong
from limner.formats.base import recognise_alone
from limner.formats.header import Header, read_header
from limner.formats.known import FAMILIES
from limner.formats.lora_file import family_of_lora
from limner.formats.metadata import TRIGGER
from limner.runs import LIVE, Run
from limner.tools.model_card import NAME, Card, Sample, is_license

_SAMPLE = re.compile(r"step-\d{1,12}_\d{1,4}\.png", re.ASCII)
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", re.ASCII)
_IN_FOLDERS = (".safetensors", ".json", ".txt", ".model")
_MAX_SAMPLES, _MAX_IN_FOLDER = 24, 200
_TAGS = {
    "sd1": "stable-diffusion",
    "sd2": "stable-diffusion",
    "sdxl": "stable-diffusion-xl",
    "sd3": "stable-diffusion-3",
    "flux": "flux",
}
_SHOWN = ("adapter", "train", "optimizer", "objective", "embedding", "data")
_FACTS = {
    "ss_steps": "steps", "ss_num_epochs": "epochs", "ss_num_train_images": "pictures an epoch, repeats counted",
    "ss_total_batch_size": "pictures in a batch", "ss_resolution": "resolution", "ss_learning_rate": "learning rate",
    "ss_optimizer": "optimiser", "ss_lr_scheduler": "schedule", "ss_network_dim": "rank", "ss_network_alpha": "alpha",
    "ss_mixed_precision": "precision", "ss_seed": "seed", "modelspec.resolution": "resolution", "modelspec.date": "date",
}  # fmt: skip


@dataclass(frozen=True)
class Parcel:
    """What goes out: {name in the repository: file}, and the page."""

    files: Mapping[str, Path]
    card: Card
    remarks: tuple[Finding, ...] = ()


def pack(section: Publish) -> Parcel:
    """Everything that would be published. Raises UserError for what cannot be."""
    if (section.run is None) == (section.file is None):
        raise wrong("publish.run", "either a run or a file is to be given.", "Set publish.run or publish.file, not both.")
    if section.license is not None and not is_license(section.license):
        raise wrong("publish.license", "is not one of the Hub's short names.", 'For example "openrail++", or "other".')
    if section.base_model is not None and not _HUB_ID.fullmatch(section.base_model):
        raise wrong("publish.base_model", "is no name on the Hub.", "Write owner/name, or leave it out.")
    if section.run is not None:
        return _of_run(runs.find(section.run), section)
    assert section.file is not None
    if (section.file / "config.toml").is_file() and (section.file / "state.json").is_file():
        return _of_run(Run(section.file), section)
    return _of_path(section.file, section)


def _of_path(path: Path, section: Publish) -> Parcel:
    if path.is_dir():
        inside = _in_folder(path)
        if not inside:
            raise wrong("publish.file", f"{path} holds no .safetensors file.", "Give a diffusers folder, or a finished file.")
        return _parcel(path.name, inside, section, _family_of(path), {}, None, ())
    if path.suffix.lower() != ".safetensors":
        raise wrong("publish.file", f"{path.name} is no .safetensors file.", "Give a finished file, or a folder of one.")
    header = read_header(path, "publish.file")
    return _parcel(path.stem, {_name(path): path}, section, _family_of(path, header), header.metadata, None, ())


def _of_run(run: Run, section: Publish) -> Parcel:
    config, remarks = run.config(), list[Finding]()
    found = _checkpoints(run, config)
    if not found:
        raise wrong("publish.run", f"{run.id} has no finished file.", "Wait until it has saved one.")
    if run.state().status in LIVE:
        remarks.append(Finding("publish.run", f"{run.id} still trains; what is published is not its end.", "", "warning"))
    chosen = found
    if section.checkpoints == "last":
        last = _last(run, found)
        chosen = {n: f for n, f in found.items() if n.partition("/")[0] in last}
        # the Hub looks for a diffusers model at the top
        if all("/" in n for n in chosen):
            chosen = {n.partition("/")[2]: f for n, f in chosen.items()}
    first = next(f for n, f in reversed(chosen.items()) if f.suffix == ".safetensors")
    metadata = read_header(first, "publish.run").metadata
    parcel = _parcel(config.output.name, chosen, section, _family_of_run(run, config, first), metadata, config, remarks)
    if not section.samples:
        return parcel
    pictures = dict(_samples(run))
    card = replace(parcel.card, samples=[s for s, _ in pictures.values()])
    return Parcel({**parcel.files, **{s.path: f for s, f in pictures.values()}}, card, parcel.remarks)


def _checkpoints(run: Run, config: Config) -> dict[str, Path]:
    """The finished files that the run says it wrote and that are there, oldest first. Its words are taken for names alone."""
    folder, out = config.output.path or run.checkpoints, dict[str, Path]()
    for event in run.history("checkpoint"):
        for key in ("path", "embedding"):
            name = Path(str(event.get(key) or "")).name
            path = folder / name
            if not name or path.is_symlink():
                continue
            if path.suffix == ".safetensors" and path.is_file():
                out[_name(path)] = path
            elif (path / disk.MANIFEST).is_file():
                out |= {f"{_name(path)}/{inside}": file for inside, file in _in_folder(path).items()}
    return out


def _last(run: Run, found: Mapping[str, Path]) -> set[str]:
    """The names of what was written last: the file or folder, and an embedding that was learnt beside it."""
    for event in reversed(run.history("checkpoint")):
        names = {_name(Path(str(event[key]))) for key in ("path", "embedding") if event.get(key)}
        here = {n.partition("/")[0] for n in found} & names
        if here:
            return here
    return set()


def _in_folder(folder: Path) -> dict[str, Path]:
    """The files of a diffusers model that belong to it, by their names in it; {} if it holds no weights."""
    inside = [p for pattern in ("*", "*/*") for p in sorted(folder.glob(pattern))]
    taken = [p for p in inside if p.is_file() and not p.is_symlink() and p.suffix in _IN_FOLDERS and p.name != disk.MANIFEST]
    names = {p.relative_to(folder).as_posix(): p for p in taken if not p.parent.is_symlink()}
    names = {n: p for n, p in names.items() if not any(part.startswith(".") for part in n.split("/")) and n != NAME}
    if len(names) > _MAX_IN_FOLDER:
        raise wrong("publish.file", f"{folder} holds more files than a model has.", "Give the folder of one model.")
    return names if any(n.endswith(".safetensors") for n in names) else {}


def _name(path: Path) -> str:
    """A file's name in the repository: what the Hub, git and other systems cannot take is replaced."""
    return re.sub(r"[^\w.+ ()-]", "_", path.name).lstrip(". ") or "model.safetensors"


def _samples(run: Run) -> Iterator[tuple[str, tuple[Sample, Path]]]:
    """The pictures of the last painting that are there, with their prompts."""
    painted = [e for e in run.history("sample") if _SAMPLE.fullmatch(str(e.get("path")))]
    last = max((e["step"] for e in painted if isinstance(e.get("step"), int)), default=None)
    for event in [e for e in painted if e.get("step") == last][:_MAX_SAMPLES]:
        file, seed = run.samples / event["path"], event.get("seed")
        if file.is_file() and not file.is_symlink():
            sample = Sample(f"samples/{file.name}", str(event.get("prompt", "")), seed if isinstance(seed, int) else None)
            yield file.name, (sample, file)


def _parcel(
    name: str, found: Mapping[str, Path], section: Publish, family: str | None, metadata: Mapping[str, str],
    config: Config | None, remarks: list[Finding] | tuple[()],
) -> Parcel:  # fmt: skip
    said = list(remarks)
    kind, tags = _kind(config, metadata, found)
    license = section.license or metadata.get("modelspec.license")
    if license is not None and not is_license(license):
        said.append(
            Finding("publish.license", f"the file's, {license[:60]!r}, is none of the Hub's short names.", "Set it.", "note")
        )
        license = "other"
    base = section.base_model or _base_on_hub(config)
    for field, value in (("publish.license", license), ("publish.base_model", base)):
        if value is None:
            said.append(Finding(field, "is not known, and the page does not say it.", "Set it.", "note"))
    if any(key in metadata for key in ("ss_tag_frequency", "ss_dataset_dirs")):
        what = (
            "the file's metadata name the folders of the pictures and the words of their captions, and are published with it."
        )
        said.append(
            Finding("publish.file" if config is None else "publish.run", what, "Remove them first if they are private.", "note")
        )
    trigger = metadata.get(TRIGGER) or (config and (config.data.trigger or config.embedding.token))
    more = [t.strip() for t in metadata.get("modelspec.tags", "").split(",")]
    card = Card(
        title=metadata.get("modelspec.title") or name,
        kind=kind + (f" for {FAMILIES[family].title}" if family else ""),
        tags=["text-to-image", *([_TAGS[family]] if family else []), *tags, *more],
        license=license,
        base_model=base,
        trigger=trigger or None,
        description=metadata.get("modelspec.description"),
        author=metadata.get("modelspec.author"),
        files=[n for n in found if n.endswith(".safetensors")],
        settings=_settings(config) if config else {},
        facts=_facts(metadata),
    )
    return Parcel(found, card, tuple(said))


def _kind(config: Config | None, metadata: Mapping[str, str], found: Mapping[str, Path]) -> tuple[str, list[str]]:
    """(what it is in words, its tags)."""
    if config is not None:
        adapter = config.adapter
        if adapter.trains_base:
            return "A whole model", ["diffusers"]
        if adapter.kind == "embedding":
            return "An embedding (textual inversion)", ["textual_inversion", "diffusers"]
        return "A LoRA" if adapter.kind == "lora" else f"A LoRA of kind {adapter.kind}", ["lora", "diffusers"]
    said = metadata.get("modelspec.architecture", "")
    if said.endswith("/textual-inversion"):
        return "An embedding (textual inversion)", ["textual_inversion", "diffusers"]
    is_adapter = said.endswith("/lora") or any(key.startswith("ss_network") for key in metadata)
    if is_adapter or (len(found) == 1 and _is_lora(next(iter(found.values())))):
        return "A LoRA", ["lora", "diffusers"]
    return "A model", ["diffusers"]


def _is_lora(path: Path) -> bool:
    return any("lora" in name.lower() for name in read_header(path, "publish.file").tensors)


def _family_of(path: Path, header: Header | None = None) -> str | None:
    if header is not None and (family := family_of_lora(header)):
        return family
    with contextlib.suppress(UserError):
        return recognise_alone(str(path)).family
    return None


def _family_of_run(run: Run, config: Config, file: Path) -> str | None:
    """As its plan says, else its config, else the file."""
    for said in (run.plan().get("family"), config.model.family):
        if isinstance(said, str) and said in FAMILIES:
            return said
    with contextlib.suppress(UserError):
        return _family_of(file, read_header(file))
    return None


def _base_on_hub(config: Config | None) -> str | None:
    if config is None or not _HUB_ID.fullmatch(config.model.base) or Path(config.model.base).exists():
        return None
    return config.model.base


def _settings(config: Config) -> dict[str, str]:
    """What was set about the training, but nothing that is a path."""
    out: dict[str, str] = {}
    for option, value in values(config):
        is_private = Path in option.types or option.holds_files or isinstance(value, Path)
        if option.section in _SHOWN and value != option.default and not is_private:
            out[option.path] = files.as_typed(option, value)
    return out


def _facts(metadata: Mapping[str, str]) -> dict[str, str]:
    said: dict[str, Any] = {}
    for key, words in _FACTS.items():
        if (value := metadata.get(key)) and value != "None":
            said.setdefault(words, value)
    return said
