"""The cache gives back what was put in, to the bit, or nothing; damage costs time, never truth."""

from __future__ import annotations

import hashlib
import multiprocessing
import os
import threading
import time
from pathlib import Path

import pytest
import torch

from limner import disk
from limner.data.cache import Cache, Entry, key_of
from limner.errors import UserError


def entry(seed: int) -> Entry:
    g = torch.Generator().manual_seed(seed)
    return {
        "latents": torch.randn(4, 8, 6, generator=g),
        "half": torch.randn(3, 5, generator=g).to(torch.bfloat16),
        "ids": torch.randint(0, 9, (7,), generator=g),
        "scalar": torch.tensor(1.5 + seed),
    }


def same(a: Entry | None, b: Entry) -> bool:
    return a is not None and a.keys() == b.keys() and all(a[k].dtype == b[k].dtype and torch.equal(a[k], b[k]) for k in b)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "cache"


def filled(folder: Path, count: int = 3) -> list[str]:
    keys = [key_of("entry", i) for i in range(count)]
    cache = Cache(folder)
    cache.put({k: entry(i) for i, k in enumerate(keys)})
    cache.close()
    return keys


def shard(folder: Path) -> Path:
    [path] = folder.glob("*.safetensors")
    return path


def test_what_was_put_comes_back_to_the_bit(folder: Path) -> None:
    keys = filled(folder)
    cache = Cache(folder)
    assert all(same(cache.get(k), entry(i)) for i, k in enumerate(keys))
    assert cache.get(key_of("other")) is None
    assert cache.missing([key_of("b"), *keys, key_of("a"), key_of("b")]) == [key_of("b"), key_of("a")]
    cache.put({})
    assert len(list(folder.glob("*.safetensors"))) == 1
    assert not list(folder.glob(".tmp-*"))


def test_a_key_is_made_of_all_its_parts() -> None:
    assert key_of("a", 1, (2, 3)) == key_of("a", 1, (2, 3))
    parts = [("a", 1), ("a", "1"), ("a", 2), ("b", 1), ("a", 1, None), (["a", 1],), ("a1",), ("a", 1.5)]
    assert len({key_of(*p) for p in parts}) == len(parts)


def test_a_changed_file_has_another_hash(folder: Path, tmp_path: Path) -> None:
    cache, path = Cache(folder), tmp_path / "a.png"
    path.write_bytes(b"one")
    first, stat = cache.content_hash(path), path.stat()
    assert first == "7692c3ad3540bb803c020b3aee66cd8887123234ea0c6e7143c0add73ff431ed"
    path.write_bytes(b"three")  # another size
    assert cache.content_hash(path) != first
    path.write_bytes(b"one")
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert cache.content_hash(path) == first
    path.write_bytes(b"two")  # the same size, another time
    os.utime(path, ns=(0, stat.st_mtime_ns + 1))
    assert cache.content_hash(path) != first
    (other := tmp_path / "b.png").write_bytes(b"ono")  # the same size and time, another file
    os.utime(other, ns=(0, stat.st_mtime_ns + 1))
    second = cache.content_hash(path)
    os.replace(other, path)
    assert cache.content_hash(path) not in (first, second)


def test_a_hash_is_remembered_not_computed_again(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (path := tmp_path / "a.png").write_bytes(b"one")
    first = Cache(folder).content_hash(path)
    monkeypatch.setattr("limner.disk.sha256", lambda _: pytest.fail("read again"))
    assert Cache(folder).content_hash(path) == first


def test_a_change_that_leaves_no_trace_is_found_by_reading(folder: Path, tmp_path: Path) -> None:
    (path := tmp_path / "a.png").write_bytes(b"one")
    first, stat = Cache(folder).content_hash(path), path.stat()
    assert [*Cache(folder).are_sound([str(path)] * 2, lambda _: True)] == [True, True]
    with path.open("r+b") as file:
        file.write(b"two")
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert Cache(folder).content_hash(path) == first
    assert [*Cache(folder).are_sound([str(path)], lambda _: False)] == [True], "asked for another content"
    assert [*Cache(folder, verify=True).are_sound([str(path)], lambda _: False)] == [False]
    second = Cache(folder).content_hash(path)  # what was found out is remembered
    assert second == "3fc4ccfe745870e2c0d99f71f30ff0656c8dedd41cc1d7d3d376b0dbe685e2f3"


def test_each_file_and_entry_is_verified_once(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    keys = filled(folder)
    (path := tmp_path / "a.png").write_bytes(b"one")
    cache = Cache(folder, verify=True)
    first = cache.content_hash(path)
    assert cache.missing(keys) == []
    monkeypatch.setattr("limner.disk.sha256", lambda _: pytest.fail("read again"))
    monkeypatch.setattr(cache, "get", lambda _: pytest.fail("read again"))
    assert cache.content_hash(path) == first and cache.missing(keys) == []


@pytest.mark.skipif(os.name == "nt", reason="POSIX file names")
def test_names_that_are_no_text_and_huge_inodes(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = ["ü 猫 🐈\n.png", os.fsdecode(b"latin-\xe9.png"), os.fsdecode(b"latin-\xe8.png")]
    for name in names:
        (tmp_path / name).write_bytes(name.encode("utf-8", "surrogateescape"))
    cache = Cache(folder)
    assert len({cache.content_hash(tmp_path / n) for n in names}) == 3
    assert cache.content_hash(str(tmp_path / names[1])) == cache.content_hash(tmp_path / names[1])
    plain = os.stat
    monkeypatch.setattr(os, "stat", lambda p, *a, **k: os.stat_result((0, 2**64 - 1, *plain(p, *a, **k)[2:])))
    assert cache.content_hash(tmp_path / names[0])


@pytest.mark.parametrize("part", range(12))
def test_a_flipped_byte_is_noticed_and_mended(folder: Path, part: int) -> None:
    keys = filled(folder)
    path = shard(folder)
    content = bytearray(path.read_bytes())
    content[len(content) * part // 12 + (part == 0) * 3] ^= 0x10
    path.write_bytes(content)
    cache = Cache(folder)
    for i, key in enumerate(keys):
        found = cache.get(key)
        assert found is None or same(found, entry(i))
    lost = cache.missing(keys)
    assert lost or part == 11
    cache.put({k: entry(keys.index(k)) for k in lost})
    assert all(same(cache.get(k), entry(i)) for i, k in enumerate(keys))
    cache.close()
    assert all(same(Cache(folder).get(k), entry(i)) for i, k in enumerate(keys))


def test_damage_is_missing_before_it_is_used(folder: Path) -> None:
    keys = filled(folder)
    content = bytearray(shard(folder).read_bytes())
    content[-3] ^= 0x10
    shard(folder).write_bytes(content)
    assert Cache(folder).missing(keys) == []
    [lost] = Cache(folder, verify=True).missing(keys)
    cache = Cache(folder, verify=True)
    assert cache.missing(keys) == [lost]
    cache.put({lost: entry(keys.index(lost))})
    assert cache.missing(keys) == []
    assert all(same(cache.get(k), entry(i)) for i, k in enumerate(keys))


def test_a_changed_shape_or_type_in_the_header_is_noticed(folder: Path) -> None:
    for old, new in ((b"[4,8,6]", b"[8,4,6]"), (b'"F32","shape":[4', b'"I32","shape":[4')):
        keys = filled(folder)
        path = shard(folder)
        content = path.read_bytes()
        assert content.count(old) == 3
        path.write_bytes(content.replace(old, new))
        cache = Cache(folder)
        assert [cache.get(k) for k in keys] == [None] * 3
        assert cache.missing(keys) == keys
        cache.close()
        path.unlink()


@pytest.mark.parametrize("damage", ["gone", "empty", "half"])
def test_a_lost_shard_is_missing_and_made_again(folder: Path, damage: str) -> None:
    keys = filled(folder)
    path = shard(folder)
    path.unlink() if damage == "gone" else path.write_bytes(b"" if damage == "empty" else path.read_bytes()[:999])
    cache = Cache(folder)
    if damage != "half":
        assert cache.missing(keys) == keys
    assert [cache.get(k) for k in keys] == [None] * 3
    assert cache.missing(keys) == keys
    cache.put({k: entry(i) for i, k in enumerate(keys)})
    assert all(same(cache.get(k), entry(i)) for i, k in enumerate(keys))


@pytest.mark.parametrize("damage", ["text", "empty", "header", "middle", "text and journal"])
def test_a_damaged_index_is_begun_anew(folder: Path, damage: str) -> None:
    keys = filled(folder, 40)
    index = folder / "index.sqlite"
    content = bytearray(index.read_bytes())
    if damage == "header":
        content[:100] = os.urandom(100)
    elif damage == "middle":
        content[4096:] = os.urandom(len(content) - 4096)
    index.write_bytes({"text": b"no database" * 99, "empty": b""}.get(damage.split()[0], bytes(content)))
    if damage.endswith("journal"):
        for name in ("index.sqlite-wal", "index.sqlite-shm"):
            (folder / name).write_bytes(os.urandom(5000))
    cache = Cache(folder)
    assert cache.missing(keys) == keys
    assert cache.get(keys[0]) is None
    cache.put({keys[0]: entry(0)})
    assert same(cache.get(keys[0]), entry(0))
    assert any(folder.glob("index.sqlite.damaged-*")) == (damage != "empty")


def test_an_index_that_is_a_folder_is_a_users_matter(folder: Path) -> None:
    (folder / "index.sqlite").mkdir(parents=True)
    with pytest.raises(UserError, match=r"memory\.cache_path"):
        Cache(folder)


def test_several_may_write_at_once(folder: Path) -> None:
    Cache(folder).close()

    def work(number: int) -> None:
        cache = Cache(folder)
        for i in range(5):
            cache.put({key_of(number, i): entry(number * 10 + i), key_of("common", i): entry(i)})
        cache.close()

    threads = [threading.Thread(target=work, args=(n,)) for n in range(4)]
    start = time.monotonic()
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert time.monotonic() - start < 20
    cache = Cache(folder)
    assert all(same(cache.get(key_of(n, i)), entry(n * 10 + i)) for n in range(4) for i in range(5))
    assert all(same(cache.get(key_of("common", i)), entry(i)) for i in range(5))


def test_memory_is_bounded(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    keys = filled(folder, 20)
    size = sum(t.nbytes for t in entry(0).values())
    monkeypatch.setattr("limner.data.cache._RESIDENT_BYTES", 3 * size)
    cache = Cache(folder)
    assert all(same(cache.get(k), entry(i)) for i, k in enumerate(keys))
    assert list(cache._resident) == keys[-3:] and cache._resident_bytes == 3 * size
    assert same(cache.get(keys[0]), entry(0))


def test_many_processes_open_a_new_cache_at_once(tmp_path):
    """SQLite waits for a busy database, but not while another makes it one with a write-ahead log."""
    together = multiprocessing.get_context("fork")
    for attempt in range(8):
        barrier, folder = together.Barrier(8), tmp_path / str(attempt)
        processes = [together.Process(target=_open_behind, args=(barrier, folder)) for _ in range(8)]
        for process in processes:
            process.start()
        for process in processes:
            process.join(60)
        assert [process.exitcode for process in processes] == [0] * 8


def _open_behind(barrier, folder):
    barrier.wait()
    Cache(folder).close()


def test_many_files_are_hashed_as_one_is(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = [tmp_path / f"{i}.png" for i in range(250)]
    for i, path in enumerate(paths):
        path.write_bytes(b"content %d" % (i % 7))
    asked = [*paths, paths[0], paths[249]]
    expected = [hashlib.sha256(p.read_bytes()).hexdigest() for p in asked]
    assert [*Cache(folder).content_hashes(asked)] == expected
    paths[120].write_bytes(b"something else")
    expected[120] = hashlib.sha256(b"something else").hexdigest()
    read: list[Path] = []
    plain = disk.sha256
    monkeypatch.setattr("limner.disk.sha256", lambda p: read.append(p) or plain(p))
    assert [*Cache(folder).content_hashes(asked)] == expected and read == [paths[120]]


def test_hashes_are_noted_on_the_way(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = [tmp_path / f"{i}.png" for i in range(150)]
    for path in paths[:140]:
        path.write_bytes(path.name.encode())
    with pytest.raises(UserError, match="cannot be read any more"):
        list(Cache(folder).content_hashes(paths))
    assert [*Cache(folder).are_sound([str(p) for p in paths[100:]], lambda _: True)] == [True] * 40 + [False] * 10
    monkeypatch.setattr("limner.disk.sha256", lambda _: pytest.fail("read again"))
    assert len([*Cache(folder).content_hashes(paths[:100])]) == 100
