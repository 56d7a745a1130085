"""Jobs on a Dask cluster: real schedulers and workers, which are killed. No wait is without end."""

import os
import select
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress

import distributed
import pandas as pd
import psutil
import pytest
import sandbox
from conftest import TINY

from skinlesion.cli import main
from skinlesion.config import make_config
from skinlesion.data.dataset import load_metadata
from skinlesion.data.near_duplicates import read_near_duplicates
from skinlesion.data.split import make_split
from skinlesion.demo.predict import list_files, predict
from skinlesion.demo.shards import predict_on_cluster
from skinlesion.evaluation.calibration import calibrate
from skinlesion.evaluation.cross_validate import cross_validate
from skinlesion.files import InputError, read_json, write_csv
from skinlesion.machine import LOCK_NAME
from skinlesion.model import cluster
from skinlesion.model.cluster import run_on_cluster
from skinlesion.model.jobs import Job
from skinlesion.model.train import train

LONGEST = 300
"""Seconds after which a test fails, whatever it waits for."""
MODULE = [sys.executable, "-m"]

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="processes end with their parent")


@pytest.fixture(autouse=True)
def without_hanging():
    def fail(*_):
        raise TimeoutError(f"the test took longer than {LONGEST} s")

    signal.signal(signal.SIGALRM, fail)
    signal.alarm(LONGEST)
    yield
    signal.alarm(0)


@pytest.fixture(scope="module")
def local():
    """A cluster of two workers in processes of their own, which Dask starts again when killed."""
    options = {"n_workers": 2, "threads_per_worker": 1, "dashboard_address": None}
    with distributed.LocalCluster(host="127.0.0.1", silence_logs=50, **options) as started:
        yield started.scheduler_address


@pytest.fixture
def scheduler():
    """A scheduler without workers."""
    options = {"n_workers": 0, "processes": False, "dashboard_address": None}
    with distributed.LocalCluster(protocol="tcp://", silence_logs=50, **options) as started:
        yield started.scheduler_address


@pytest.fixture
def start(tmp_path):
    """Start processes that are killed with the test; what they print goes to a file."""
    with ExitStack() as stack:

        def begin(command, **environment):
            log = stack.enter_context((tmp_path / "log").open("a"))
            options = {"stdout": log, "stderr": log, "env": os.environ | environment}
            process = stack.enter_context(subprocess.Popen(command, **options))
            stack.callback(process.kill)
            return process

        yield begin


@pytest.fixture
def start_worker(start, scheduler):
    """Start a worker, and wait until the scheduler has it."""

    def begin(*options, before=MODULE, **environment):
        command = [*before, "distributed.cli.dask_worker", scheduler, "--no-nanny", *options]
        process = start([*command, "--no-dashboard"], **environment)
        with distributed.Client(scheduler, set_as_default=False) as client:
            client.wait_for_workers(1, timeout=LONGEST)
        return process

    return begin


@pytest.fixture
def endless(tmp_path):
    """A job that waits for somebody to write into a pipe."""
    os.mkfifo(tmp_path / "pipe")
    return Job(tmp_path / "run", ["audit", str(tmp_path / "pipe"), "--data", str(tmp_path)])


def wait_until(find, given_up):
    """Look until there is something, or the test is over; return it."""
    ends = time.monotonic() + LONGEST
    while not (found := find()):
        assert time.monotonic() < ends and not given_up.is_set()
        time.sleep(0.01)
    return found


@contextmanager
def meanwhile(do, *arguments):
    """Do something in a thread, which gives up when the test fails."""
    given_up = threading.Event()
    with ThreadPoolExecutor() as pool:
        doing = pool.submit(do, *arguments, given_up)
        try:
            yield doing
        except BaseException:
            given_up.set()
            raise
    doing.result()


def open_pipe(job):
    """Open the pipe that an endless job reads; None before the job reads it."""
    with suppress(OSError):
        return os.open(job.command[1], os.O_WRONLY | os.O_NONBLOCK)


def wait_for_end_of(job, deed, given_up):
    """When the process of an endless job reads its pipe, do a deed, and wait for its end."""
    pipe = wait_until(lambda: open_pipe(job), given_up)
    deed()
    waiting = select.poll()
    waiting.register(pipe, select.POLLERR)  # nobody is left who reads it
    gone = waiting.poll(LONGEST * 1000)
    os.close(pipe)
    assert gone, "the process of the job lives on"


def kill_worker_of(run, given_up):
    """When a training has kept an epoch, kill its worker; return the epochs that it had kept."""
    state = run / "checkpoints" / "state.json"
    wait_until(state.is_file, given_up)
    training = psutil.Process(read_json(run / LOCK_NAME)["process"])
    training.parent().kill()
    training.wait(LONGEST)  # it is gone too
    assert not (run / "model").exists()
    return read_json(state)["rows"]


def test_a_killed_worker_changes_no_figure(local, sample, tmp_path):
    config = make_config("default", **TINY, limit=32, epochs=8, deterministic=True)
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    table, pairs = load_metadata(sample), read_near_duplicates()
    one, two = (make_split(table, fold=(number, 2), pairs=pairs) for number in (1, 2))
    csv = write_csv(whole / "splits" / "fold_1.csv", one)
    first, second = (whole / f"fold_{number}" / "seed_42" for number in (1, 2))
    calibrate(train(sample, first, config, splits=csv), sample)
    # The fold that is kept is not trained here either: the same model does.
    shutil.copytree(first, second)
    write_csv(second / "splits.csv", two)
    cross_validate(sample, whole, config, folds=2)
    shutil.copytree(whole / "fold_2", killed / "fold_2")  # finished earlier: it is kept
    with meanwhile(kill_worker_of, killed / "fold_1" / "seed_42") as kept:
        cross_validate(sample, killed, config, folds=2, scheduler=local)
    for name in ("folds.csv", "evaluation/metrics.json", "fold_1/seed_42/predictions_test.csv"):
        assert (killed / name).read_text() == (whole / name).read_text()
    # The epochs before the kill are those of the first worker, with the speed it had.
    history = pd.read_csv(killed / "fold_1" / "seed_42" / "history.csv")
    rows = pd.DataFrame(kept.result())
    assert len(rows) < len(history)
    pd.testing.assert_frame_equal(history.iloc[: len(rows)], rows)


def test_shards_give_the_file_of_one_process(local, trained_run, sample, tmp_path, capsys):
    (tmp_path / "notes.jpg").write_text("no image")
    paths = [*sorted(sample.glob("HAM10000_images_part_*")), tmp_path / "notes.jpg"]
    table = predict(trained_run, paths, tmp_path / "one.csv")
    # A shard that an earlier call has left.
    out = tmp_path / "many.csv"
    first = tmp_path / "many.csv.shards" / "000001.csv"
    predict(trained_run, list_files(paths)[:32], first)
    capsys.readouterr()
    joined = predict_on_cluster(trained_run, paths, out, local, shard=32)
    said = capsys.readouterr().out
    assert "cluster: 2 of 3 jobs left, 2 workers" in said
    assert "1 of 85 files cannot be predicted: notes.jpg" in said
    assert out.read_bytes() == (tmp_path / "one.csv").read_bytes()
    pd.testing.assert_frame_equal(joined, table, check_exact=True)
    assert not first.parent.exists()


def test_shards_of_other_images_are_refused(trained_run, pictures, tmp_path, monkeypatch):
    monkeypatch.setattr(cluster, "ANSWER", 1)
    folder, out = tmp_path / "images", tmp_path / "p.csv"
    folder.mkdir()
    shutil.copy(pictures[0], folder)
    for message in ("no Dask scheduler answers", "shards: holds parts of another prediction"):
        with pytest.raises(InputError, match=message):
            predict_on_cluster(trained_run, [folder], out, "tcp://127.0.0.1:1")
        shutil.copy(pictures[1], folder)


def test_a_job_ends_with_its_worker_and_is_given_up_without_another(
    scheduler, start_worker, endless, tmp_path
):
    worker = start_worker("--resources", "GPU=1", "--nthreads", "4")
    line = f"{scheduler}: has had no worker with a GPU"
    with (
        meanwhile(wait_for_end_of, endless, worker.kill),
        pytest.raises(ChildProcessError, match=line),
    ):
        run_on_cluster([endless], scheduler, tmp_path, alone=1)


def test_a_job_ends_with_the_command_that_waits_for_it(
    scheduler, start_worker, start, endless, tmp_path
):
    start_worker("--nthreads", "1")
    code = "import sys; from pathlib import Path; from skinlesion.model.jobs import Job; "
    code += "from skinlesion.model.cluster import run_on_cluster; "
    code += "run_on_cluster([Job(Path('x'), sys.argv[2:])], sys.argv[1], Path())"
    client = start([sys.executable, "-c", code, scheduler, *endless.command])
    wait_for_end_of(endless, client.kill, threading.Event())


def test_a_lost_scheduler_is_one_line(start, endless, tmp_path):
    place = tmp_path / "scheduler.json"
    options = ["--host", "127.0.0.1", "--port", "0", "--scheduler-file", str(place)]
    process = start([*MODULE, "distributed.cli.dask_scheduler", *options, "--no-dashboard"])
    wait_until(place.is_file, threading.Event())
    address = read_json(place)["address"]
    start([*MODULE, "distributed.cli.dask_worker", address, "--nthreads", "1", "--no-dashboard"])
    with distributed.Client(address, set_as_default=False) as client:
        client.wait_for_workers(1, timeout=LONGEST)
    line = f"{address}: the Dask scheduler is gone"
    with (
        meanwhile(wait_for_end_of, endless, process.kill),
        pytest.raises(ChildProcessError, match=line),
    ):
        run_on_cluster([endless], address, tmp_path)


def test_a_refused_job_says_why_and_stops_the_others(scheduler, start_worker, tmp_path):
    start_worker("--nthreads", "1")
    jobs = [Job(tmp_path / name, ["audit", f"{name}.csv"]) for name in ("a", "b")]
    with pytest.raises(InputError, match=r"refused, for error: \w\.csv: cannot be read as a split"):
        run_on_cluster(jobs, scheduler, tmp_path)
    late = Job(tmp_path / "c", ["sample", str(tmp_path / "c")])
    assert not run_on_cluster([late], scheduler, tmp_path, time_limit=1e-3)
    assert not late.place.exists()


class TestWhatDoesNotFit:
    def refuse(self, scheduler, message, tmp_path, needed=()):
        job = Job(tmp_path / "run", ["sample", str(tmp_path / "run")])
        with pytest.raises(InputError, match=message) as caught:
            run_on_cluster([job], scheduler, tmp_path / "shared", needed=needed)
        assert "\n" not in str(caught.value)
        assert not job.place.exists()

    def test_nobody_answers(self, tmp_path, monkeypatch):
        monkeypatch.setattr(cluster, "ANSWER", 1)
        with socket.create_server(("127.0.0.1", 0)) as silent:
            address = f"tcp://127.0.0.1:{silent.getsockname()[1]}"
            self.refuse(address, f"{address}: no Dask scheduler answers there", tmp_path)
        self.refuse(address, f"{address}: no Dask scheduler answers there", tmp_path)
        self.refuse("nonsense://x", "nonsense://x: no Dask scheduler", tmp_path)
        # Without the settings for TLS:
        self.refuse("tls://127.0.0.1:1", "tls://127.0.0.1:1: no Dask scheduler", tmp_path)

    def test_no_worker(self, scheduler, tmp_path):
        self.refuse(scheduler, f"{scheduler}: has no worker; start some", tmp_path)

    def test_other_versions(self, scheduler, start_worker, tmp_path):
        """The worker reports the version of what comes first on its path."""
        older = tmp_path / "older" / "distributed-2020.1.dist-info"
        older.mkdir(parents=True)
        (older / "METADATA").write_text("Metadata-Version: 2.1\nName: distributed\nVersion: 2020.1")
        others = os.environ.get("PYTHONPATH", "")
        start_worker("--nthreads", "1", PYTHONPATH=f"{older.parent}{os.pathsep}{others}")
        line = f"than this machine: distributed 2020.1, here {distributed.__version__}"
        self.refuse(scheduler, line, tmp_path)

    def test_a_worker_without_the_package(self, scheduler, start_worker, tmp_path):
        """With neither `site` nor the current folder, only its libraries are found."""
        path = os.pathsep.join(entry for entry in sys.path if entry.endswith("site-packages"))
        start_worker("--nthreads", "1", before=[sys.executable, "-S", "-P", "-m"], PYTHONPATH=path)
        self.refuse(scheduler, "this worker cannot use the package .*No module named", tmp_path)

    def test_a_worker_that_takes_several_jobs(self, scheduler, start_worker, tmp_path):
        start_worker("--nthreads", "2")
        self.refuse(scheduler, "several jobs at once; start it with --nthreads 1 or", tmp_path)

    @pytest.mark.skipif(not sandbox.is_possible(), reason="this machine allows no namespaces")
    def test_a_worker_that_sees_other_files(self, scheduler, start_worker, tmp_path):
        hide = ["unshare", "--mount", *(["--map-root-user"] if os.getuid() else []), "sh", "-c"]
        hide += ['mount -t tmpfs tmpfs "$0" && exec "$@"', str(tmp_path / "shared"), *MODULE]
        (tmp_path / "shared").mkdir()
        start_worker("--nthreads", "1", before=hide)
        self.refuse(scheduler, "this worker does not see .*shared; all workers need", tmp_path)

    def test_the_isic_form(self, capsys):
        command = ["predict", "--run", "r", "x.jpg", "--out", "p.csv", "--isic", "--scheduler", "s"]
        assert main(command) == 2
        assert "--isic predicts in one process" in capsys.readouterr().err


def test_a_job_whose_parent_is_gone_before_it_begins_ends_at_once():
    command = [*MODULE, "skinlesion", "--version"]
    ended = subprocess.run(command, env=os.environ | {"SKINLESION_PARENT": "0"}, check=False)
    assert ended.returncode == -signal.SIGKILL


def test_the_nanny_presets_do_not_reach_a_job(monkeypatch):
    """Dask's own values go; a value that somebody has chosen stays."""
    monkeypatch.setenv("MALLOC_TRIM_THRESHOLD_", "65536")
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    left = cluster._make_environment()
    assert "MALLOC_TRIM_THRESHOLD_" not in left
    assert left["OMP_NUM_THREADS"] == "3"
    assert left["PATH"] == os.environ["PATH"]


def test_a_job_waits_for_a_host_that_is_silent(tmp_path, monkeypatch):
    monkeypatch.setattr(cluster, "LOOK", 0)
    (tmp_path / LOCK_NAME).write_text('{"host": "elsewhere", "process": 1}')
    looks = iter(range(100))

    def is_wanted():
        if next(looks) == 3:  # its last sign of life was long ago
            os.utime(tmp_path / LOCK_NAME, (1, 1))
        return True

    cluster._wait_for_lock(tmp_path, is_wanted)
    assert not (tmp_path / LOCK_NAME).exists()
    assert next(looks) == 4
