"""Where the GUI's pictures are: each tab has keys of its own for it, and a dataset file takes precedence over them."""

from __future__ import annotations

import re

from limner.config.files import shown
from limner.config.kohya.gui.form import Form

_ENDING = r"\.[\w.-]{1,32}"


def read_folders(form: Form) -> None:
    """Folders, the finetuning tab's metadata file, repeats and caption endings."""
    for key in ("train_data_dir", "image_folder", "reg_data_dir"):
        if (path := form.text(key)) is None:
            continue
        if key == "image_folder" and form.has("train_data_dir"):
            form.idle(key, "train_data_dir takes its place.")
        else:
            form.send("train_data_dir" if key == "image_folder" else key, path, key)
    _metadata(form)
    repeats = form.number("dataset_repeats", whole=True)
    if repeats is not None:
        form.send("dataset_repeats", repeats, "dataset_repeats")
    ending = form.text("caption_extension")
    if ending is not None and not re.fullmatch(_ENDING, ending):
        form.refuse("caption_extension", f"{shown(ending)} is not the ending of a file; the usual ones are read.")
    elif ending is not None:
        form.send("caption_extension", ending, "caption_extension")


def _metadata(form: Form) -> None:
    """The finetuning tab's captions: kohya gathers them from the caption files first, unless that is not ticked."""
    made = form.flag("generate_caption_database")
    if (old := form.flag("create_caption")) is not None and made is None:
        made = old
    for key in ("generate_caption_database", "create_caption"):
        if form.flag(key) is not None:
            form.idle(key, "Limner reads the caption files themselves.")
    folder, name = form.text("train_dir"), form.text("caption_metadata_filename")
    if folder and name and made is False:
        apart = "\\" if "\\" in folder and "/" not in folder else "/"
        form.send("in_json", folder.rstrip("/\\") + apart + name, "train_dir", "caption_metadata_filename")
        return
    for key, value in (("train_dir", folder), ("caption_metadata_filename", name)):
        if value is not None:
            form.idle(key, "kohya gathers the captions there on the way; Limner reads the caption files themselves.")


def read_embedding(form: Form) -> None:
    """The word of the textual inversion tab."""
    template = form.text("template")
    if template in ("object template", "style template"):
        form.send(f"use_{template.partition(' ')[0]}_template", True, "template")
    elif template is not None:
        form.idle("template", "Captions are used, as usual.")
    vectors = form.number("num_vectors_per_token", whole=True)
    if vectors is not None:
        form.send("num_vectors_per_token", vectors, "num_vectors_per_token")
    word = form.text("init_word")
    if word is not None:
        form.send("init_word", word, "init_word")


def read_saving(form: Form) -> None:
    """How the model is written, and by which seed all is drawn."""
    layout = form.text("save_model_as")
    if layout is not None and layout not in ("safetensors", "ckpt") and form.tab in ("lora", "embedding"):
        form.convert("save_model_as", why=f"{shown(layout)} is not for this tab; it is saved as .safetensors.")
    elif layout == "same as source model":
        form.convert("save_model_as", why="It is saved as one .safetensors file; output.layout has the other form.")
    elif layout is not None:
        form.send("save_model_as", layout, "save_model_as")
    seed = form.number("seed", whole=True)
    if seed == 0:
        form.set("train.seed", 0)
        form.convert("seed", "train.seed", why="kohya draws a new seed for 0; Limner trains with 0 itself.")
    elif seed is not None:
        form.send("seed", seed, "seed")
