"""The queue: which runs wait for a device, and in what order.

That a run waits is said by its own `state.json`; `<home>/queue.sqlite` holds only what folders cannot say, the order. So a
row whose run does not wait means nothing, and a waiting run without a row (whoever enqueued it was killed half-way, or the
file was lost) can be put back: :func:`repair`. One process at a time is in here, under `locks/queue.lock`.
"""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import filelock

from limner import disk, runs
from limner.config.launch import require_shares
from limner.errors import wrong
from limner.runs import LIVE, Run, State

_BUSY_SECONDS = 30.0
_DAMAGE = (sqlite3.SQLITE_ERROR, sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)  # an error: not the table we know
_SCHEMA = "CREATE TABLE queue (position INTEGER PRIMARY KEY AUTOINCREMENT, run TEXT NOT NULL UNIQUE)"


def enqueue(run: Run) -> None:
    """Put a new, stopped or failed run behind all others. Raises UserError if it is live, waiting or done."""
    with _table() as table, _hold(run):
        state = run.state()
        if state.status in LIVE:
            raise wrong("run", f"{run.id} is running.", "`limner runs show` shows it.")
        if state.status == "waiting":
            raise wrong("run", f"{run.id} is in the queue already.", "`limner runs queue` shows it.")
        if state.status == "done":
            raise wrong("run", f"{run.id} is finished.", "Start a new run to train longer.")
        run.lay_out()
        run.drop_requests(before=float("inf"))  # nobody has anything to ask of a run that is not live
        _append(table, run)
        run.write_state(State("waiting", step=state.step, steps=state.steps))


def set_processes(run: Run, count: int) -> None:
    """Let a run go on with another number of processes. Raises UserError if they could not share out its steps evenly."""
    config = run.config()
    if config.launch.trainer != "limner":
        raise wrong("processes", "sd-scripts' training states are for one number of processes.", "Leave it out.")
    if config.launch.num_machines > 1:
        raise wrong("processes", "the run's processes are shared out among machines.", "Leave it out.")
    require_shares(config, count)
    with _hold(run):
        disk.write_json(run.path / "processes.json", count)


def waiting() -> list[str]:
    """The ids of all waiting runs, first to start first."""
    with _table() as table:
        return _waiting(table)


def reorder(ids: Sequence[str]) -> None:
    """Put the waiting runs in this order. Ids that do not wait (any more) are passed over; runs not named come behind."""
    with _table() as table:
        known = _waiting(table)
        first = [name for name in dict.fromkeys(ids) if name in known]
        table.execute("DELETE FROM queue")
        for name in [*first, *(name for name in known if name not in first)]:
            table.execute("INSERT INTO queue (run) VALUES (?)", (name,))


def remove(run: Run) -> bool:
    """Take a run out of the queue: it is `stopped` then. False if it does not wait, is just being started, or has a job
    elsewhere, which has to be stopped."""
    if run.state().status != "waiting" or run.is_out():
        return False
    with _table() as table, contextlib.suppress(filelock.Timeout), run.hold():
        state = run.state()
        if state.status == "waiting":
            run.write_state(replace(state, status="stopped", error=""))
            table.execute("DELETE FROM queue WHERE run = ?", (run.id,))
            return True
    return False


def repair() -> list[str]:
    """Append the runs that say that they wait but are not in the table, in the order they said so; returns their ids."""
    with _table() as table:
        return _repair(table)


def _repair(table: sqlite3.Connection) -> list[str]:
    known = set(_waiting(table))
    lost = [(state.updated, run.id, run) for run in runs.all_runs() if (state := run.state()).status == "waiting"]
    missing = [run for _, name, run in sorted(lost, key=lambda entry: entry[:2]) if name not in known]
    for run in missing:
        _append(table, run)
    return [run.id for run in missing]


def _append(table: sqlite3.Connection, run: Run) -> None:
    waits = set(_waiting(table))
    gone = [(name,) for (name,) in table.execute("SELECT run FROM queue") if name not in waits]
    table.executemany("DELETE FROM queue WHERE run = ?", gone)
    table.execute("INSERT INTO queue (run) VALUES (?)", (run.id,))


def _waiting(table: sqlite3.Connection) -> list[str]:
    names = [name for (name,) in table.execute("SELECT run FROM queue ORDER BY position")]
    return [name for name in names if runs.named(name).state().status == "waiting"]


@contextlib.contextmanager
def _hold(run: Run) -> Iterator[None]:
    """The run's lock. Raises UserError if a trainer has it."""
    try:
        with run.hold():
            yield
    except filelock.Timeout:
        raise wrong("run", f"{run.id} is running.", "`limner runs show` shows it.") from None


@contextlib.contextmanager
def _table() -> Iterator[sqlite3.Connection]:
    """The table, for one transaction. Raises UserError if the file cannot be used; a damaged one is replaced."""
    path = runs.home() / "queue.sqlite"
    try:
        with runs.lock("queue", _BUSY_SECONDS):
            connection = _open(path)
            try:
                with connection:
                    yield connection
            finally:
                connection.close()
    except sqlite3.Error as error:
        raise wrong(str(path), f"cannot be used: {error}.", "Free some space on its disk, or make it writable.") from None


def _open(path: Path) -> sqlite3.Connection:
    """The database; a damaged one is set aside, and made anew from the run folders."""
    if not any(path.with_name(path.name + end).is_dir() for end in disk.DATABASE):
        try:
            return _connect(path)
        except sqlite3.DatabaseError as error:
            if getattr(error, "sqlite_errorcode", sqlite3.SQLITE_CORRUPT) & 0xFF not in _DAMAGE:
                raise
    disk.set_database_aside(path)
    return _connect(path)


def _connect(path: Path) -> sqlite3.Connection:
    connection = sqlite3.connect(path, timeout=_BUSY_SECONDS)
    try:
        connection.execute("PRAGMA journal_mode = WAL")
        ((word,),) = connection.execute("PRAGMA quick_check(1)")
        if word != "ok":
            raise sqlite3.DatabaseError(word)
        schema = connection.execute("SELECT sql FROM sqlite_master WHERE tbl_name = 'queue' AND sql IS NOT NULL").fetchall()
        if not schema:
            connection.execute(_SCHEMA)
            _repair(connection)
            connection.commit()
        elif schema != [(_SCHEMA,)]:
            raise sqlite3.DatabaseError("its table is that of another version")
    except BaseException:
        connection.close()
        raise
    return connection
