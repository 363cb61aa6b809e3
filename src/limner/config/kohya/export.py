"""Limner's options become the arguments of the right script of sd-scripts."""

from __future__ import annotations

from typing import Any

from limner.config import Config
from limner.config.kohya import base_model, network, optimizing, whole
from limner.config.kohya.scripts import script_for
from limner.config.kohya.topics import TOPICS
from limner.config.kohya.writer import Facts, Writer
from limner.errors import Finding, wrong

_FAMILIES = ("sd1", "sd2", "sdxl", "sd3", "flux")


def to_arguments(config: Config, family: str, facts: Facts | None = None) -> tuple[str, dict[str, Any], list[Finding]]:
    """(script, its arguments by name, what is lost) of a configuration. Only arguments that the script knows; those of
    store_true are True or not there; lists are lists. Every option that sd-scripts cannot follow is a finding: an error where
    what is learnt would differ, else a warning.

    Raises UserError where no script of sd-scripts trains this family so.
    """
    assert family in _FAMILIES, family
    kind = config.adapter.kind
    script = script_for(family, kind, has_metadata=config.data.metadata is not None)
    if script is None:
        raise wrong("adapter.kind", f"sd-scripts trains no {kind} for {family}.", "Train with Limner, or choose another kind.")
    w = Writer(config, family, script, facts or Facts())
    base_model.write(w)
    lr = optimizing.write(w)
    if kind in ("none", "embedding"):
        whole.write(w, lr)
    else:
        network.write(w)
    for topic in TOPICS:
        topic.write(w)
    return script.name, w.arguments, w.losses
