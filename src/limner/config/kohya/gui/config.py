"""The GUI's own config.toml: what its form begins with, in sections whose names are not always the form's."""

from __future__ import annotations

from typing import Any

_SECTIONS = (
    "model", "folders", "accelerate_launch", "basic", "advanced", "sdxl", "flux1", "sd3", "samples", "huggingface", "metadata",
    "hunyuan_image", "lumina", "anima",
)  # fmt: skip
"""Those of the training tabs."""
_OTHER_SECTIONS = (
    "settings", "server", "configuration", "dataset_preparation", "wd14_caption", "leco", "anima_lllite", "network", "training",
    "save",
)  # fmt: skip
_MARKS = ("accelerate_launch", "basic", "advanced", "folders", "samples", "dataset_preparation", "wd14_caption", "server")
_FOLDERS_TO_LOOK_IN = ("models_dir", "vae_dir", "state_dir", "log_tracker_config_dir", "config_dir")
_PREFIXES = {"metadata": "metadata_", "hunyuan_image": "hunyuan_", "lumina": "lumina_", "anima": "anima_"}
_NAMES = {
    "flux1.cache_text_encoder_outputs": "flux1_cache_text_encoder_outputs",
    "flux1.cache_text_encoder_outputs_to_disk": "flux1_cache_text_encoder_outputs_to_disk",
    "sd3.cache_text_encoder_outputs": "sd3_cache_text_encoder_outputs",
    "sd3.cache_text_encoder_outputs_to_disk": "sd3_cache_text_encoder_outputs_to_disk",
    "sd3.clip_l": "sd3_clip_l",
    "sd3.t5xxl": "sd3_t5xxl",
    "sd3.disable_mmap_load_safetensors": "sd3_disable_mmap_load_safetensors",
    "huggingface.repo_id": "huggingface_repo_id",
    "huggingface.token": "huggingface_token",
    "huggingface.repo_type": "huggingface_repo_type",
    "huggingface.repo_visibility": "huggingface_repo_visibility",
    "huggingface.path_in_repo": "huggingface_path_in_repo",
}


def is_config(raw: dict[str, Any]) -> bool:
    """Whether nested tables are the GUI's config.toml: at least two sections that only it has."""
    return sum(isinstance(raw.get(section), dict) for section in _MARKS) >= 2


def flatten(raw: dict[str, Any]) -> tuple[dict[str, Any], dict[str, str], dict[str, str]]:
    """(the form's keys and values, {form's key: name in the file}, {name of what is no key of the form: why})."""
    flat, names, others = dict[str, Any](), dict[str, str](), dict[str, str]()
    for section, table in raw.items():
        if not isinstance(table, dict):
            others[section] = "It is for the GUI's page." if section in _FOLDERS_TO_LOOK_IN else ""
            continue
        for name, value in table.items():
            dotted = f"{section}.{name}"
            if section in _OTHER_SECTIONS:
                others[dotted] = "It is for another part of the GUI."
            elif name in _FOLDERS_TO_LOOK_IN:
                others[dotted] = "It is the folder that the GUI looks for files in."
            elif section not in _SECTIONS:
                others[dotted] = ""
            elif (key := _key(section, name)) in flat:
                others[dotted] = f"{names[key]} says the same."
            else:
                flat[key], names[key] = value, dotted
    return flat, names, others


def _key(section: str, name: str) -> str:
    prefix = _PREFIXES.get(section, "")
    return _NAMES.get(f"{section}.{name}") or (name if name.startswith(prefix) else prefix + name)


def value_of(raw: dict[str, Any], dotted: str) -> Any:
    """The value of a name in the file."""
    section, _, name = dotted.partition(".")
    table = raw.get(section)
    return table.get(name) if isinstance(table, dict) else raw.get(dotted)
