"""What a user can get wrong, said so that they can mend it."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

Severity = Literal["error", "warning", "note"]


def printable(text: object, limit: int = 200) -> str:
    """`text` on one line, safe on a terminal: no control, escape or bidi characters, at most `limit` long."""
    out = "".join(
        " " if c.isspace() else c if unicodedata.category(c)[0] != "C" else f"\\u{ord(c):04x}" for c in str(text)[: limit + 1]
    )
    return out if len(out) <= limit else out[: limit - 1] + "…"


@dataclass(frozen=True)
class Finding:
    """One thing found wrong: the field (dotted name or file), what it is, and what to do about it."""

    field: str
    message: str
    remedy: str = ""
    severity: Severity = "error"

    def __post_init__(self) -> None:
        # a lone surrogate, of a typed text or a file's name, cannot be sent as JSON
        for name in ("field", "message", "remedy"):
            text = getattr(self, name)
            object.__setattr__(self, name, text.encode("utf-8", "backslashreplace").decode("utf-8"))

    def __str__(self) -> str:
        remedy = f" {printable(self.remedy, 300)}" if self.remedy else ""
        return f"{self.severity}: {printable(self.field, 120)}: {printable(self.message, 300)}{remedy}"


class UserError(Exception):
    """Something only the user can mend. Shown without a traceback; the process exits with code 2."""

    exit_code = 2

    def __init__(self, findings: Iterable[Finding]) -> None:
        self.findings = list(findings)
        super().__init__("\n".join(str(f) for f in self.findings))


def wrong(field: str, message: str, remedy: str = "") -> UserError:
    """The error for a single finding."""
    return UserError([Finding(field, message, remedy)])


class StopRequested(BaseException):
    """Raised when somebody asked the run to end now. No Exception: libraries that are being imported turn those into others."""
