"""The folders that people at the page look at: which one is meant, what is in it, and what in it looks alike; kept a while."""

from __future__ import annotations

import os
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping
from pathlib import Path

from limner import runs
from limner.config import Config
from limner.config import files as config_files
from limner.data.likeness import Looks, Search
from limner.data.survey import Survey, survey
from limner.errors import wrong
from limner.formats.base import base_of
from limner.pocket import MODELS
from limner.web import places
from limner.web.context import Context
from limner.web.kept import Kept

OPTIONS = frozenset({"model.base"})
"""The options outside [data] that decide how a folder is seen."""
_FRESH_SECONDS = 5.0
_SEARCHES = 2
_SEARCHED_SECONDS = 30.0

View = Mapping[str, str]
"""Options by dotted name, as typed: `data.path` and what else of [data] is to be seen differently."""


class Surveys:
    """What folders hold, read again when one of them changed or a few seconds have passed."""

    def __init__(self, context: Context) -> None:
        self._roots = context.roots
        self._kept = Kept[Survey](_FRESH_SECONDS, _folders, lambda found: len(found.rows))

    def folder(self, view: View) -> Path:
        """The folder that a view is of. Raises UserError."""
        if not view.get("data.path", "").strip():
            raise wrong("data.path", "no folder is given.", "Choose one.")
        return places.resolve(view["data.path"], self._roots, field="data.path")

    def config(self, view: View) -> Config:
        """The view as a configuration whose paths lie inside the allowed folders. Raises UserError."""
        for name in view:
            if not name.startswith("data.") and name not in OPTIONS:
                raise wrong(name, "does not change how a folder is seen.", "Leave it out.")
        folder = self.folder(view)
        base = view.get("model.base", "pocket")
        if base not in MODELS and os.path.lexists(os.path.expanduser(base)):
            base = str(places.resolve(base, self._roots, field="model.base"))
        return config_files.build({}, {**view, "data.path": str(folder), "model.base": base})

    def get(self, view: View) -> Survey:
        """The folder's survey. Raises UserError."""
        config = self.config(view)
        key = tuple(sorted({**view, "data.path": str(config.data.path)}.items()))
        return self._kept.get(key, lambda: survey(config, base_of(config.model), self.allowing()))

    def forget(self) -> None:
        """Read everything again at the next look: something was written."""
        self._kept.forget()

    def allowing(self) -> Callable[[str | Path], bool]:
        """A function that says whether a file, links followed, lies inside the allowed folders.

        It remembers the folders it was asked about, so make one for each operation.
        """
        folders: dict[str, bool] = {}

        def allows(path: str | Path) -> bool:
            if os.path.islink(path):
                return places.leads_inside(str(path), self._roots)
            folder, name = os.path.split(path)
            if folder not in folders:
                folders[folder] = places.leads_inside(folder, self._roots)
            return folders[folder] and not name.startswith(".")

        return allows


def _folders(found: Survey) -> set[str]:
    return {str(found.folder), *(os.path.dirname(row.picture.path) for row in found.rows)}


class Searches:
    """The searches for pictures that look alike, one a folder, at most a few at a time."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._looks = Looks(runs.home() / "cache" / "likeness.sqlite")
        self._running: OrderedDict[tuple[str, ...], Search] = OrderedDict()

    def get(self, found: Survey) -> Search:
        """The search over a survey's pictures, begun now if there is none; one that ended a while ago is done again."""
        key = tuple(row.picture.path for row in found.rows)
        with self._lock:
            search = self._running.get(key)
            if search is None or (search.done and time.monotonic() - search.ended > _SEARCHED_SECONDS):
                self._running[key] = search = Search(key, self._looks)
            self._running.move_to_end(key)
            while len(self._running) > _SEARCHES:
                self._running.popitem(last=False)[1].stop()
            return search
