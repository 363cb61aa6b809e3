"""Use a tool: in the terminal, or as what a job's process does."""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import os
import shutil
import sys
import time
from collections.abc import Iterator, Mapping
from types import ModuleType

import filelock

from limner import runs, tool_jobs
from limner.config.fields import Option, section_types, walk
from limner.config.files import as_typed, build_as
from limner.config.tools import Tools, the_section
from limner.config.tools.base import ToolSection
from limner.errors import StopRequested, printable, wrong
from limner.tools.tool import Report


def module_of(section: ToolSection) -> ModuleType:
    """The module that does it; `done_by` is ours, never a user's word."""
    return importlib.import_module(f"limner.tools.{section.done_by}")


@contextlib.contextmanager
def lent_device(section: ToolSection) -> Iterator[None]:
    """Keep the graphics card, if it wants one, from runs and other tools. Raises UserError if it is taken."""
    device = tool_jobs.device_of(section)
    if device is None:
        yield
        return
    tool_jobs.require_free(section)
    try:
        with runs.lock_of_tools(device, 0):
            yield
    except filelock.Timeout:
        raise wrong("tool", f"another tool works on {device}.", f"Wait for it, or {tool_jobs.without_card(section)}.") from None


@contextlib.contextmanager
def lent_output(section: ToolSection) -> Iterator[None]:
    """Keep what it writes from other tools, so that none is written over that was not there when this one looked. Raises
    UserError if another writes it."""
    output = getattr(section, "output", None)
    with contextlib.ExitStack() as stack:
        if output is not None:
            place = hashlib.sha256(os.path.realpath(output).encode("utf-8", "surrogatepass")).hexdigest()
            try:
                stack.enter_context(runs.lock(f"output-{place[:16]}", 0))
            except filelock.Timeout:
                raise wrong("tool", f"another tool writes {output}.", "Wait for it, or choose another place.") from None
            except OSError:
                pass  # a home that cannot be written: then nobody else is kept away
        yield


def explain(error: Exception) -> str:
    """A foreign exception in words."""
    words = printable(f"{type(error).__name__}: {error}", 400)
    if isinstance(error, MemoryError) or "can't allocate memory" in str(error):
        return f"The computer ran out of memory. Close other programs, or work on a smaller file. ({words})"
    if isinstance(error, OSError) and error.errno == 28:
        return f"The disk is full; nothing was left half-written. Free some space, and start it again. ({words})"
    return f"{words}."


def require_known(name: str) -> None:
    """Raises UserError if there is no tool of that name."""
    if name not in Tools.model_fields:
        raise wrong(printable(name, 60), "is no tool.", "`limner tools` lists them.")


def listed() -> list[str]:
    """The tools, one a line, each with what it is for."""
    return [f"{name:<22} {_about(name)}" for name in Tools.model_fields]


def described(name: str) -> list[str]:
    """One tool's options."""
    require_known(name)
    lines = [_about(name), ""]
    for option in _options(name):
        default = "" if option.default in (None, (), "") or option.is_required else f" [{option.default}]"
        lines += [f"--{option.name}{default}{' (needed)' if option.is_required else ''}", f"    {option.help}"]
    return lines


def section(name: str, texts: Mapping[str, list[str]]) -> ToolSection:
    """What is asked for by options as they were typed, each once or, if it is a list, several times."""
    require_known(name)
    known = {option.name: option for option in _options(name)}
    overrides = {}
    for key, given in texts.items():
        key = key.removeprefix(f"{name}.")
        option = known.get(key.replace("-", "_"))
        if option is not None and option.is_list and len(given) > 1:
            overrides[f"{name}.{option.name}"] = as_typed(option, given)
        elif len(given) > 1:
            raise wrong(f"{name}.{key}", "is given more than once.", "Give it once.")
        else:
            overrides[f"{name}.{option.name if option else key}"] = given[0]
    return the_section(build_as(Tools, {name: {}}, overrides))[1]


def _options(name: str) -> list[Option]:
    """What all tools share comes last."""
    return sorted((o for o in walk(Tools) if o.section == name), key=lambda o: o.name == "overwrite")


def _about(name: str) -> str:
    kinds = {n: kind for n, _, kind in section_types(Tools)}
    return " ".join((kinds[name].__doc__ or "").split())


def in_terminal(asked: ToolSection, *, only_look: bool) -> int:
    """Do it here, with a line that tells how far it is. Returns the exit code."""
    module = module_of(asked)
    try:
        with contextlib.ExitStack() as stack:
            if not only_look:
                stack.enter_context(lent_device(asked))
                stack.enter_context(lent_output(asked))
            report = module.look(asked) if only_look else module.run(asked, _Line())
    except (StopRequested, KeyboardInterrupt):
        print("\nStopped; nothing was left half-written.", file=sys.stderr)
        return 130
    _say(report, only_look)
    return 0


def _say(report: Report, only_look: bool) -> None:
    for remark in report.remarks:
        print(remark, file=sys.stderr)
    for line in report.lines:
        print(printable(line, 1000))
    for file in report.files:
        print(f"{'Would write' if only_look else 'Wrote'} {printable(file, 1000)}")


class _Line:
    """One line that renews itself; where there is no terminal, a plain line now and then."""

    def __init__(self) -> None:
        self._live = sys.stderr.isatty()
        self._printed = 0.0

    def __call__(self, done: int, total: int, words: str = "") -> None:
        now, is_last = time.monotonic(), done >= total
        if now - self._printed < (0.1 if self._live else 15) and not (is_last and self._live):
            return
        self._printed = now
        text = printable(f"{done}/{total} {words}", shutil.get_terminal_size().columns - 1)
        if self._live:
            print(f"\r\x1b[K{text}", end="\n" if is_last else "", file=sys.stderr, flush=True)
        else:
            print(text, file=sys.stderr, flush=True)
