"""From a run to all that sd-scripts needs to train it: the script, the files that it reads, the command."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from limner import disk, launch
from limner.config import Config, defaults
from limner.config.base import files_with_strengths
from limner.config.fields import values
from limner.config.kohya.export import to_arguments
from limner.config.kohya.scripts import script_for
from limner.config.kohya.writer import Facts
from limner.config.prompts import Prompt, all_prompts
from limner.errors import Finding, UserError, wrong
from limner.formats.argument_source import Argument, read_arguments
from limner.formats.base import Base, base_of
from limner.formats.known import FAMILIES
from limner.machine import Machine
from limner.sdscripts import plain_toml, resume
from limner.sdscripts.dataset import write_dataset
from limner.sdscripts.rules import bucket_step_px
from limner.sdscripts.trust import untrusted_files

FOLDER = "sd-scripts"
"""The folder in the run's, for what is written for sd-scripts and by it."""
_INSTEAD = ("train_data_dir", "reg_data_dir", "in_json", "dataset_repeats")
"""What a dataset file takes the place of."""

_SETTLED = ("data.caption_extensions", "data.more_resolutions", "data.class_prompt")
"""What arguments alone could not say, and the dataset file does."""


@dataclass(frozen=True)
class Assembled:
    """A command that is ready to be run."""

    checkout: Path
    script: str
    arguments: Mapping[str, Any]
    known: Mapping[str, Argument]
    """What the script takes."""
    words: list[str]
    environment: dict[str, str]
    texts: Mapping[Path, str]
    """The files that it reads, still to be written."""
    findings: list[Finding]
    base: Base
    device: str
    output: Path
    """The folder that it writes to."""
    prompts: list[Prompt]
    total_steps: int | None
    """None where epochs decide."""

    def write(self) -> None:
        for path, text in self.texts.items():
            disk.write_text(path, text)


def assemble(
    config: Config, run_path: Path, machine: Machine, start: resume.Start | None = None, total_steps: int = 0
) -> Assembled:
    """All that a session needs; nothing is written yet. A resumed one begins at `start`, and ends at `total_steps`.

    Raises UserError for what stands in the way: no checkout, no such script, an unknown base model, no pictures.
    """
    start = start or resume.Start()
    config = absolute(config)
    section = config.launch
    if section.sd_scripts is None:
        raise wrong("launch.sd_scripts", "no checkout of sd-scripts is given.", "Give the folder with train_network.py in it.")
    if set(config.output.name) & set("/\\"):
        raise wrong("output.name", f"{config.output.name!r} cannot be a file name.", "Use letters and digits.")
    checkout, folder = section.sd_scripts.absolute(), run_path.absolute() / FOLDER
    base = base_of(config.model)
    config = _with_parts(config, base)
    if pickled := list(untrusted_files(config)):
        raise UserError(pickled)
    device = machine.kind(section.device)
    found = machine.first(device)
    precision = defaults.precision(config, device, found is not None and found.bf16)
    script = script_for(base.family, config.adapter.kind, has_metadata=config.data.metadata is not None)
    dataset = write_dataset(config, base, bucket_step_px(script.name if script is not None else "", base.family))
    prompts = all_prompts(config, config.data.resolution or base.resolution_px, base.bucket_step_px)
    texts = {folder / "dataset.toml": dataset.text}
    if prompts:
        texts[folder / "prompts.json"] = json.dumps([_table(p, base) for p in prompts], indent=2, ensure_ascii=False) + "\n"
    steps = defaults.total_steps(config, dataset.num_shown)
    # of its own for each session, so that one never writes over what another has saved
    output = folder / f"output-from-{start.step}"
    facts = Facts(
        output_dir=str(output),
        base=str(base.path.absolute()) if base.path is not None else config.model.base,
        dataset_config=str(folder / "dataset.toml"),
        sample_prompts=str(folder / "prompts.json") if prompts else "",
        logging_dir=str(folder / "logs"),
        total_steps=steps,
        precision=precision,
        prediction=None if base.prediction == "flow" else base.prediction,
    )
    name, arguments, findings = to_arguments(config, base.family, facts)
    if not (checkout / name).is_file():
        said = f"{checkout} has no {name}."
        raise wrong("launch.sd_scripts", said, "Update it: Stable Diffusion 3 and Flux.1 need version 0.10 or later.")
    known = read_arguments(checkout, name)
    given = {k: v for k, v in arguments.items() if k not in _INSTEAD} | {"dataset_config": str(folder / "dataset.toml")}
    given |= {"output_name": config.output.name, "output_dir": str(output)}
    given |= {"console_log_simple": True} if "console_log_simple" in known else {}  # lines that are not broken
    given |= {"sample_prompts": str(folder / "prompts.json")} if prompts else {}
    given |= resume.arguments(start, given, known, total_steps)
    given = {k: _plain(v, known.get(k)) for k, v in given.items() if v is not None}
    config_file = folder / "config.toml"
    texts[config_file] = plain_toml.dumps(given)
    mixed = str(given.get("mixed_precision", "no"))
    words = launch.sd_scripts_argv(section, checkout / name, config_file, device, mixed)
    environment = launch.environment(config, device)
    for text in plain_toml.misread(given):
        findings = [*findings, Finding("launch.trainer", f"sd-scripts would misread {text!r}.", "Begin it with another sign.")]
    findings = [*(f for f in findings if f.field not in _SETTLED), *dataset.remarks]
    return Assembled(checkout, name, given, known, words, environment, texts, findings, base, device, output, prompts, steps)


def preview(config: Config, run_path: Path, machine: Machine) -> str:
    """The command of sd-scripts as one line; the supervisor's where it cannot be told yet."""
    device = machine.kind(config.launch.device)
    try:
        assembled = assemble(config, run_path, machine)
    except UserError:
        return launch.shown(launch.argv(config, run_path, device), launch.environment(config, device))
    return launch.shown(assembled.words, assembled.environment, str(assembled.checkout))


def absolute(config: Config) -> Config:
    """The same, its paths from the root on: sd-scripts runs in a folder of its own. Raises UserError for a faulty list."""
    changes: dict[str, dict[str, Any]] = {}
    for option, value in values(config):
        if isinstance(value, Path):
            changes.setdefault(option.section, {})[option.name] = value.absolute()
        elif option.holds_files and value and isinstance(value, tuple):
            files = files_with_strengths(value, option.path)
            texts = tuple(f"{path.absolute()} @ {strength:g}" for path, strength in files)
            changes.setdefault(option.section, {})[option.name] = texts
    sections = {name: getattr(config, name).model_copy(update=changed) for name, changed in changes.items()}
    return config.model_copy(update=sections)


def _with_parts(config: Config, base: Base) -> Config:
    """The same, with the parts named that were found beside the model: sd-scripts does not look for them."""
    found = {FAMILIES[base.family].parts[name].option: path.absolute() for name, path in base.others.items()}
    return config.model_copy(update={"model": config.model.model_copy(update=found)})


def _plain(value: Any, argument: Argument | None) -> Any:
    """A value as TOML has it; of a list of one the one, where this version takes no list yet."""
    if isinstance(value, list | tuple):
        plain = [_plain(v, None) for v in value]
        return plain[0] if argument is not None and not argument.is_list and len(plain) == 1 else plain
    return str(value) if isinstance(value, Path) else value


def _table(prompt: Prompt, base: Base) -> dict[str, Any]:
    """A prompt under kohya's keys. A table, not a line: nothing in the text is then taken for a flag."""
    told, scale = prompt.guidances(base.takes_guidance, base.guidance)
    out: dict[str, Any] = {
        "prompt": prompt.text, "width": prompt.width, "height": prompt.height, "sample_steps": prompt.steps, "scale": scale,
        "seed": prompt.seed,
    }  # fmt: skip
    if prompt.negative:
        out["negative_prompt"] = prompt.negative
    if base.takes_guidance:
        out["guidance_scale"] = told
    if prompt.solver is not None:
        out["sample_sampler"] = {"dpmpp_2m": "dpmsolver++"}.get(prompt.solver, prompt.solver)
    if prompt.shift is not None:
        out["flow_shift"] = str(prompt.shift)
    return out
