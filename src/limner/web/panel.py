"""A Gradio component whose inside is drawn by one of our own JavaScript modules."""

from __future__ import annotations

from typing import Any

import gradio as gr


def panel(module: str, **props: Any) -> gr.HTML:
    """An empty element given to `mount({element, props})` of `static/<module>.js`.

    What it shows comes from `props` or from our own GET routes. (No subclass: Gradio writes a `.pyi` file beside each module
    that defines one.)
    """
    start = f"import(new URL('studio/start.js', document.baseURI)).then(s => s.start('{module}', {{element, props}}));"
    return gr.HTML(
        html_template="<div class='panel'></div>",
        js_on_load=start,
        elem_classes=["limner"],
        elem_id=f"panel-{module.replace('_', '-')}",
        **props,
    )
