"""Where a model's tensors lie in a file of another layout: under which name, and which way round. No torch.

The names come from tables: of what lies in numbered blocks, and of what lies outside them.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

Lies = Literal["same", "transposed", "pointwise", "swapped"]
"""How a tensor lies in the file: as in the model; the other way round; as a 1x1 convolution where the model has a linear
layer, (C, C, 1, 1) for (C, C); or with the halves of its rows swapped (shift before scale)."""


@dataclass(frozen=True, slots=True)
class There:
    """The place of one tensor in a file. `name` is without the first words that tell a file's parts apart."""

    name: str
    lies: Lies = "same"


Names = Callable[[Iterable[str]], Mapping[str, There]]
"""All names of a model's tensors -> the place of each. Those that share a name there are its rows, in this order."""

Table = Mapping[str, str]
"""Modules' names, or whole tensors' where `.weight` or `.bias` changes too -> those in the other layout. Those that share one
there are its rows, in the table's order."""


def renamed(
    names: Iterable[str],
    outside: Table,
    blocks: Mapping[str, tuple[str, Table]],
    layout: str,
    swapped: Collection[str] = (),
    transposed: Collection[str] = (),
) -> dict[str, There]:
    """The place of each name, in the order of the tables. `blocks`: a list of blocks -> its name there, and the table of one
    block. `swapped` and `transposed` are modules.

    Raises ValueError, naming the `layout`, for a name without a place.
    """
    found = list[tuple[int, str, str]]()
    for name in names:
        place = _place(name, outside) or _place_in_block(name, blocks)
        if place is None:
            raise ValueError(f"{layout} has no place for {name!r}")
        found.append((place[0], name, place[1]))

    def lies(name: str) -> Lies:
        module = name.rpartition(".")[0]
        return "swapped" if module in swapped else "transposed" if module in transposed else "same"

    return {name: There(there, lies(name)) for _, name, there in sorted(found, key=lambda entry: entry[0])}


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
