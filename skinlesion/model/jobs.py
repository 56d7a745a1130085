"""Trainings that do not depend on each other: each is a command line in a process of its own."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from skinlesion.config import Config
from skinlesion.files import InputError
from skinlesion.machine import PARENT, say
from skinlesion.model.run import Run

SHORTEST = 0.01
"""Hours that a training needs to be started: the least that `train --time-limit` takes."""
BAD_INPUT, INTERRUPTED = 2, 130
"""Exit statuses of `train`."""


class Job(NamedTuple):
    """One training.

    Attributes:
        place: the folder of its run.
        command: what follows `python -m skinlesion`.
    """

    place: Path
    command: list[str]

    @property
    def is_done(self) -> bool:
        """Whether the run is trained and calibrated, which is the last that `train` does."""
        run = Run(self.place)
        return run.is_finished and run.info.calibration is not None


def make_job(
    folder: Path, data: Path, splits: Path, config: Config, *, allow_incomplete: bool = False
) -> Job:
    """Describe the training of a run by the command line that starts or continues it.

    Args:
        folder: of the run.
        data: folder of the dataset.
        splits: the split file.
        config: the settings; all of them are in the command, whatever the recipe's values.
        allow_incomplete: as for `Run`.
    """
    command = ["train", "--data", str(data), "--run", str(folder), "--splits", str(splits)]
    settings = config.model_dump(exclude={"recipe"})
    command += ["--recipe", config.recipe]
    command += [f"--set={name}={json.dumps(value)}" for name, value in settings.items()]
    return Job(folder, command + ["--allow-incomplete"] * allow_incomplete)


def run_jobs(jobs: Sequence[Job], *, time_limit: float | None = None) -> bool:
    """Run trainings one after the other; finished ones are skipped, and begun ones continue.

    Args:
        jobs: the trainings.
        time_limit: hours from now for all of them together.

    Returns:
        Whether all are done; False at the time limit.

    Raises:
        InputError: a training refused its input; it has said why.
        ChildProcessError: a training failed or was killed.
    """
    begun = time.monotonic()
    for number, job in enumerate(jobs, start=1):
        if job.is_done:
            continue
        rest = []
        if time_limit is not None:
            left = time_limit - (time.monotonic() - begun) / 3600
            if left < SHORTEST:
                return False
            rest = ["--time-limit", str(left)]
        say(f"training {number} of {len(jobs)}: {job.place}")
        _run(job, rest)
        if not job.is_done:
            return False
    return True


def start_job(
    job: Job,
    rest: Sequence[str] = (),
    *,
    environment: Mapping[str, str] = os.environ,
    **options: Any,
) -> subprocess.Popen[Any]:
    """Start the process of a job. On Linux it is killed when the calling thread ends.

    Args:
        job: what to run.
        rest: more arguments of its command.
        environment: its variables.
        **options: of `subprocess.Popen`.
    """
    command = [sys.executable, "-m", "skinlesion", *job.command, *rest]
    return subprocess.Popen(command, env={**environment, PARENT: str(os.getpid())}, **options)


def _run(job: Job, rest: Sequence[str]) -> None:
    """Run one training to its end, in a process that ends with this one."""
    with start_job(job, rest) as process:
        status = process.wait()
    require_success(job, status, "the reason above")


def require_success(job: Job, status: int, reason: str) -> None:
    """Raise what the exit status of a job means, unless it is 0.

    Raises:
        InputError: it refused its input.
        ChildProcessError: it failed or was killed.
    """
    if status == INTERRUPTED:
        raise KeyboardInterrupt
    if status == BAD_INPUT:
        raise InputError(f"{job.place}: was refused, for {reason}")
    if status:
        raise ChildProcessError(
            f"{job.place}: ended with the status {status}, for {reason}; the same command continues"
        )
