"""A configuration becomes sd-scripts' arguments and comes back the same, for all that both know; what is lost is said."""

from __future__ import annotations

from importlib.resources import files as files_of
from pathlib import Path
from typing import Any

import pytest

from limner.config import Config, files
from limner.config.fields import Option, applies, values, walk
from limner.config.kohya import (
    Facts,
    Report,
    base_model,
    computing,
    flow,
    keeping,
    network,
    objective,
    optimizing,
    pictures,
    plain,
    saving,
    scheduling,
    to_arguments,
    to_values,
    unused,
    whole,
)  # fmt: skip
from limner.config.kohya.scripts import SCRIPTS, accepts, arguments
from limner.errors import UserError

FAMILIES = ("sd1", "sd2", "sdxl", "sd3", "flux")
KINDS = ("lora", "loha", "lokr", "oft", "ia3", "glora", "dylora", "full", "embedding", "none")
PAIRS = [(f, k) for f in FAMILIES for k in KINDS if not (k == "embedding" and f in ("sd3", "flux"))]

# what an option needs beside it to have an effect
BESIDE: dict[str, dict[str, Any]] = {
    "adapter.conv_alpha": {"adapter.conv_rank": 8},
    "adapter.rules": {"adapter.alpha": 16.0},
    "optimizer.text_encoder_lr": {"adapter.text_encoder": True},
    "optimizer.class_path": {"optimizer.kind": "other"},
    "optimizer.momentum": {"optimizer.kind": "sgd"},
    "optimizer.schedule_cycles": {"optimizer.schedule": "cosine_restarts"},
    "optimizer.schedule_power": {"optimizer.schedule": "polynomial"},
    "optimizer.schedule_timescale": {"optimizer.schedule": "inverse_sqrt"},
    "optimizer.decay_share": {"optimizer.schedule": "warmup_stable_decay"},
    "optimizer.pieces": {"optimizer.schedule": "piecewise"},
    "objective.huber_threshold": {"objective.loss": "huber"},
    "objective.huber_schedule": {"objective.loss": "huber"},
    "objective.snr_gamma": {"objective.weighting": "min_snr"},
    "objective.noise_offset_random": {"objective.noise_offset": 0.1},
    "objective.noise_offset_adaptive": {"objective.noise_offset": 0.1},
    "objective.pyramid_discount": {"objective.pyramid_levels": 6},
    "objective.input_perturbation_random": {"objective.input_perturbation": 0.1},
    "objective.logit_mean": {"objective.timesteps": "logit_normal", "objective.shift": 2.0},
    "objective.logit_std": {"objective.timesteps": "logit_normal"},
    "objective.mode_scale": {"objective.timesteps": "mode", "objective.shift": 2.0},
    "optimizer.kind": {"optimizer.schedule": "constant", "optimizer.class_path": "pytorch_optimizer.SOAP"},
    "adapter.denoiser": {"adapter.text_encoder": True, "optimizer.text_encoder_lr": 1e-5},
    "objective.prior_weight": {"data.class_path": "/c"},
    "data.mask_path": {"data.masks": "folder"},
    "data.caption_separator": {"data.shuffle_tags": True},
    "data.keep_tags": {"data.shuffle_tags": True},
    "data.tag_warmup_least": {"data.tag_warmup_steps": 9},
    "output.keep_last": {"output.save_every_steps": 100},
    "logging.project": {"logging.trackers": ["wandb"]},
    "logging.run_name": {"logging.trackers": ["wandb"]},
    "train.epochs": {"train.steps": None},
    "speed.compile_backend": {"speed.compile": "blocks"},
    "speed.compile_mode": {"speed.compile": "blocks"},
    "speed.compile_fullgraph": {"speed.compile": "blocks"},
    "speed.compile_dynamic": {"speed.compile": "blocks"},
}
PATH = "/some where/ü'\"x"
VALUES: dict[str, list[Any]] = {
    "optimizer.arguments": [["amsgrad=True"]],
    "optimizer.class_path": ["pytorch_optimizer.SOAP"],
    "optimizer.pieces": [["100:1", "500:0.1", "0.01"]],
    "data.caption_extensions": [[".cap"]],
    "model.merge": [["/a b.safetensors", "/c.safetensors @ 0.5"]],
    "output.tags": [["one", "two words"]],
    "logging.trackers": [["wandb"]],
    "adapter.rules": [
        [
            "denoiser.up_blocks.1.attentions.0.*: rank=8 alpha=2.0",
            "denoiser.up_blocks.1.attentions.2.*: off",
        ],
        ["denoiser.down_blocks.1.attentions.1.*: lr_factor=0.3333333333333333"],
        ["denoiser.transformer_blocks.0.*: off", "denoiser.transformer_blocks.7.*: off"],
    ],
    "data.resolution": [640],
    "data.bucket_step_px": [128],
    "adapter.unit": [8],
}


def _values(option: Option) -> list[Any]:
    """Values that are not the default."""
    if option.path in VALUES:
        return VALUES[option.path]
    if option.is_list:
        return []
    found: list[Any] = [c for c in option.choices if c != option.default]
    kind = option.types[0] if option.types else None
    if kind is bool:
        return [not option.default]
    if kind is Path:
        return [PATH]
    if kind is str:
        return ["some 'text' — \"ü\" = $HOME; `x`"]
    if kind is int:
        low = max(int(option.minimum or 0), 1)
        return [*found, *{low + 1, min(int(option.maximum or 10**6), low + 2)}]
    if kind is float:
        low, high = option.minimum or 0.0, option.maximum or 5.0
        return [*found, low + (high - low) * 0.137, low + (high - low) * 1e-3]
    return found


def _config(values: dict[str, dict[str, Any]]) -> Config:
    return files.build(values, {})


def _there_and_back(config: Config, family: str, facts: Facts | None = None) -> tuple[Config, list[Any]]:
    script, args, losses = to_arguments(config, family, facts)
    return _config(to_values({**args, "_script": script}, Report(), complete=True)), losses


def _with(config: Config, changes: dict[str, Any]) -> Config:
    raw = {name: getattr(config, name).model_dump() for name in type(config).model_fields}
    for path, value in changes.items():
        section, _, name = path.partition(".")
        raw[section][name] = value
    return _config(
        {
            s: {k: list(v) if isinstance(v, tuple) else str(v) if isinstance(v, Path) else v for k, v in t.items()}
            for s, t in raw.items()
        }
    )


def _resolved(family: str, kind: str) -> Config:
    """A plain configuration, with all that the way through the arguments makes explicit."""
    raw: dict[str, dict[str, Any]] = {"model": {"base": "/m.safetensors"}, "adapter": {"kind": kind}, "train": {"steps": 50}}
    raw["memory"] = {"cache_text": False} if family in ("sdxl", "sd3", "flux") else {}
    if family == "flux":
        raw["model"] |= {"vae": "/ae", "clip_l": "/l", "t5": "/t5"}
    if kind == "embedding":
        raw["embedding"] = {"token": "zibbo"}
    return _there_and_back(_config(raw), family)[0]


@pytest.mark.parametrize(("family", "kind"), PAIRS)
def test_the_usual_configuration_comes_back(family: str, kind: str) -> None:
    config = _resolved(family, kind)
    assert config.adapter.kind == kind
    assert config.model.family == family
    again, losses = _there_and_back(config, family)
    assert again == config
    assert [f for f in losses if f.severity == "error" and f.field != "memory.vae_dtype"] == []


ALIKE = {
    # another word for the same
    ("adapter.rank_stabilized", True),  # alpha is converted, so that the scale is equal: see below
    ("objective.timesteps", "uniform"),  # of a model that is no flow, which has no other
    ("sample.prompt_file", PATH),  # what its prompts do not say is painted otherwise, and a warning tells so
    ("memory.cache_text", False),  # Stable Diffusion 1 and 2 have no such argument; it changes no number
}
ELSEWHERE = ("launch.", "sample.negative", "sample.width", "sample.height", "sample.steps", "sample.guidance", "sample.seed")
"""accelerate's flags, and what goes into a prompt file."""
# the whole schema for each family; other kinds differ in [adapter] alone
WALKS = [(f, k, "") for f in FAMILIES for k in ("lora", "none")] + [("sd1", "embedding", "")]
WALKS += [(f, k, "adapter") for f, k in PAIRS if k not in ("lora", "none", "embedding")]


@pytest.mark.parametrize(("family", "kind", "section"), WALKS)
def test_each_option_comes_back_or_is_said_to_be_lost(family: str, kind: str, section: str) -> None:
    start, known, lost, faults = _resolved(family, kind), 0, 0, []
    usual = set(to_arguments(start, family)[2])
    for option in walk():
        if option.path in ("adapter.kind", "model.family") or (option.tags and kind not in option.tags):
            continue
        if section not in ("", option.section) or option.path.startswith(ELSEWHERE):
            continue
        for value in _values(option):
            try:
                config = _with(start, BESIDE.get(option.path, {}) | {option.path: value})
            except (UserError, KeyError, AttributeError):
                continue
            if not applies(option, config) or config == start:
                continue
            again, losses = _there_and_back(config, family)
            new = [f for f in losses if f not in usual]
            lost_ones = {path for path, *_ in _difference(config, again)}
            if not lost_ones:
                known += 1
            elif any(f.severity == "error" for f in new) or lost_ones <= {f.field for f in new}:
                lost += 1
            elif (option.path, value) not in ALIKE:
                faults.append((option.path, value, _difference(config, again), [str(f) for f in new]))
    assert not faults, "\n".join(map(str, faults))
    assert known > (60 if not section else 2)
    assert lost > 0 or section


def _difference(one: Config, other: Config) -> list[tuple[str, Any, Any]]:
    """What was given, has an effect, and is not the same any more."""
    theirs = {option.path: value for option, value in values(other)}
    return [
        (option.path, value, theirs.get(option.path))
        for option, value in values(one)
        if theirs.get(option.path) != value and value is not None and applies(option, one)
    ]


@pytest.mark.parametrize(("family", "kind"), PAIRS)
def test_only_flags_that_the_script_knows_are_written(family: str, kind: str) -> None:
    script, args, _ = to_arguments(
        _resolved(family, kind), family, Facts("/out", "/base", {}, "/d.toml", "/p.txt", "/logs", 77)
    )
    assert set(args) <= FLAGS[script]
    for name, value in args.items():
        known = arguments()[name]
        assert (value is True) == (known.kind == "flag"), name
        assert isinstance(value, list) == known.is_list, name
        # save_model_as has more choices in the scripts of whole models
        assert not known.choices or str(value) in known.choices or name == "save_model_as", name
    assert args["output_dir"] == "/out"
    assert args["sample_prompts"] == "/p.txt"
    assert args["dataset_config"] == "/d.toml"
    assert "train_data_dir" not in args


def _flags_by_script() -> dict[str, set[str]]:
    """The same table read in another way: by lines, with the scripts' short names looked up."""
    lines = (files_of("limner.config.kohya") / "arguments.txt").read_text("utf-8").splitlines()
    rows = [line.split("\t") for line in lines if not line.startswith("#")]
    return {s.name: {r[0] for r in rows if r[4] == "*" or s.code in r[4].split()} for s in SCRIPTS.values()}


FLAGS = _flags_by_script()


def test_the_table_of_arguments_has_the_counts_of_the_reference() -> None:
    assert len(SCRIPTS) == 20
    assert len(arguments()) == 280
    assert len(set.intersection(*FLAGS.values())) == 153
    # kohya.md 2.1 counts --help and aliases besides, so the differences between scripts are what must agree
    counts = {name: len(flags) for name, flags in FLAGS.items()}
    assert counts["train_network.py"] == 153 + 11 + 1 + 1 + 1 + 1 + 3 + 22
    assert counts["sdxl_train_network.py"] - counts["train_network.py"] == 3
    assert counts["flux_train_network.py"] - counts["sdxl_train_network.py"] == 19


@pytest.mark.parametrize("kind", ["lora", "none"])
def test_no_script_for_a_word_of_a_flow(kind: str) -> None:
    embedding = _config({"adapter": {"kind": "embedding"}, "embedding": {"token": "x"}})
    for family in ("sd3", "flux"):
        with pytest.raises(UserError, match="trains no embedding"):
            to_arguments(embedding, family)
    assert to_arguments(_resolved("sd1", kind), "sd1")[0] == {"lora": "train_network.py", "none": "train_db.py"}[kind]


def test_an_rslora_is_written_with_the_alpha_of_its_scale() -> None:
    adapter = {"kind": "lora", "rank": 16, "alpha": 8.0, "rank_stabilized": True}
    args = to_arguments(_config({"adapter": adapter, "train": {"steps": 1}}), "sdxl")[1]
    # 8 / sqrt(16) = alpha / 16
    assert (args["network_dim"], args["network_alpha"]) == (16, 32.0)


def test_whole_models_from_a_metadata_file_are_for_fine_tune() -> None:
    raw = {
        "adapter": {"kind": "none", "text_encoder": True},
        "data": {"metadata": "/m.json", "path": "/p"},
        "train": {"steps": 1},
    }
    script, args, _ = to_arguments(_config(raw), "sd1")
    assert (script, args["train_text_encoder"], args["in_json"]) == ("fine_tune.py", True, "/m.json")
    assert accepts(SCRIPTS[script], "train_text_encoder")
    assert not accepts(SCRIPTS["train_db.py"], "train_text_encoder")


def test_every_option_and_every_argument_has_a_place() -> None:
    modules = (base_model, computing, flow, keeping, network, objective, optimizing, pictures, saving, scheduling, whole)
    handled = set().union(*(m.ARGUMENTS for m in modules), plain.table(), unused.IDLE, unused.UNSUPPORTED)
    assert set(arguments()) - handled == set()
    placed = plain.CONVERTED | set(unused.LOST) | {o.path for options in plain.table().values() for o in options}
    assert {o.path for o in walk()} - placed == {
        "launch.device", "launch.trainer", "launch.sd_scripts", "launch.python", "launch.restarts", "launch.shard",
        "launch.timeout_seconds", "launch.extra", "launch.target", "launch.ray_address",
        "launch.shared_path", "launch.upload", "launch.job_gpus", "launch.job_cpus", "launch.job_memory_gib",
        "launch.slurm_cluster", "launch.slurm_partition", "launch.slurm_minutes", "launch.slurm_options",
    }  # fmt: skip


def test_rules_for_whole_blocks_are_ranks_and_rates_there() -> None:
    rules = ["denoiser.up_blocks.1.attentions.0.*: rank=8 alpha=2.0", "denoiser.down_blocks.1.attentions.1.*: lr_factor=0.5"]
    args = to_arguments(_with(_resolved("sd1", "lora"), {"adapter.rules": rules}), "sd1")[1]["network_args"]
    found = dict(a.split("=") for a in args)
    # 25 numbers; 13 + 3 * 1 + 0 = 16 is the way up's, 1 + 3 * 1 + 1 = 5 the way down's
    assert found["block_dims"].split(",") == ["8" if i == 16 else "16" for i in range(25)]
    assert [float(a) for a in found["block_alphas"].split(",")] == [2.0 if i == 16 else 16.0 for i in range(25)]
    assert [float(w) for w in found["down_lr_weight"].split(",")] == [0.5 if i == 5 else 1.0 for i in range(12)]
    assert len(found["up_lr_weight"].split(",")) == 12


def test_files_that_flux_needs_are_asked_for_or_told_by_the_facts() -> None:
    config = _config({"model": {"base": "/m.safetensors"}, "train": {"steps": 1}})
    assert {"model.vae", "model.clip_l", "model.t5"} <= {f.field for f in to_arguments(config, "flux")[2]}
    _, args, losses = to_arguments(config, "flux", Facts(parts={"vae": "/ae", "clip_l": "/l", "t5": "/t5"}))
    assert (args["ae"], args["clip_l"], args["t5xxl"]) == ("/ae", "/l", "/t5")
    assert not [f for f in losses if f.field.startswith("model.")]


def test_the_small_model_cannot_be_trained_there() -> None:
    losses = to_arguments(_config({"train": {"steps": 1}}), "sd1")[2]
    assert [f.severity for f in losses if f.field == "model.base"] == ["error"]
