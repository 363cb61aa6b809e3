"""One data set of which one file in twenty is bad: each is named with its reason, and the rest trains."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

import faults
import hostile_pictures
from hostile_pictures import BAD, HOSTILE
from limner.config import Config
from limner.preflight import examine
from trainer import config, losses, new_run, train

pytestmark = pytest.mark.skipif(os.name == "nt", reason="pipes and links of POSIX")


def of(model: Path, folder: Path, **data) -> Config:
    data = {"path": str(folder), "caption_extensions": [".txt"], **data}
    return config(model, folder, data=data, train={"steps": 2}, optimizer={"warmup_steps": 0})


@pytest.mark.long
def test_one_file_in_twenty_is_bad(tiny_model: Path, tmp_path: Path) -> None:
    num_usable = hostile_pictures.write(folder := tmp_path / "set")
    assert len(BAD) / (num_usable + len(BAD)) == pytest.approx(0.05, abs=0.005)
    strict, lenient = of(tiny_model, folder), of(tiny_model, folder, skip_broken=True)

    # before the start, at a glance: all that headers tell, with the reason
    findings, _ = examine(strict, None)
    said = {Path(f.field).name: f.message for f in findings if f.severity == "error"}
    by_header = {h.named: h.words for h in HOSTILE if h.seen == "header"}
    assert set(said) == set(by_header)
    assert not [name for name, words in by_header.items() if words not in said[name]]
    (left_out,) = (f.message for f in findings if "kinds that Limner does not open" in f.message)
    assert "2 pictures" in left_out and ".gif, .heic" in left_out

    # and by a deep look every one, in bounded memory
    code, told, _, mib = faults.check(lenient, tmp_path, "--deep", "--quick")
    assert code == 0 and mib <= faults.MOST_MIB, (told, mib)
    lines = told.splitlines()
    for hostile in HOSTILE:
        mine = [line for line in lines if f"/{hostile.named}:" in line]
        if hostile.seen in ("header", "decoding"):
            assert len(mine) == 1 and hostile.words in mine[0] and mine[0].startswith("warning:"), (hostile.name, mine)
        else:
            assert mine == [], mine
    assert not [line for line in lines if not line.isprintable() or len(line) > 760]

    # a run is refused, or leaves them out, counts them and trains the rest
    refused = new_run(strict)
    assert train(refused) == 2
    assert "empty.png" in refused.state().error and "Traceback" not in refused.tail()
    run = new_run(lenient)
    assert train(run) == 0, run.tail()
    assert run.plan()["num_pictures"] == num_usable and len(losses(run)) == 2
    warned = [e["message"] for e, _ in run.events() if e["event"] == "warning"]
    assert f"{len(BAD)} files were skipped; {num_usable} pictures are trained" in warned
    assert not [name for name in BAD if not any(name in words for words in warned)]
    print(f"{len(BAD)} bad of {len(BAD) + num_usable}: check --deep had {mib} MiB")


# --- files that change under a run ------------------------------------------------------------------------------------


def test_a_picture_that_vanishes_before_it_is_read(tiny_model: Path, pictures: Path) -> None:
    victim = str(pictures / "p2.png")
    strict = new_run(config(tiny_model, pictures))
    assert faults.train(strict, faults.delete, "encode", 2, victim) == 2
    assert victim in strict.state().error and "Traceback" not in strict.tail()
    assert train(strict) == 0 and strict.plan()["num_pictures"] == 3


def test_a_picture_that_vanishes_between_two_looks(tiny_model: Path, pictures: Path) -> None:
    victim = str(pictures / "p2.png")
    # the first hashes are those of the pictures, where broken ones are to be skipped; else of the VAE's files
    lenient = new_run(config(tiny_model, pictures, data={"skip_broken": True}))
    assert faults.train(lenient, faults.delete, "hashes", 1, victim) == 0, lenient.tail()
    assert lenient.plan()["num_pictures"] == 3
    assert "1 files were skipped; 3 pictures are trained" in [
        e["message"] for e, _ in lenient.events() if e["event"] == "warning"
    ]
    strict = new_run(config(tiny_model, pictures))
    assert faults.train(strict, faults.delete, "hashes", 1, str(pictures / "p1.png")) == 2
    assert "p1.png" in strict.state().error and "cannot be read any more" in strict.state().error
    faults.require_ended(strict)


@pytest.mark.long
def test_an_edit_while_it_is_read_is_not_kept_as_what_was_there(tiny_model: Path, pictures: Path) -> None:
    """Else the picture from before, put back later, would be taken for the edited one."""
    path = pictures / "p2.png"
    before, other = path.read_bytes(), (pictures / "p0.png").read_bytes()
    plain = new_run(config(tiny_model, pictures))
    run = new_run(config(tiny_model, pictures, memory={"cache_path": str(pictures.parent / "cache")}))
    assert faults.train(run, faults.replace, "encode", 3, str(path), other) == 2
    assert "p2.png" in run.state().error and "changed while the run read it" in run.state().error
    path.write_bytes(before)
    assert train(run) == 0 and train(plain) == 0
    assert losses(run) == losses(plain)


@pytest.mark.long
def test_what_is_cached_may_go(tiny_model: Path, pictures: Path) -> None:
    plain, run = (new_run(config(tiny_model, pictures)) for _ in range(2))
    assert train(plain) == 0
    assert faults.train(run, faults.delete, "step", 3, str(pictures)) == 0, run.tail()
    assert losses(run) == losses(plain)
