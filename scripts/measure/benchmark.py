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

LIBRARIES = ("tensorflow", "keras", "numpy", "pillow", "onnxruntime")


def measure(contestants: Mapping[str, Callable[[], int]], *, repeat: int) -> dict[str, float]:
    """Median milliseconds an item of each contestant.

    They take turns, so that other load on the machine affects all of them. A first round warms up
    and does not count.

    Args:
        contestants: name to a function that does the work and returns the number of items.
        repeat: counted rounds.
    """
    times: dict[str, list[float]] = {name: [] for name in contestants}
    for turn in range(repeat + 1):
        for name, work in contestants.items():
            started = time.perf_counter()
            items = work()
            if turn:
                times[name].append(1000 * (time.perf_counter() - started) / items)
    return {name: statistics.median(values) for name, values in times.items()}


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
    facts |= {"cores": os.cpu_count(), "python": platform.python_version()}
    facts |= {"load": round(os.getloadavg()[0], 1)}
    for name in LIBRARIES:
        with contextlib.suppress(PackageNotFoundError):
            facts[name] = version(name)
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
