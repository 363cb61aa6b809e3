"""Sample prompts: kohya's line grammar (`a cat --w 512 --h 768 --d 1 --s 28 --l 7.5 --n blurry --ss euler`) and files.

Unlike kohya's, flags are read only behind the first " --", so a prompt may begin with any word.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, get_args

from limner import parsing
from limner.config import Config
from limner.config.base import clean
from limner.config.files import shown
from limner.config.sample import Solver, own_solver
from limner.errors import Finding, UserError, wrong

FIELD = "sample.prompt_file"
MAX_FILE_BYTES = 1 << 20
MAX_PROMPTS = 10_000
SOLVERS = get_args(Solver)
_INTEGERS = {"w": ("width", 16, 8192), "h": ("height", 16, 8192), "d": ("seed", 0, 2**63 - 1), "s": ("steps", 1, 1000)}
_NUMBERS = {"l": "guidance", "g": "told_guidance", "fs": "shift"}
_KEYS = {
    "width": "w", "height": "h", "seed": "d", "sample_steps": "s", "scale": "l", "guidance_scale": "g", "flow_shift": "fs",
    "negative_prompt": "n", "sample_sampler": "ss",
}  # fmt: skip
"""The keys of kohya's .toml and .json files, beside `prompt`, and the flags that they stand for."""


@dataclass(frozen=True)
class Prompt:
    """One picture to paint."""

    text: str
    negative: str
    width: int
    height: int
    steps: int
    guidance: float | None
    seed: int
    solver: str | None
    """None, as for the guidance: what the model usually has."""
    told_guidance: float | None = None
    """What a denoiser that is told the guidance is told; None: `guidance`."""
    shift: float | None = None
    """The shift of a flow's sigmas; None: the model's own."""
    where: str = field(default="", compare=False)
    """The option or file that it stands in, as findings name it."""

    def guidances(self, takes_guidance: bool, usual: float) -> tuple[float, float]:
        """(what the denoiser is told, the scale of classifier-free guidance, 1 for none) with a model that takes guidance or
        not, and that is usually painted with so much of it."""
        guidance = usual if self.guidance is None else self.guidance
        if not takes_guidance:
            return guidance, guidance
        if self.told_guidance is None:
            return guidance, 1.0
        return self.told_guidance, 1.0 if self.guidance is None else self.guidance


def parse(line: str, default: Prompt) -> Prompt:
    """A prompt line with kohya's flags, over defaults. Raises UserError naming the flag."""
    text, *pieces = re.split(r"\s--(?=[A-Za-z])", " " + line)
    prompt = replace(default, text=text.strip())
    for piece in pieces:
        flag, _, value = piece.strip().partition(" ")
        prompt = _with_flag(prompt, flag.lower(), value.strip(), f"--{flag.lower()}")
    return prompt


def from_table(table: Mapping[str, Any], default: Prompt) -> Prompt:
    """A prompt as kohya's .toml and .json files have it, over defaults. Raises UserError naming the key."""
    prompt = default
    for key, value in table.items():
        flag = _KEYS.get(key, key)
        if key != "prompt" and key not in _KEYS:
            known = ", ".join(["prompt", *_KEYS])
            raise wrong(default.where, f"{shown(key)} is not a key that Limner knows here.", f"Known are {known}.")
        types = (int,) if flag in _INTEGERS else (int, float) if flag in _NUMBERS else (str,)
        if type(value) not in types:
            expected = {int: "a whole number", float: "a number", str: "text"}[types[-1]]
            raise wrong(default.where, f"{key} {shown(value)} is not {expected}.", "Mend the prompt.")
        text = _cleaned(value if isinstance(value, str) else shown(value), default.where)
        prompt = replace(prompt, text=text.strip()) if key == "prompt" else _with_flag(prompt, flag, text, key)
    return prompt


def _with_flag(prompt: Prompt, flag: str, value: str, said: str) -> Prompt:
    """`said` is what the user calls it."""
    if flag in _INTEGERS:
        name, low, high = _INTEGERS[flag]
        if not re.fullmatch(r"[0-9]{1,19}", value, re.ASCII) or not low <= int(value) <= high:
            raise wrong(prompt.where, f"{said} {value!r} is not a whole number from {low} to {high}.", "Mend the prompt.")
        return replace(prompt, **{name: int(value)})
    if flag in _NUMBERS:
        try:
            number = float(value)
        except ValueError:
            number = -1.0
        if not 0 <= number <= 100 or (flag == "fs" and number == 0):
            limits = "above 0, at most 100" if flag == "fs" else "from 0 to 100"
            raise wrong(prompt.where, f"{said} {value!r} is not a number {limits}.", "Mend the prompt.")
        return replace(prompt, **{_NUMBERS[flag]: number})
    if flag == "n":
        return replace(prompt, negative=value)
    if flag == "ss":
        solver = own_solver(value)
        if solver not in SOLVERS:
            raise wrong(prompt.where, f"{said} {value!r} is not known.", f"Choose one of: {', '.join(SOLVERS)}.")
        return replace(prompt, solver=solver)
    known = " ".join(f"--{f}" for f in (*_INTEGERS, *_NUMBERS, "n", "ss"))
    raise wrong(prompt.where, f"{said} is not a flag that Limner knows here.", f"Known are {known}.")


def _cleaned(text: str, where: str) -> str:
    try:
        return clean(text)
    except ValueError as error:
        raise wrong(where, f"{error}.", "Remove it; a prompt is plain text.") from None


def read_file(path: Path) -> Sequence[str | dict[str, Any]]:
    """The prompts of a kohya prompt file, as lines with flags or as tables; what they say is not looked at yet.

    .txt: one a line, empty lines and lines that begin with # left out. .toml: a table [prompt] of common keys, and a table
    [[prompt.subset]] for each prompt, whose keys take precedence. .json: a list of lines or tables.
    """
    kind = path.suffix.lower()
    if kind not in (".txt", ".toml", ".json"):
        raise wrong(FIELD, f"{path.name} is not a .txt, .toml or .json file.", "Put one prompt on each line of a .txt file.")
    try:
        if not path.is_file() or path.stat().st_size > MAX_FILE_BYTES:
            raise wrong(FIELD, f"{path} is not a file of at most 1 MiB.", "Give the path of a prompt file.")
        text = path.read_bytes().decode("utf-8-sig")
        if kind == ".txt":
            return [line.strip() for line in text.splitlines() if line.strip() and not line.startswith("#")]
        entries = _subsets(parsing.toml(text)) if kind == ".toml" else parsing.json_value(text)
    except UnicodeDecodeError:
        raise wrong(FIELD, f"{path.name} is not UTF-8 text.", "Save it as UTF-8.") from None
    except OSError as error:
        raise wrong(FIELD, f"{path} cannot be read ({error.strerror}).", "Check the path and its permissions.") from None
    except ValueError as error:
        raise wrong(FIELD, f"{path.name} is not valid {kind[1:].upper()}: {error}.", "Mend it there.") from None
    if not isinstance(entries, list) or not all(isinstance(entry, str | dict) for entry in entries):
        needed = {".toml": "a table [prompt] and tables [[prompt.subset]]", ".json": "a list of texts or tables"}[kind]
        raise wrong(FIELD, f"{path.name} does not hold {needed}, and nothing else.", "Mend the file.")
    return entries


def _subsets(raw: dict[str, Any]) -> list[dict[str, Any]] | None:
    """The prompts of kohya's TOML, None where it has another form."""
    common = raw.get("prompt")
    if len(raw) != 1 or not isinstance(common, dict):
        return None
    subsets = common.pop("subset", [{}])
    if not isinstance(subsets, list) or not all(isinstance(s, dict) for s in subsets):
        return None
    return [common | s for s in subsets]


def all_prompts(config: Config, resolution: int, size_step: int) -> list[Prompt]:
    """Every prompt that a config asks for, sizes rounded down to what the model can paint. Raises UserError with all faults."""
    section = config.sample
    entries: list[tuple[str | dict[str, Any], str]] = [(line, f"sample.prompts[{i}]") for i, line in enumerate(section.prompts)]
    if (file := section.prompt_file) is not None:
        entries += [(entry, f"{file.name}, prompt {i}") for i, entry in enumerate(read_file(file), 1)]
    if len(entries) > MAX_PROMPTS:
        field = "sample.prompts" if section.prompt_file is None else FIELD
        raise wrong(field, f"holds {len(entries)} prompts.", f"At most {MAX_PROMPTS} are painted; leave some out.")
    side = resolution // size_step * size_step
    prompts, faults = [], list[Finding]()
    for i, (entry, where) in enumerate(entries):
        default = Prompt(
            "", section.negative, section.width or side, section.height or side, section.steps, None,
            (section.seed + i) % 2**63, section.solver, where=where,
        )  # fmt: skip
        try:
            prompt = parse(_cleaned(entry, where), default) if isinstance(entry, str) else from_table(entry, default)
        except UserError as error:
            faults += error.findings
            continue
        if prompt.guidance is None and prompt.told_guidance is None:
            prompt = replace(prompt, guidance=section.guidance)
        width, height = (max(size_step, v // size_step * size_step) for v in (prompt.width, prompt.height))
        if width * height > 16 * max(resolution, 512) ** 2:
            faults.append(Finding(where, f"{width} x {height} is too large to paint.", "Choose a smaller width and height."))
        prompts.append(replace(prompt, width=width, height=height))
    if faults:
        more = [Finding("sample.prompts", f"{len(faults) - 20} more mistakes.", "", "note")] if len(faults) > 20 else []
        raise UserError([*faults[:20], *more])
    return prompts
