"""Shared by the benchmarks: contestants take turns, and their medians are compared."""

import contextlib
import json
import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from skinlesion.machine import CPU_INFO

FLAGS = ("avx2", "avx512f", "avx512_vnni", "amx_tile")
VARIABLES = ("TF_ENABLE_ONEDNN_OPTS", "ONEDNN_MAX_CPU_ISA", "OMP_NUM_THREADS")
"""What decides which kernels TensorFlow uses. The package sets the first one on import."""
LIBRARIES = ("tensorflow", "keras", "numpy", "pillow", "onnxruntime")


def measure(
    contestants: Mapping[str, Callable[[], int]],
    *,
    repeat: int,
    summarise: Callable[[list[float]], float] = statistics.median,
) -> dict[str, float]:
    """Milliseconds an item of each contestant, the median of all rounds.

    They take turns, so that other load on the machine affects all of them. A first round warms up
    and does not count.

    Args:
        contestants: name to a function that does the work and returns the number of items.
        repeat: counted rounds.
        summarise: takes the times of the rounds; `min` is steadier where other programs disturb.
    """
    times: dict[str, list[float]] = {name: [] for name in contestants}
    for turn in range(repeat + 1):
        for name, work in contestants.items():
            started = time.perf_counter()
            items = work()
            if turn:
                times[name].append(1000 * (time.perf_counter() - started) / items)
    return {name: summarise(values) for name, values in times.items()}


def report(
    medians: Mapping[str, float],
    ratios: Mapping[str, float],
    *,
    item: str,
    out: Path | None,
    **facts: Any,
) -> None:
    """Print the medians and ratios as a table, and write them as JSON.

    Args:
        medians: from `measure`.
        ratios: name to ratio of two medians.
        item: what one item is.
        out: JSON file; None writes none.
        **facts: what else belongs to the result.
    """
    facts |= describe_machine()
    for name, value in facts.items():
        print(f"{name:<30}{value}")
    for name, median in medians.items():
        print(f"{name:<30}{median:10.3f} ms a {item}")
    for name, ratio in ratios.items():
        print(f"{name:<30}{ratio:10.3f}")
    if out:
        out.parent.mkdir(parents=True, exist_ok=True)
        result = {"ratios": dict(ratios), "milliseconds": dict(medians), "facts": facts}
        out.write_text(json.dumps(result, indent=2) + "\n")


def describe_machine() -> dict[str, Any]:
    """The processor, what of it TensorFlow uses, and the versions of the libraries."""
    facts: dict[str, Any] = {"processor": platform.machine(), "cores": os.cpu_count()}
    if CPU_INFO.is_file():
        lines = [line.partition(":") for line in CPU_INFO.read_text().splitlines()]
        known = {name.strip(): value.strip() for name, _, value in lines}
        facts["processor"] = f"{known['model name']}, family {known['cpu family']}"
        facts["instructions"] = " ".join(name for name in FLAGS if name in known["flags"].split())
    facts |= {name: os.environ.get(name, "not set") for name in VARIABLES}
    facts |= {"python": platform.python_version(), "load": round(os.getloadavg()[0], 1)}
    for name in LIBRARIES:
        with contextlib.suppress(PackageNotFoundError):
            facts[name] = version(name)
    return facts
