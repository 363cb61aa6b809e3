"""What the supervisor tells the world of a run, in the files that Limner's own trainer writes."""

from __future__ import annotations

from limner.state import StateTeller


class Record(StateTeller):
    """The state file and the events of a run."""

    def event(self, kind: str, **values) -> None:
        self.run.event(kind, **values)

    def warn(self, message: str) -> None:
        self.event("warning", message=message)
