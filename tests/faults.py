"""Commands in real processes in which something goes wrong at a chosen moment.

Started as a program, this loads TensorFlow once and then forks a process for each command, which
takes a tenth of a second instead of five. In each process an audit hook counts what is done to
files: moments are numbered by that count, so that the same number is the same moment on every
machine.
"""

import ctypes
import errno
import json
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

CHANGES = ("os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.link", "os.utime")
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC


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

    def __init__(self, program: subprocess.Popen[str], folder: Path) -> None:
        self.program, self.folder = program, folder

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
        self.program.stdin.write(json.dumps(request | {"folder": str(self.folder)}) + "\n")
        self.program.stdin.flush()
        return [Outcome(*one) for one in json.loads(self.program.stdout.readline())]


@contextmanager
def start(folder: Path) -> Iterator[Processes]:
    """Start the program that starts the processes."""
    command = [sys.executable, __file__]
    variables = os.environ | {"SKINLESION_CACHE": str(folder / "cache")}
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=variables
    ) as program:
        yield Processes(program, folder)
        program.kill()


def serve() -> None:
    """Answer requests, a line each, until the input ends."""
    load()
    for line in sys.stdin:
        request = json.loads(line)
        places = [Path(request["folder"]) / name for name in ("one", "two")]
        one = fork(request, places[0])
        outcomes = []
        if request.get("do") == "stop":
            _, status = os.waitpid(one, os.WUNTRACED)
            if os.WIFSTOPPED(status):
                outcomes = [wait(fork(request | {"do": None}, places[1]), places[1])]
                os.kill(one, signal.SIGCONT)
                outcomes.insert(0, wait(one, places[0]))
            else:
                outcomes = [read(status, places[0])]
        else:
            outcomes = [wait(one, places[0])]
        print(json.dumps(outcomes), flush=True)


def wait(process: int, place: Path) -> Outcome:
    return read(os.waitpid(process, 0)[1], place)


def read(status: int, place: Path) -> Outcome:
    moments = place.with_suffix(".moments")
    return Outcome(
        os.waitstatus_to_exitcode(status),
        place.with_suffix(".out").read_text(),
        place.with_suffix(".err").read_text(),
        json.loads(moments.read_text()) if moments.is_file() else None,
    )


def fork(request: dict[str, Any], place: Path) -> int:
    """Start a process for one command, which prints to files."""
    place.with_suffix(".moments").unlink(missing_ok=True)
    if process := os.fork():
        return process
    for number, ending in ((1, ".out"), (2, ".err")):
        os.dup2(os.open(place.with_suffix(ending), os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if request.get("bound"):
        give_up_rights()
    if "memory" in request:
        bound_memory(request["memory"])
    moments = watch(request)
    from skinlesion import cli

    status = cli.main(request["command"])
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY,) * 2)
    place.with_suffix(".moments").write_text(json.dumps(moments))
    sys.stdout.flush()
    os._exit(status)  # the threads of libraries are not there to be ended: they are not forked


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
        from skinlesion.data.ham10000 import list_images
        from skinlesion.data.images import load_images

        load_images([*list_images(data).values()], image_size=(64, 64), cache=cache, budget=0)


def watch(request: dict[str, Any]) -> list[str]:
    """Count what is done to files in a folder, and let something go wrong at one moment.

    Returns:
        A line for each moment so far.
    """
    folder, moments, is_reading = request["watch"], [], request.get("reads", False)
    is_busy = False

    def look(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal is_busy
        if event == "os.link" and not request.get("links", True):
            raise OSError(errno.EPERM, "a file system without links")
        is_opened = event == "open" and (is_reading or bool(arguments[2] & WRITING))
        if is_busy or not (is_opened or event in CHANGES):
            return
        path = os.fsdecode(arguments[0]) if not isinstance(arguments[0], int) else ""
        # Removing a folder names its files without it.
        if not (path.startswith(folder) or (event != "open" and "/" not in path)):
            return
        # Unfinished files are named after their process.
        moments.append(f"{event} {re.sub(r'[.][0-9]+[.]part', '.part', Path(path).name)}")
        if len(moments) == request.get("at"):
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
        signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
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
