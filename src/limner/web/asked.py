"""What the form asks: its values checked, planned, written as TOML or as a command, and started."""

from __future__ import annotations

import contextlib
import hashlib
import os
import threading
from collections.abc import Iterator
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Annotated, Any

from fastapi import APIRouter, Body
from pydantic import BaseModel

from limner import early, estimate, expect, importing, jobs, launch, machine, parsing, preflight, queue, runner, runs
from limner.config import Config, Data, defaults, files
from limner.config.fields import paths, walk
from limner.config.kohya import Line
from limner.data.scan import MayFollow, Scan, scan
from limner.errors import Finding, UserError, printable, wrong
from limner.machine import Machine
from limner.preflight import Records
from limner.sdscripts import assemble
from limner.web import places
from limner.web.context import Context
from limner.web.kept import Kept

Values = Annotated[dict[str, str], Body(embed=True)]
"""The form's value: dotted option name -> typed text, holding only what was set."""

_describing = threading.Lock()
_reckoning = threading.Lock()


def router(context: Context) -> APIRouter:
    """The routes of the form."""
    routes, may_follow = APIRouter(prefix="/api"), partial(places.leads_inside, roots=context.roots)
    scans = Kept[Scan](0.0, lambda found: {os.path.dirname(p.path) for p in found.pictures}, lambda found: len(found.pictures))

    def look(data: Data, _: MayFollow) -> Scan:
        return scans.get(data.model_dump_json(), lambda: scan(data, may_follow))

    @routes.post("/check")
    def check(values: Values) -> dict[str, Any]:
        """Findings, the plan where there can be one, and what the pictures propose."""
        try:
            config = config_of(values, context)
            known, unknown = _machine_so_far()
            findings, records = preflight.examine(config, known, may_follow=may_follow, look=look)
            reckons = _reckons(config, findings, records)
        except UserError as error:
            return {"findings": [asdict(f) for f in error.findings], "plan": None, "proposals": {}, "again": False}
        return {
            "findings": [asdict(f) for f in [*unknown, *findings]],
            "plan": plan(config, records, reckons=reckons),
            "proposals": _proposals(config, records),
            "again": reckons or (known is None and not unknown),  # more can be said in a moment
        }

    @routes.post("/train")
    def train(values: Values) -> dict[str, str]:
        """Queue a run. Nothing is made if anything is wrong."""
        config = config_of(values, context)
        findings, _ = preflight.examine(config, this_machine(), may_follow=may_follow)
        if errors := [f for f in findings if f.severity == "error"]:
            raise UserError(errors)
        early.read_early(config)
        run = jobs.prepare(config)
        queue.enqueue(run)
        runner.ensure_runner()
        return {"run": run.id}

    @routes.post("/toml")
    def toml(values: Values) -> dict[str, str]:
        """The whole configuration, commented, and a name for its file."""
        config = config_of(values, context)
        return {"name": f"{config.output.name}.toml", "text": files.render(config)}

    @routes.post("/import")
    def import_(name: Annotated[str, Body(max_length=300)], text: Annotated[str, Body()]) -> dict[str, Any]:
        """What a file sets: our own TOML, or one of kohya's, of which a report says what became of each key."""
        if len(text) > files.MAX_BYTES * (64 if name.endswith(".safetensors") else 1):
            raise wrong("file", f"is longer than {files.MAX_BYTES} characters.", "A configuration is a small file.")
        if _is_ours(text, name):
            return {"values": files.overrides_of(files.build(files.parse(text, "file"), {}, text, "file")), "report": []}
        found = importing.of_text(text, name)
        subsets = runs.home() / "imported" / f"{hashlib.sha256(found.subsets.encode()).hexdigest()[:16]}.json"
        values = files.overrides_of(importing.build(found, subsets))
        return {"values": values, "report": [_line(line) for line in found.report.lines.values()]}

    @routes.post("/command")
    def command(values: Values) -> dict[str, str]:
        """The values as a command line of Limner's, and the process that Train would start."""
        config = config_of(values, context)
        device = config.launch.device or this_machine().best().kind
        folder = runs.home() / "runs" / "RUN"
        process = launch.shown(launch.argv(config, folder, device), launch.environment(config, device))
        if config.launch.trainer == "sd-scripts":
            process = assemble.preview(config, folder, this_machine())
        flags = [f"--{path}={text}" for path, text in values.items()]
        return {
            "flags": launch.shown(["limner", "train", *flags], {}),
            "process": process,
        }

    return routes


def _is_ours(text: str, name: str) -> bool:
    """Whether a text is a configuration of Limner's, be it a wrong one: it has sections of ours, or no signs of kohya."""
    if name.endswith(".safetensors") or text.lstrip().startswith("{"):
        return False
    try:
        raw = parsing.toml(text)
    except ValueError:
        return name.endswith(".toml")
    return not raw or any(isinstance(raw.get(section), dict) and set(raw) <= set(Config.model_fields) for section in raw)


def _line(line: Line) -> dict[str, Any]:
    """A line of the report, its value as a text that can be shown."""
    value = "" if line.value is None else printable(files.shown(line.value).strip("'"), 80)
    said = {"key": printable(line.key, 120), "value": value, "outcome": line.outcome}
    return {**said, "becomes": line.becomes, "why": printable(line.why, 400)}


def this_machine() -> Machine:
    """This machine; only one caller at a time may have to ask it."""
    with _describing:
        return machine.describe(runs.home())


def machine_if_known(seconds: float = 0.3) -> Machine | None:
    """This machine; None while it is still being asked, which goes on meanwhile."""
    if _describing.locked():
        return None
    asking = threading.Thread(target=_ask, daemon=True)
    asking.start()
    asking.join(seconds)
    return None if asking.is_alive() else this_machine()


def _ask() -> None:
    with contextlib.suppress(UserError):  # `describe` keeps it, and raises it to whoever must know the machine
        this_machine()


def _reckons(config: Config, findings: list[Finding], records: Records) -> bool:
    """Whether memory and time are being reckoned: a child process does, one at a time, for what can be started as it is."""
    question = records.question
    if question is None or records.estimate is not None or any(f.severity == "error" for f in findings):
        return False
    if any(f.field == "memory" and f.severity == "note" for f in findings):
        return False  # it was tried, and could not be told
    threading.Thread(target=_reckon, args=(config, question), daemon=True).start()
    return True


def _reckon(config: Config, question: estimate.Question) -> None:
    if not _reckoning.acquire(blocking=False):
        return  # the page asks again
    try:
        with contextlib.suppress(UserError):  # it is kept, and told by the next look
            expect.reckon(config, question)
    finally:
        _reckoning.release()


def _machine_so_far() -> tuple[Machine | None, list[Finding]]:
    """This machine as far as it is known by now, and why it cannot be."""
    try:
        return machine_if_known(), []
    except machine.NoAnswer as error:
        return None, error.findings


def config_of(values: dict[str, str], context: Context) -> Config:
    """The configuration that the values make. Raises UserError with a finding at each field that is wrong."""
    return built(Config, {}, values, context)


def built(schema: type[files.AnySchema], raw: dict[str, Any], values: dict[str, str], context: Context) -> files.AnySchema:
    """The same for any schema of sections, with the values laid over `raw`."""
    faults = list(_incomplete_paths(values, schema))
    try:
        config = files.build_as(schema, raw, values)
    except UserError as error:
        named = {f.field for f in faults}
        raise UserError([*faults, *(f for f in error.findings if f.field not in named)]) from None
    if faults := faults or _outside(config, context):
        raise UserError(faults)
    return config


def _incomplete_paths(values: dict[str, str], schema: type[BaseModel]) -> Iterator[Finding]:
    """Paths that a terminal would take from its current folder; the page has none."""
    for option in {o.path: o for o in walk(schema) if Path in o.types}.values():
        text = values.get(option.path, "/")
        if text.strip() and not text.startswith("~") and not Path(text).is_absolute():
            yield Finding(option.path, f"{text[:100]!r} is not a full path.", "Write it from the root of the disk on.")


def _outside(config: BaseModel, context: Context) -> list[Finding]:
    """A finding for each path that lies outside the folders that the page may use."""
    faults: list[Finding] = []
    for field, path in paths(config):
        try:
            places.resolve(str(path), context.roots, field=field, must_exist=False)
        except UserError as error:
            faults += error.findings
    return faults


def plan(config: Config, records: Records, *, reckons: bool = False) -> dict[str, Any] | None:
    """What would be done; None where the model or the pictures are not known."""
    if records.base is None or records.dataset is None:
        return None
    dataset = records.dataset
    counts = sorted(dataset.bucket_counts().items())
    before, reckoned = expect.from_last_run(config), records.estimate
    device = records.question.device if records.question is not None else "cpu"
    seconds = before.seconds_per_step if before else reckoned and reckoned.seconds_per_step
    return {
        "family": records.base.family,
        "trains": config.adapter.kind,
        "resolution": dataset.buckets.resolution,
        "pictures": dataset.num_pictures,
        "buckets": [[*size, count] for size, count in counts],
        "steps": dataset.total_steps,
        "seconds": seconds and round(seconds * dataset.total_steps),
        "memory_mib": reckoned.peak_mib(device) if reckoned else before and before.memory_mib,
        "memory": reckoned and [{"phase": p.name, "total": p.total_mib, "parts": p.parts} for p in reckoned.phases],
        "process_mib": reckoned.process_mib if reckoned and device == "cpu" else 0,
        "reckons": reckons,
    }


def _proposals(config: Config, records: Records) -> dict[str, str]:
    if records.dataset is None:
        return {}
    captions = [p.caption for p in records.dataset.pictures]
    return defaults.proposals(config.data.trigger, captions, records.dataset.total_steps)
