"""sd-scripts' arguments become options: each is accounted for, whatever its type, and means what the trainer makes of it."""

from __future__ import annotations

import math
import random
from typing import Any

import pytest

from limner.config import Config, files
from limner.config.kohya import Report, render_report, to_values
from limner.config.kohya.scripts import SCRIPTS, accepts, arguments
from limner.config.rules import effect, parse

TRAINED = [s for s in SCRIPTS.values() if s.families]


def _read(
    script: str = "train_network.py", *, complete: bool = False, **given: Any
) -> tuple[dict[str, dict[str, Any]], Report]:
    report = Report()
    values = to_values({"_script": script, **given}, report, complete=complete)
    files.build(values, {})
    return values, report


def _config(script: str = "train_network.py", **given: Any) -> Config:
    return files.build(_read(script, complete=True, **given)[0], {})


# --- every key --------------------------------------------------------------------------------------------------------


def _defaults(script: str) -> dict[str, Any]:
    typed = {"int": int, "float": float, "int_or_float": float}
    return {
        a.name: False if a.kind == "flag" else None if a.default is None else typed.get(a.kind, str)(a.default)
        for a in arguments().values()
        if accepts(SCRIPTS[script], a.name)
    }


@pytest.mark.parametrize("script", SCRIPTS)
@pytest.mark.parametrize("complete", [False, True])
def test_every_argument_with_its_default_stands_in_the_report(script: str, complete: bool) -> None:
    given = _defaults(script)
    _, report = _read(script, complete=complete, **given)
    assert set(given) <= set(report.lines)
    assert [line.key for line in report.lines.values()][: len(given) + 1] == ["_script", *given]
    # defaults that are another thing than off, and that Limner does not do
    odd = {k for k in given if report.lines[k].outcome in ("unsupported", "unknown")}
    assert odd <= {"model_prediction_type", "t5_max_token_length", "qwen3_max_token_length", "control_net_lr"}


def test_a_complete_configuration_of_defaults_is_the_same_with_and_without_them() -> None:
    for script in TRAINED:
        given = {k: v for k, v in _defaults(script.name).items() if v is not None}
        assert _config(script.name) == _config(script.name, **given), script.name


def test_sd_scripts_defaults_hold_where_nothing_is_given() -> None:
    config = _config()
    assert (config.optimizer.kind, config.optimizer.lr, config.optimizer.weight_decay) == ("adamw", 2e-6, 0.01)
    assert (config.adapter.rank, config.adapter.alpha, config.adapter.text_encoder) == (4, 1.0, True)  # type: ignore[union-attr]
    assert (config.train.steps, config.train.precision, config.optimizer.schedule) == (1600, "fp32", "constant")
    assert (config.data.buckets, config.data.caption_extensions) == (False, (".caption",))
    assert config.optimizer.text_encoder_lr == 2e-6
    assert config.output.dtype == "fp32"
    flux = _config("flux_train_network.py")
    assert (flux.objective.guidance, flux.objective.timesteps, flux.objective.shift) == (3.5, "uniform", 3.0)


def test_a_part_leaves_open_what_it_does_not_say() -> None:
    values, report = _read(learning_rate="1e-4")
    assert values["optimizer"]["lr"] == 1e-4
    assert "rank" not in values.get("adapter", {})
    assert "steps" not in values.get("train", {})
    assert set(report.lines) == {"_script", "learning_rate"}


def test_what_nobody_knows_is_said_so() -> None:
    _, report = _read(no_such_thing=3, gemma2="x", epoch=7, t5xxl="/t5")
    assert report.lines["no_such_thing"].outcome == "unknown"
    assert report.lines["epoch"].outcome == "idle"
    assert report.lines["t5xxl"].outcome == "idle"  # train_network.py does not know it


HOSTILE = [
    None, "", " ", "abc", "0", "-1", "1e-4", "1e999", "nan", float("nan"), float("inf"), -math.inf, 10**400, "9" * 5000, -5,
    0, 1, 2.5, True, False, "True", [], [1, 2], ["a=b"], [None], {}, {"a": {"b": 1}}, [[["x"]]], "\x00", "\ud800", "a\nb", "=",
    "a=", "=b", ["a=(" * 50], ["x=" + "[" * 5000], "$(touch x)", "../../etc/passwd", "é" * 3000, b"bytes", object(),
]  # fmt: skip


def test_no_value_of_any_type_crashes_or_makes_a_configuration_that_is_none() -> None:
    rng = random.Random(5)
    names = [*arguments(), "num_processes", "_script", "not a name", ""]
    for round_ in range(200):
        script = rng.choice([*SCRIPTS, "unknown.py", 7, None])
        given = {name: rng.choice(HOSTILE) for name in rng.sample(names, 25)} | {"_script": script}
        if round_ % 2:
            given |= {"network_module": rng.choice(["networks.lora", "lycoris.kohya", "networks.lora_flux", "networks.oft"])}
            keys = ["conv_dim", "algo", "block_dims", "down_lr_weight", "train_blocks", "unit", "preset", "factor"]
            given["network_args"] = [f"{k}={rng.choice(HOSTILE)!r:.200}" for k in rng.sample(keys, 4)]
        report = Report()
        values = to_values(given, report, complete=bool(round_ % 3))
        files.build(values, {})
        assert {k for k in given if k != "_script" or given[k] is not None} <= set(report.lines)
        assert all(len(line) <= 100 and line.isprintable() for line in render_report(report))


@pytest.mark.parametrize("name", sorted(arguments()))
def test_each_argument_takes_any_type(name: str) -> None:
    for value in HOSTILE:
        report = Report()
        files.build(to_values({name: value}, report), {})
        assert name in report.lines


def test_the_report_as_text_leaves_nothing_out() -> None:
    _, report = _read(complete=True, learning_rate="x", flip_aug="true", no_such_thing="\x1b[31m" * 50, resume="state")
    text = "\n".join(render_report(report))
    for line in report.lines.values():
        assert line.key in text
    assert "\x1b" not in text
    assert sum(int(head.rpartition(" ")[2]) for head in text.splitlines() if head and head[0] != " ") == len(report.lines)


# --- what arguments mean ----------------------------------------------------------------------------------------------


def test_numbers_and_truths_as_texts_are_read() -> None:
    config = _config(network_dim="8", learning_rate="1e-4", flip_aug="True", seed=" 42 ", max_train_steps="100")
    assert (config.adapter.rank, config.optimizer.lr, config.data.flip) == (8, 1e-4, True)  # type: ignore[union-attr]
    assert (config.train.seed, config.train.steps) == (42, 100)


def test_a_large_seed_keeps_its_digits() -> None:
    assert _config(seed="9007199254740993").train.seed == 9007199254740993


@pytest.mark.parametrize(
    ("given", "outcome"),
    [
        ({"optimizer_type": "AdamW8bit"}, ("adamw_8bit", 0.01)),
        ({"optimizer_type": "Lion"}, ("lion", 0.0)),
        ({"use_8bit_adam": True}, ("adamw_8bit", 0.01)),
        ({"optimizer_type": "prodigy", "optimizer_args": ["weight_decay=0.1", "decouple=True"]}, ("prodigy", 0.1)),
        ({"optimizer_type": "SGDNesterov"}, ("sgd", 0.0)),
        ({"optimizer_type": "pytorch_optimizer.CAME"}, ("came", 0.0)),
    ],
)
def test_optimizers_with_the_decay_that_their_class_has_there(given: dict[str, Any], outcome: tuple[str, float]) -> None:
    optimizer = _config(**given).optimizer
    assert (optimizer.kind, optimizer.weight_decay) == outcome


def test_an_optimizers_arguments_are_options_where_there_are_some() -> None:
    args = "weight_decay=0.05 betas=(0.8,0.95) eps=1e-6 d_coef=2 use_bias_correction=True"
    values, report = _read(optimizer_type="Prodigy", optimizer_args=args)
    found = values["optimizer"]
    assert (found["beta1"], found["beta2"], found["eps"], found["weight_decay"]) == (0.8, 0.95, 1e-6, 0.05)
    assert found["arguments"] == ["d_coef=2", "bias_correction=True"]
    assert {f"optimizer_args.{k}" for k in ("betas", "d_coef", "use_bias_correction")} <= set(report.lines)


def test_adafactor_finds_the_rate_itself_unless_it_is_told_not_to() -> None:
    found = _config(optimizer_type="Adafactor", learning_rate=1e-3)
    # arXiv:1804.04235: min(1e-2, 1 / sqrt(step)), times the size of the weights
    assert (found.optimizer.lr, found.optimizer.schedule, found.optimizer.arguments) == (
        0.01,
        "adafactor",
        ("scale_parameter=True",),
    )
    args = ["relative_step=False", "scale_parameter=False", "warmup_init=False"]
    told = _config(optimizer_type="Adafactor", learning_rate=1e-3, optimizer_args=args, lr_scheduler="cosine")
    assert (told.optimizer.lr, told.optimizer.schedule, told.optimizer.arguments) == (1e-3, "cosine", ())


def test_a_class_that_is_not_allowed_is_not_loaded() -> None:
    values, report = _read(optimizer_type="os.system")
    assert values["optimizer"]["kind"] == "adamw"
    assert report.lines["optimizer_type"].outcome == "unsupported"


@pytest.mark.parametrize(
    ("warmup", "scheduler", "expected"),
    [
        ("100", "cosine", (100, 0.0)),
        (0.1, "cosine", (0, 0.1)),
        (50, "constant", (0, 0.0)),
        (50, "constant_with_warmup", (50, 0.0)),
    ],
)
def test_warmup_is_steps_or_a_share_and_constant_has_none(warmup: Any, scheduler: str, expected: tuple[int, float]) -> None:
    optimizer = _config(lr_warmup_steps=warmup, lr_scheduler=scheduler).optimizer
    assert (optimizer.warmup_steps, optimizer.warmup_share) == expected


def test_rates_of_the_parts() -> None:
    both = _config(learning_rate=1e-3, unet_lr=1e-4, text_encoder_lr=[5e-5])
    assert (both.optimizer.lr, both.optimizer.text_encoder_lr, both.adapter.text_encoder) == (1e-4, 5e-5, True)
    still = _config(learning_rate=1e-3, text_encoder_lr=0)
    assert (still.optimizer.lr, still.adapter.text_encoder) == (1e-3, False)
    only = _config(network_train_text_encoder_only=True, text_encoder_lr=1e-5)
    assert (only.adapter.denoiser, only.adapter.text_encoder) == (False, True)  # type: ignore[union-attr]
    assert _config(network_train_unet_only=True).adapter.text_encoder is False


@pytest.mark.parametrize(
    ("module", "args", "kind", "options"),
    [
        ("networks.lora", [], "lora", {}),
        ("networks.lora_fa", [], "lora", {"freeze_down": True}),
        ("networks.dylora", ["unit=2"], "dylora", {"unit": 2}),
        ("networks.loha", ["conv_dim=4", "conv_alpha=2"], "loha", {"conv_rank": 4, "conv_alpha": 2.0}),
        ("lycoris.kohya", ["algo=lokr", "factor=8", "preset=attn-mlp"], "lokr", {"factor": 8, "conv_rank": None}),
        ("lycoris.kohya", ["algo=boft", "preset=attn-mlp"], "oft", {"butterfly": True, "block": 8}),
        ("lycoris.kohya", ["algo=locon", "dora_wd=True"], "lora", {"dora": True, "conv_rank": 8, "conv_alpha": 1.0}),
        ("lycoris.kohya", ["algo=full"], "full", {"convolutions": True}),
        ("lycoris.kohya", ["algo=ia3"], "ia3", {}),
        ("networks.lora", ["loraplus_lr_ratio=16", "rank_dropout=0.1"], "lora", {"up_lr_ratio": 16.0, "rank_dropout": 0.1}),
    ],
)
def test_networks(module: str, args: list[str], kind: str, options: dict[str, Any]) -> None:
    adapter = _config(network_module=module, network_args=args, network_dim=8).adapter
    assert adapter.kind == kind
    assert {name: getattr(adapter, name) for name in options} == options


def test_ranks_and_rates_of_blocks_are_rules() -> None:
    dims = ",".join(["4"] * 4 + ["0"] + ["4"] * 20)
    ups = "1,1,1,0.5,1,1,1,1,1,1,1,1"
    adapter = _config(
        network_module="networks.lora", network_dim=4, network_args=[f"block_dims={dims}", f"up_lr_weight={ups}"]
    ).adapter
    rules = parse(adapter.rules, ranks=True)  # type: ignore[union-attr]
    # sd-scripts: block 1 + 3 i + j of the way down is down_blocks[i], layer j; 13 + 3 i + j of the way up
    assert effect(rules, "denoiser.down_blocks.1.attentions.0.proj_in").off
    assert not effect(rules, "denoiser.down_blocks.1.attentions.1.proj_in").off
    assert effect(rules, "denoiser.up_blocks.1.attentions.0.proj_in").lr_factor == 0.5
    assert effect(rules, "denoiser.up_blocks.1.attentions.1.proj_in").lr_factor == 1.0


def test_blocks_of_flux() -> None:
    adapter = _config(
        "flux_train_network.py", network_module="networks.lora_flux", network_args=["train_blocks=single"]
    ).adapter
    assert adapter.rules == ("denoiser.transformer_blocks.*: off",)  # type: ignore[union-attr]
    some = _config(
        "flux_train_network.py", network_module="networks.lora_flux", network_args=["train_double_block_indices=0,2-18"]
    ).adapter
    assert some.rules == ("denoiser.transformer_blocks.1.*: off",)  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"timestep_sampling": "sigmoid", "sigmoid_scale": 0.8}, ("logit_normal", 0.0, 0.8, 1.0)),
        ({"timestep_sampling": "shift", "discrete_flow_shift": 3.1582}, ("logit_normal", 0.0, 1.0, 3.1582)),
        ({"timestep_sampling": "flux_shift"}, ("logit_normal", 0.0, 1.0, "resolution")),
        ({"timestep_sampling": "uniform"}, ("uniform", 0.0, 1.0, 1.0)),
        ({}, ("uniform", 0.0, 1.0, 3.0)),
        # u counts timesteps from noise to picture there
        ({"weighting_scheme": "logit_normal", "logit_mean": 0.5, "logit_std": 2}, ("logit_normal", -0.5, 2.0, 3.0)),
    ],
)
def test_timesteps_of_flux(given: dict[str, Any], expected: tuple[Any, ...]) -> None:
    found = _config("flux_train_network.py", **given).objective
    assert (found.timesteps, found.logit_mean, found.logit_std, found.shift) == expected


def test_the_weight_of_sd3_that_undoes_its_own_factor_is_uniform() -> None:
    # sd-scripts' error is that of the picture, sigma (v' - v), so its square has sigma²; sigma_sqrt is 1 / sigma²
    sigma, wrong_by = 0.3, 2.0
    assert (1 / sigma**2) * (sigma * wrong_by) ** 2 == pytest.approx(wrong_by**2)
    found = _config("sd3_train_network.py", weighting_scheme="sigma_sqrt", training_shift=3.0).objective
    assert (found.timesteps, found.weighting, found.shift) == ("uniform", "uniform", 3.0)
    report = _read("sd3_train_network.py", weighting_scheme="logit_normal")[1]
    assert "sigma²" in report.lines["weighting_scheme"].why


def test_weightings_are_one() -> None:
    values, report = _read(min_snr_gamma=5, debiased_estimation_loss=True)
    assert (values["objective"]["weighting"], values["objective"]["snr_gamma"]) == ("min_snr", 5.0)
    assert report.lines["debiased_estimation_loss"].outcome == "unsupported"
    assert _config(scale_v_pred_loss_like_noise_pred=True, v_parameterization=True).objective.weighting == "v_as_epsilon"


def test_pyramid_noise_has_a_layer_less_and_huber_a_scale() -> None:
    found = _config(multires_noise_iterations=6, multires_noise_discount=0.2).objective
    assert (found.pyramid_levels, found.pyramid_discount) == (5, 0.2)
    scaled = _config(loss_type="huber", huber_schedule="constant", huber_c=0.1, huber_scale=0.5).objective
    assert scaled.huber_threshold == pytest.approx(0.05)


def test_flows_ignore_what_the_trainer_ignores() -> None:
    values, report = _read("flux_train_network.py", noise_offset=0.1, min_snr_gamma=5, clip_skip=2, min_timestep=100)
    assert all(report.lines[k].outcome == "idle" for k in ("noise_offset", "min_snr_gamma", "clip_skip", "min_timestep"))
    assert files.build(values, {}).objective.noise_offset == 0


@pytest.mark.parametrize(
    ("given", "side"), [("512", 512), ("512,768", 627), (640, 640), ([512, 512], 512), ("768, 768", 768), ("1024x", None)]
)
def test_resolutions(given: Any, side: int | None) -> None:
    assert _config(resolution=given).data.resolution == side


def test_max_token_length_clip_skip_and_caches() -> None:
    config = _config(max_token_length=225, clip_skip=2, cache_latents=True, mixed_precision="fp16", save_precision="float")
    assert (config.model.text_chunks, config.model.clip_skip, config.memory.cache_latents) == (3, 2, True)
    assert (config.train.precision, config.memory.vae_dtype, config.output.dtype) == ("fp16", "fp16", "fp32")
    assert _config(mixed_precision="fp16", no_half_vae=True).memory.vae_dtype == "fp32"


def test_what_is_kept_of_checkpoints() -> None:
    # sd-scripts keeps those of the last so many steps: at 900 with a window of 400 that is 500 to 900, five
    assert _config(save_every_n_steps=100, save_last_n_steps=400).output.keep_last == 5
    assert _config(save_every_n_epochs=2, save_last_n_epochs=3).output.keep_last == 3


def test_whole_models() -> None:
    assert _config("train_db.py").adapter.text_encoder is True
    assert _config("train_db.py", stop_text_encoder_training=-1).adapter.text_encoder is False
    assert _config("fine_tune.py").adapter.text_encoder is False
    xl = _config("sdxl_train.py", train_text_encoder=True, learning_rate=1e-5, learning_rate_te1=3e-6, full_bf16=True)
    assert (xl.adapter.kind, xl.adapter.text_encoder, xl.optimizer.text_encoder_lr) == ("none", True, 3e-6)
    assert xl.adapter.weights == "bf16"  # type: ignore[union-attr]
    rates = ",".join(["1e-5"] * 11 + ["0"] + ["1e-5"] * 10 + ["5e-6"])
    rules = _config("sdxl_train.py", learning_rate=1e-5, block_lr=rates).adapter.rules  # type: ignore[union-attr]
    assert rules == (
        "denoiser.mid_block.attentions.0.*: off", "denoiser.conv_norm_out.*: lr_factor=0.5",
        "denoiser.conv_out.*: lr_factor=0.5",
    )  # fmt: skip


def test_a_word() -> None:
    config = _config(
        "train_textual_inversion.py", token_string="zibbo", init_word="cat", num_vectors_per_token=4, learning_rate=1e-3
    )
    assert (config.embedding.token, config.embedding.initial, config.embedding.vectors) == ("zibbo", "cat", 4)
    assert (config.adapter.kind, config.embedding.lr) == ("embedding", 1e-3)


def test_the_family_is_told_without_a_script() -> None:
    for given, family in (
        ({"network_module": "networks.lora_flux"}, "flux"),
        ({"clip_g": "/g", "network_module": "networks.lora"}, "sd3"),
        ({"v2": True}, "sd2"),
    ):
        report = Report()
        values = to_values(given, report, complete=True)
        assert values["model"]["family"] == family
