"""A Gradio component whose inside is drawn by one of our own JavaScript modules."""

from __future__ import annotations

from typing import Any

import gradio as gr


def panel(module: str, value: Any = None, **props: Any) -> gr.HTML:
    """An empty element given to `mount({element, props, trigger, watch})` of `static/<module>.js`.

    Its value is any JSON value. The module tells the server of changes by `props.value = ...; trigger("input")` (or
    "submit") and learns of the server's by `watch("value", ...)`. What it shows comes from `value`, from `props`, or from our
    own GET routes. (No subclass: Gradio writes a `.pyi` file beside each module that defines one.)
    """
    start = (
        "import(new URL('studio/start.js', document.baseURI))"
        f".then(s => s.start('{module}', {{element, props, trigger, watch}})); /* 'input' 'submit' */"
    )
    return gr.HTML(
        value,
        html_template="<div class='panel'></div>",
        js_on_load=start,
        elem_classes=["limner"],
        elem_id=f"panel-{module.replace('_', '-')}",
        **props,
    )
