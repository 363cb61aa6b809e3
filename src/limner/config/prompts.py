"""Sample prompts: kohya's line grammar (`a cat --w 512 --h 768 --d 1 --s 28 --l 7.5 --n blurry --ss euler`) and files.

Unlike kohya's, flags are read only behind the first " --", so a prompt may begin with any word.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from pathlib import Path

from limner.config import Config
from limner.config.base import clean
from limner.errors import Finding, UserError, wrong

MAX_FILE_BYTES = 1 << 20
SOLVERS = ("ddim", "euler")
_INTEGERS = {"w": ("width", 16, 8192), "h": ("height", 16, 8192), "d": ("seed", 0, 2**63 - 1), "s": ("steps", 1, 1000)}


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


def parse(line: str, default: Prompt, field: str) -> Prompt:
    """A prompt line with kohya's flags, over defaults. Raises UserError naming the flag."""
    text, *pieces = re.split(r"\s--(?=[A-Za-z])", " " + line)
    prompt = replace(default, text=text.strip())
    for piece in pieces:
        flag, _, value = piece.strip().partition(" ")
        prompt = _with_flag(prompt, flag.lower(), value.strip(), field)
    return prompt


def _with_flag(prompt: Prompt, flag: str, value: str, field: str) -> Prompt:
    if flag in _INTEGERS:
        name, low, high = _INTEGERS[flag]
        if not re.fullmatch(r"[0-9]{1,19}", value, re.ASCII) or not low <= int(value) <= high:
            raise wrong(field, f"--{flag} {value!r} is not a whole number from {low} to {high}.", "Mend the prompt.")
        return replace(prompt, **{name: int(value)})
    if flag == "l":
        try:
            number = float(value)
        except ValueError:
            number = -1.0
        if not 0 <= number <= 100:
            raise wrong(field, f"--l {value!r} is not a number from 0 to 100.", "Mend the prompt.")
        return replace(prompt, guidance=number)
    if flag == "n":
        return replace(prompt, negative=value)
    if flag == "ss":
        solver = value.lower().removeprefix("k_")
        if solver not in SOLVERS:
            raise wrong(field, f"--ss {value!r} is not known.", f"Choose one of: {', '.join(SOLVERS)}.")
        return replace(prompt, solver=solver)
    raise wrong(field, f"--{flag} is not a flag that Limner knows here.", "Known are --w --h --d --s --l --n --ss.")


def read_lines(path: Path, field: str = "sample.prompt_file") -> list[str]:
    """The prompts of a kohya .txt file: one a line, empty lines and lines that begin with # left out."""
    if path.suffix.lower() != ".txt":
        raise wrong(field, f"{path.name} is not a .txt file.", "Put one prompt on each line of a .txt file.")
    try:
        if not path.is_file() or path.stat().st_size > MAX_FILE_BYTES:
            raise wrong(field, f"{path} is not a file of at most 1 MiB.", "Give the path of a prompt file.")
        text = path.read_bytes().decode("utf-8-sig")
        lines = [line.strip() for line in text.splitlines() if line.strip() and not line.startswith("#")]
        return [clean(line) for line in lines]
    except UnicodeDecodeError:
        raise wrong(field, f"{path.name} is not UTF-8 text.", "Save it as UTF-8.") from None
    except OSError as error:
        raise wrong(field, f"{path} cannot be read ({error.strerror}).", "Check the path and its permissions.") from None
    except ValueError as error:
        raise wrong(field, f"{path.name} {error}.", "Remove it; a prompt is plain text.") from None


def all_prompts(config: Config, resolution: int, size_step: int) -> list[Prompt]:
    """Every prompt that a config asks for, sizes rounded down to what the model can paint. Raises UserError with all faults."""
    section = config.sample
    lines = [(line, f"sample.prompts[{i}]") for i, line in enumerate(section.prompts)]
    if section.prompt_file is not None:
        lines += [
            (line, f"{section.prompt_file.name}, prompt {i}") for i, line in enumerate(read_lines(section.prompt_file), 1)
        ]
    side = resolution // size_step * size_step
    prompts, faults = [], list[Finding]()
    for i, (line, field) in enumerate(lines):
        default = Prompt(
            "", section.negative, section.width or side, section.height or side, section.steps, section.guidance,
            (section.seed + i) % 2**63, section.solver,
        )  # fmt: skip
        try:
            prompt = parse(line, default, field)
        except UserError as error:
            faults += error.findings
            continue
        width, height = (max(size_step, v // size_step * size_step) for v in (prompt.width, prompt.height))
        if width * height > 16 * max(resolution, 512) ** 2:
            faults.append(Finding(field, f"{width} x {height} is too large to paint.", "Choose a smaller --w and --h."))
        prompts.append(replace(prompt, width=width, height=height))
    if faults:
        more = [Finding("sample.prompts", f"{len(faults) - 20} more mistakes.", "", "note")] if len(faults) > 20 else []
        raise UserError([*faults[:20], *more])
    return prompts
