"""Independent jobs on the workers of a Dask cluster; `docs/cluster.md` describes them.

Dask (https://distributed.dask.org) decides which worker does which job, and gives the job of a
killed worker to another one. Each job is a process of its own, as in `jobs.py`.
"""

import asyncio
import logging
import os
import subprocess
import time
import uuid
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any, NamedTuple

from skinlesion import __version__
from skinlesion.files import InputError, name_some, write_text
from skinlesion.machine import LOCK_NAME, progress_bar, say
from skinlesion.model.jobs import SHORTEST, Job, require_success, start_job
from skinlesion.model.run_lock import HEARTBEAT, SILENCE, RunLock

ANSWER = 10
"""Seconds that the scheduler has for its first answer."""
ALONE = 300
"""After this many seconds without a worker, the jobs are given up."""
LOOK = 1
"""Seconds between two looks at the jobs, and in a worker at the process of its job."""
GPU = "GPU"
"""The resource that workers with a GPU declare: `dask worker --resources GPU=1`."""
CLOSING = ("closing", "closed", "failed")
"""States of a worker, which would wait for its job before it closes."""


class Ended(NamedTuple):
    """What a worker says of a job.

    Attributes:
        is_done: whether its result is there.
        status: exit status of its process; 0 also if none was begun at the time limit.
        reason: what it wrote last on stderr.
    """

    is_done: bool
    status: int = 0
    reason: str = ""


def run_on_cluster(
    jobs: Sequence[Job],
    scheduler: str,
    shared: Path,
    *,
    needed: Sequence[Path] = (),
    time_limit: float | None = None,
    alone: float = ALONE,
) -> bool:
    """Give each job that is not done to a worker, which does one at a time.

    Args:
        jobs: their paths mean the same on all workers.
        scheduler: its address, such as `tcp://HOST:8786`.
        shared: the folder of all results, which every worker must see; created if need be.
        needed: files and folders that every worker must see too.
        time_limit: hours from now for all jobs together.
        alone: seconds to wait for a worker when there is none.

    Returns:
        Whether all are done; False at the time limit.

    Raises:
        InputError: `distributed` is not installed, the scheduler does not answer or has other
            versions, a worker lacks the package or a path or takes several jobs at once, or a job
            refused its input.
        ChildProcessError: a job failed, the scheduler is gone, or all workers are.
    """
    deadline = None if time_limit is None else time.time() + 3600 * time_limit
    left = [job._replace(place=job.place.absolute()) for job in jobs if not job.is_done]
    if not left:
        return True
    with _connect(scheduler) as client:
        resources, able = _check_workers(client, scheduler, shared, needed)
        say(f"cluster: {len(left)} of {len(jobs)} jobs left, {able} workers of {scheduler}")
        options: dict[str, Any] = {"pure": False, "resources": resources}
        job_of = {client.submit(_work, job, Path.cwd(), deadline, **options): job for job in left}
        ended = []
        with progress_bar(None, "cluster", len(left), unit="jobs") as bar:
            for future in _wait_for_each(client, scheduler, job_of, resources, alone):
                ended.append(_check_result(future, job_of[future]))
                bar.update()
                if bar.disable:
                    say(f"cluster: {len(ended)} of {len(left)} jobs ended")
    return all(one.is_done for one in ended)


@contextmanager
def _connect(scheduler: str) -> Iterator[Any]:
    """A client of the scheduler, whose loss is one line."""
    try:
        from distributed import Client
    except ImportError as error:
        raise InputError('--scheduler needs Dask: pip install "skinlesion[cluster]"') from error
    # The log of what is lost, with tracebacks; what it means is raised.
    logging.getLogger("distributed").setLevel(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of other versions: they are compared below
            with ThreadPoolExecutor(1) as pool:  # a notebook has an event loop already
                pool.submit(asyncio.run, _greet(scheduler)).result()
            client = Client(scheduler, timeout=ANSWER, set_as_default=False)
    except (OSError, ValueError, TypeError) as error:  # the last without the settings of tls://
        raise InputError(
            f"{scheduler}: no Dask scheduler answers there within {ANSWER} s "
            f"({str(error) or type(error).__name__})"
        ) from error
    try:
        yield client
    except ChildProcessError:
        raise
    except OSError as error:
        raise ChildProcessError(
            f"{scheduler}: the Dask scheduler is gone ({error}); the same command continues"
        ) from error
    finally:
        with suppress(OSError):
            client.close(timeout=ANSWER)  # its jobs are cancelled


async def _greet(scheduler: str) -> None:
    """Connect once. `Client` itself waits without end for one that accepts and says nothing."""
    from distributed import Security
    from distributed.comm import connect

    arguments = Security().get_connection_args("client")
    comm = await asyncio.wait_for(connect(scheduler, timeout=ANSWER, **arguments), ANSWER)
    comm.abort()


def _check_workers(
    client: Any, scheduler: str, shared: Path, needed: Sequence[Path]
) -> tuple[dict[str, int], int]:
    """Check the scheduler and each worker; return what a job asks for, and how many can do it."""
    packages = client.get_versions()["scheduler"]["packages"]
    _require_same_versions(scheduler, packages | {"skinlesion": __version__})
    with_gpu = _list_workers(client, {GPU: 1})
    able = with_gpu or _list_workers(client, {})
    if not able:
        raise InputError(f"{scheduler}: has no worker; start some: dask worker {scheduler}")
    for worker, state in able.items():
        if (state["resources"][GPU] if with_gpu else state["nthreads"]) != 1:
            raise InputError(
                f"{worker}: this worker would do several jobs at once; start it with "
                f"{'--resources GPU=1' if with_gpu else '--nthreads 1 or --resources GPU=1'}"
            )
    marker = write_text(shared / f".cluster_{uuid.uuid4().hex}", "").absolute()
    paths = [Path.cwd(), marker, *(path.absolute() for path in needed)]
    try:
        answers = client.run(_look, paths, workers=list(able), on_error="return")
    finally:
        marker.unlink()
    for worker, answer in answers.items():
        if isinstance(answer, Exception):
            raise InputError(f"{worker}: this worker cannot use the package ({answer})")
        versions, missing = answer
        _require_same_versions(worker, versions)
        if missing:
            named = [str(shared if path == marker else path) for path in missing]
            raise InputError(
                f"{worker}: this worker does not see {name_some(named)}; all workers need the "
                "same files under the same paths"
            )
    return {GPU: 1} if with_gpu else {}, len(able)


def _look(paths: Sequence[Path]) -> tuple[dict[str, str], list[Path]]:
    """In a worker: its versions, and which of the paths it does not see."""
    from distributed.versions import get_versions

    packages = get_versions()["packages"] | {"skinlesion": __version__}
    return packages, [path for path in paths if not path.exists()]


def _require_same_versions(place: str, packages: dict[str, str]) -> None:
    """Refuse a scheduler or worker with another Dask, package, or minor version of Python."""
    here, _ = _look(())
    other = []
    for name in ("python", "dask", "distributed", "skinlesion"):
        length = 2 if name == "python" else None
        there, ours = (found[name].split(".")[:length] for found in (packages, here))
        if there != ours:
            other.append(f"{name} {'.'.join(there)}, here {'.'.join(ours)}")
    if other:
        raise InputError(f"{place}: has other versions than this machine: {'; '.join(other)}")


def _list_workers(client: Any, resources: dict[str, int]) -> dict[str, Any]:
    """The workers that have this much of each resource."""
    # As `client.scheduler_info`, which waits without end for a scheduler that is stopped.
    found = client.sync(client.scheduler.identity, n_workers=-1, callback_timeout=ALONE)
    return {
        address: state
        for address, state in found["workers"].items()
        if all(state["resources"].get(name, 0) >= count for name, count in resources.items())
    }


def _wait_for_each(
    client: Any, scheduler: str, futures: Any, resources: dict[str, int], alone: float
) -> Iterator[Any]:
    """Yield each future when it has ended. Dask itself would wait for a worker without end."""
    pending, seen = set(futures), time.monotonic()
    while pending:
        ended = {future for future in pending if future.status != "pending"}
        yield from ended
        pending -= ended
        if ended or not pending:
            continue
        time.sleep(LOOK)
        if _list_workers(client, resources):
            seen = time.monotonic()
        elif time.monotonic() - seen > alone:
            kind = " with a GPU" if resources else ""
            raise ChildProcessError(
                f"{scheduler}: has had no worker{kind} for {alone:.0f} s; the same command "
                "continues when there is one"
            )


def _check_result(future: Any, job: Job) -> Ended:
    """What a worker said of a job; raises if it failed."""
    if future.cancelled() or future.status == "lost":
        raise ConnectionError("the connection was lost")
    error = future.exception(timeout=ANSWER)
    if error is not None:
        raise ChildProcessError(
            f"{job.place}: failed on the cluster ({type(error).__name__}: {error})"
        )
    ended: Ended = future.result(timeout=ANSWER)
    if not ended.is_done:
        require_success(job, ended.status, ended.reason)
    return ended


def _work(job: Job, folder: Path, deadline: float | None) -> Ended:
    """In a worker: do a job in a process that ends with this worker.

    The process also ends when nobody waits for the job any more, or Dask has given it to another.
    """
    from distributed import get_worker

    worker = get_worker()
    key = worker.get_current_task()

    def is_wanted() -> bool:
        task, is_closing = worker.state.tasks.get(key), worker.status.name in CLOSING
        return task is not None and task.state == "executing" and not is_closing

    _wait_for_lock(job.place, is_wanted)
    rest = []
    if deadline is not None:
        hours = (deadline - time.time()) / 3600
        if hours < SHORTEST:
            return Ended(job.is_done)
        rest = ["--time-limit", str(hours)]
    with TemporaryFile() as stderr:
        options: dict[str, Any] = {"cwd": folder, "stderr": stderr}
        process = start_job(job, rest, environment=_make_environment(), **options)
        try:
            while is_wanted():
                try:
                    process.wait(LOOK)
                    break
                except subprocess.TimeoutExpired:
                    continue
        finally:
            process.kill()
            status = process.wait()
        stderr.seek(0)
        said = stderr.read().decode(errors="replace")
    print(said, end="", flush=True)
    return Ended(job.is_done, status, said.strip().rpartition("\n")[2] or "an unknown reason")


def _wait_for_lock(place: Path, is_wanted: Callable[[], bool]) -> None:
    """Wait while another host, which may be gone, holds the lock of a run.

    `RunLock` takes it over after `SILENCE`. If it is held longer, the training says by whom.
    """
    give_up = time.monotonic() + SILENCE + HEARTBEAT
    while (place / LOCK_NAME).exists() and is_wanted() and time.monotonic() < give_up:
        try:
            with RunLock(place):
                return
        except InputError:
            time.sleep(LOOK)


def _make_environment() -> dict[str, str]:
    """The variables of this worker without those that Dask's nanny sets for all workers.

    `MALLOC_TRIM_THRESHOLD_` halves the speed of decoding, and one thread for BLAS gives other last
    digits than a training without Dask.
    """
    import dask

    names = "MALLOC_TRIM_THRESHOLD_", "OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"
    preset = dask.config.get("distributed.nanny.pre-spawn-environ", {})
    return {
        name: value
        for name, value in os.environ.items()
        if not (name in names and value == str(preset.get(name)))
    }
