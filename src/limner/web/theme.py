"""How the page looks: Gradio's own theme variables, and our own stylesheets for what we draw ourselves."""

from __future__ import annotations

from pathlib import Path

import gradio as gr

STATIC = Path(__file__).parent / "static"
STYLES = sorted(STATIC.glob("*.css"))


def theme() -> gr.themes.Base:
    """Fonts of the system only: nothing is fetched from elsewhere."""
    base = gr.themes.Base(
        primary_hue="indigo",
        neutral_hue="slate",
        font=["system-ui", "sans-serif"],
        font_mono=["ui-monospace", "monospace"],
    )
    # a contrast of at least 4.5 (WCAG AA), which Gradio's own values miss
    return base.set(
        body_text_color_subdued="*neutral_600",
        body_text_color_subdued_dark="*neutral_400",
        button_primary_background_fill="*primary_600",
        button_primary_background_fill_dark="*primary_600",
        button_primary_background_fill_hover="*primary_700",
        button_primary_background_fill_hover_dark="*primary_700",
    )
