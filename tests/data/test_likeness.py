"""Pictures that are nearly the same are found, and different ones are not, in any number."""

from __future__ import annotations

import random
import shutil
import time
from pathlib import Path

import pytest
from PIL import Image, ImageEnhance

from limner.data.likeness import NEAR, Look, Looks, Search, copies_among, look_of, near_groups
from limner.errors import UserError

skimage = pytest.importorskip("skimage")
SHIPPED = Path(skimage.__file__).parent / "data"
PHOTOS = ("astronaut.png", "camera.png", "chelsea.png", "coffee.png", "hubble_deep_field.jpg", "retina.jpg", "rocket.jpg")


def distance(a: Look, b: Look) -> int:
    return (a.bits ^ b.bits).bit_count()


@pytest.mark.parametrize("name", PHOTOS)
def test_changed_versions_are_near_and_other_photos_are_not(name: str, tmp_path: Path) -> None:
    photo, look = Image.open(SHIPPED / name).convert("RGB"), look_of(SHIPPED / name)
    photo.save(tmp_path / "jpeg.jpg", quality=40)
    photo.resize((photo.width // 2, photo.height // 2)).save(tmp_path / "half.png")
    ImageEnhance.Brightness(photo).enhance(1.2).save(tmp_path / "bright.png")
    for changed in sorted(tmp_path.iterdir()):
        assert len(near_groups([look, look_of(changed)])) == 1, (changed.name, distance(look, look_of(changed)))
    for other in PHOTOS:
        assert other == name or distance(look, look_of(SHIPPED / other)) >= 2 * NEAR


def test_plain_pictures_of_different_colours_are_not_alike(tmp_path: Path) -> None:
    for colour in ("red", "green", "black", "white"):
        Image.new("RGB", (64, 64), colour).save(tmp_path / f"{colour}.png")
    looks = [look_of(p) for p in sorted(tmp_path.iterdir())]
    assert near_groups(looks) == []
    assert near_groups([*looks, looks[0]]) == [[0, 4]]


def test_groups_are_those_of_comparing_every_pair() -> None:
    rng = random.Random(1)
    looks = []
    for _ in range(60):
        bits = rng.getrandbits(64)
        for _ in range(rng.choice((1, 1, 2, 4))):
            for _ in range(rng.randrange(0, 7)):
                bits ^= 1 << rng.randrange(64)
            looks.append(Look(bits, (100, 100, 100)))
    rng.shuffle(looks)
    groups = {i: {i} for i in range(len(looks))}
    for i in range(len(looks)):
        for j in range(i):
            if distance(looks[i], looks[j]) <= NEAR and groups[i] is not groups[j]:
                groups[i] |= groups[j]
                for k in groups[j]:
                    groups[k] = groups[i]
    expected = sorted({tuple(sorted(g)) for g in groups.values() if len(g) > 1})
    assert sorted(map(tuple, near_groups(looks))) == expected and expected
    assert near_groups([]) == []


@pytest.mark.parametrize("kind", ["random", "all the same", "one colour each"])
def test_ten_thousand_in_time(kind: str) -> None:
    rng = random.Random(2)
    make = {
        "random": lambda _: Look(rng.getrandbits(64), (9, 9, 9)),
        "all the same": lambda _: Look(5, (9, 9, 9)),
        "one colour each": lambda i: Look(0, (i % 5 * 60, i // 5 % 5 * 60, i % 256)),
    }[kind]
    looks = [make(i) for i in range(10_000)]
    begun = time.process_time()
    groups = near_groups(looks)
    assert time.process_time() - begun < 20
    assert kind != "all the same" or [len(g) for g in groups] == [10_000]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (root := tmp_path / "pics").mkdir()
    for name in PHOTOS[:4]:
        shutil.copy(SHIPPED / name, root / name)
    Image.open(root / "coffee.png").resize((300, 200)).save(root / "coffee small.jpg")
    shutil.copy(root / "coffee.png", root / "coffee copy.png")
    (root / "bad.png").write_bytes(b"\x89PNG\r\n\x1a\n nothing")
    return root


def test_a_search_finds_groups_copies_and_faults_and_keeps_what_it_learnt(folder: Path, tmp_path: Path) -> None:
    paths, file = [str(p) for p in sorted(folder.iterdir())], tmp_path / "cache" / "looks.sqlite"
    first = Search(paths, Looks(file))
    first.wait()
    assert first.done and first.seen == first.total == 7
    assert [[Path(p).name for p in g.paths] for g in first.groups] == [["coffee copy.png", "coffee small.jpg", "coffee.png"]]
    assert [[Path(p).name for p in c] for c in first.groups[0].copies] == [["coffee copy.png", "coffee.png"]]
    assert [Path(p).name for p in first.faults] == ["bad.png"]
    known = Looks(file).known(paths)
    assert len(known) == 6 and known[str(folder / "camera.png")] == look_of(folder / "camera.png")
    (folder / "coffee copy.png").write_bytes((folder / "camera.png").read_bytes())
    assert str(folder / "coffee copy.png") not in Looks(file).known(paths), "a changed file is looked at again"


def test_gone_and_broken_files(tmp_path: Path) -> None:
    with pytest.raises(UserError):
        look_of(tmp_path / "none.png")
    assert copies_among([str(tmp_path / "a"), str(tmp_path / "b")]) == []


def test_a_damaged_cache_is_made_anew(tmp_path: Path) -> None:
    (tmp_path / "likeness.sqlite").write_bytes(b"no database" * 500)
    looks = Looks(tmp_path / "likeness.sqlite")
    assert looks.known(["/nowhere.png"]) == {}


def test_a_search_that_fails_says_so(tmp_path: Path) -> None:
    (tmp_path / "cache").symlink_to(tmp_path / "a disk that is not there")
    search = Search(["/nowhere.png"], Looks(tmp_path / "cache" / "likeness.sqlite"))
    search.wait()
    assert search.done and "File exists" in search.failed and search.groups == []
