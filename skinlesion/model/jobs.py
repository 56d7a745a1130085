"""Trainings that do not depend on each other: each is a command line in a process of its own."""

import ctypes
import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from skinlesion.config import Config
from skinlesion.files import InputError
from skinlesion.machine import say
from skinlesion.model.run import Run

SHORTEST = 0.01
"""Hours that a training needs to be started: the least that `train --time-limit` takes."""
BAD_INPUT, INTERRUPTED = 2, 130
"""Exit statuses of `train`."""
PR_SET_PDEATHSIG = 1
"""From linux/prctl.h: a process is sent a signal when the one that started it ends."""


class Job(NamedTuple):
    """One training.

    Attributes:
        folder: of its run.
        command: what follows `python -m skinlesion`.
    """

    folder: Path
    command: list[str]

    @property
    def is_done(self) -> bool:
        """Whether the run is trained and calibrated, which is the last that `train` does."""
        run = Run(self.folder)
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
        say(f"training {number} of {len(jobs)}: {job.folder}")
        _run(job, rest)
        if not job.is_done:
            return False
    return True


def _run(job: Job, rest: Sequence[str]) -> None:
    """Run one training to its end, in a process that ends with this one."""
    command = [sys.executable, "-m", "skinlesion", *job.command, *rest]
    status = subprocess.run(command, preexec_fn=_end_with_parent(), check=False).returncode
    if status == INTERRUPTED:
        raise KeyboardInterrupt
    if status == BAD_INPUT:
        raise InputError(f"{job.folder}: its training was refused, for the reason above")
    if status:
        raise ChildProcessError(
            f"{job.folder}: its training ended with the status {status}; the same command continues"
        )


def _end_with_parent() -> Callable[[], int] | None:
    """What a new process calls so that it is killed with its parent: two must not train one run."""
    if sys.platform != "linux":
        return None
    prctl = ctypes.CDLL(None).prctl  # found here: after the fork, as little as possible
    return lambda: prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
