"""What is no number is noticed, never saved, and left out; and what a run comes to is the same however often it is ended."""

from __future__ import annotations

import math
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from test_feed import job_for

import poisoned
import tiny
import trainer
from limner.config import files
from limner.engine import checkpoint, saving
from limner.engine.feed import places
from limner.engine.finite import all_finite
from limner.engine.objective import answer_loss
from limner.engine.runtime import Runtime
from limner.engine.skips import Skip, num_shown, recorded
from limner.engine.train import accumulate_gradients, move_weights, train
from limner.engine.watch import Alarm, Watch
from limner.errors import UserError
from poisoned import Fault
from trainer import Moment

CPU = torch.device("cpu")
pytestmark = pytest.mark.usefixtures("known_machine")


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    return tiny.pictures(tmp_path / "pictures", ((40, 40),) * 6)


# --- noticing ---------------------------------------------------------------------------------------------------------


def noticed(losses: list[float], norms: list[float] | None = None, world: int = 1) -> tuple[int, int] | None:
    """(where it began, where it was noticed) of a run with these losses."""
    watch = Watch(Runtime(CPU, "fp32", world=world))
    for step, loss in enumerate(losses, 1):
        try:
            watch.note(step, torch.tensor(loss), None if norms is None else torch.tensor(norms[step - 1]))
        except Alarm as alarm:
            assert alarm.noticed == step
            return alarm.step, step
    return None


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_is_no_number_is_noticed_at_once_or_six_steps_later(value: float) -> None:
    losses = [0.1] * 7 + [value] + [0.1] * 10
    assert noticed(losses) == (8, 8)
    assert noticed(losses, world=2) == (8, 14)  # by all processes at the same step
    assert noticed([0.1] * 18, losses) == (8, 8)
    assert noticed([0.1] * 18, losses, world=2) == (8, 14)


def test_before_a_save_all_steps_are_looked_at() -> None:
    watch = Watch(Runtime(CPU, "fp32", world=2))
    watch.note(1, torch.tensor(0.1), None)
    watch.note(2, torch.tensor(math.nan), None)
    with pytest.raises(Alarm) as caught:
        watch.settle()
    assert caught.value.step == 2


@pytest.mark.parametrize("before", [0, 3, 30])
def test_an_explosion_is_noticed_where_it_lasts(before: int) -> None:
    usual, large = [0.1] * before, [2e8] * 20
    assert noticed([*usual, *large]) == (before + 1, before + 4)
    assert noticed([*usual, *large], world=2) == (before + 1, before + 10)
    assert noticed([*usual, *[*large[:3], 0.1] * 20]) is None


def test_a_resumed_watch_decides_alike() -> None:
    losses = [0.1] * 20 + [5e3] * 4
    watch = Watch(Runtime(CPU, "fp32"))
    for step, loss in enumerate(losses[:22], 1):
        watch.note(step, torch.tensor(loss), None)
    watch.settle()
    other = Watch(Runtime(CPU, "fp32"))
    other.take(watch.told())
    other.note(23, torch.tensor(5e3), None)
    with pytest.raises(Alarm) as caught:
        other.note(24, torch.tensor(5e3), None)
    assert (caught.value.step, caught.value.noticed) == (21, 24)


@pytest.mark.parametrize("kind", ["inverse square", "lognormal", "mostly masked", "falling", "huge spikes"])
def test_no_false_alarm_in_noisy_runs(kind: str) -> None:
    """Losses whose largest are a million times the usual; ten thousand steps each, one picture at a time."""
    rng = random.Random(f"{kind} 1")
    draw = {
        "inverse square": lambda k: rng.uniform(0.2, 1) / max(rng.random(), 1e-3) ** 2,
        "lognormal": lambda k: rng.lognormvariate(-3, 3),
        "mostly masked": lambda k: 0.0 if rng.random() < 0.7 else rng.random(),
        "falling": lambda k: rng.lognormvariate(0, 1) * math.exp(-k / 500),
        "huge spikes": lambda k: 1e12 if k % 5 == 4 else rng.random(),
    }[kind]
    watch = Watch(Runtime(CPU, "fp32"))
    for step in range(1, 10_001):
        watch._compare(step, draw(step))


def test_what_holds_no_numbers() -> None:
    assert all_finite([torch.ones(3), torch.zeros(0), torch.tensor([1, 2])])
    for value in (math.nan, math.inf, -math.inf):
        assert not all_finite([torch.ones(3), torch.tensor([0.0, value, 1.0])])
        assert not all_finite([torch.tensor([[value, 1.0]], dtype=torch.bfloat16)])
    assert all_finite([torch.tensor([-65504.0])], torch.float16) and not all_finite([torch.tensor([-7e4])], torch.float16)


# --- a step without some of its pictures ------------------------------------------------------------------------------


def test_the_mean_is_over_the_rest(model: Path, pictures: Path) -> None:
    """With the draws that each picture would have had anyway; the reference adds up float64 gradients picture by picture."""
    job = job_for(model, pictures, train={"batch_size": 3, "accumulation": 2})
    (first, second), step = job.dataset.order.step(4), 4
    hidden = (first[1], second[0])
    everything, found = places(job, step), []
    for place in everything:
        question = job.feed.take(place)
        job.adapter.begin(step, place.number)
        losses = answer_loss(job, question)
        for i, loss in zip(place.indices, losses, strict=True):
            if i not in hidden:
                gradients = torch.autograd.grad(loss, job.params, retain_graph=True)
                found.append((float(loss.detach()), torch.cat([g.double().flatten() for g in gradients])))
    job.skips = [Skip(5, hidden)]
    assert num_shown(job, step) == len(found) and num_shown(job, 3) == 6
    loss = accumulate_gradients(job, step)
    assert float(loss) == pytest.approx(sum(v for v, _ in found) / len(found), rel=1e-5)
    expected = torch.stack([g for _, g in found]).mean(0)
    gradient = torch.cat([p.grad.double().flatten() for p in job.params if p.grad is not None])
    assert (gradient - expected).norm() < 1e-5 * expected.norm()


def test_pieces_keep_their_positions(model: Path, pictures: Path) -> None:
    job = job_for(model, pictures, train={"batch_size": 6, "accumulation": 1}, memory={"micro_batch": 2})
    (order,) = job.dataset.order.step(0)
    job.skips = [Skip(1, (order[1],))]
    assert [(p.indices, p.position) for p in places(job, 0)] == [((order[0],), 0), (order[2:4], 2), (order[4:], 4)]
    job.skips = [Skip(1)]
    assert places(job, 0) == [] and num_shown(job, 1) == 6
    job.runtime, job.skips = replace(job.runtime, is_sharded=True), [Skip(1, (order[1],))]
    assert num_shown(job, 0) == num_shown(job, 1) == 0  # else some process would have nothing to compute


def test_pictures_of_other_data_are_forgotten(model: Path, pictures: Path) -> None:
    from limner.engine import skips

    job = job_for(model, pictures)
    of_this, of_other, step = Skip(3, (1,), job.dataset.fingerprint()), Skip(4, (1,), "other"), Skip(5)
    skips.take(job, [of_this, of_other, step, of_this])
    assert job.skips == [of_this, step]
    assert [Skip.of(s.told()) for s in job.skips] == job.skips


# --- fp16 -------------------------------------------------------------------------------------------------------------


def test_a_gradient_too_large_for_fp16_is_no_alarm(model: Path, pictures: Path) -> None:
    """The scaler leaves such a step out and scales less, until the gradients fit."""
    job = job_for(model, pictures, train={"steps": 24})
    job.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**30)
    for p in job.params:
        p.register_hook(lambda g: g.half().float())
    before, overflows = [p.detach().clone() for p in job.params], list[bool]()
    for step in range(24):
        scale = job.scaler.get_scale()
        move_weights(job, step)
        overflows.append(job.scaler.get_scale() < scale)
        if step == 0:
            assert all(torch.equal(a, b) for a, b in zip(before, job.params, strict=True))
    job.watch.settle()
    assert overflows[0] and not overflows[-1]
    assert all_finite(job.params) and not all(torch.equal(a, b) for a, b in zip(before, job.params, strict=True))


def test_a_scale_at_its_floor_ends_the_run(model: Path, pictures: Path) -> None:
    job = job_for(model, pictures)
    job.scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    for p in job.params:
        p.register_hook(lambda g: g * torch.inf)
    with pytest.raises(UserError) as caught:
        train(job, 0)
    (finding,) = caught.value.findings
    assert finding.field == "train.precision" and "bf16" in finding.remedy
    assert job.done == 2 and not list(job.run.states.glob("step-*"))  # 4, 2, 1, and no further


# --- saving -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("where", ["weights", "optimizer", "average"])
def test_nothing_is_saved_that_holds_no_numbers(model: Path, pictures: Path, where: str) -> None:
    job = job_for(model, pictures, train={"ema": 0.9}, output={"name": "cat"})
    move_weights(job, 0)
    assert job.average is not None and isinstance(job.optimizer, torch.optim.Optimizer)
    moments = job.optimizer.state[job.params[0]]["exp_avg_sq"]
    {"weights": job.params[0].data, "optimizer": moments, "average": job.average.values[0]}[where].view(-1)[0] = torch.inf
    for save in (saving.save_state, saving.save_weights):
        with pytest.raises(Alarm) as caught:
            save(job, 1)
        assert caught.value.step == 1
    assert not list(job.run.path.rglob("*.safetensors"))
    job.saver.close()


def test_weights_too_large_for_the_file(model: Path, pictures: Path) -> None:
    for kind in ("lora", "none"):
        job = job_for(model, pictures, adapter={"kind": kind}, output={"name": "cat", "dtype": "fp16", "layout": "diffusers"})
        job.params[0].data.view(-1)[0] = 1e6
        with pytest.raises(UserError) as caught:
            saving.save_weights(job, 1)
            job.saver.collect(wait=True)
        assert "output.dtype" in str(caught.value) and "fp16" in str(caught.value)
        assert not list(job.run.checkpoints.iterdir())
        job.saver.close()


def test_captions_that_become_no_numbers(model: Path, pictures: Path) -> None:
    """The text encoder is broken, or too large for fp16: said before the start, and not blamed on the learning rate."""
    job = job_for(model, pictures)
    job.family.encode_captions = lambda captions: {"text": torch.full((len(captions), 2, 3), torch.nan)}
    with pytest.raises(UserError) as caught:
        job.samples._encode_caption("a cat")
    assert "train.precision" in str(caught.value) and "a cat" in str(caught.value)


# --- whole runs -------------------------------------------------------------------------------------------------------


def finished(run: Any) -> dict[str, Any]:
    """A run's result, without the training state's name: equal for runs that were ended and for those that were not."""
    assert run.state().status == "done", run.tail()
    poisoned.require_sound(run)
    return trainer.result(run)


@pytest.mark.parametrize("what", ["loss", "gradient"])
def test_a_step_that_makes_no_numbers_is_left_out(model: Path, pictures: Path, what: str) -> None:
    """The run comes to what one comes to that never takes the step; ended on the way or not."""
    clip = {"clip_norm": "off"} if what == "gradient" else {}
    chosen = trainer.config(model, pictures, train=clip)
    run = trainer.new_run(chosen)
    assert poisoned.train(run, Fault(what, 8)) == 0, run.tail()
    whole = finished(run)
    (skip,) = poisoned.skips(run)
    assert (skip["step"], skip["skip"]["pictures"]) == (8, [])
    assert [e["step"] for e, _ in run.events() if e["event"] == "resume"] == [6]
    assert [s[0] for s in whole["steps"]] == [1, 2, 3, 4, 5, 6, 7, 9, 10, 11, 12]
    names = [Path(p).name for p in skip["pictures"]]
    (said,) = [e["message"] for e in run.history() if e["event"] == "warning"]
    assert len(names) == 2 and all(name in said and name in run.tail() for name in names)
    assert "step 8" in said and "went back to its last training state" in said

    plain = job_for_run(chosen)
    for step in range(12):
        if step != 7:
            move_weights(plain, step)
    written = checkpoint.load_file(run.states / "step-00000012" / "weights.safetensors")
    assert all(torch.equal(written[k], v) for k, v in plain.adapter.state_dict().items())
    if what == "gradient":
        return
    ended = trainer.new_run(chosen)
    assert poisoned.train(ended, Fault(what, 8), Moment("kill", "step", 9)) == -9  # behind the step, gone back and done again
    assert poisoned.train(ended, Fault(what, 8)) == 0, ended.tail()
    assert finished(ended) == whole


def job_for_run(chosen: Any) -> Any:
    from limner import jobs
    from limner.engine.journal import Journal
    from limner.engine.prepare import prepare

    run = jobs.prepare(chosen)
    return prepare(run, chosen, Runtime(CPU, "fp32"), Journal(run, is_main=True), lambda: False)


@pytest.mark.long
def test_a_picture_that_makes_no_numbers_is_left_out_for_good(model: Path, pictures: Path) -> None:
    """It alone, from the step on where it was noticed, and the others go on in their places."""
    chosen = trainer.config(model, pictures, train={"ema": 0.9, "accumulation": 2})
    name = poisoned.spoil_latents(chosen, 3)
    run = trainer.new_run(chosen)
    assert poisoned.train(run, None) == 0, run.tail()
    whole = finished(run)
    (skip,) = poisoned.skips(run)
    assert [Path(p).name for p in skip["pictures"]] == [name] and skip["skip"]["pictures"] == [3]
    assert [s[0] for s in whole["steps"]] == list(range(1, 13))
    ended = trainer.new_run(chosen)
    assert poisoned.train(ended, None, Moment("stop", "step", 2)) == 0
    assert poisoned.train(ended, None, Moment("kill", "step", 4)) == -9
    assert poisoned.train(ended, None) == 0, ended.tail()
    assert finished(ended) == whole


@pytest.mark.long
@pytest.mark.parametrize(("fault", "steps"), [(Fault("rate", 1), 12), (Fault("explosion", 15), 30)])
def test_at_the_second_time_in_the_same_place_it_stops(model: Path, pictures: Path, fault: Fault, steps: int) -> None:
    run = trainer.new_run(trainer.config(model, pictures, train={"steps": steps}, output={"state_every_steps": 1}))
    assert poisoned.train(run, fault) == 2, run.tail()
    assert len(poisoned.skips(run)) == 1
    state = run.state()
    assert state.status == "failed" and "optimizer.lr" in state.error and "p" in state.error and ".png" in state.error
    assert "Lower the learning rate" in state.error and "Traceback" not in run.tail()
    assert not list(poisoned.faulty_files(run))
    if fault.what == "explosion":
        assert poisoned.skips(run)[0]["step"] == 15 and "exploded" in state.error
        poisoned.require_sound(run)


def test_by_option_it_stops_at_once(model: Path, pictures: Path) -> None:
    run = trainer.new_run(trainer.config(model, pictures, train={"on_nan": "stop"}))
    assert poisoned.train(run, Fault("loss", 5)) == 2
    assert "loss at step 5 is not a number" in run.state().error and ".png" in run.state().error
    assert poisoned.skips(run) == [] and [p.name for p in trainer.states(run)] == ["step-00000003"]


def test_without_a_state_it_begins_anew(model: Path, pictures: Path) -> None:
    run = trainer.new_run(trainer.config(model, pictures))
    assert poisoned.train(run, Fault("loss", 2)) == 0, run.tail()
    assert recorded(run) == [Skip(2)]
    assert [s[0] for s in finished(run)["steps"]] == [1, *range(3, 13)]


def test_asked_to_stop_it_leaves_without_saving_what_is_no_number(model: Path, pictures: Path) -> None:
    run = trainer.new_run(trainer.config(model, pictures))
    assert poisoned.train(run, Fault("update", 5), Moment("stop", "step", 5)) == 0, run.tail()
    assert run.state().status == "stopped" and [p.name for p in trainer.states(run)] == ["step-00000003"]
    assert any("nothing was saved" in e["message"] for e in run.history() if e["event"] == "warning")
    poisoned.require_sound(run)
    assert poisoned.train(run, None) == 0
    assert [s[0] for s in finished(run)["steps"]] == list(range(1, 13))


@pytest.mark.long
def test_several_processes_decide_alike(model: Path, pictures: Path) -> None:
    chosen = trainer.config(model, pictures, launch={"num_processes": 2})
    name = poisoned.spoil_latents(files.build({**chosen.model_dump(exclude_unset=True), "launch": {"device": "cpu"}}, {}), 2)
    run = trainer.new_run(chosen)
    assert trainer.train_together(run, 2) == [0, 0], run.tail()
    (skip,) = poisoned.skips(run)
    assert [Path(p).name for p in skip["pictures"]] == [name]
    assert skip["noticed"] <= skip["step"] + 6 and not list(poisoned.faulty_files(run))
    assert [s[0] for s in trainer.result(run)["steps"]] == list(range(1, 13))
