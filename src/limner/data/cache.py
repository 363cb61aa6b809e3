"""Encoded pictures and captions on disk: sharded safetensors files with an index, keyed by content and options.

An entry's key is a hash of everything that shapes it, so a changed caption, picture, VAE, bucket or version is simply
another key: nothing stale can be found. Entries carry a checksum; a damaged one is encoded again.
"""

from __future__ import annotations

import hashlib
import json
import os
import zlib
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from limner import disk
from limner.data.contents import AT_ONCE, Contents

_VERSION = 2  # raise it when encoding changes
_RESIDENT_BYTES = 512 << 20
_JSON = json.JSONEncoder(sort_keys=True, default=str)

Entry = dict[str, Tensor]


def key_of(*parts: Any) -> str:
    """A hash of everything that shapes an entry."""
    return key_of_texts(*map(as_text, parts))


def as_text(part: Any) -> str:
    """What a key is made of, of one part: to be kept where very many keys share it."""
    return _JSON.encode(part)


def key_of_texts(*texts: str) -> str:
    """`key_of` parts given as text."""
    return hashlib.sha256(f"[{', '.join((str(_VERSION), *texts))}]".encode()).hexdigest()


class Cache(Contents):
    """A folder of encoded samples, and what is known of files. Several processes may read and write it at once."""

    def __init__(self, folder: Path, *, verify: bool = False, sign: Callable[[], object] = bool) -> None:
        """As :class:`Contents`, for entries too."""
        super().__init__(folder, verify=verify, sign=sign)
        self._checked: set[str] = set()
        self._resident: OrderedDict[str, Entry] = OrderedDict()
        self._resident_bytes = 0

    def missing(self, keys: Iterable[str]) -> list[str]:
        """The keys, each once, that have no entry; those whose shard is gone or empty count as missing, as damaged ones do."""
        with os.scandir(self.folder) as files:
            shards = {f.name for f in files if f.name.endswith(".safetensors") and f.stat().st_size}
        out: dict[str, None] = {}
        rest = iter(keys)
        while some := list(islice(rest, AT_ONCE)):
            rows = self._rows("SELECT key, shard FROM entries WHERE key", some)
            for key in some:
                if key not in rows or rows[key][1] not in shards or (self._verify and not self._holds(key)):
                    out[key] = None
        return list(out)

    def _holds(self, key: str) -> bool:
        """Whether an entry is what was put in; read once."""
        if key not in self._checked and self.get(key) is not None:
            self._checked.add(key)
        return key in self._checked

    def put(self, entries: Mapping[str, Entry]) -> None:
        """Add entries as one shard: the file first, whole, then the index."""
        if not entries:
            return
        shard = f"{hashlib.sha256(''.join(entries).encode()).hexdigest()[:20]}.safetensors"
        tensors = {f"{key}.{name}": t.detach().cpu().contiguous() for key, e in entries.items() for name, t in e.items()}
        # not waiting for the disk, which may take longer than encoding: what a power cut spoils is made again
        with disk.replacing(self.folder / shard, durable=False) as temporary:
            save_file(tensors, temporary)
        rows = [(key, shard, json.dumps(sorted(e)), _checksum(e)) for key, e in entries.items()]
        with self._changing():
            self._index.executemany("INSERT OR REPLACE INTO entries VALUES (?, ?, ?, ?)", rows)

    def get(self, key: str) -> Entry | None:
        """An entry's tensors on the CPU, or None if it is missing or damaged (then it is forgotten, to be made again)."""
        if key in self._resident:
            self._resident.move_to_end(key)
            return self._resident[key]
        row = self._index.execute("SELECT shard, names, checksum FROM entries WHERE key = ?", (key,)).fetchone()
        if row is None:
            return None
        try:
            with safe_open(self.folder / row[0], framework="pt") as file:
                # copies: the file is mapped, and may be replaced under our feet
                entry = {name: file.get_tensor(f"{key}.{name}").clone() for name in json.loads(row[1])}
        except (OSError, SafetensorError):
            entry = None
        if entry is None or _checksum(entry) != row[2]:
            with self._changing():
                self._index.execute("DELETE FROM entries WHERE key = ?", (key,))
            return None
        self._keep(key, entry)
        return entry

    def _keep(self, key: str, entry: Entry) -> None:
        self._resident[key] = entry
        self._resident_bytes += _size(entry)
        while self._resident_bytes > _RESIDENT_BYTES and len(self._resident) > 1:
            self._resident_bytes -= _size(self._resident.popitem(last=False)[1])


def _size(entry: Entry) -> int:
    return sum(t.nbytes for t in entry.values())


def _checksum(entry: Entry) -> int:
    value = 0
    for name in sorted(entry):
        tensor = entry[name].detach().cpu().contiguous()
        value = zlib.crc32(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode(), value)
        value = zlib.crc32(tensor.reshape(-1).view(torch.uint8).numpy().data, value)
    return value
