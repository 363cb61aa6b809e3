"""Runs that are trained elsewhere: as jobs of a Ray cluster, or of Slurm. No scheduler of our own.

The job works in a folder of its own that looks like a run's. A process here, the follower (`python -m limner.targets
RUN_FOLDER`), takes the trainer's place: it submits the job, brings what appears in the job's folder into the run's, passes
on what is asked, and writes the run's state. What it must know to go on after its own end is in the run's `target.json`.
"""
