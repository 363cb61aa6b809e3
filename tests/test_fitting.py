"""Which ways a run may be kept in memory, and in which order they are tried."""

from __future__ import annotations

from limner import fitting, runs
from limner.config import Config, files


def _config(**options: str) -> Config:
    return files.build({}, {name.replace("__", "."): value for name, value in options.items()})


def test_the_first_way_is_what_was_asked_for_and_others_are_slower() -> None:
    ways = fitting.ladder(_config(train__batch_size="4"), "cpu", exact=True)
    assert ways[0] == {}
    assert {"memory.micro_batch": 2} in ways and {"memory.micro_batch": 1} in ways
    again = [w for w in ways if w.get("memory.checkpointing") and "memory.micro_batch" not in w]
    assert [w["memory.checkpoint_every"] for w in again] == [4, 2, 1]
    assert not any("memory.quantize" in w for w in ways)
    assert any(w.get("memory.quantize") == "nf4" for w in fitting.ladder(_config(), "cpu", exact=False))
    assert any("memory.swap_blocks" in w for w in fitting.ladder(_config(), "cuda", exact=True, num_blocks=8))
    assert not any("memory.swap_blocks" in w for w in fitting.ladder(_config(), "cpu", exact=True, num_blocks=8))


def test_what_the_user_set_stays() -> None:
    given = _config(train__batch_size="4", memory__micro_batch="2", memory__checkpointing="true", memory__quantize="fp8")
    assert fitting.ladder(given, "cpu", exact=False) == [{}]
    whole = _config(adapter__kind="none")
    assert not any("memory.quantize" in w for w in fitting.ladder(whole, "cpu", exact=False))


def test_each_step_down_holds_less_until_there_is_none() -> None:
    asked, now, seen = _config(train__batch_size="4"), {}, []
    while (now := fitting.smaller(asked, now, "cpu", 0)) is not None:
        seen.append(now)
    assert seen[0] == {"memory.micro_batch": 2}
    assert seen[-1] == {"memory.micro_batch": 1, "memory.checkpointing": True, "memory.checkpoint_every": 1}
    assert len(seen) == len({str(s) for s in seen}) >= 4
    kept = fitting.laid_over(asked, seen[-1])
    assert (kept.memory.micro_batch, kept.memory.checkpointing, kept.train) == (1, True, asked.train)


def test_a_run_remembers_its_last_way() -> None:
    run = runs.create(_config())
    assert fitting.recorded(run) is None
    run.event("fit", step=0, options={"memory.micro_batch": 2}, why="")
    run.event("fit", step=5, options={"memory.micro_batch": 1, "train.seed": 3}, why="")
    assert fitting.recorded(run) == {"memory.micro_batch": 1}
