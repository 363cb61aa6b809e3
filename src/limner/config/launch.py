"""[launch]: which trainer, and where and on which devices it runs."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import TYPE_CHECKING, Literal

from limner.config.base import FilePath, Section, Text, Texts, option
from limner.errors import wrong

if TYPE_CHECKING:
    from limner.config import Config

_ELSEWHERE = "launch.target = ray or launch.target = slurm"


class Launch(Section):
    """Where training runs: devices, processes, other machines."""

    device: Literal["cpu", "cuda", "mps"] | None = option(None)
    """Where to train. The best device of the machine when not given."""

    num_processes: int = option(1, ge=1, le=1024, kohya="num_processes")
    """Processes, one on each GPU, on all machines together. On a CPU they share its cores. Each step sees train.batch_size x
    train.accumulation x this many pictures."""

    num_threads: int | None = option(None, ge=1, le=4096, kohya="num_cpu_threads_per_process", advanced=True)
    """CPU threads of each process. PyTorch's choice when not given."""

    gpu_ids: Text | None = option(None, kohya="gpu_ids", advanced=True)
    """Which GPUs of this machine to use, such as "0,2": one for each process. The first ones when not given."""

    shard: Literal["off", "full"] = option("off", advanced=True)
    """"full": each process keeps only its share of weights, gradients and optimiser states, and fetches the rest of a layer
    while it computes it (FSDP2). For a whole model that does not fit on one GPU."""

    restarts: int = option(0, ge=0, le=100, advanced=True)
    """How often the processes are started again, from the newest training state, when one of them was killed or failed."""

    timeout_seconds: int = option(1800, ge=10, le=86_400, unit="s", advanced=True)
    """How long the others wait for a process that does not answer, before the run fails."""

    num_machines: int = option(1, ge=1, le=1024, kohya="num_machines", advanced=True)
    """Machines that train together. Start the run on each of them, with its own launch.machine_rank."""

    machine_rank: int = option(0, ge=0, le=1023, kohya="machine_rank", advanced=True)
    """Which of the machines this one is; 0 is the main one, which saves and paints."""

    main_process_ip: Text | None = option(None, kohya="main_process_ip", advanced=True)
    """Name or address under which all machines reach the main one."""

    main_process_port: int | None = option(None, ge=1, le=65_000, kohya="main_process_port", advanced=True)
    """Port at which the processes meet. A free one on one machine, 29500 on several, when not given."""

    extra: Texts = option((), advanced=True)
    """More arguments for the launcher of several processes, such as "--numa_binding=node". Only those that do no harm are
    taken: --monitor_interval, --rdzv_conf, --local_addr, --numa_binding and --enable_cpu_affinity."""

    trainer: Literal["limner", "sd-scripts"] = option("limner", advanced=True)
    """Who trains: Limner itself, or kohya's sd-scripts in a checkout of yours. The options are translated for it, and Limner
    starts it, watches it and keeps what it writes in the run's folder."""

    sd_scripts: FilePath | None = option(None, advanced=True, when="launch.trainer = sd-scripts")
    """The folder of sd-scripts, the one with train_network.py in it."""

    python: FilePath | None = option(None, advanced=True, when="launch.trainer = sd-scripts")
    """The Python that sd-scripts is installed for. When not given: that of a folder venv or .venv in the checkout, or of
    kohya_ss around it, else the one that Limner runs in."""

    target: Literal["local", "ray", "slurm"] = option("local", advanced=True)
    """Where training runs: on this machine, as a job of a Ray cluster, or as a job of Slurm. All that is followed here is the
    same: progress, samples and finished files come into the run's folder."""

    ray_address: Text = option("http://127.0.0.1:8265", advanced=True, when="launch.target = ray")
    """The address of the Ray cluster's dashboard, which takes its jobs. Whoever reaches that port can run anything there: keep
    it on 127.0.0.1, and reach a distant one through an SSH tunnel."""

    shared_path: FilePath | None = option(None, advanced=True, when=_ELSEWHERE)
    """A folder that this machine and those of the cluster see under the same path: jobs work there. For Slurm, the run's
    own folder when not given. For Ray, everything is sent over when not given: see launch.upload."""

    upload: Literal["run", "pictures", "all"] = option(
        "pictures", advanced=True, when="launch.target = ray and not launch.shared_path"
    )
    """What is packed and sent to Ray: the run alone, its pictures too, or the model and all other files as well. What is not
    sent must lie there under the same path. Together at most 100 MiB, which is what Ray's dashboard takes."""

    job_gpus: int | None = option(None, ge=0, le=64, advanced=True, when=_ELSEWHERE)
    """GPUs that the job asks for. One for each process when not given, none if launch.device is "cpu"."""

    job_cpus: int | None = option(None, ge=1, le=4096, advanced=True, when=_ELSEWHERE)
    """CPU cores that the job asks for. What the cluster gives when not given."""

    job_memory_gib: int | None = option(None, ge=1, le=65_536, unit="GiB", advanced=True, when=_ELSEWHERE)
    """Memory that the job asks for. What the cluster gives when not given."""

    slurm_cluster: Literal["slurm", "local"] = option("slurm", advanced=True, when="launch.target = slurm")
    """Who runs the job: Slurm, or submitit's stand-in on this machine, to try it out where there is no Slurm."""

    slurm_partition: Text | None = option(None, advanced=True, when="launch.target = slurm")
    """The partition of Slurm. Its default one when not given."""

    slurm_minutes: int = option(720, ge=1, le=1_000_000, unit="minutes", advanced=True, when="launch.target = slurm")
    """How long the job may take. When its time is up, or it must make room for another, it saves its state, goes back into
    the queue and goes on from there, three times at most."""

    slurm_options: Texts = option((), advanced=True, when="launch.target = slurm")
    """More that is told to sbatch, such as "account=physics" and "qos=long"."""


# --- several processes ------------------------------------------------------------------------------------------------

MAIN_PORT = 29_500
EXTRA = {
    "--monitor_interval": (r"[0-9]{1,4}(\.[0-9]{1,3})?", "seconds"),
    "--rdzv_conf": (r"[a-z_]{1,40}=[0-9]{1,9}(,[a-z_]{1,40}=[0-9]{1,9})*", "name=number, several with commas between"),
    "--local_addr": (r"[0-9A-Za-z]([0-9A-Za-z.:-]{0,252}[0-9A-Za-z])?", "a name or an address"),
    "--numa_binding": (r"node|socket|exclusive|core-complex", "node, socket, exclusive or core-complex"),
    "--enable_cpu_affinity": (r"", "no value"),
}
"""Arguments that torchrun or accelerate may be given besides -> (the whole of a value, in words). None of them names a file,
a module or a command."""
_HOST = re.compile(r"[0-9A-Za-z]([0-9A-Za-z.:-]{0,252}[0-9A-Za-z])?")


def extra_words(launch: Launch) -> list[str]:
    """The words of launch.extra. Raises UserError for one that is not allowed."""
    for text in launch.extra:
        name, equals, value = text.partition("=")
        name = name.replace("-", "_").replace("__", "--", 1)
        known = ", ".join(EXTRA)
        if name not in EXTRA:
            raise wrong(
                "launch.extra", f"{text[:80]!r} is not among the arguments that are let through.", f"Those are {known}."
            )
        pattern, said = EXTRA[name]
        if bool(equals) != bool(pattern) or not re.fullmatch(pattern, value, re.ASCII):
            raise wrong("launch.extra", f"{text[:80]!r}: {name} takes {said}.", "Correct or remove it.")
    return list(launch.extra)


def gpus(launch: Launch) -> list[int] | None:
    """The GPUs of launch.gpu_ids, None if all may be used. Raises UserError if they are no list of numbers."""
    if launch.gpu_ids is None or launch.gpu_ids.strip().lower() == "all":
        return None
    words = [w.strip() for w in launch.gpu_ids.strip().strip(",").split(",")]
    if not all(re.fullmatch(r"[0-9]{1,3}", w, re.ASCII) for w in words) or len({int(w) for w in words}) < len(words):
        raise wrong("launch.gpu_ids", f"{launch.gpu_ids!r} is no list of GPUs.", 'Write their numbers: "0,1".')
    return [int(w) for w in words]


def is_host(name: str) -> bool:
    """Whether a text can be a machine's name or address, and nothing else."""
    return _HOST.fullmatch(name) is not None


def micro_batches(config: Config) -> int:
    """Micro-batches of a step, over all processes; however many processes there are, they share these out."""
    return config.train.accumulation * config.launch.num_processes


def require_shares(config: Config, count: int) -> None:
    """Raises UserError if the micro-batches of a step cannot be shared out evenly among so many processes."""
    if micro_batches(config) % count:
        fits = ", ".join(str(n) for n in _divisors(micro_batches(config)))
        said = f"a step has {micro_batches(config)} micro-batches, which {count} processes cannot share out evenly."
        raise wrong("launch.num_processes", said, f"Use one of {fits}.")


def most_processes(config: Config, available: int) -> int:
    """The most processes, up to `available` and what was asked for, that a step's micro-batches can be shared out among."""
    return max(n for n in _divisors(micro_batches(config)) if n == 1 or n <= min(available, config.launch.num_processes))


def _divisors(number: int) -> Iterator[int]:
    return (n for n in range(1, number + 1) if number % n == 0)
