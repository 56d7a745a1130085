"""What a run was made with: the software, the machine and the commit."""

import os
import platform
import subprocess
from importlib.metadata import distributions
from pathlib import Path
from typing import Any

from skinlesion import __version__
from skinlesion.machine import CPU_INFO, list_gpus

LIBRARIES = ("tensorflow", "keras", "numpy", "pandas", "scikit-learn", "pillow", "gradio")
"""The libraries that `config.json` names; `environment.json` has all packages."""

VARIABLES = (
    *(f"TF_{part}" for part in ("CUBLAS_", "CUDNN_", "DETERMINISTIC_", "DISABLE_", "ENABLE_")),
    *(f"TF_{part}" for part in ("FORCE_", "GPU_", "NUM_", "USE_", "XLA_")),
    *("CUBLAS_", "CUDA_", "CUDNN_", "KERAS_", "MKL_", "NVIDIA_TF32_", "OMP_", "ONEDNN_"),
    *("OPENBLAS_", "PYTHONHASHSEED", "XLA_"),
)
"""How the names of variables begin that can change what is computed. No other variable is written
down: some hold passwords, such as `TF_TOKEN_...` of Terraform."""

CPU_FLAGS = ("avx", "amx", "fma", "f16c", "sse4", "asimd", "sve", "bf16")
"""How the names of instruction sets begin by which libraries choose their kernels."""


def describe_versions() -> dict[str, str | None]:
    """The versions of the package, of Python and of the libraries; None: not installed."""
    packages = _list_packages()
    found = {"skinlesion": __version__, "python": platform.python_version()}
    return found | {name: packages.get(name) for name in LIBRARIES}


def describe_environment() -> dict[str, Any]:
    """What `environment.json` holds: everything around a run that can change its weights.

    Returns:
        `python`, `platform`, `cpu` (`model`, `cores`, `flags`; only Linux tells model and flags),
        `gpus` (names), `variables` (those of `VARIABLES` that are set) and `packages` (the version
        of each installed package).
    """
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpu": {**_read_cpu(), "cores": os.cpu_count()},
        "gpus": list_gpus(),
        "variables": {
            name: value for name, value in sorted(os.environ.items()) if name.startswith(VARIABLES)
        },
        "packages": _list_packages(),
    }


def find_commit() -> str | None:
    """The commit of the package's own checkout, with `+changes` if files differ from it.

    None where the package is not in a checkout of its own.
    """
    folder = Path(__file__).parent.parent

    def git(*arguments: str) -> str:
        command = ["git", "--no-optional-locks", "-C", str(folder), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    try:
        if not git("ls-files", "model/run.py"):
            return None  # installed into a folder that some other repository ignores
        changed = git("status", "--porcelain", "--untracked-files=no", ".")
        return git("rev-parse", "HEAD") + ("+changes" if changed else "")
    except (OSError, subprocess.CalledProcessError):
        return None


def _list_packages() -> dict[str, str]:
    """The version of each installed package, by its name in lower case with hyphens."""
    # Of a package that is there twice, the first one is imported.
    found: dict[str, str] = {}
    for package in distributions():
        # An interrupted pip leaves folders without a name.
        if name := package.metadata["Name"]:
            found.setdefault(name.lower().replace("_", "-"), package.version)
    return dict(sorted(found.items()))


def _read_cpu() -> dict[str, Any]:
    facts = {}
    if CPU_INFO.is_file():
        lines = [line.partition(":") for line in CPU_INFO.read_text("utf-8").splitlines()]
        facts = {name.strip(): value.strip() for name, _, value in lines}
    flags = (facts.get("flags") or facts.get("Features") or "").split()  # Intel's name, and ARM's
    return {
        "model": facts.get("model name"),
        "flags": [flag for flag in flags if flag.startswith(CPU_FLAGS)],
    }
