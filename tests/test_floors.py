"""No release with a published hole is installed: the floors of the dependencies, each with the advisory that forces it.

`make audit` asks the advisory database itself (pip-audit), which needs the network, and whose answer changes from day to day;
so it is not a part of the tests. This is what it has led to, and what a build without a network can hold on to. Whoever raises
a floor after an advisory writes it here first.
"""

from __future__ import annotations

import tomllib
from contextlib import suppress
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).parents[1]

FLOORS = {
    # package: (the first release without the hole, advisory, what it was)
    "accelerate": ("1.13.0", "CVE-2025-14925", "code in files of weights"),
    "aiohttp": ("3.14.1", "CVE-2026-54273 to 54280", "eight, of requests and their parsing"),
    "brotli": ("1.2.0", "CVE-2025-6176", "a small answer that unpacks to a huge one"),
    "cryptography": ("48.0.1", "GHSA-537c-gmf6-5ccf", "the OpenSSL inside"),
    "filelock": ("3.20.1", "CVE-2025-68146", "a link put in a lock's place empties its target"),
    "gradio": ("6.7.0", "CVE-2026-28414, CVE-2026-28416", "files by path on Windows; requests to anywhere"),
    "h11": ("0.16.0", "CVE-2025-43859", "smuggled requests"),
    "idna": ("3.7", "CVE-2024-3651", "quadratic time"),
    "jinja2": ("3.1.6", "CVE-2025-27516", "a way out of the sandbox"),
    "pillow": ("12.2.0", "CVE-2026-40192, CVE-2026-25990, CVE-2026-42309", "bombs (FITS), writing out of bounds (PSD)"),
    "protobuf": ("6.33.5", "CVE-2026-0994", "endless nesting"),
    "pyarrow": ("14.0.1", "CVE-2023-47248", "code in files"),
    "pyasn1": ("0.6.3", "GHSA-jr27-m4p2-rc6r", "endless nesting"),
    "pygments": ("2.20.0", "CVE-2026-4539", "quadratic time"),
    "pytest": ("9.0.3", "GHSA-6w46-j5rx-g56g", "predictable temporary folders"),
    "python-multipart": ("0.0.31", "CVE-2026-53540, CVE-2026-42561", "endless heads of parts"),
    "ray": ("2.54.0", "CVE-2025-62593, CVE-2026-27482", "jobs started and deleted by any web page (rebinding)"),
    "requests": ("2.33.1", "GHSA-gc5v-m9x4-r6x2", "predictable temporary files"),
    "starlette": ("1.3.1", "CVE-2026-54283, CVE-2026-48817, CVE-2025-62727", "limits of forms; shares on Windows; ranges"),
    "torch": ("2.6.0", "CVE-2025-32434", "code in files of weights in spite of weights_only"),
    "transformers": ("5.5.4", "GHSA-69w3-r845-3855", "code in files of weights"),
    "urllib3": ("2.7.0", "CVE-2026-44431, CVE-2026-44432", "headers sent on to other sites; bombs"),
}


def pins() -> dict[str, Version]:
    """What is tested: constraints.txt."""
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    named = (line.partition("==") for line in lines if "==" in line)
    return {canonicalize_name(name): Version(version) for name, _, version in named}


def asked() -> list[Requirement]:
    """What pyproject.toml asks for, extras and all."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"].values()
    return [Requirement(text) for text in [*project["dependencies"], *(text for extra in extras for text in extra)]]


@pytest.mark.parametrize("name", FLOORS)
def test_a_floor_holds(name: str) -> None:
    floor, advisory, what = Version(FLOORS[name][0]), *FLOORS[name][1:]
    said = f"{name} before {floor}: {what} ({advisory})"
    assert pins()[name] >= floor, said  # and it is one of ours at all
    for requirement in asked():
        if canonicalize_name(requirement.name) == name:
            least = [Version(s.version) for s in requirement.specifier if s.operator in (">=", "==", "~=")]
            assert least and max(least) >= floor, f"pyproject.toml: {requirement}. {said}"
    with suppress(metadata.PackageNotFoundError):  # not in this environment
        assert Version(metadata.version(name)) >= floor, said


def test_all_that_is_asked_for_is_pinned() -> None:
    """Else an audit of constraints.txt would not see it."""
    optional = {"bitsandbytes", "wandb", "trackio"}  # no test needs them; who installs them gets the newest
    assert {canonicalize_name(r.name) for r in asked()} - pins().keys() <= optional
