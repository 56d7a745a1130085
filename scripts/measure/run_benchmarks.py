"""Run benchmarks on this processor and on an imitated older one, and write their tables.

    .venv/bin/python scripts/measure/run_benchmarks.py              # all
    .venv/bin/python scripts/measure/run_benchmarks.py inference    # only these, then all tables

All take 30 minutes on two cores, with nothing beside them. The results are JSON files in
`docs/results/benchmarks/`; the tables in `docs/benchmarks.md` are made from them. Weights in
SKINLESION_WEIGHTS are needed for training with frozen layers.
"""

import argparse
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent.parent
RESULTS = ROOT / "docs/results/benchmarks"
PAGE = ROOT / "docs/benchmarks.md"

PROCESSORS = {
    "this processor": {},
    "AVX2 only": {"ONEDNN_MAX_CPU_ISA": "AVX2"},
    "AVX2 only, oneDNN off": {"ONEDNN_MAX_CPU_ISA": "AVX2", "TF_ENABLE_ONEDNN_OPTS": "0"},
}
"""What each column of the tables is, as environment variables. The last one is what TensorFlow does
by itself on a processor with AVX2 only."""

NEW, OLD, OFF = PROCESSORS
BENCHMARKS = {
    "inference": ("bench_inference.py",),
    "training": (
        *("bench_training.py", "--image-size", "128", "128", "--steps", "3", "--repeat", "3"),
        *("--top-stage", "conv4", "--fine-tune-from", "conv3"),
    ),
    "overhead": ("bench_training.py", "--image-size", "128", "128", "--steps", "4"),
    "pipeline": ("bench_input_pipeline.py",),
    "estimate_64x64": (
        *("bench_estimate.py", "--image-size", "64", "64", "--images", "2100", "--epochs", "3"),
    ),
    "estimate_224x224": (
        *("bench_estimate.py", "--image-size", "224", "224", "--images", "420", "--epochs", "2"),
    ),
    "decoders": ("bench_decoders.py",),
    "profile": ("profile_training.py",),
}
"""Script and options of each benchmark."""
ROUNDS = {"training": 3}
"""How often a benchmark is run on each processor, in turns; the fastest run counts. Other programs
of the machine disturb training most, and columns are compared with each other."""
ONLY_ON = {
    "overhead": (NEW, OLD),
    "pipeline": (NEW, OLD),
    "estimate_64x64": (NEW, OLD),
    "estimate_224x224": (NEW, OLD),
    "decoders": (NEW,),
    "profile": (OLD,),
}
"""The processors on which a benchmark tells something; the others run on all."""

Results = dict[str, dict[str, Any]]


def run_benchmarks(names: list[str]) -> None:
    """Run benchmarks on their processors; a file of results for each benchmark."""
    RESULTS.mkdir(parents=True, exist_ok=True)
    for name in names:
        script, *options = BENCHMARKS[name]
        results: Results = {}
        for processor in ROUNDS.get(name, 1) * tuple(ONLY_ON.get(name, PROCESSORS)):
            print(f"\n{name}, {processor}", flush=True)
            out = RESULTS / "part.json"
            command: list[str | Path] = [sys.executable, ROOT / "scripts/measure" / script]
            command += [*options, "--out", out]
            subprocess.run(command, check=True, env=os.environ | PROCESSORS[processor])
            result = json.loads(out.read_text())
            out.unlink()
            earlier = results.get(processor, result)
            results[processor] = min(
                earlier, result, key=lambda one: sum(one["milliseconds"].values())
            )
        (RESULTS / f"{name}.json").write_text(json.dumps(results, indent=2) + "\n")


def read(name: str) -> Results:
    """The results of a benchmark, for each processor."""
    return json.loads((RESULTS / f"{name}.json").read_text())


def make_table(head: list[str], rows: list[list[str]]) -> str:
    """A Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def tabulate_machine() -> str:
    """What the results were measured on."""
    facts = read("inference")[NEW]["facts"]
    processor = {"processor": f"{facts['processor']}, {facts['cores']} cores"}
    shown = ("instructions", "python", "tensorflow", "keras", "numpy", "pillow")
    rows = [[name, str(value)] for name, value in processor.items()]
    rows += [[name, str(facts[name])] for name in shown]
    for processor_name, result in read("inference").items():
        names = ("TF_ENABLE_ONEDNN_OPTS", "ONEDNN_MAX_CPU_ISA")
        said = ", ".join(f"{name} {result['facts'][name]}" for name in names)
        rows.append([f"column '{processor_name}'", said])
    return make_table(["", ""], rows)


def tabulate_ratios(name: str) -> str:
    """The medians and ratios of a benchmark on each processor."""
    results = read(name)
    first = next(iter(results.values()))
    rows = [
        [f"{way}, ms", *(_shorten(result["milliseconds"][way]) for result in results.values())]
        for way in first["milliseconds"]
    ]
    rows += [
        [f"`{ratio}`", *(f"{result['ratios'][ratio]:.2g}" for result in results.values())]
        for ratio in first["ratios"]
    ]
    return make_table(["", *results], rows)


def _shorten(milliseconds: float) -> str:
    return f"{milliseconds:.0f}" if milliseconds >= 100 else f"{milliseconds:.3g}"


def tabulate_estimates() -> str:
    """Estimated and true seconds of training, for each size of images and processor."""
    rows = []
    for name in (name for name in BENCHMARKS if name.startswith("estimate")):
        for processor, result in read(name).items():
            seconds = [f"{value / 1000:.0f} s" for value in result["milliseconds"].values()]
            ratio = f"{result['ratios']['estimate']:.2f}"
            rows.append([name.removeprefix("estimate_"), processor, *seconds, ratio])
    return make_table(["images", "processor", "estimated", "true", "true / estimated"], rows)


def tabulate_training() -> str:
    """Images a second of the network alone, and what oneDNN gains on a processor with AVX2."""
    speeds = [result["facts"]["images_per_second"] for result in read("training").values()]
    row = [*(f"{speed:.1f}" for speed in speeds), f"{speeds[1] / speeds[2]:.1f}"]
    return make_table([*PROCESSORS, "AVX2 only: oneDNN on / off"], [row])


def tabulate_decoders() -> str:
    """Speed and difference of each way to decode; they do not depend on TensorFlow's kernels."""
    result = read("decoders")[NEW]
    rows = [
        [name, f"{median:.2f}", str(result["facts"].get(f"difference, {name}", ""))]
        for name, median in result["milliseconds"].items()
    ]
    return make_table(["", "milliseconds an image", "difference in grey levels"], rows)


def tabulate_profile() -> str:
    """Where the time of a training step goes, on the processor with AVX2 only."""
    result = read("profile")[OLD]
    rows = [
        [name, f"{median:.0f}", f"{result['ratios'][f'share, {name}']:.0%}"]
        for name, median in result["milliseconds"].items()
    ]
    return make_table(["", "milliseconds a step", "share"], rows)


def fill_tables(page: str) -> str:
    """Replace the tables in the text of the page, each between two comments that name it."""
    tables = {
        "machine": tabulate_machine(),
        "training": tabulate_training(),
        "inference": tabulate_ratios("inference"),
        "overhead": tabulate_ratios("overhead"),
        "pipeline": tabulate_ratios("pipeline"),
        "estimates": tabulate_estimates(),
        "decoders": tabulate_decoders(),
        "profile": tabulate_profile(),
    }
    for name, table in tables.items():
        start, end = f"<!-- table: {name} -->", "<!-- end -->"
        pattern = re.compile(f"{re.escape(start)}.*?{re.escape(end)}", re.DOTALL)
        page, count = pattern.subn(f"{start}\n{table}\n{end}", page)
        if count != 1:
            raise SystemExit(f"{PAGE}: {count} places for the table {name}")
    return page


def main() -> None:
    """Run the benchmarks and write the tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help="of a benchmark")
    parser.add_argument("--tables", action="store_true", help="only write the tables")
    arguments = parser.parse_args()
    if not arguments.tables:
        run_benchmarks(arguments.names or list(BENCHMARKS))
    PAGE.write_text(fill_tables(PAGE.read_text()))


if __name__ == "__main__":
    main()
