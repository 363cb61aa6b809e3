"""No option is silently ignored: each changes what a run does, or is refused or warned of before the start.

`CASES` says for each option what is set, and where it shows. An option that is missing there fails the first test.
"""

from __future__ import annotations

import io
import json
import shutil
import tarfile
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors import safe_open

import tiny
from limner import disk, jobs, preflight
from limner.config import Config, files
from limner.config.fields import section_types, walk
from limner.engine import train
from limner.engine.journal import Journal
from limner.engine.prepare import prepare
from limner.engine.runtime import Runtime
from limner.errors import Finding

pytestmark = pytest.mark.slow

KINDS = [tag for _, tag, _ in section_types() if tag]
FAMILIES = ("sd1", "sd2", "sdxl", "sd3", "flux")
Sections = dict[str, dict[str, Any]]


@dataclass(frozen=True)
class Case:
    """What an option is set to, what must be set beside it, and where it shows."""

    value: Any
    shows: str = "loss"
    """loss (of some step), rates, file (tensors), metadata, plan, events, samples, names (of what is written)."""
    beside: Sections = field(default_factory=dict)
    elsewhere: str = ""
    """Which test shows it instead, for what changes no number, or not here."""


def beside(**sections: dict[str, Any]) -> Sections:
    return sections


TAGS = beside(data={"shuffle_tags": True})
PAINT = beside(sample={"prompts": ["picture, one"], "steps": 2})
HUBER = beside(objective={"loss": "huber"})
WORD = beside(embedding={"token": "picture"})
CLASSES = beside(data={"class_path": "{classes}"})
CONV = beside(adapter={"conv_rank": 1, "rank": 1})

CASES: dict[str, Case] = {
    "model.base": Case("{other}"),
    "model.family": Case("sd1", elsewhere="tests/formats/test_base.py"),
    "model.vae": Case("{vae}", elsewhere="tests/e2e/test_other_families.py"),
    "model.clip_l": Case("{vae}", elsewhere="tests/e2e/test_other_families.py"),
    "model.clip_g": Case("{vae}", elsewhere="tests/e2e/test_other_families.py"),
    "model.t5": Case("{vae}", elsewhere="tests/e2e/test_other_families.py"),
    "model.t5_tokenizer": Case("{vae}", elsewhere="tests/e2e/test_other_families.py"),
    "model.clip_skip": Case(2),
    "model.text_chunks": Case(2),
    "model.merge": Case(["{lora} @ 0.5"]),
    "model.revision": Case("main", elsewhere="tests/test_preflight.py"),
    "model.config": Case("{base}", elsewhere="tests/models/test_single_file.py"),
    "data.path": Case("{others}"),
    "data.trigger": Case("picture", "metadata"),
    "data.class_words": Case(
        ["dog"], beside=beside(data={"trigger": "picture", "class_words": ["cat"]}, objective={"preserve": 1.0})
    ),
    "data.metadata": Case("{metadata}"),
    "data.subsets": Case("{subsets}"),
    "data.class_path": Case("{classes}"),
    "data.class_prompt": Case("a thing", beside=beside(data={"class_path": "{uncaptioned}"})),
    "data.class_count": Case(
        3, beside=beside(data={"class_path": "{one class}", "class_prompt": "a thing"}, sample={"steps": 2})
    ),
    "data.caption_extensions": Case([".caption"]),
    "data.caption_column": Case("other", beside=beside(data={"path": "{archive}"})),
    "data.caption_prefix": Case("a photo of"),
    "data.caption_suffix": Case("at night"),
    "data.caption_separator": Case(";", beside=TAGS),
    "data.shuffle_tags": Case(True),
    "data.keep_tags": Case(2, beside=TAGS),
    "data.keep_separator": Case("number", beside=TAGS),
    "data.secondary_separator": Case("number", beside=TAGS),
    "data.tag_dropout": Case(0.7),
    "data.caption_dropout": Case(0.9),
    "data.caption_dropout_epochs": Case(1),
    "data.tag_warmup_least": Case(2, beside=beside(data={"tag_warmup_steps": 5})),
    "data.tag_warmup_steps": Case(5),
    "data.wildcards": Case(True),
    "data.weighted_captions": Case(True),
    "data.repeats": Case(3, "plan"),
    "data.resolution": Case(48),
    "data.more_resolutions": Case(["48"], "plan"),
    "data.buckets": Case(False, "plan"),
    "data.bucket_step_px": Case(16, "plan"),
    "data.bucket_min_px": Case(32, "plan"),
    "data.bucket_max_px": Case(32, "plan"),
    "data.upscale": Case(False, "plan", beside(data={"resolution": 64, "bucket_min_px": None, "bucket_max_px": None})),
    "data.flip": Case(True),
    "data.random_crop": Case(True),
    "data.colour": Case(True),
    "data.variants": Case(1, beside=beside(data={"colour": True})),
    "data.masks": Case("alpha"),
    "data.mask_path": Case("{masks}", beside=beside(data={"masks": "folder", "mask_path": "{other masks}"})),
    "data.mask_floor": Case(0.5, beside=beside(data={"masks": "alpha"})),
    "data.skip_broken": Case(True, "plan", beside(data={"path": "{broken}"})),
    "adapter.kind": Case("full", "file", beside(adapter={"rank": None})),
    "adapter.rank": Case(8, "file"),
    "adapter.alpha": Case(1.0),
    "adapter.conv_rank": Case(8, "file"),
    "adapter.conv_alpha": Case(0.5, beside=CONV),
    "adapter.rank_dropout": Case(0.5),
    "adapter.max_norm": Case(1e-4),
    "adapter.denoiser": Case(False, "file", beside(adapter={"text_encoder": True})),
    "adapter.text_encoder": Case(True, "file"),
    "adapter.rules": Case(["denoiser.*.0.*: lr_factor=0.1"]),
    "adapter.module_dropout": Case(0.7),
    "adapter.start": Case("{start}"),
    "adapter.dora": Case(True, "file"),
    "adapter.rank_stabilized": Case(True),
    "adapter.up_lr_ratio": Case(16.0),
    "adapter.freeze_down": Case(True),
    "adapter.dropout": Case(0.5),
    "adapter.factor": Case(2, "file"),
    "adapter.decompose_both": Case(True, "file", beside(adapter={"rank": 1, "factor": 4})),
    "adapter.block": Case(2, "file"),
    "adapter.butterfly": Case(True, "file"),
    "adapter.constraint": Case(1e-6),
    "adapter.convolutions": Case(True, "file"),
    "adapter.unit": Case(2),
    "adapter.weights": Case("bf16", beside=beside(train={"precision": "bf16"})),
    "embedding.token": Case("picture"),
    "embedding.vectors": Case(3, beside=WORD),
    "embedding.initial": Case("cat", beside=WORD),
    "embedding.lr": Case(0.5, beside=WORD),
    "train.steps": Case(3, "plan"),
    "train.epochs": Case(2, "plan", beside(train={"steps": None, "epochs": 1})),
    "train.batch_size": Case(1),
    "train.accumulation": Case(2),
    "train.seed": Case(9),
    "train.precision": Case("bf16"),
    "train.clip_norm": Case(1e-3),
    "train.on_nan": Case("stop", elsewhere="tests/engine/test_numbers.py"),
    "train.ema": Case(0.5, "file"),
    "train.ema_device": Case("cpu", elsewhere="tests/engine/test_optim.py (the same numbers, elsewhere)"),
    "optimizer.kind": Case("lion"),
    "optimizer.class_path": Case(
        "torch.optim.RMSprop", beside=beside(optimizer={"kind": "other", "class_path": "torch.optim.Adamax"})
    ),
    "optimizer.arguments": Case(["amsgrad=True"], elsewhere="tests/engine/test_optimizers.py"),
    "optimizer.lr": Case(1e-4),
    "optimizer.text_encoder_lr": Case(1e-3, beside=beside(adapter={"text_encoder": True})),
    "optimizer.weight_decay": Case(0.9),
    "optimizer.beta1": Case(0.5),
    "optimizer.beta2": Case(0.5),
    "optimizer.eps": Case(1e-2),
    "optimizer.momentum": Case(0.0, beside=beside(optimizer={"kind": "sgd", "lr": 0.5})),
    "optimizer.in_backward": Case(True, elsewhere="tests/engine/test_optim.py (the same numbers in less memory)"),
    "optimizer.schedule": Case("linear", "rates"),
    "optimizer.warmup_steps": Case(2, "rates"),
    "optimizer.warmup_share": Case(0.5, "rates"),
    "optimizer.schedule_floor": Case(0.5, "rates", beside(optimizer={"schedule": "cosine"})),
    "optimizer.schedule_cycles": Case(3, "rates", beside(optimizer={"schedule": "cosine_restarts"})),
    "optimizer.schedule_power": Case(3.0, "rates", beside(optimizer={"schedule": "polynomial"})),
    "optimizer.schedule_timescale": Case(2, "rates", beside(optimizer={"schedule": "inverse_sqrt"})),
    "optimizer.decay_share": Case(1.0, "rates", beside(optimizer={"schedule": "warmup_stable_decay"})),
    "optimizer.pieces": Case(["2:1", "0.1"], "rates", beside(optimizer={"schedule": "piecewise", "pieces": ["1:1", "0.5"]})),
    "objective.prediction": Case("v_prediction"),
    "objective.guidance": Case(4.0),
    "objective.zero_terminal_snr": Case(True, beside=beside(objective={"prediction": "v_prediction"})),
    "objective.loss": Case("l1"),
    "objective.huber_threshold": Case(0.5, beside=HUBER),
    "objective.huber_schedule": Case("exponential", beside=HUBER),
    "objective.weighting": Case("debiased"),
    "objective.snr_gamma": Case(0.01, beside=beside(objective={"weighting": "min_snr"})),
    "objective.v_share": Case(1.0),
    "objective.timesteps": Case("cosmap"),
    "objective.logit_mean": Case(1.0, beside=beside(objective={"timesteps": "logit_normal"})),
    "objective.logit_std": Case(0.3, beside=beside(objective={"timesteps": "logit_normal"})),
    "objective.mode_scale": Case(-0.5, beside=beside(objective={"timesteps": "mode"})),
    "objective.shift": Case(5.0),
    "objective.least_timestep": Case(900),
    "objective.most_timestep": Case(100),
    "objective.noise_offset": Case(0.5),
    "objective.noise_offset_random": Case(True, beside=beside(objective={"noise_offset": 0.5})),
    "objective.noise_offset_adaptive": Case(2.0),
    "objective.pyramid_levels": Case(4),
    "objective.pyramid_discount": Case(0.8, beside=beside(objective={"pyramid_levels": 4})),
    "objective.input_perturbation": Case(0.5),
    "objective.input_perturbation_random": Case(True, beside=beside(objective={"input_perturbation": 0.5})),
    "objective.preserve": Case(1.0, beside=beside(data={"trigger": "picture", "class_words": ["dog"]})),
    "objective.prior_weight": Case(9.0, beside=CLASSES),
    "memory.fit": Case("auto", elsewhere="tests/engine/test_out_of_memory.py"),
    "memory.micro_batch": Case(1, elsewhere="tests/engine/test_out_of_memory.py (the same numbers)"),
    "memory.checkpointing": Case(True, elsewhere="tests/models/test_memory.py (the same numbers in less memory)"),
    "memory.checkpoint_every": Case(2, elsewhere="tests/models/test_memory.py"),
    "memory.quantize": Case("int8"),
    "memory.swap_blocks": Case(1, elsewhere="tests/models/test_memory.py"),
    "memory.vae_dtype": Case("bf16"),
    "memory.vae_tiling": Case(True, elsewhere="tests/models/test_memory.py"),
    "memory.cache_latents": Case(False, elsewhere="tests/e2e/test_caches.py (the same numbers)"),
    "memory.cache_text": Case(False, elsewhere="tests/e2e/test_caches.py"),
    "memory.verify": Case(True, elsewhere="tests/data/test_cache.py"),
    "memory.cache_path": Case("{cache}", elsewhere="tests/e2e/test_caches.py"),
    "speed.compile": Case("blocks", elsewhere="tests/engine/test_compiled.py"),
    "speed.compile_backend": Case("eager", elsewhere="tests/engine/test_compiled.py"),
    "speed.compile_mode": Case("max-autotune", elsewhere="tests/engine/test_compiled.py"),
    "speed.compile_fullgraph": Case(True, elsewhere="tests/engine/test_compiled.py"),
    "speed.compile_dynamic": Case(True, elsewhere="tests/engine/test_compiled.py"),
    "speed.cuda_graph": Case(True, elsewhere="tests/engine/test_graphs.py and tests/gpu"),
    "speed.channels_last": Case(True, elsewhere="tests/models/test_memory.py"),
    "speed.attention": Case("math", elsewhere="tests/engine/test_attention.py"),
    "speed.prepack": Case(False, elsewhere="tests/engine/test_fast_paths.py (the same numbers)"),
    "launch.device": Case("cpu", elsewhere="tests/engine/test_launch.py"),
    "launch.trainer": Case("sd-scripts", elsewhere="tests/sdscripts"),
    "launch.sd_scripts": Case("{base}", elsewhere="tests/sdscripts"),
    "launch.python": Case("{base}", elsewhere="tests/sdscripts"),
    "launch.num_processes": Case(2, elsewhere="tests/e2e/test_processes.py"),
    "launch.num_machines": Case(2, elsewhere="tests/e2e/test_two_machines.py"),
    "launch.machine_rank": Case(1, elsewhere="tests/e2e/test_two_machines.py"),
    "launch.main_process_ip": Case("127.0.0.1", elsewhere="tests/e2e/test_two_machines.py"),
    "launch.main_process_port": Case(29_511, elsewhere="tests/e2e/test_two_machines.py"),
    "launch.gpu_ids": Case("0", elsewhere="tests/test_preflight_processes.py"),
    "launch.shard": Case("full", elsewhere="tests/e2e/test_shared_steps.py"),
    "launch.restarts": Case(2, elsewhere="tests/e2e/test_ends_together.py"),
    "launch.timeout_seconds": Case(10, elsewhere="tests/e2e/test_ends_together.py"),
    "launch.extra": Case(["--monitor_interval=1"], elsewhere="tests/engine/test_launch.py"),
    "launch.num_threads": Case(1, elsewhere="tests/engine/test_launch.py"),
    "launch.target": Case("slurm", elsewhere="tests/targets"),
    "launch.ray_address": Case("http://127.0.0.1:9000", elsewhere="tests/targets"),
    "launch.shared_path": Case("{cache}", elsewhere="tests/targets"),
    "launch.upload": Case("all", elsewhere="tests/targets"),
    "launch.job_gpus": Case(1, elsewhere="tests/targets"),
    "launch.job_cpus": Case(1, elsewhere="tests/targets"),
    "launch.job_memory_gib": Case(1, elsewhere="tests/targets"),
    "launch.slurm_cluster": Case("local", elsewhere="tests/targets"),
    "launch.slurm_partition": Case("gpu", elsewhere="tests/targets"),
    "launch.slurm_minutes": Case(5, elsewhere="tests/targets"),
    "launch.slurm_options": Case(["qos=long"], elsewhere="tests/targets"),
    "validation.share": Case(0.5, "events"),
    "validation.path": Case("{classes}", "events"),
    "validation.every_steps": Case(1, "events", beside(validation={"path": "{classes}"})),
    "validation.every_epochs": Case(
        1, "events", beside(validation={"path": "{classes}", "every_steps": 7}, train={"steps": 8})
    ),
    "sample.prompts": Case(["a cat"], "samples", PAINT),
    "sample.prompt_file": Case("{prompts}", "samples"),
    "sample.every_steps": Case(1, "events", PAINT),
    "sample.every_epochs": Case(1, "events", PAINT),
    "sample.at_start": Case(True, "events", PAINT),
    "sample.negative": Case("blue", "samples", PAINT),
    "sample.width": Case(16, "samples", PAINT),
    "sample.height": Case(16, "samples", PAINT),
    "sample.steps": Case(3, "samples", PAINT),
    "sample.guidance": Case(2.0, "samples", PAINT),
    "sample.solver": Case("dpmpp_2m", "samples", PAINT),
    "sample.seed": Case(5, "samples", PAINT),
    "output.name": Case("dog", "names"),
    "output.path": Case("{elsewhere}", elsewhere="tests/e2e/test_lora_run.py"),
    "output.save_every_steps": Case(1, "names"),
    "output.save_every_epochs": Case(1, "names"),
    "output.keep_last": Case(1, "names", beside(output={"save_every_steps": 1})),
    "output.state_every_steps": Case(1, "events"),
    "output.dtype": Case("bf16", "file"),
    "output.lora_names": Case("diffusers", "file"),
    "output.layout": Case("diffusers", "names", beside(adapter={"kind": "none", "rank": None})),
    "output.title": Case("t", "metadata"),
    "output.author": Case("a", "metadata"),
    "output.description": Case("d", "metadata"),
    "output.license": Case("l", "metadata"),
    "output.tags": Case(["x"], "metadata"),
    "logging.trackers": Case(["trackio"], elsewhere="tests/engine/test_trackers.py"),
    "logging.project": Case("p", elsewhere="tests/engine/test_trackers.py"),
    "logging.run_name": Case("r", elsewhere="tests/engine/test_trackers.py"),
}


def test_every_option_has_a_case():
    assert {o.path for o in walk()} == set(CASES)


# --- what a run does --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def shared_home(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("home")


@pytest.fixture(autouse=True)
def home(shared_home, monkeypatch) -> Path:
    """One for all: what a run encodes, the next need not. Nothing here has to outlast a power cut."""
    monkeypatch.setenv("LIMNER_HOME", str(shared_home))
    monkeypatch.setattr(disk, "fsync", lambda path: None)
    return shared_home


@pytest.fixture(scope="module")
def places(tmp_path_factory) -> dict[str, Path]:
    """Names in braces -> what they stand for."""
    root = tmp_path_factory.mktemp("options")
    out = {name: tiny.build(root / name, family=name) for name in FAMILIES}
    out["other"] = tiny.build(root / "another", seed=5)
    for name in (*FAMILIES, "another"):  # without a tokenizer it is CLIP's own, and to read one is what takes longest
        for folder in ("tokenizer",) if name == "flux" else ("tokenizer", "tokenizer_2"):
            shutil.rmtree(root / name / folder, ignore_errors=True)
    out["pictures"] = _pictures(root / "pictures", seed=0)
    out["others"] = _pictures(root / "others", seed=1)
    out["classes"] = _pictures(root / "classes", seed=2)
    out["uncaptioned"] = _pictures(root / "uncaptioned", seed=2)
    out["one class"] = _pictures(root / "one class", seed=3)
    for folder, kept in (("uncaptioned", 4), ("one class", 1)):
        for file in sorted(out[folder].glob("*.txt")):
            file.unlink()
        for file in sorted(out[folder].glob("*.png"))[kept:]:
            file.unlink()
    out["broken"] = _pictures(root / "broken", seed=4)
    (out["broken"] / "q.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    for name, shade in (("masks", 200), ("other masks", 40)):
        out[name] = root / name
        out[name].mkdir()
        for picture in out["pictures"].glob("*.png"):
            with Image.open(picture) as image:
                mask = Image.new("L", image.size, 255)
                mask.paste(shade, (0, 0, image.width // 2, image.height))
                mask.save(out[name] / picture.name)
    names = sorted(p.name for p in out["pictures"].glob("*.png"))
    out["archive"] = root / "archive.tar"
    with tarfile.open(out["archive"], "w") as archive:
        for picture in out["pictures"].glob("*.png"):
            archive.add(picture, picture.name)
            told = json.dumps({"text": "a picture", "other": "number left"}).encode()
            entry = tarfile.TarInfo(f"{picture.stem}.json")
            entry.size = len(told)
            archive.addfile(entry, io.BytesIO(told))
    out["metadata"] = root / "metadata.jsonl"
    out["metadata"].write_text("".join(json.dumps({"file_name": n, "text": f"text of {n}"}) + "\n" for n in names))
    out["subsets"] = root / "subsets.toml"
    out["subsets"].write_text(f'[[datasets]]\n[[datasets.subsets]]\nimage_dir = "{out["others"]}"\nnum_repeats = 2\n')
    out["prompts"] = root / "prompts.txt"
    out["prompts"].write_text("a dog --s 2\n")
    return out


def _pictures(folder: Path, seed: int) -> Path:
    """Four pictures with a see-through half, captioned with tags; p1's caption has a choice and a weight."""
    tiny.pictures(folder, seed=seed)
    for i, file in enumerate(sorted(folder.glob("*.png"))):
        with Image.open(file) as image:
            whole = image.convert("RGBA")
        whole.putalpha(Image.linear_gradient("L").resize(whole.size))
        whole.save(file)
        words = f"picture, number {i}, {{red|green|blue}} thing; left number right, (dark:1.4)"
        file.with_suffix(".txt").write_text(words, encoding="utf-8")
    return folder


def _filled(value: Any, places: dict[str, Path]) -> Any:
    if isinstance(value, dict):
        return {k: _filled(v, places) for k, v in value.items() if v is not None}
    if isinstance(value, list):
        return [_filled(v, places) for v in value]
    if isinstance(value, str) and "{" in value:
        for name, path in places.items():
            value = value.replace("{" + name + "}", str(path))
    return value


def _config(places: dict[str, Path], family: str, kind: str, *more: Sections) -> Config:
    given: Sections = {
        "model": {"base": str(places[family])},
        "data": {"path": "{pictures}", "resolution": 32, "bucket_min_px": 16, "bucket_max_px": 64, "bucket_step_px": 8},
        "adapter": {"kind": kind},
        "train": {"steps": 4, "batch_size": 2, "seed": 3},
        "optimizer": {"lr": 1e-2, "schedule": "constant"},
        "sample": {"width": 32, "height": 32},
        "output": {"name": "cat", "dtype": "fp32", "layout": "original"}
        if kind == "none"
        else {"name": "cat", "dtype": "fp32"},
        "launch": {"device": "cpu"},
    }
    if kind in ("lora", "loha", "lokr", "glora", "dylora"):
        given["adapter"]["rank"] = 4
    if kind == "dylora":
        given["adapter"]["unit"] = 1
    for sections in more:
        for name, values in sections.items():
            given[name] = {**given.get(name, {}), **values}
    return files.build(_filled(given, places), {})


@cache
def _outcome(text: str) -> dict[str, Any]:
    """Everything a run does that can be seen afterwards, for a configuration as TOML."""
    config = files.build(files.parse(text, "x"), {}, text, "x")
    run = jobs.prepare(config)
    job = prepare(run, config, Runtime(torch.device("cpu"), config.train.precision or "fp32"), Journal(run, is_main=True), bool)
    train.train(job, 0)
    job.journal.flush()
    events = [e for e, _ in run.events()]
    tensors, metadata = {}, {}
    for file in sorted(run.checkpoints.rglob("*.safetensors")):
        with safe_open(file, "pt") as opened:
            metadata |= opened.metadata() or {}
            for key in opened.keys():  # noqa: SIM118
                tensor = opened.get_tensor(key)
                tensors[f"{file.name} {key}"] = (str(tensor.dtype), tuple(tensor.shape), float(tensor.double().sum()))
    times = (
        "ss_session_id",
        "ss_training_started_at",
        "ss_training_finished_at",
        "modelspec.date",
        "sshs_model_hash",
        "sshs_legacy_hash",
    )
    plan = json.loads((run.path / "plan.json").read_text())
    return {
        "loss": [e["loss"] for e in events if e["event"] == "step"],
        "rates": [e["lr"] for e in events if e["event"] == "step"],
        "file": tensors,
        "metadata": {k: v for k, v in metadata.items() if k not in times},
        "plan": {k: v for k, v in plan.items() if k != "base"},
        "events": [(e["event"], e.get("step")) for e in events if e["event"] not in ("memory", "cached", "step")],
        "samples": {p.name: p.read_bytes() for p in run.samples.iterdir()},
        "names": sorted(p.name for p in run.checkpoints.iterdir()),
    }


def is_refusal(finding: Finding) -> bool:
    """Whether an option is said not to count."""
    return finding.severity == "error" or "no effect" in finding.message


def _kind_of(path: str, tags: tuple[str, ...]) -> list[str]:
    return list(tags) if tags else ["lora"]


SHOWN = [(o, kind) for o in walk() for kind in _kind_of(o.path, o.tags) if not CASES[o.path].elsewhere]


@pytest.mark.long
@pytest.mark.parametrize(("option", "kind"), SHOWN, ids=lambda v: getattr(v, "path", v))
def test_an_option_shows(places, option, kind):
    """On Stable Diffusion 1, or on the first family that takes it."""
    case = CASES[option.path]
    if "{start}" in str(case.value):
        places = places | {"start": _adapter_file(places, kind)}
    if "{lora}" in str(case.value):
        places = places | {"lora": _adapter_file(places, "lora")}
    for family in ("sd1", "flux", "sd3"):
        without = _config(places, family, kind, case.beside)
        kept = {option.section: {option.name: case.value}}
        having = _config(places, family, kind, case.beside, kept)
        findings, _ = preflight.examine(having, None)
        if refused := [f for f in findings if f.field == option.path and is_refusal(f)]:
            continue
        assert not [f for f in findings if f.severity == "error"], findings
        if option.path == "data.skip_broken":
            assert [f for f in preflight.examine(without, None)[0] if f.severity == "error"]
            return
        before, after = _outcome(files.render_changes(without)), _outcome(files.render_changes(having))
        assert before[case.shows] != after[case.shows], f"{option.path} is ignored by {family} with {kind}"
        return
    pytest.fail(f"no family takes it: {refused}")


def _adapter_file(places: dict[str, Path], kind: str) -> Path:
    """A trained adapter of this kind for the tiny SD 1."""
    config = _config(places, "sd1", kind, {"train": {"seed": 8}})
    run = jobs.prepare(config)
    job = prepare(run, config, Runtime(torch.device("cpu"), "fp32"), Journal(run, is_main=True), bool)
    train.train(job, 0)
    return run.checkpoints / "cat.safetensors"


# --- every pair -------------------------------------------------------------------------------------------------------

OF_FAMILIES = [
    o
    for o in walk()
    if (o.section in ("model", "objective", "embedding") or o.path == "data.weighted_captions" or {"lora", "full"} & {*o.tags})
    and not CASES[o.path].elsewhere
]
"""Those of which a family may make something else: the rest of [data], and what adapters do among themselves, is none of it."""


@pytest.mark.long
@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_uses_or_refuses_each_option(places, family):
    """What a family does not refuse in words changes a run of it."""
    ignored = []
    for option in OF_FAMILIES:
        case, kind = CASES[option.path], _kind_of(option.path, option.tags)[0]
        if option.path in ("model.base", "adapter.start", "model.merge", "data.class_count"):
            continue  # files of one family, or made once for all
        # of a LoRA's two matrices one has no gradient before the second step, so that the third is the first to tell of it
        short = beside(train={"steps": 3})
        without = _config(places, family, kind, short, case.beside)
        having = _config(places, family, kind, short, case.beside, {option.section: {option.name: case.value}})
        findings = [*preflight.examine(having, None)[0], *preflight.examine(without, None)[0]]
        asked = {option.path, *(f"{section}.{name}" for section, values in case.beside.items() for name in values)}
        if any(f.severity == "error" or (f.field in asked and is_refusal(f)) for f in findings):
            continue
        if _outcome(files.render_changes(without))[case.shows] == _outcome(files.render_changes(having))[case.shows]:
            ignored.append(option.path)
    assert not ignored
