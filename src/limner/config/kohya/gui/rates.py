"""Learning rates of the GUI, and what is trained by them: a rate of 0 is how the form says "not this part"."""

from __future__ import annotations

from limner.config.kohya.gui.form import Form

_CACHES = (
    "sdxl_cache_text_encoder_outputs", "sd3_cache_text_encoder_outputs", "flux1_cache_text_encoder_outputs",
)  # fmt: skip
_STOP = "stop_text_encoder_training"


def read_rates(form: Form) -> None:
    """Make the rates, and say whether denoiser and text encoder are trained."""
    if form.tab == "lora":
        _of_adapter(form)
    elif form.tab in ("dreambooth", "finetune"):
        _of_model(form)
    else:
        _send_main(form)
    percent = form.number(_STOP)
    if percent is not None and form.raw.get(_STOP) is not None and _STOP not in form.report.lines:
        if percent > 0 and form.tab == "dreambooth":
            form.refuse(_STOP, "Limner trains the text encoder to the end or not at all; it is trained to the end.")
        else:
            form.idle(_STOP, "0 is off." if percent == 0 else "No trainer of this tab reads it.")
    if "stop_text_encoder_training_pct" in form.raw:
        form.idle("stop_text_encoder_training_pct", "The GUI does not read it either.")


def _send_main(form: Form) -> None:
    rate = form.number("learning_rate")
    if rate is None:
        return
    if rate > 0:
        form.send("learning_rate", rate, "learning_rate")
    elif form.number("unet_lr"):
        form.idle("learning_rate", "unet_lr takes its place.")
    else:
        why = "Nothing is learnt at a rate of 0; kohya drops the 0 and trains at 2e-6. Limner's own rate is used."
        form.refuse("learning_rate", why)


def _caches_text(form: Form) -> bool:
    family = {"sdxl": _CACHES[0], "sd3": _CACHES[1], "flux": _CACHES[2]}.get(form.family)
    return bool(family and form.flag(family))


def _of_adapter(form: Form) -> None:
    main, unet, text = form.number("learning_rate"), form.number("unet_lr"), form.number("text_encoder_lr")
    _send_main(form)
    _read_t5(form)
    if unet:
        form.send("unet_lr", unet, "unet_lr")
    cached = _caches_text(form)
    if text and cached:
        why = "Captions are encoded beforehand, so the text encoder is not trained; kohya refuses to start with both."
        form.convert("text_encoder_lr", "adapter.text_encoder", why=why)
        form.set("adapter.text_encoder", False)
    elif text:
        form.send("text_encoder_lr", text, "text_encoder_lr")
        form.set("adapter.text_encoder", True)
    elif text == 0:
        why = "0 is not to train it."
        if unet == 0 and main:
            why += " kohya trains both parts at learning_rate where both rates are 0; here the denoiser alone is."
        form.convert("text_encoder_lr", "adapter.text_encoder", why=why)
        form.set("adapter.text_encoder", False)
    if unet == 0 and text and not cached:
        form.convert("unet_lr", "adapter.denoiser", why="0 is not to train it.")
        form.set("adapter.denoiser", False)
    elif unet == 0:
        form.idle("unet_lr", "Nothing else would be trained; the denoiser is, at learning_rate.")


def _read_t5(form: Form) -> None:
    rate = form.number("t5xxl_lr")
    if rate and form.family in ("flux", "sd3"):
        form.refuse("t5xxl_lr", "All text encoders are trained at one rate, optimizer.text_encoder_lr.")
    elif rate is not None:
        form.idle("t5xxl_lr", "0 is not to train it." if rate == 0 else "It counts only for Flux.1 and Stable Diffusion 3.")


def _of_model(form: Form) -> None:
    _send_main(form)
    keys = ("learning_rate_te1", "learning_rate_te2") if form.family == "sdxl" else ("learning_rate_te",)
    rates = {key: form.number(key) for key in keys}
    for key in ("learning_rate_te", "learning_rate_te1", "learning_rate_te2"):
        if key not in keys and form.number(key) is not None:
            form.idle(
                key,
                "It counts only for SDXL." if key[-1].isdecimal() else "SDXL's two text encoders have rates of their own.",
            )
    trains = any(rates.values()) if any(r is not None for r in rates.values()) else None
    ticked, stop = form.flag("train_text_encoder"), form.number(_STOP)
    cached = _caches_text(form)
    if ticked is not None:
        trains = ticked and trains is not False
    if stop is not None and stop < 0 and form.tab == "dreambooth":
        trains = False
        form.convert(_STOP, "adapter.text_encoder", why="-1 is not to train it.")
    if form.family == "flux" or (form.family == "sd3" and form.tab == "dreambooth"):
        trains = False  # as these tabs start their trainers
    for key, rate in rates.items():
        if rate and trains and not cached:
            form.send(key, rate, key)
        elif rate is not None:
            why = "0 is not to train it." if rate == 0 else "The text encoder is not trained."
            form.convert(key, "adapter.text_encoder", why=why)
    if trains is None:
        return
    form.set("adapter.text_encoder", trains and not cached)
    if ticked == (trains and not cached):
        form.take("train_text_encoder", "adapter.text_encoder")
    elif ticked is not None:
        why = "Captions are encoded beforehand, so it is not trained." if cached else "Its learning rate is 0, or it has none."
        form.convert("train_text_encoder", "adapter.text_encoder", why=why)
