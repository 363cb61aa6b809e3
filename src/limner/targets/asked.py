"""What is told to an engine, checked: an address, a partition, options of sbatch. Nothing else reaches it."""

from __future__ import annotations

import re

from limner.config import Launch
from limner.errors import printable, wrong

SBATCH = (
    "account", "comment", "constraint", "exclude", "gres", "licenses", "mail-type", "mail-user", "nice", "nodelist", "qos",
    "reservation",
)  # fmt: skip
"""What may be told to sbatch beside what has an option of its own: nothing that names a program or a file."""

_ADDRESS = re.compile(r"https?://([a-z0-9.-]{1,253}|\[[0-9a-f:.]{2,45}\]):(\d{1,5})/?", re.IGNORECASE)
_VALUE = re.compile(r"[\w.,:@+=&|()\[\]/-]{1,200}", re.ASCII)


def address(section: Launch) -> str:
    """The address of Ray's dashboard. Raises UserError if it says more than a host and a port, or less."""
    found = _ADDRESS.fullmatch(section.ray_address)
    if found is None or int(found[2]) > 65535:
        said = f"{printable(section.ray_address, 80)!r} is no address of a server."
        raise wrong("launch.ray_address", said, "Write one such as http://127.0.0.1:8265.")
    return section.ray_address.rstrip("/")


def num_gpus(section: Launch) -> int:
    """The GPUs that the job asks for: one for each process, where nothing else is said."""
    if section.job_gpus is not None:
        return section.job_gpus
    return 0 if section.device == "cpu" else section.num_processes


def partition(section: Launch) -> str | None:
    """Slurm's partition. Raises UserError if it cannot be one's name, or several with commas."""
    if section.slurm_partition is not None and not _VALUE.fullmatch(section.slurm_partition):
        said = f"{printable(section.slurm_partition, 80)!r} cannot be a partition's name."
        raise wrong("launch.slurm_partition", said, "`sinfo` lists them.")
    return section.slurm_partition


def sbatch_options(section: Launch) -> dict[str, str]:
    """What else sbatch is told. Raises UserError if something among it is not allowed."""
    out = dict[str, str]()
    for text in section.slurm_options:
        name, _, value = text.partition("=")
        if name not in SBATCH or not _VALUE.fullmatch(value):
            said = f"{printable(text, 80)!r} is not name=value, with an allowed name and a value without spaces and quotes."
            raise wrong("launch.slurm_options", said, f"Allowed are {', '.join(SBATCH)}.")
        out[name] = value
    return out
