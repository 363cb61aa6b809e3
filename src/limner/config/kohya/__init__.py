"""Configurations of kohya_ss and sd-scripts, in and out: where what comes from and what becomes of it is said of every key."""

from limner.config.kohya.arguments import to_values
from limner.config.kohya.export import to_arguments
from limner.config.kohya.lora_metadata import of_lora
from limner.config.kohya.report import Imported, Line, Report, render_report
from limner.config.kohya.sources import read_text
from limner.config.kohya.writer import Facts

__all__ = [
    "Facts",
    "Imported",
    "Line",
    "Report",
    "of_lora",
    "read_text",
    "render_report",
    "to_arguments",
    "to_values",
]
