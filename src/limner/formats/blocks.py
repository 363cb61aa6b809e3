"""Tensors' names in another layout, from tables: of what lies in numbered blocks, and of what lies outside them. No torch."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

Table = Mapping[str, str]
"""Modules' names, or whole tensors' where `.weight` or `.bias` changes too -> those in the other layout. Those that share one
there are its rows, in the table's order."""


def renamed(names: Iterable[str], outside: Table, blocks: Mapping[str, tuple[str, Table]], layout: str) -> dict[str, str]:
    """{name: name there} in the order of the tables. `blocks`: a list of blocks -> its name there, and the table of one block.

    Raises ValueError, naming the `layout`, for a name without a place.
    """
    found = list[tuple[int, str, str]]()
    for name in names:
        place = _place(name, outside) or _place_in_block(name, blocks)
        if place is None:
            raise ValueError(f"{layout} has no place for {name!r}")
        found.append((place[0], name, place[1]))
    return {name: there for _, name, there in sorted(found, key=lambda entry: entry[0])}


def _place(name: str, table: Table) -> tuple[int, str] | None:
    """(row of the table, the name there)."""
    module, _, kind = name.rpartition(".")  # kind: weight or bias
    for row, (own, there) in enumerate(table.items()):
        if own == name:
            return row, there
        if own == module:
            return row, f"{there}.{kind}"
    return None


def _place_in_block(name: str, blocks: Mapping[str, tuple[str, Table]]) -> tuple[int, str] | None:
    for block, (there, table) in blocks.items():
        number, _, inner = name.removeprefix(f"{block}.").partition(".")
        if name.startswith(f"{block}.") and number.isdigit() and (place := _place(inner, table)):
            return place[0], f"{there}.{number}.{place[1]}"
    return None
