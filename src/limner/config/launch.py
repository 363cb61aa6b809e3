"""[launch]: which trainer, and where and on which devices it runs."""

from __future__ import annotations

from typing import Literal

from limner.config.base import FilePath, Section, Text, Texts, option

_ELSEWHERE = "launch.target = ray or launch.target = slurm"


class Launch(Section):
    """Where training runs: devices, processes, other machines."""

    device: Literal["cpu", "cuda", "mps"] | None = option(None)
    """Where to train. The best device of the machine when not given."""

    num_processes: int = option(1, ge=1, le=1024, kohya="num_processes")
    """Processes, one on each GPU. On a CPU they share its cores."""

    num_threads: int | None = option(None, ge=1, le=4096, kohya="num_cpu_threads_per_process", advanced=True)
    """CPU threads of each process. PyTorch's choice when not given."""

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
