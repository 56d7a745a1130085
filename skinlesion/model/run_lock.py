"""One training at a time in the folder of a run."""

import json
import os
import platform
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from skinlesion.files import InputError, is_running, name_part
from skinlesion.machine import LOCK_NAME, say

HEARTBEAT = 30
"""Seconds between two signs of life: the modification time of the lock file."""
SILENCE = 300
"""After this many seconds without a sign of life, the lock of another host is taken over."""


@contextmanager
def lock_run(folder: Path) -> Iterator[None]:
    """Hold the lock of a run: a file that names the host and the process.

    A lock whose process is gone is taken over. On this host the process itself is looked for; on
    another one, its signs of life.

    Args:
        folder: of the run; is created.

    Raises:
        InputError: another process trains this run, or the folder cannot be written.
    """
    path = folder / LOCK_NAME
    try:
        folder.mkdir(parents=True, exist_ok=True)
        while not _create(path):
            _remove_stale(path)
    except OSError as error:
        raise InputError(
            f"{folder}: cannot be written ({error.strerror}); make room or choose another place"
        ) from error
    released = threading.Event()

    def give_signs() -> None:
        while not released.wait(HEARTBEAT):
            with suppress(OSError):  # a network drive may be away for a moment
                os.utime(path)

    thread = threading.Thread(target=give_signs, daemon=True)
    thread.start()
    try:
        yield
    finally:
        released.set()
        thread.join()
        path.unlink(missing_ok=True)


def _create(path: Path) -> bool:
    """Create the lock, with its content or not at all; False if there is one."""
    content = json.dumps({"host": platform.node(), "process": os.getpid()})
    part = name_part(path)
    try:
        part.write_text(content, encoding="utf-8")
        try:
            os.link(part, path)
        except FileExistsError:
            return False
        except OSError:  # a file system without hard links
            return _create_empty(path, content)
    finally:
        part.unlink(missing_ok=True)
    return True


def _create_empty(path: Path, content: str) -> bool:
    try:
        with path.open("x", encoding="utf-8") as file:
            file.write(content)
    except FileExistsError:
        return False
    except OSError:
        path.unlink(missing_ok=True)
        raise
    return True


def _remove_stale(path: Path) -> None:
    """Remove a lock whose process is gone.

    Raises:
        InputError: the process is not gone.
    """
    try:
        silence = time.time() - path.stat().st_mtime
        holder = json.loads(path.read_text(encoding="utf-8"))
        host, process = str(holder["host"]), int(holder["process"])
    except FileNotFoundError:  # released just now
        return
    except (ValueError, KeyError, TypeError):  # being written just now, or damaged
        host, process = "an unknown host", 0
    # Windows cannot be asked for a process without disturbing it.
    is_here = host == platform.node() and os.name == "posix"
    is_gone = is_here and not is_running(process)
    if not (is_gone or (silence > SILENCE and not is_here)):
        raise InputError(
            f"{path.parent}: is being trained by process {process} on {host}; wait for it, or give "
            f"this training another name (if it is gone, delete {path})"
        )
    reason = "is gone" if is_gone else f"gave no sign of life for {silence / 60:.0f} minutes"
    say(f"train: taking over {path.parent} from process {process} on {host}, which {reason}")
    path.unlink(missing_ok=True)
