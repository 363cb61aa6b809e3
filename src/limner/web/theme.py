"""How the page looks: Gradio's own theme variables, and stylesheets for what we draw ourselves."""

from __future__ import annotations

from pathlib import Path

import gradio as gr

STATIC = Path(__file__).parent / "static"
STYLES = [STATIC / "limner.css", STATIC / "new_run.css", STATIC / "runs.css"]


def theme() -> gr.themes.Base:
    """Fonts of the system only: nothing is fetched from elsewhere."""
    return gr.themes.Base(
        primary_hue="indigo",
        neutral_hue="slate",
        font=["system-ui", "sans-serif"],
        font_mono=["ui-monospace", "monospace"],
    )
