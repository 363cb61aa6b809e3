"""How the page looks: Gradio's own theme variables, and stylesheets for what we draw ourselves."""

from __future__ import annotations

from pathlib import Path

import gradio as gr

STATIC = Path(__file__).parent / "static"
STYLES = [STATIC / "limner.css", STATIC / "new_run.css"]


def theme() -> gr.themes.Base:
    """Fonts of the system only: nothing is fetched from elsewhere."""
    return gr.themes.Base(
        primary_hue="indigo",
        neutral_hue="slate",
        font=["system-ui", "sans-serif"],
        font_mono=["ui-monospace", "monospace"],
    ).set(
        # white on the palette's own 500 is just too faint to read (4.47 : 1)
        button_primary_background_fill="*primary_600",
        button_primary_background_fill_hover="*primary_700",
        button_primary_background_fill_dark="*primary_600",
        button_primary_background_fill_hover_dark="*primary_700",
        color_accent="*primary_600",
    )
