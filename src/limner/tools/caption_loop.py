"""What all captioners share: which pictures want a caption, opening them, and writing what is said of them, so that it can be
undone, and gone on with after a stop. A captioner itself is a function from opened pictures to texts.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import time
import unicodedata
from collections.abc import Callable, Generator, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

from PIL import Image

from limner import runs
from limner.config import Data
from limner.config.tools.captioning import Captioning
from limner.data import captions
from limner.data.decode import decode
from limner.data.scan import scan
from limner.data.undo import Change, Entry, Journal, Write
from limner.errors import Finding, UserError, printable, wrong
from limner.tools.tool import Progress, Report

_ENDINGS = (".txt", ".caption", ".cap")
_MAX_NAMED = 20
_FLUSH_SECONDS = 2.0
_TICK_SECONDS = 0.1
_HOW = {"batch_size", "device", "dtype", "processes", "parallel", "retries", "timeout_seconds", "key_variable"}
"""Options that say how it is done, not what: a run that is gone on with may have others."""
_UNWANTED = ("Cc", "Cs", "Co", "Cn")
_QUOTES = {'"': '"', "'": "'", "“": "”", "‘": "’", "«": "»", "`": "`"}

Tick = Callable[[], None]
"""Called by a captioner at least once a second while it works; raises StopRequested."""


@dataclass(frozen=True, slots=True)
class Opened:
    """A picture to be captioned, in RGB and upright."""

    path: str
    image: Image.Image


@dataclass(frozen=True, slots=True)
class Said:
    """What a captioner says of a picture; or, as `fault`, why it says nothing."""

    path: str
    text: str = ""
    fault: str = ""


Captioner = Callable[[Iterator[Opened], Tick], Generator[Said]]
"""Pictures in, one Said for each, in any order. Each picture is opened when it is asked for."""
Joined = Callable[[str, str], str]
"""(a caption or text, what goes behind it) as one."""


@dataclass
class Work:
    """The pictures of a folder, sorted by what is to be done with them."""

    folder: Path
    wanted: dict[str, str] = field(default_factory=dict)
    """Those that get a caption: the one that is there, "" if none, by the picture's path."""
    num_kept: int = 0
    num_done: int = 0
    broken: list[Finding] = field(default_factory=list)
    remarks: list[Finding] = field(default_factory=list)
    entry: Entry | None = None
    """Where the journal keeps what an interrupted run with the same options did; this one goes on with it."""


def endings(section: Captioning) -> tuple[str, ...]:
    """The endings of caption files, that of new ones first."""
    return (section.caption_extension, *(e for e in _ENDINGS if e != section.caption_extension))


def work_of(section: Captioning, name: str) -> Work:
    """What there is to do for the tool `name`. Raises UserError if the folder is none."""
    out = Work(_folder(section.path, name))
    # links out of the folder are not followed: what they lead to was not shown to us, and might be sent to a server
    found = scan(Data(path=out.folder, caption_extensions=endings(section)), lambda path: _leads_inside(path, out.folder))
    out.broken += found.broken
    out.entry, done = _journal().unfinished(out.folder, _known_by(section, name))
    seen, fallbacks = set[Path](), set[str]()
    for picture in found.pictures:
        if not section.subfolders and os.path.dirname(picture.path) != str(out.folder):
            continue
        file = captions.caption_file(picture.path, endings(section))
        if file in seen:
            continue  # a.png and a.jpg share a.txt
        seen.add(file)
        here = picture.caption if file.is_file() else ""
        if file in done and file.is_file():
            out.num_done += 1
        elif here and section.existing == "keep":
            out.num_kept += 1
        elif not _leads_inside(file, out.folder):
            said = f"its caption file {file.name} lies outside the folder, where nothing is written."
            out.broken.append(Finding(picture.path, said, "Put it into the folder."))
        else:
            out.wanted[picture.path] = here
            if picture.caption and not here and not file.is_file():
                fallbacks.add(picture.caption)
    if section.caption_extension not in Data().caption_extensions:
        said = f"training does not look for {section.caption_extension} files by itself."
        out.remarks.append(Finding(f"{name}.caption_extension", said, "Name it in data.caption_extensions.", "note"))
    out.remarks += [_lost(text, name) for text in sorted(fallbacks)[:5] if text not in section.prefix]
    return out


def preview(work: Work, name: str, section: Captioning) -> Report:
    """What a run would do."""
    lines = [f"{_pictures(len(work.wanted))} would get a caption.", *_beside(work)]
    rewritten = sum(bool(here) for here in work.wanted.values())
    if rewritten:
        how = {"append": "put behind it", "prepend": "put before it", "replace": "put in its place"}[section.existing]
        lines.append(f"{rewritten} of them have one: the new words are {how}.")
    files = [captions.caption_file(path, endings(section)) for path in work.wanted]
    return Report(files, lines, [*work.remarks, *_named(work.broken, name)])


def caption_all(
    work: Work, section: Captioning, name: str, detail: str, captioner: Captioner, progress: Progress, joined: Joined
) -> Report:
    """Caption the pictures. What is done stays, whatever ends it; `detail` says in the journal what it was done with."""
    todo, faults, total = iter(work.wanted), list(work.broken), len(work.wanted)
    writer = _Writer(work, section, name, detail)
    done = 0

    shown = (-1, 0.0)

    def tick() -> None:
        nonlocal shown
        now = time.monotonic()
        if shown[0] == done and now - shown[1] < _TICK_SECONDS:
            return
        shown = done, now
        progress(done, total, f"{writer.num_written} captions written")

    def opened() -> Iterator[Opened]:
        nonlocal done
        for path in todo:
            try:
                yield Opened(path, decode(path))
            except UserError as error:
                faults.extend(Finding(f.field, f.message, "Replace or remove it.") for f in error.findings)
                done += 1

    try:
        tick()
        with closing(captioner(opened(), tick)) as answers:
            for said in answers:
                done += 1
                new = cleaned(said.text)
                if said.fault or not new:
                    faults.append(Finding(said.path, f"got no caption: {said.fault or 'the answer is empty'}."))
                else:
                    writer.take(said.path, work.wanted[said.path], new, joined)
                tick()
    finally:
        writer.flush()
    faults += writer.faults
    if done == total and (len(faults) == len(work.broken) or not writer.files):
        writer.finish()  # else running it again tries those that failed once more, and only them
    lines = [f"{_pictures(writer.num_written)} got a caption.", *_beside(work)]
    if len(faults) > len(work.broken):
        lines.append(f"{_pictures(len(faults) - len(work.broken))} could not be captioned; run it again to try once more.")
    return Report(writer.files, lines, [*work.remarks, *_named(faults, name)])


def cleaned(text: str, limit: int = captions.MAX_CAPTION) -> str:
    """What a model said, as a caption: one line, no control characters, no quotes around it, cut at a word to `limit`."""
    kept = (" " if c.isspace() else c for c in text[: 4 * limit] if c.isspace() or unicodedata.category(c) not in _UNWANTED)
    text = re.sub(" +", " ", "".join(kept)).strip()
    while len(text) > 1 and _QUOTES.get(text[0]) == text[-1] and text[0] not in text[1:-1]:
        text = text[1:-1].strip()
    if len(text) > limit:
        text = text[: limit + 1].rpartition(" ")[0][:limit] or text[:limit]
    return text


def behind(separator: str) -> Joined:
    """Two texts joined by a separator; the first alone where it says the second already."""
    return lambda text, more: text if more in text else text + separator + more


def batches(pictures: Iterator[Opened], size: int) -> Iterator[list[Opened]]:
    """So many at a time; the last may be fewer."""
    while batch := list(islice(pictures, size)):
        yield batch


class _Writer:
    """Collects captions and writes them every few seconds: as one entry of the journal, which grows."""

    def __init__(self, work: Work, section: Captioning, name: str, detail: str) -> None:
        self.section, self.name, self.detail, self.folder = section, name, printable(detail, 80), work.folder
        self.files, self.faults = list[Path](), list[Finding]()
        self._entry, self._known_by = work.entry, _known_by(section, name)
        self._pending, self._next_flush = list[Change](), time.monotonic() + _FLUSH_SECONDS

    @property
    def num_written(self) -> int:
        return len(self.files) + len(self._pending)

    def take(self, picture: str, here: str, said: str, joined: Joined) -> None:
        """Keep a picture's new caption, to be written soon."""
        section = self.section
        new = f"{section.prefix}{said}{section.suffix}".strip()
        if here and section.existing != "replace":
            new = joined(here, new) if section.existing == "append" else joined(new, here)
        file = captions.caption_file(picture, endings(section))
        try:
            before = captions.read(file)
        except (OSError, UnicodeDecodeError):
            self.faults.append(Finding(picture, f"its caption file {file.name} cannot be read as text."))
            return
        edit = captions.edit_of(picture, file, here, new, before)
        if edit.fault:
            self.faults.append(Finding(picture, f"its caption was not written: it {edit.fault}."))
        elif edit.after != before:
            self._pending.append(Write(file, before, edit.after))
        if time.monotonic() >= self._next_flush:
            self.flush()

    def flush(self) -> None:
        """Write what is pending."""
        if not self._pending:
            return
        changes, self._pending, began = self._pending, [], time.monotonic()
        allowed, journal = (lambda path: _leads_inside(path, self.folder)), _journal()
        if self._entry is None:
            outcome = journal.apply(self.folder, self.name, self.detail, changes, allowed, unfinished=self._known_by)
        else:
            outcome = journal.add(self._entry, changes, allowed)
        self._entry = outcome.entry
        refused = dict(outcome.refused)
        self.files += [c.path for c in changes if c.path not in refused]
        self.faults += [Finding(str(path), f"was not written: {why}.") for path, why in refused.items()]
        # the journal's entry is written anew each time, so that in the end it takes a twentieth of the time at most
        self._next_flush = time.monotonic() + max(_FLUSH_SECONDS, 20 * (time.monotonic() - began))

    def finish(self) -> None:
        _journal().finish(self.folder, self._known_by)


def _journal() -> Journal:
    return Journal(runs.home() / "undo")


def _known_by(section: Captioning, name: str) -> str:
    what = section.model_dump(mode="json", exclude=_HOW)
    return hashlib.sha256(json.dumps([name, what], sort_keys=True).encode()).hexdigest()


def _folder(path: Path, name: str) -> Path:
    try:
        if path.is_dir():
            return path.resolve()
        said = "is a file, not a folder" if path.exists() else "does not exist"
    except OSError:
        said = "is not a path on this system"
    raise wrong(f"{name}.path", f"{path} {said}.", "Give the folder that holds the pictures.")


def _leads_inside(path: str | Path, folder: Path) -> bool:
    return Path(os.path.realpath(path)).is_relative_to(folder)


def _lost(caption: str, name: str) -> Finding:
    said = f"pictures have been captioned {caption!r} by their folder's name; with a caption file they no longer are."
    return Finding(f"{name}.prefix", said, "Put it into prefix if it should stay.", "warning")


def _pictures(count: int) -> str:
    return f"{count} picture{'s' * (count != 1)}"


def _beside(work: Work) -> list[str]:
    """What there is to say of the other pictures."""
    out = []
    if work.num_kept:
        out.append(f"{_pictures(work.num_kept)} had a caption, which was kept.")
    if work.num_done:
        out.append(f"{_pictures(work.num_done)} had been done before it was interrupted.")
    if work.broken:
        out.append(f"{_pictures(len(work.broken))} cannot be used.")
    return out


def _named(faults: list[Finding], name: str) -> list[Finding]:
    out = [Finding(f.field, f.message, f.remedy, "warning") for f in faults[:_MAX_NAMED]]
    if more := len(faults) - len(out):
        out.append(Finding(f"{name}.path", f"{more} more pictures were not captioned.", "", "warning"))
    return out
