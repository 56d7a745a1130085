"""Processes that see another machine: other folders at the root of the file system, no network."""

import os
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

LOOPBACK_UP = """\
import fcntl, socket, struct
UP_AND_RUNNING, SIOCSIFFLAGS = 0x41, 0x8914
request = struct.pack("16sh22x", b"lo", UP_AND_RUNNING)
fcntl.ioctl(socket.socket(), SIOCSIFFLAGS, request)
"""

# $1 is an empty folder that becomes the root; $2 a file of lines: kind, source, place.
ENTER = """\
set -e
root=$1
mount -t tmpfs tmpfs "$root"
for entry in /*; do
    if [ -L "$entry" ]; then cp -P "$entry" "$root$entry"
    elif [ -d "$entry" ]; then mkdir "$root$entry"; mount --rbind "$entry" "$root$entry"
    fi
done
while IFS="$(printf '\\t')" read -r kind source place; do
    if [ -d "$source" ]; then mkdir -p "$root$place"; fi
    mount --bind "$source" "$root$place"
    if [ "$kind" = read_only ]; then mount -o remount,bind,ro "$root$place"; fi
done < "$2"
"$PYTHON" -c "$LOOPBACK_UP"
shift 2
exec chroot "$root" env -C "$WORKING" "$@"
"""

# As another user than root, one is root in a namespace of one's own.
UNSHARE = ["unshare", "--mount", "--net", *(["--user", "--map-root-user"] if os.getuid() else [])]


def is_possible() -> bool:
    """Whether this machine lets us make such processes."""
    if not shutil.which("unshare"):
        return False
    return subprocess.run([*UNSHARE, "true"], capture_output=True, check=False).returncode == 0


def run(
    *command: str | Path,
    tmp: Path,
    read_only: dict[str, Path],
    writable: dict[str, Path],
    cwd: str,
    **environment: str,
) -> subprocess.CompletedProcess[str]:
    """Run a command on a machine with more folders and no network, where the package is missing.

    Args:
        *command: what to run.
        tmp: an empty folder for the machine's own use.
        read_only: place to the folder that is shown there.
        writable: the same, writable.
        cwd: where the command starts.
        **environment: variables, beside PATH.
    """
    root, mounts, home, scratch = (tmp / name for name in ("root", "mounts", "home", "scratch"))
    for folder in (root, home, scratch):
        folder.mkdir()
    # The tests' own environment has the package: the file that makes it importable is hidden.
    packages = Path(sys.prefix).glob("lib/python*/site-packages/__editable__*skinlesion*.pth")
    lines = [f"writable\t/dev/null\t{path}" for path in packages]
    for kind, folders in (("writable", writable), ("read_only", read_only)):
        lines += [f"{kind}\t{source}\t{place}" for place, source in folders.items()]
    mounts.write_text("".join(f"{line}\n" for line in lines))
    variables = {
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "HOME": str(home),
        "TMPDIR": str(scratch),
        "PYTHON": sys.executable,
        "LOOPBACK_UP": LOOPBACK_UP,
        "WORKING": cwd,
        "TF_CPP_MIN_LOG_LEVEL": "2",
        **environment,
    }
    return subprocess.run(
        [*UNSHARE, "sh", "-c", ENTER, "sh", root, mounts, *command],
        env=variables,
        capture_output=True,
        text=True,
        check=False,
    )


def describe(finished: subprocess.CompletedProcess[str]) -> str:
    """The end of what a process printed."""
    return textwrap.indent(finished.stdout[-2000:] + finished.stderr[-4000:], "    ")
