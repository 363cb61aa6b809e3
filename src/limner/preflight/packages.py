"""Whether the trainer has a Python package: Limner's own Python, or that of sd-scripts where it trains."""

from __future__ import annotations

from importlib.util import find_spec

from limner.config import Config
from limner.formats.checkout import has_package, python_of


def is_installed(config: Config, package: str) -> bool:
    """Only looked for: to import it takes seconds, and may do anything. Where it cannot be told, it is taken to be there."""
    if config.launch.trainer == "limner":
        return find_spec(package) is not None
    return has_package(python_of(config.launch), package) is not False
