"""Commands in real processes in which something goes wrong at a chosen moment.

Started as a program, this loads TensorFlow once and then forks a process for each command, which
takes a tenth of a second instead of five. In each process an audit hook counts what is done to
files: moments are numbered by that count, so that the same number is the same moment on every
machine.
"""

import ctypes
import errno
import fcntl
import itertools
import json
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

CHANGES = ("os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.link")
PIPE = 2**20
WRITING = os.O_WRONLY | os.O_CREAT | os.O_TRUNC


class Outcome(NamedTuple):
    """How a process ended.

    Attributes:
        status: its exit status; that of a killed process is the negative signal.
        out: what it printed.
        err: what it printed as errors.
        moments: what it did to files, in order; of a killed process, None.
    """

    status: int
    out: str
    err: str
    moments: list[str] | None


class Processes:
    """Starts commands of the package in processes of their own."""

    def __init__(self, program: subprocess.Popen[str]) -> None:
        self.program = program

    def run(self, *command: str | Path, watch: Path, **fault: Any) -> Outcome:
        """Run a command to its end.

        Args:
            command: as on the command line, or `decode DATA CACHE`.
            watch: the folder in which moments are counted.
            fault: see `break_at`; also `memory`, in MiB beside what the process has at its start,
                `bound=True`, which takes root's right to ignore permissions, and `links=False`, a
                file system without hard links.
        """
        return self._ask(command, watch, fault)[0]

    def run_within(self, *command: str | Path, watch: Path, **fault: Any) -> list[Outcome]:
        """Stop a command at a moment, run the same command to its end, and let the first go on."""
        return self._ask(command, watch, fault | {"do": "stop"})

    def _ask(self, command: Any, watch: Path, fault: dict[str, Any]) -> list[Outcome]:
        assert self.program.stdin and self.program.stdout
        request = {"command": [str(part) for part in command], "watch": str(watch)} | fault
        self.program.stdin.write(json.dumps(request) + "\n")
        self.program.stdin.flush()
        return [Outcome(*one) for one in json.loads(self.program.stdout.readline())]


@contextmanager
def start(folder: Path) -> Iterator[Processes]:
    """Start the program that starts the processes."""
    command = [sys.executable, __file__]
    variables = os.environ | {"SKINLESION_CACHE": str(folder / "cache")}
    # Freed memory goes back to the system; otherwise what is left of it lifts the limit of memory.
    variables["MALLOC_MMAP_THRESHOLD_"] = "65536"
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=variables
    ) as program:
        yield Processes(program)
        program.kill()


def serve() -> None:
    """Answer requests, a line each, until the input ends."""
    load()
    for line in sys.stdin:
        request = json.loads(line)
        one = Child(request)
        outcomes = []
        if request.get("do") == "stop" and one.stops():
            outcomes = [Child(request | {"do": None}).end()]
            os.kill(one.process, signal.SIGCONT)
        print(json.dumps([one.end(), *outcomes]), flush=True)


class Child:
    """A process for one command. It prints to pipes, which take everything on a full disk too."""

    def __init__(self, request: dict[str, Any]) -> None:
        self.pipes = [os.pipe() for _ in range(3)]
        for _, into in self.pipes:
            fcntl.fcntl(into, fcntl.F_SETPIPE_SZ, PIPE)  # all of it fits in
        self.status: int | None = None
        self.process = os.fork()
        if not self.process:
            try:
                os._exit(self.work(request))
            finally:  # the threads of libraries cannot be ended at an exit: they were not forked
                traceback.print_exc()
                os._exit(70)
        for _, into in self.pipes:
            os.close(into)

    def work(self, request: dict[str, Any]) -> int:
        for number in (1, 2):
            os.dup2(self.pipes[number - 1][1], number)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        if request.get("bound"):
            give_up_rights()
        if "memory" in request:
            bound_memory(request["memory"])
        if request.get("do") == "cut":
            signal.signal(signal.SIGXFSZ, signal.SIG_DFL)  # as every process but Python's has it
        moments = watch(request)
        from skinlesion import cli

        status = cli.main(request["command"])
        sys.stdout.flush()
        os.write(self.pipes[2][1], json.dumps(moments).encode())
        return status

    def stops(self) -> bool:
        """Wait until the process stands still; False if it has ended instead."""
        _, status = os.waitpid(self.process, os.WUNTRACED)
        self.status = None if os.WIFSTOPPED(status) else status
        return self.status is None

    def end(self) -> Outcome:
        """Wait for the end."""
        status = os.waitpid(self.process, 0)[1] if self.status is None else self.status
        said = []
        for out, _ in self.pipes:
            with os.fdopen(out, encoding="utf-8", errors="replace") as file:
                said.append(file.read())
        moments = json.loads(said[2]) if said[2] else None
        return Outcome(os.waitstatus_to_exitcode(status), said[0], said[1], moments)


def load() -> None:
    """Load what the commands use, without using it: what is in use cannot be forked."""
    import importlib.util

    from skinlesion import cli
    from skinlesion.machine import prepare_tensorflow

    prepare_tensorflow()
    from skinlesion.demo import predict  # noqa: F401
    from skinlesion.evaluation import calibration, compare, evaluate, export  # noqa: F401
    from skinlesion.model import train  # noqa: F401

    for name in ("tf2onnx", "onnx", "onnxruntime", "ai_edge_litert"):
        if importlib.util.find_spec(name):
            importlib.import_module(name)

    @cli.command("decode", "DATA CACHE")
    def decode(data: Path, cache: Path) -> None:
        """Decode the images of a dataset into a file."""
        from skinlesion.data.dataset import list_images
        from skinlesion.data.images import load_images

        load_images([*list_images(data).values()], image_size=(64, 64), cache=cache, budget=0)


def watch(request: dict[str, Any]) -> list[str]:
    """Count what is done to files in a folder, and let something go wrong at one moment.

    Returns:
        A line for each moment so far.
    """
    folder, moments, is_reading = request["watch"], [], request.get("reads", False)
    is_busy, numbers = False, itertools.count(1)

    def look(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal is_busy
        if event == "os.link" and not request.get("links", True):
            raise OSError(errno.EPERM, "a file system without links")
        is_opened = event == "open" and (is_reading or bool(arguments[2] & WRITING))
        if is_busy or not (is_opened or event in CHANGES):
            return
        place = arguments[event == "os.link"]
        path = os.fsdecode(place) if not isinstance(place, int) else ""
        # Removing a folder names its files without it.
        if not (path.startswith(folder) or (event != "open" and "/" not in path)):
            return
        # Unfinished files are named after their process.
        moments.append(f"{event} {re.sub(r'[.][0-9]+[.]part', '.part', Path(path).name)}")
        if next(numbers) == request.get("at"):  # whichever thread it is
            is_busy = True
            break_at(request)
            is_busy = False

    sys.addaudithook(look)
    return moments


def break_at(request: dict[str, Any]) -> None:
    """Do what goes wrong, just before the moment.

    `do` is `kill`; `cut`, which kills in the middle of the next large file; `full`, no more room on
    the disk; `stop`; `vanish`, the folder `input` is renamed; `back`, the clock of the day goes
    back by a year, and the other one stands still.
    """
    kind = request["do"]
    if kind == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    elif kind == "stop":
        os.kill(os.getpid(), signal.SIGSTOP)
    elif kind == "cut":
        resource.setrlimit(resource.RLIMIT_FSIZE, (request["size"], resource.RLIM_INFINITY))
    elif kind == "full":
        resource.setrlimit(resource.RLIMIT_FSIZE, (0, resource.RLIM_INFINITY))
    elif kind == "vanish":
        shutil.move(request["input"], f"{request['input']}.away")
    elif kind == "back":
        now, steady = time.time, time.monotonic()
        time.time = lambda: now() - 365 * 24 * 3600
        time.monotonic = lambda: steady


def give_up_rights() -> None:
    """Let permissions count for root too: no process capability is kept."""
    header = (ctypes.c_uint32 * 2)(0x20080522, 0)  # version 3, this process
    if ctypes.CDLL(None, use_errno=True).capset(header, (ctypes.c_uint32 * 6)()):
        raise OSError(ctypes.get_errno(), "capset")


def bound_memory(mebibytes: int) -> None:
    """Allow this process so many more MiB of addresses than it has."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    most = pages * resource.getpagesize() + mebibytes * 2**20
    resource.setrlimit(resource.RLIMIT_AS, (most, most))


if __name__ == "__main__":
    serve()
