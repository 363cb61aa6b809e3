"""The Dataset tab's routes: a folder's pictures with their cuts, captions and faults, edits of captions, and their undo."""

from __future__ import annotations

import secrets
import threading
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, TypeVar

from fastapi import APIRouter, Body, Query, Request
from pydantic import Field, ValidationError

from limner import runs
from limner.config.base import Section, Text
from limner.data import captions, undo
from limner.data.removal import removal
from limner.data.survey import Filter, Row, Survey
from limner.errors import Finding, UserError, printable, wrong
from limner.web.context import Context
from limner.web.surveys import Searches, Surveys

_MAX_PAGE = 500
_MAX_TAGS = 500
_MAX_SHOWN = 200
_MAX_PICTURES = 100_000
_KEPT_PREVIEWS = 2


class Wanted(Section):
    """A filter, as it is asked for."""

    tags: list[Text] = Field(default=[], max_length=20)
    text: Text = ""
    problem: Text = ""
    bucket: Text = ""

    def filter(self) -> Filter:
        return Filter(tuple(self.tags), self.text, self.problem, self.bucket)


class Choice(Section):
    """Pictures of a folder: those of these names, or all that a filter leaves."""

    view: Annotated[dict[Text, Text], Field(max_length=40)]
    pictures: Annotated[list[Text], Field(max_length=_MAX_PICTURES)] | None = None
    filter: Wanted | None = None

    def rows(self, found: Survey) -> list[Row]:
        if self.pictures is not None:
            return found.named(self.pictures)
        return found.chosen((self.filter or Wanted()).filter())


class Preview(Choice):
    """An edit of captions to be looked at."""

    operation: captions.Operation


class Given(Section):
    """The id of a preview."""

    id: Text


class Seen(Section):
    """The folder whose last operation is meant."""

    view: Annotated[dict[Text, Text], Field(max_length=40)]


@dataclass(frozen=True)
class _Pending:
    """A preview that may be applied as it was shown."""

    folder: Path
    kind: str
    detail: str
    changes: list[undo.Change]


M = TypeVar("M", bound=Section)
Json = dict[str, Any]
_Body = Annotated[Json, Body()]


def router(context: Context) -> APIRouter:
    """The routes under /api/dataset."""
    routes, state = APIRouter(prefix="/api/dataset"), _State(context)
    _reading(routes, state)
    _editing(routes, state)
    _undoing(routes, state)
    return routes


class _State:
    """What the routes share."""

    def __init__(self, context: Context) -> None:
        self.surveys, self.searches, self.previews = Surveys(context), Searches(), _Previews()
        self.journal = undo.Journal(runs.home() / "undo")

    def history(self, folder: Path) -> Json:
        """What could be undone and done again."""
        last, undone = self.journal.next(folder)
        return {"undo": _entry(last), "redo": _entry(undone)}

    def finish(self, folder: Path, outcome: undo.Outcome | None) -> Json:
        """The answer after something was written."""
        self.surveys.forget()
        if outcome is None:
            return {"changed": 0, "refused": [], "entry": None, **self.history(folder)}
        refused = [{"picture": _inside(folder, path), "message": why} for path, why in outcome.refused[:_MAX_SHOWN]]
        return {"changed": outcome.changed, "refused": refused, "entry": _entry(outcome.entry), **self.history(folder)}


def _reading(routes: APIRouter, state: _State) -> None:
    @routes.get("")
    def look(
        request: Request,
        offset: Annotated[int, Query(ge=0)] = 0,
        limit: Annotated[int, Query(ge=1, le=_MAX_PAGE)] = 100,
    ) -> Json:
        """A page of the folder's pictures that the filter leaves, with the counts of all."""
        found = state.surveys.get(_view(request))
        selection = found.selection(_wanted(request))
        rows, tags = selection.rows, selection.tags
        return {
            "path": str(found.folder),
            "resolution_px": found.rule.resolution,
            "bucket_step_px": found.rule.step,
            "total": len(found.rows),
            "matching": len(rows),
            "offset": offset,
            "pictures": [_row(row) for row in rows[offset : offset + limit]],
            "tags": [{"tag": tag, "count": count} for tag, count in tags[:_MAX_TAGS]],
            "more_tags": max(0, len(tags) - _MAX_TAGS),
            "buckets": [{"bucket": list(b), "pictures": n, "shown": shown} for b, n, shown in found.bucket_table],
            "problems": found.problem_counts,
            "broken": [{"name": n, "message": m} for n, m in list(found.broken.items())[:_MAX_SHOWN]],
            "num_broken": len(found.broken),
            **state.history(found.folder),
        }

    @routes.get("/names")
    def names(request: Request) -> Json:
        """The names of all pictures that the filter leaves, in order: to choose them all, or the next one."""
        return {"names": [row.name for row in state.surveys.get(_view(request)).chosen(_wanted(request))]}

    @routes.get("/alike")
    def alike(request: Request) -> Json:
        """The groups of pictures that look nearly the same; `done` is false while they are still being looked for."""
        found = state.surveys.get(_view(request))
        search = state.searches.get(found)
        if search.done and search.failed:
            raise wrong("likeness", f"could not be looked for: {search.failed}.", "Free some space, and look again.")
        by_path = {row.picture.path: row for row in found.rows}
        groups = [
            {
                "pictures": [_row(by_path[p]) for p in group.paths[:_MAX_SHOWN]],
                "copies": [[by_path[p].name for p in same] for same in group.copies],
            }
            for group in (search.groups[:_MAX_SHOWN] if search.done else ())
        ]
        broken = [{"name": by_path[p].name, "message": m} for p, m in list(search.faults.items())[:_MAX_SHOWN]]
        return {"done": search.done, "seen": search.seen, "total": search.total, "groups": groups, "broken": broken}


def _editing(routes: APIRouter, state: _State) -> None:
    @routes.post("/preview")
    def preview(body: _Body) -> Json:
        """What an edit would change. Nothing is written; `apply` with the id writes just this."""
        asked = _checked(Preview, body)
        found, config = state.surveys.get(asked.view), state.surveys.config(asked.view)
        pictures = [row.picture for row in asked.rows(found)]
        edits = captions.edits(pictures, asked.operation, config.data.caption_extensions, state.surveys.allowing())
        good, bad = [e for e in edits if not e.fault], [e for e in edits if e.fault]
        changes: list[undo.Change] = [undo.Write(e.file, e.before, e.after) for e in good]
        state.journal.record(changes)  # so that nothing is shown, or kept here, that `apply` would refuse as too much
        pending = _Pending(found.folder, asked.operation.kind, captions.in_words(asked.operation), changes)
        return {
            "id": state.previews.add(pending),
            "chosen": len(pictures),
            "total": len(good),
            "changes": [{"picture": _inside(found.folder, e.picture), "old": e.old, "new": e.new} for e in good[:_MAX_SHOWN]],
            "faults": [{"picture": _inside(found.folder, e.picture), "message": e.fault} for e in bad[:_MAX_SHOWN]],
        }

    @routes.post("/apply")
    def apply(body: _Body) -> Json:
        """Write a preview. Files that changed since it was made are left alone, and named."""
        pending = state.previews.take(_checked(Given, body).id)
        outcome = state.journal.apply(
            pending.folder, pending.kind, pending.detail, pending.changes, allowed=state.surveys.allowing()
        )
        return state.finish(pending.folder, outcome)

    @routes.post("/remove")
    def remove(body: _Body) -> Json:
        """Put pictures and their caption files away, in `.limner-removed` inside the folder, where no scan looks."""
        asked = _checked(Choice, body)
        found, config = state.surveys.get(asked.view), state.surveys.config(asked.view)
        names = asked.pictures or []
        changes = removal(found, names, config.data.caption_extensions)
        detail = printable(", ".join(names), 80)
        outcome = state.journal.apply(found.folder, "put-away", detail, changes, allowed=state.surveys.allowing())
        return state.finish(found.folder, outcome)


def _undoing(routes: APIRouter, state: _State) -> None:
    @routes.post("/undo")
    def undo_last(body: _Body) -> Json:
        """Take back the last operation on the folder."""
        folder = state.surveys.folder(_checked(Seen, body).view)
        return state.finish(folder, state.journal.undo(folder, state.surveys.allowing()))

    @routes.post("/redo")
    def redo_last(body: _Body) -> Json:
        """Do again what was taken back last."""
        folder = state.surveys.folder(_checked(Seen, body).view)
        return state.finish(folder, state.journal.redo(folder, state.surveys.allowing()))


class _Previews:
    """The last previews, each good for one `apply`."""

    def __init__(self) -> None:
        self._lock, self._kept = threading.Lock(), OrderedDict[str, _Pending]()

    def add(self, pending: _Pending) -> str:
        name = secrets.token_hex(8)
        with self._lock:
            self._kept[name] = pending
            while len(self._kept) > _KEPT_PREVIEWS:
                self._kept.popitem(last=False)
        return name

    def take(self, name: str) -> _Pending:
        with self._lock:
            pending = self._kept.pop(name, None)
        if pending is None:
            raise wrong("id", "this preview is not known any more.", "Look at the changes again.")
        return pending


def _view(request: Request) -> dict[str, str]:
    view = {name: value for name, value in request.query_params.items() if "." in name}
    if path := request.query_params.get("path"):
        view["data.path"] = path
    return _checked(Seen, {"view": view}).view


def _wanted(request: Request) -> Filter:
    given: Json = {name: request.query_params.get(name, "") for name in ("text", "problem", "bucket")}
    return _checked(Wanted, {**given, "tags": request.query_params.getlist("tag")}).filter()


def _checked(model: type[M], content: Json) -> M:
    """What came from outside, checked against its schema. Raises UserError with a finding for each fault."""
    try:
        return model.model_validate(content)
    except ValidationError as error:
        raise UserError(
            Finding(printable(".".join(map(str, f["loc"]))) or "body", printable(f"{f['msg']}."), "Mend it and try again.")
            for f in error.errors(include_url=False, include_input=False)[:20]
        ) from None


def _row(row: Row) -> Json:
    return {
        "name": row.name,
        "path": row.picture.path,
        "width": row.picture.width,
        "height": row.picture.height,
        "caption": row.picture.caption,
        "repeats": row.picture.repeats,
        "bucket": list(row.bucket),
        "crop": [round(side, 1) for side in row.crop],
        "enlarged": round(row.enlarged, 3),
        "lost": round(row.lost, 4),
        "problems": list(row.problems),
    }


def _entry(entry: undo.Entry | None) -> Json | None:
    return None if entry is None else {"kind": entry.kind, "detail": entry.detail, "files": entry.files}


def _inside(folder: Path, path: str | Path) -> str:
    path = Path(path)
    return path.relative_to(folder).as_posix() if path.is_relative_to(folder) else str(path)
