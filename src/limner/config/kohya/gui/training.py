"""Keys of the GUI that mean something only together: how long, how fast, with which noise, of which family."""

from __future__ import annotations

from limner.config.files import shown
from limner.config.kohya.gui.form import Form

_FORM_STEPS = 1600  # what the form begins with in "Max train steps"
_UNSUPPORTED = {"hunyuan": "HunyuanImage-2.1", "anima": "Anima", "lumina": "Lumina 2"}
_BOXES = {
    "sdxl": "sdxl", "sdxl_checkbox": "sdxl", "sd3_checkbox": "sd3", "flux1_checkbox": "flux",
    "hunyuan_image_checkbox": "hunyuan", "anima_checkbox": "anima", "lumina_checkbox": "lumina",
}  # fmt: skip
_FLUX_FIRST = ("sdxl", "flux1_checkbox", "sd3_checkbox", *list(_BOXES)[4:])


def read_family(form: Form) -> None:
    """Which model is trained: of several ticked boxes the one that the tab asks for first, as it starts that script."""
    order = _FLUX_FIRST if form.tab == "lora" else tuple(_BOXES)
    ticked = [box for box in order if form.flag(box)]
    if ticked:
        form.family = _BOXES[ticked[0]]
    for box in ticked[1:]:
        form.idle(box, f"{ticked[0]} is ticked too, which the GUI asks for first.")
    for box in _BOXES:
        if form.flag(box) is False:
            form.idle(box, "It is not ticked.")
    if not ticked and str(form.raw.get("LoRA_type")).startswith("Flux1"):
        form.family = "flux"  # the GUI would start the trainer of Stable Diffusion 1 with it
    if form.family in _UNSUPPORTED:
        form.refuse(ticked[0], f"Limner does not train {_UNSUPPORTED[form.family]}; choose another base model.")
    elif form.family:
        form.set("model.family", form.family)
        if ticked:
            form.take(ticked[0], "model.family")
    if form.flag("v2") is not None:
        if form.family and form.flag("v2"):
            form.idle("v2", "Another family is ticked.")
        else:
            form.send("v2", form.flag("v2"), "v2")


def script_of(form: Form) -> str:
    """The script that the tab starts. In place of the finetuning tab's own DreamBooth's, which trains the same and knows more
    of what the form has."""
    start = {"hunyuan": "hunyuan_image_", "": ""}.get(form.family, f"{form.family}_")
    if form.tab == "lora":
        return f"{start}train_network.py"
    if form.tab == "embedding":
        return f"{start if form.family == 'sdxl' else ''}train_textual_inversion.py"
    return f"{start}train.py" if form.family in ("sdxl", "sd3", "flux") else "train_db.py"


def read_text_models(form: Form) -> None:
    """Files of text encoders: `clip_l` and `t5xxl` are Flux.1's on the LoRA tab, Stable Diffusion 3's on the others."""
    lora = form.tab == "lora"
    own = {"flux": ("clip_l", "t5xxl") if lora else ("flux1_clip_l", "flux1_t5xxl")}
    own["sd3"] = ("sd3_clip_l", "sd3_t5xxl") if lora else ("clip_l", "t5xxl")
    for family, keys in own.items():
        for argument, key in zip(("clip_l", "t5xxl"), keys, strict=True):
            path = form.text(key)
            if path is not None and family == form.family:
                form.send(argument, path, key)
            elif path is not None:
                form.idle(key, f"On this tab it counts only for {'Flux.1' if family == 'flux' else 'Stable Diffusion 3'}.")
    for key in ("blocks_to_swap", "t5xxl_max_token_length"):
        number = form.number(key, whole=True)
        if number is not None and form.family not in own:
            form.idle(key, "It counts only for Flux.1 and Stable Diffusion 3.")
        elif number == 0:
            form.idle(key, "0 is off.")
        elif number is not None:
            form.send(key, number, key)


def read_timesteps(form: Form) -> None:
    """In its mode "sigma" Flux.1's trainer draws as weighting_scheme says, which the GUI tells Stable Diffusion 3's alone."""
    sampling = form.text("timestep_sampling")
    if sampling is not None and form.family == "flux":
        form.send("timestep_sampling", sampling, "timestep_sampling")
        if sampling == "sigma":
            form.send("weighting_scheme", "uniform", "timestep_sampling")


def read_length(form: Form) -> None:
    """Steps or epochs. The GUI's Epoch counts only where Max train steps is 0, yet that begins as 1600: an Epoch that was
    typed beside an untouched 1600 is what is meant."""
    epochs, steps = form.number("max_train_epochs", whole=True) or 0, form.number("max_train_steps", whole=True) or 0
    epoch = form.number("epoch", whole=True) or 0
    for key, value in (("max_train_epochs", epochs), ("max_train_steps", steps), ("epoch", epoch)):
        if value < 0:
            form.refuse(key, "It is less than 0; it was left out.")
    meant = steps == _FORM_STEPS and epoch > 1 and epochs <= 0
    if epochs > 0:
        form.send("max_train_epochs", epochs, "max_train_epochs")
        for key in ("max_train_steps", "epoch"):
            _idle_unless_said(form, key, "max_train_epochs takes precedence, as in kohya.")
    elif steps > 0 and not meant:
        form.send("max_train_steps", steps, "max_train_steps")
        _idle_unless_said(form, "epoch", "max_train_steps takes precedence, as in kohya; set train.epochs instead for epochs.")
    elif epoch > 0:
        form.send("max_train_epochs", epoch, "epoch")
        why = "0 leaves the length to Epoch."
        if meant:
            why = "1600 is what the form begins with, so that Epoch has no effect in kohya. Here Epoch counts; for what kohya "
            why += "did set train.steps = 1600 instead."
        _idle_unless_said(form, "max_train_steps", why)
    for key in ("max_train_epochs", "max_train_steps", "epoch"):
        _idle_unless_said(form, key, "0 is off.")


def _idle_unless_said(form: Form, key: str, why: str) -> None:
    if key in form.raw and not form.is_settled(key):
        form.idle(key, why)


def read_warmup(form: Form) -> None:
    """`lr_warmup` is percent of the training, `lr_warmup_steps` takes precedence. Schedules that know no warm-up have none:
    the trainer would refuse it."""
    share, steps = form.number("lr_warmup"), form.number("lr_warmup_steps", whole=True)
    schedule = form.text("lr_scheduler") or ""
    custom = form.text("lr_scheduler_type")
    if schedule.lower() in ("constant", "adafactor") or custom:
        for key, value in (("lr_warmup", share), ("lr_warmup_steps", steps)):
            if value is not None:
                form.idle(key, f"{shown(custom or schedule)} has no warm-up in kohya.")
        return
    if steps is not None and steps < 0:
        form.refuse("lr_warmup_steps", "It is less than 0; it was left out.")
    if share is not None and not 0 <= share < 100:
        form.refuse("lr_warmup", f"{shown(share)} is no percentage below 100; it was left out.")
        share = None
    if steps is not None and steps > 0:
        form.send("lr_warmup_steps", steps, "lr_warmup_steps")
        _idle_unless_said(form, "lr_warmup", "lr_warmup_steps takes precedence.")
    elif share:
        form.send("lr_warmup_steps", share / 100, "lr_warmup")
    for key in ("lr_warmup", "lr_warmup_steps"):
        _idle_unless_said(form, key, "0 is off.")


def read_noise(form: Form) -> None:
    """Noise offset or pyramid noise: the form shows one of them, and passes on only that one."""
    kind = form.text("noise_offset_type")
    offset = ("noise_offset", "adaptive_noise_scale", "noise_offset_random_strength")
    for key in (*offset, "multires_noise_iterations", "multires_noise_discount"):
        if key == "noise_offset_random_strength":
            value = form.flag(key)
        else:
            value = form.number(key, whole=key == "multires_noise_iterations")
        if value is None:
            continue
        if kind == ("Multires" if key in offset else "Original"):
            form.idle(key, f"noise_offset_type is {kind}.")
        elif value == 0 and key not in ("multires_noise_discount", "noise_offset_random_strength"):
            form.idle(key, "0 is off.")
        else:
            form.send(key, value, key)
    if kind is not None:
        form.idle("noise_offset_type", "It only chooses between noise_offset and multires_noise_iterations.")


def read_attention(form: Form) -> None:
    """Once a tick, now one of three words."""
    value = form.raw.get("xformers")
    word = {True: "xformers", False: "none"}.get(value) if isinstance(value, bool) else form.text("xformers")
    if word in ("xformers", "sdpa"):
        form.send(word, True, "xformers")
    elif word in ("none", "sdp"):
        form.idle("xformers", "Limner always uses an attention of PyTorch: see speed.attention.")
    elif word is not None:
        form.refuse("xformers", "There is no such attention; that of PyTorch is used.")


def read_precision(form: Form) -> None:
    """fp8 can be chosen in the GUI, but no trainer of sd-scripts takes it."""
    word = form.text("mixed_precision")
    if word == "fp8":
        form.refuse(
            "mixed_precision", 'no trainer of sd-scripts takes fp8 either; memory.quantize = "fp8" stores the model so.'
        )
    elif word is not None:
        form.send("mixed_precision", word, "mixed_precision")
    tokens = form.number("max_token_length", whole=True)
    if tokens == 75:
        form.idle("max_token_length", "75 is one chunk, which is usual.")
    elif tokens is not None:
        form.send("max_token_length", tokens, "max_token_length")
