"""The one page: its tabs, each built by the module that knows it."""

from __future__ import annotations

import gradio as gr

from limner.web import dataset_tab, new_run_tab, runs_tab, tools_tab
from limner.web.context import Context

TABS = (new_run_tab, runs_tab, dataset_tab, tools_tab)


def build(context: Context) -> gr.Blocks:
    """The page as Gradio blocks."""
    with gr.Blocks(title="Limner", analytics_enabled=False, fill_width=True) as page:
        with gr.Tabs(elem_id="tabs") as tabs:
            for number, tab in enumerate(TABS):
                with gr.Tab(context.words(tab.TITLE), id=number, elem_id=f"tab-{tab.NAME}"):
                    tab.build(context)
        del tabs
    # nothing goes through Gradio's queue, whose routes the gate closes; it would look for work a thousand times a second
    page._queue.sleep_when_free = 1.0
    return page
