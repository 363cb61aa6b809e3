"""Take back what was done last to a folder, or do it again."""

from __future__ import annotations

from pathlib import Path

from limner.config.tools.folders import UndoFolders
from limner.data.undo import Entry
from limner.errors import printable, wrong
from limner.tools.folder_plan import counted, journal, refusals
from limner.tools.tool import Progress, Report


def look(section: UndoFolders) -> Report:
    entry = _entry(section)
    verb = "would be done again" if section.again else "would be taken back"
    return Report((), [f"{_words(entry)}: {counted(entry.files, 'change')} {verb}"])


def run(section: UndoFolders, progress: Progress) -> Report:
    _entry(section)
    turn = journal().redo if section.again else journal().undo
    outcome = turn(_folder(section), lambda _: True, progress)
    if outcome is None:  # somebody else was faster
        raise _nothing(section)
    verb = "done again" if section.again else "taken back"
    lines = [f"{_words(outcome.entry)}: {counted(outcome.changed, 'change')} {verb}"]
    if outcome.refused:
        lines.append(f"{len(outcome.refused)} were left as they are")
    return Report((), lines, refusals(outcome))


def _folder(section: UndoFolders) -> Path:
    return section.folder.resolve()


def _entry(section: UndoFolders) -> Entry:
    entry = journal().next(_folder(section))[1 if section.again else 0]
    if entry is None:
        raise _nothing(section)
    return entry


def _nothing(section: UndoFolders) -> Exception:
    what = "was taken back" if section.again else "is known to have been done"
    return wrong(
        "undo_folders.folder", f"nothing {what} in {section.folder}.", "A tool's report says which folder it was about."
    )


def _words(entry: Entry) -> str:
    return printable(f"{entry.kind} ({entry.detail}) in {entry.folder}", 400)
