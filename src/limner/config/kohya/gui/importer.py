"""Files of kohya_ss's GUI: the JSON of its training tabs, its presets (a JSON with some of the keys), and its config.toml.

The GUI turns a form into arguments of sd-scripts, and loses or changes some on the way; here a key is taken to mean what the
form says it means. Every key of a file stands in the report.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

from limner.config.files import build
from limner.config.kohya.arguments import SCRIPT, to_values
from limner.config.kohya.gui.adapter import KEYS as ADAPTER_KEYS
from limner.config.kohya.gui.adapter import read_adapter
from limner.config.kohya.gui.additional import KEY as ADDITIONAL
from limner.config.kohya.gui.additional import read_additional, read_lists
from limner.config.kohya.gui.config import flatten, is_config, value_of
from limner.config.kohya.gui.folders import read_embedding, read_folders, read_saving
from limner.config.kohya.gui.form import Form, hide, is_secret
from limner.config.kohya.gui.launch import read_launch
from limner.config.kohya.gui.prompts import read_prompts
from limner.config.kohya.gui.rates import read_rates
from limner.config.kohya.gui.rules import RULES, pass_on
from limner.config.kohya.gui.training import (
    read_attention,
    read_family,
    read_length,
    read_noise,
    read_precision,
    read_text_models,
    read_timesteps,
    read_warmup,
    script_of,
)
from limner.config.kohya.report import Imported, Line, Outcome, Report
from limner.config.kohya.scripts import arguments as sd_scripts
from limner.errors import UserError, wrong

_MARKS = (
    "LoRA_type", "LyCORIS_preset", "max_resolution", "lr_warmup", "optimizer", "sdxl", "sdxl_checkbox", "flux1_checkbox",
    "sd3_checkbox", "model_list", "additional_parameters", "extra_accelerate_launch_args", "use_8bit_adam", "use_wandb",
)  # fmt: skip
"""Keys that the form has and no file of sd-scripts."""
_ONLY_ON: dict[str, tuple[str, ...]] = {
    "lora": (
        "LoRA_type", "LyCORIS_preset", "network_dim", "network_alpha", "text_encoder_lr", "unet_lr", "conv_dim", "block_dims",
        "down_lr_weight", "scale_weight_norms", "lora_network_weights",
    ),
    "finetune": (
        "image_folder", "train_dir", "dataset_repeats", "caption_metadata_filename", "latent_metadata_filename", "full_path",
        "use_latent_files", "create_caption", "create_buckets", "generate_caption_database", "generate_image_buckets",
        "sdxl_checkbox", "train_text_encoder", "block_lr",
    ),
    "embedding": ("token_string", "num_vectors_per_token", "init_word", "template", "stop_text_encoder_training_pct"),
    "leco": ("max_denoising_steps", "leco_denoise_guidance_scale", "prompts_file"),
    "lllite": ("lllite_cond_dim", "lllite_mlp_dim", "lllite_target_layers", "cond_emb_dim", "lllite_multiplier"),
}  # fmt: skip
_NOT_TRAINED = {"leco": "LECO", "lllite": "ControlNet-LLLite"}
_OTHER_FAMILIES = {"hunyuan_": "HunyuanImage", "anima_": "Anima", "lumina_": "Lumina"}
_RANK: tuple[Outcome, ...] = ("unsupported", "converted", "taken", "idle", "unknown")


def read(raw: dict[str, Any], name: str) -> Imported | None:
    """A file's configuration and what became of each key; None if it is no file of the GUI. `name` is the file's, for errors.

    Raises UserError where it is one of a tab that Limner has no training for.
    """
    if is_config(raw):
        flat, names, others = flatten(raw)
        form = Form(flat, "any")
        values, lines = _import(form)
        renamed = {names[key]: replace(line, key=names[key]) for key, line in lines.items()}
        for dotted, why in others.items():
            value = _quiet(dotted, value_of(raw, dotted))
            renamed[dotted] = Line(dotted, value, "idle", (), why) if why else Line(dotted, value, "unknown", (), _UNKNOWN)
        return Imported(values, Report(_in_order(raw, renamed)))
    tab = recognise(raw)
    if tab is None:
        return None
    if tab in _NOT_TRAINED:
        raise wrong(name, f"is for kohya's {_NOT_TRAINED[tab]} tab, which Limner has no training for.", "Import another file.")
    values, lines = _import(Form(raw, tab))  # type: ignore[arg-type]
    return Imported(values, Report(lines))


def recognise(raw: dict[str, Any]) -> str | None:
    """The tab that wrote a JSON, by the keys that only it has; None if it is no form of the GUI."""
    marks = sum(key in raw and not isinstance(raw[key], dict) for key in _MARKS)
    votes = {tab: sum(key in raw for key in keys) for tab, keys in _ONLY_ON.items()}
    if others := [tab for tab in _NOT_TRAINED if votes[tab] > 1]:
        return others[0]
    if "LoRA_type" in raw:
        return "lora"
    if marks < 2:
        return None
    best = max(votes, key=lambda tab: votes[tab])
    return best if votes[best] else "dreambooth"  # which has no key of its own


_UNKNOWN = "Neither kohya_ss nor sd-scripts have it."


def _import(form: Form) -> tuple[dict[str, dict[str, Any]], dict[str, Line]]:
    read_family(form)
    _read_legacy(form)
    if form.tab == "lora":
        read_adapter(form)
    if form.tab == "embedding":
        read_embedding(form)
    for part in (
        read_text_models, read_timesteps, read_length, read_rates, read_warmup, read_noise, read_attention, read_precision,
        read_folders, read_saving, read_prompts, read_launch, read_lists,
    ):  # fmt: skip
        part(form)
    for key in form.raw:
        if key in RULES and not form.is_settled(key):
            pass_on(form, key)
    if form.tab == "finetune" and not form.has("enable_bucket"):
        form.send("enable_bucket", True)  # that tab has no choice
    read_additional(form)
    return _assembled(form)


def _read_legacy(form: Form) -> None:
    """What older versions of the GUI wrote."""
    if (old := form.flag("use_8bit_adam")) is not None:
        if form.has("optimizer"):
            form.idle("use_8bit_adam", "optimizer takes its place.")
        else:
            form.send("optimizer_type", "AdamW8bit" if old else "AdamW", "use_8bit_adam")
    if (old := form.flag("use_wandb")) is not None:
        if old and not form.has("log_with"):
            form.send("log_with", "wandb", "use_wandb")
        else:
            form.idle("use_wandb", "log_with takes its place." if old else "It is not ticked.")
    if (path := form.text("lora_network_weights")) is not None:
        if form.has("network_weights"):
            form.idle("lora_network_weights", "network_weights takes its place.")
        else:
            form.send("network_weights", path, "lora_network_weights")
    if (path := form.text("network_weights")) is not None:
        form.send("network_weights", path, "network_weights")


def _assembled(form: Form) -> tuple[dict[str, dict[str, Any]], dict[str, Line]]:
    """What sd-scripts' arguments become, under the names of the keys that made them, and what Limner itself makes of others."""
    sent = dict(form.arguments)
    if form.network:
        sent["network_args"] = [f"{name}={value}" for name, value in form.network.items()]
    if form.tab != "any":
        sent[SCRIPT] = script_of(form)
    theirs = Report()
    found = to_values(sent, theirs)
    values = {section: dict(table) for section, table in found.items()}
    if values.get("model", {}).get("family") == "sd1":
        del values["model"]["family"]  # no box is ticked: the file itself tells
    overruled = {o for argument, keys in form.made_by.items() if ADDITIONAL in keys for o in _becomes(theirs, argument)}
    for section, table in form.values.items():
        mine = {name: value for name, value in table.items() if f"{section}.{name}" not in overruled}
        values.setdefault(section, {}).update(mine)
    lines = {key: _line(form, key, theirs.lines) for key in form.raw}
    return _fitting(values, lines)


def _line(form: Form, key: str, theirs: Mapping[str, Line]) -> Line:
    if key in form.report.lines:
        return form.report.lines[key]
    made = [argument for argument, keys in form.made_by.items() if key in keys]
    if made:
        return _merged(form, key, [line for argument in made for line in _lines_of(theirs, argument)])
    value = form.shown(key)
    if key in ADAPTER_KEYS or any(key in keys for keys in _ONLY_ON.values()):
        return Line(key, value, "idle", (), "It is of another tab.")
    for prefix, family in _OTHER_FAMILIES.items():
        if key.startswith(prefix):
            return Line(key, value, "idle", (), f"It counts only for {family}, which Limner does not train.")
    if key in sd_scripts():
        return Line(key, value, "idle", (), "The GUI does not read it; in additional_parameters, as a flag, it counts.")
    return Line(key, value, "unknown", (), _UNKNOWN)


def _lines_of(theirs: Mapping[str, Line], argument: str) -> list[Line]:
    """An argument's line; where it is a list of "name=value", those of its parts."""
    parts = [line for name, line in theirs.items() if name.startswith(f"{argument}.")]
    return parts or [theirs[argument]] if argument in theirs else parts


def _becomes(theirs: Report, argument: str) -> Iterable[str]:
    return (option for line in _lines_of(theirs.lines, argument) for option in line.becomes)


def _merged(form: Form, key: str, theirs: list[Line]) -> Line:
    """One line for a key of which arguments were made."""
    if not theirs:
        return Line(key, form.shown(key), "unsupported", (), "Nothing could be made of it.")
    outcome = min(theirs, key=lambda line: _RANK.index(line.outcome)).outcome
    becomes = tuple(dict.fromkeys(option for line in theirs for option in line.becomes))
    why = " ".join(dict.fromkeys(filter(None, [form.notes.get(key, ""), *(_reason(line, theirs) for line in theirs)])))
    return Line(key, form.shown(key), "converted" if outcome == "taken" and key in form.notes else outcome, becomes, why)


def _reason(line: Line, among: list[Line]) -> str:
    """Why, with the argument's name where there are several."""
    return f"{line.key.rpartition('.')[2]}: {line.why}" if line.why and len(among) > 1 else line.why


def _fitting(values: dict[str, dict[str, Any]], lines: dict[str, Line]) -> tuple[dict[str, dict[str, Any]], dict[str, Line]]:
    """Without what Limner's options cannot hold; the keys that it came from say so."""
    for _ in range(20):
        try:
            build(values, {})
            break
        except UserError as error:
            for finding in error.findings:
                section, _, name = finding.field.partition(".")
                values.get(section, {}).pop(name, None)
                for key, line in lines.items():
                    if finding.field in line.becomes:
                        left = tuple(option for option in line.becomes if option != finding.field)
                        why = f"{finding.field}: {finding.message} It was left out."
                        lines[key] = replace(line, outcome="converted" if left else "unsupported", becomes=left, why=why)
    return values, lines


def _quiet(name: str, value: Any) -> Any:
    return "(not shown)" if is_secret(name) and value else hide(value)


def _in_order(raw: dict[str, Any], lines: dict[str, Line]) -> dict[str, Line]:
    names = [f"{s}.{n}" for s, table in raw.items() for n in (table if isinstance(table, dict) else ())]
    order = [*names, *lines]
    return {name: lines[name] for name in dict.fromkeys(order) if name in lines}
