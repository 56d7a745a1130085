"""Kills, full disks, lost input, two processes at once, odd clocks, little memory; see faults.py.

Each step is tried in real processes. `scripts/test.py --full` tries more moments.
"""

import hashlib
import json
import os
import random
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import faults
import numpy as np
import pandas as pd
import pytest
from conftest import edit_bundle
from faults import Outcome, Processes
from PIL import Image

from skinlesion.data.ham10000 import METADATA_NAME
from skinlesion.evaluation.export import FORMS, generate_images
from skinlesion.model.run import Run

FULL = bool(os.environ.get("SKINLESION_FULL"))
KILLS, DISKS = (20, 6) if FULL else (2, 1)
TRAIN = (
    "train --data DATA --run OUT --weights none --image-size 32 32 --limit 14 --epochs 2 "
    "--batch-size 8 --deterministic --set top_stage=conv2"
)
VOLATILE = ("model.keras", "SHA256SUMS", "images_per_second")
"""What differs between two runs that are the same: Keras writes the date into its file."""


class Stage(NamedTuple):
    """A step of the work.

    Attributes:
        command: with DATA, RUN (trained and calibrated) and OUT for folders.
        weak: the moment at which a fault is most likely to do harm, as a pattern.
        begins_with: the stage whose result is in OUT before.
        links: whether the file system has hard links.
    """

    command: str
    weak: str
    begins_with: str | None = None
    links: bool = True


STAGES = {
    "copy": Stage("copy --data DATA --out OUT", f"os.rename .{METADATA_NAME}", None, False),
    "link": Stage("copy --data DATA --out OUT", "os.link"),
    "decode": Stage("decode DATA OUT", "os.rename"),
    "train": Stage(TRAIN, "open .state.json"),
    "calibrate": Stage("calibrate --run OUT --data DATA", "os.rename .model", "uncalibrated"),
    "evaluate": Stage(
        "evaluate --run OUT --data DATA", "open .*(model_card|metrics.json)", "train"
    ),
    "saved_model": Stage("export --run RUN --format saved_model --out OUT/net", "open .net.json"),
    "onnx": Stage("export --run RUN --format onnx --out OUT/net.onnx", "open .net.onnx.json"),
    "litert": Stage("export --run RUN --format litert --out OUT/net.tflite", "os.rename net"),
}
USUAL = [name for name in STAGES if FULL or name not in ("onnx", "litert")]


class Lab:
    """Runs the stages, disturbed or not."""

    def __init__(self, processes: Processes, data: Path, folder: Path) -> None:
        self.processes, self.data, self.folder = processes, data, folder
        self.moments: dict[str, list[str]] = {}

    def whole(self, stage: str) -> Path:
        """The result of a stage that nothing disturbed."""
        out = self.folder / stage
        if out.exists():
            return out
        if stage == "uncalibrated":
            shutil.copytree(self.whole("train"), out)
            run = Run(out)
            edit_bundle(run.model_dir, calibration=None)
            (out / "predictions_validation.csv").unlink()
            return out
        done = self.run(stage, out)
        assert done.status == 0, done.err
        assert done.moments
        self.moments[stage] = done.moments
        return out

    def run(self, stage: str, out: Path, **fault: Any) -> Outcome:
        options = {"watch": out, "links": STAGES[stage].links} | fault
        return self.processes.run(*self.command(stage, out), **options)

    def run_within(self, stage: str, out: Path, **fault: Any) -> list[Outcome]:
        """Run a stage twice at once: as `Processes.run_within`."""
        options = {"watch": out, "links": STAGES[stage].links} | fault
        return self.processes.run_within(*self.command(stage, out), **options)

    def command(self, stage: str, out: Path) -> list[str]:
        """The command of a stage; what it begins with is put in place."""
        begins_with = STAGES[stage].begins_with
        if not out.exists() and begins_with:
            shutil.copytree(self.whole(begins_with), out)
        run = self.whole("train") if "RUN" in STAGES[stage].command else ""
        words = {"DATA": str(self.data), "RUN": str(run), "OUT": str(out)}
        return re.sub("DATA|RUN|OUT", lambda found: words[found[0]], STAGES[stage].command).split()

    def choose(self, stage: str, count: int, kinds: tuple[str, ...]) -> Iterator[dict[str, Any]]:
        """The weak moment of a stage, then others by chance; the same ones each time."""
        self.whole(stage)
        moments = self.moments[stage]
        rng = random.Random(stage)
        weak = [n for n, moment in enumerate(moments, 1) if re.match(STAGES[stage].weak, moment)]
        opened = [n for n, moment in enumerate(moments, 1) if moment.startswith("open ")]
        for trial in range(count):
            kind = kinds[trial % len(kinds)]
            at = rng.choice(opened if kind == "cut" and opened else range(1, len(moments) + 1))
            sizes = (0, 10, 100)
            yield {"do": kind, "at": weak[-1] if trial == 0 else at, "size": rng.choice(sizes)}


@pytest.fixture(scope="module")
def lab(sample: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    folder = tmp_path_factory.mktemp("faults")
    with faults.start(folder) as processes:
        yield Lab(processes, sample, folder)


@pytest.fixture
def count(record_property: Callable[[str, object], None]) -> Callable[[str, int], None]:
    """Let the end of the report say how many trials held."""

    def note(what: str, number: int) -> None:
        line = f"{what}: {number} of {number}"
        print(line)
        record_property("trials", line)

    return note


def describe(stage: str, out: Path) -> dict[str, Any]:
    """All that a stage has made, in a form that can be compared."""
    made: dict[str, Any] = {}
    for path in sorted(path for path in out.rglob("*") if path.is_file()):
        name = str(path.relative_to(out))
        if stage == "decode" and "." in path.stem:
            continue  # left by a killed process: deleted after a day
        if path.name == "history.csv":
            made[name] = pd.read_csv(path).drop(columns="images_per_second").to_csv()
        elif path.name not in VOLATILE and "tensorboard" not in path.parts and stage not in FORMS:
            made[name] = path.read_bytes()
    if stage in FORMS:
        made |= {path.name: path.is_dir() for path in out.iterdir()}
        shown = [path for path in out.iterdir() if not path.name.startswith(".")]
        (network,) = (path for path in shown if path.suffix != ".json")
        images = generate_images((32, 32)).astype("float32")
        made["probabilities"] = np.round(FORMS[stage].open(network)(images), 4).tolist()
        facts = json.loads((out / f"{network.name}.json").read_text())
        assert facts.pop("largest_difference") < 1e-4
        made["facts"] = facts
    return made


def require_honest(stage: str, out: Path, whole: Path) -> None:
    """What looks finished after a fault is finished."""
    there = {path.relative_to(out) for path in out.rglob("*") if path.is_file()}
    finished = {path for path in there if not any(part.startswith(".") for part in path.parts)}
    if stage in ("copy", "link", "decode"):
        finished = {path for path in finished if path.suffix != ".part" and "." not in path.stem}
        assert all((out / path).read_bytes() == (whole / path).read_bytes() for path in finished)
    if out / METADATA_NAME in there or (out / "evaluation" / "metrics.json").is_file():
        assert describe(stage, whole).items() <= describe(stage, out).items()
    if stage in FORMS and any(path.suffix != ".json" for path in out.glob("net*")):
        describe(stage, out)
    if (out / "model").exists():
        sums = (out / "model" / "SHA256SUMS").read_text().splitlines()
        assert len(sums) >= 2
        for line in sums:
            digest, _, name = line.partition("  ")
            assert hashlib.sha256((out / "model" / name).read_bytes()).hexdigest() == digest
    if (out / "checkpoints" / "state.json").is_file():
        epoch = len(json.loads((out / "checkpoints" / "state.json").read_text())["rows"])
        np.load(out / "checkpoints" / f"epoch_{epoch:04}.npz").close()


def require_one_line(outcome: Outcome, status: int = 2) -> str:
    """A failure with one clear line; returns it."""
    assert outcome.status == status, (outcome.out[-500:], outcome.err[-2000:])
    assert "Traceback" not in outcome.err
    said = [line for line in outcome.err.splitlines() if line.startswith("error: ")]
    assert len(said) == 1, outcome.err[-2000:]
    assert outcome.err.splitlines()[-1] == said[0]
    return said[0]


def recover(lab: Lab, stage: str, out: Path, before: Outcome) -> None:
    """The same command ends as if nothing had been, and does no finished epoch again."""
    again = lab.run(stage, out)
    assert again.status == 0, again.err[-2000:]
    assert describe(stage, out) == describe(stage, lab.whole(stage))
    if "train: epoch 2" in before.out or "train: finished" in before.out:
        assert "train: epoch 1" not in again.out


@pytest.mark.parametrize("stage", USUAL)
def test_a_killed_step_is_repeated_and_ends_as_one_that_was_not(stage, lab, tmp_path, count):
    for trial, fault in enumerate(lab.choose(stage, KILLS, ("kill", "cut"))):
        out = tmp_path / str(trial)
        killed = lab.run(stage, out, **fault)
        what = f"{fault}: {lab.moments[stage][fault['at'] - 1]}"
        assert killed.status < 0, (what, killed)
        try:
            require_honest(stage, out, lab.whole(stage))
            recover(lab, stage, out, killed)
        except BaseException as error:
            error.add_note(what)
            raise
        shutil.rmtree(out)
    count(f"kills in {stage}", KILLS)


@pytest.mark.parametrize("stage", USUAL)
def test_a_full_disk_is_one_line_and_the_same_command_ends_right(stage, lab, tmp_path, count):
    if stage == "link":
        pytest.skip("a link takes no room")
    for trial, fault in enumerate(lab.choose(stage, DISKS, ("full",))):
        out = tmp_path / str(trial)
        opened = [n for n, m in enumerate(lab.moments[stage], 1) if m.startswith("open ")]
        later = [n for n in opened if n >= fault["at"]]
        failed = lab.run(stage, out, **fault | {"at": later[0] if later else opened[-1]})
        line = require_one_line(failed)
        assert "make room" in line
        assert "File too large" in line
        require_honest(stage, out, lab.whole(stage))
        recover(lab, stage, out, failed)
        shutil.rmtree(out)
    count(f"full disks in {stage}", DISKS)


@pytest.mark.parametrize("stage", [name for name in USUAL if name not in ("train", "calibrate")])
def test_two_processes_make_the_same(stage, lab, tmp_path, count):
    """One stands still at a moment while the other does everything."""
    for trial, fault in enumerate(lab.choose(stage, DISKS, ("stop",))):
        out = tmp_path / str(trial)
        one, two = lab.run_within(stage, out, **fault)
        assert two.status == 0, two.err[-2000:]
        if stage == "saved_model" and one.status:  # a folder is not replaced
            assert "Directory not empty" in require_one_line(one)
        else:
            assert one.status == 0, one.err[-2000:]
        assert describe(stage, out) == describe(stage, lab.whole(stage))
        shutil.rmtree(out)
    count(f"two at once in {stage}", DISKS)


def test_a_second_training_is_refused_and_the_first_ends_right(lab, tmp_path, count):
    for trial, fault in enumerate(lab.choose("train", DISKS, ("stop",))):
        out = tmp_path / str(trial)
        one, two = lab.run_within("train", out, **fault)
        assert one.status == 0, one.err[-2000:]
        if trial == 0 or two.status:  # by chance, the first stands still before it has the lock
            assert f"{out}: is being trained by process " in require_one_line(two)
        assert describe("train", out) == describe("train", lab.whole("train"))
        shutil.rmtree(out)
    count("two at once in train", DISKS)


@pytest.mark.parametrize("stage", ["copy", "decode", "train", "calibrate", "evaluate"])
def test_input_that_vanishes_is_one_line_and_the_same_command_ends_right(
    stage, lab, tmp_path, count
):
    """The folder of the images is renamed while they are read."""
    lab.whole(stage)
    data = tmp_path / "data"
    rng = random.Random(stage)
    for trial in range(DISKS):
        out = tmp_path / str(trial)
        shutil.copytree(lab.data, data)
        command = [str(data) if word == str(lab.data) else word for word in lab.command(stage, out)]
        at = {"watch": data, "reads": True, "at": rng.randrange(3, 17), "links": False}
        failed = lab.processes.run(*command, do="vanish", input=str(data), **at)
        line = require_one_line(failed)
        assert "cannot be read" in line or "cannot be used" in line or "no such folder" in line
        require_honest(stage, out, lab.whole(stage))
        Path(f"{data}.away").rename(data)
        again = lab.processes.run(*command, watch=out, links=False)
        assert again.status == 0, again.err[-2000:]
        made, whole = describe(stage, out), describe(stage, lab.whole(stage))
        if stage == "decode":  # the name holds the dates of the images
            made, whole = ([content[:-72] for content in x.values()] for x in (made, whole))
        for one in (made, whole):
            one.pop("config.json", None) if isinstance(one, dict) else None  # names the folder
        assert made == whole
        shutil.rmtree(data)
    count(f"lost input in {stage}", DISKS)


def test_read_only_input_is_enough_and_a_read_only_run_is_one_line(lab, tmp_path):
    data, run = tmp_path / "data", tmp_path / "run"
    shutil.copytree(lab.data, data)
    shutil.copytree(lab.whole("train"), run)
    closed = [path for place in (data, run) for path in (place, *place.rglob("*"))]
    for path in closed:
        path.chmod(0o555 if path.is_dir() else 0o444)
    try:
        out = tmp_path / "out"
        options = {"watch": out, "bound": True}
        for command in (
            ("copy", "--data", data, "--out", out / "images"),
            ("decode", data, out / "cache"),
            ("predict", "--run", run, data / "HAM10000_images_part_1", "--out", out / "table.csv"),
            ("export", "--run", run, "--format", "saved_model", "--out", out / "net"),
        ):
            done = lab.processes.run(*command, **options)
            assert done.status == 0, done.err[-2000:]
        failed = lab.processes.run("evaluate", "--run", run, "--data", data, **options)
        assert "cannot be written (Permission denied)" in require_one_line(failed)
    finally:
        for path in closed:
            path.chmod(0o755)


def test_a_clock_that_goes_back_changes_no_result(lab, tmp_path, count):
    """In the middle of training, the clock of the day loses a year and the other one stops."""
    for trial, fault in enumerate(lab.choose("train", DISKS, ("back",))):
        out = tmp_path / str(trial)
        done = lab.processes.run(
            *lab.command("train", out), "--time-limit", "1", watch=out, **fault
        )
        assert done.status == 0, done.err[-2000:]
        assert describe("train", out) == describe("train", lab.whole("train"))
        shutil.rmtree(out)
    count("clocks in train", DISKS)


def test_little_memory_is_a_right_result_or_one_line(lab, tmp_path, count):
    """The limit is that of addresses (RLIMIT_AS), beside what TensorFlow has mapped already."""
    folder = tmp_path / "images"
    folder.mkdir()
    Image.new("RGBA", (6000, 4000), "brown").save(folder / "ISIC_1.jpg", "PNG")
    command = ["decode", str(folder), str(tmp_path / "cache")]
    results = []
    for memory in (1024, 32) if not FULL else (1024, 512, 256, 128, 64, 32):
        shutil.rmtree(tmp_path / "cache", ignore_errors=True)
        done = lab.processes.run(*command, watch=tmp_path, memory=memory)
        results.append(done.status)
        if done.status:
            assert "memory" in require_one_line(done).lower()
            assert not list((tmp_path / "cache").glob("*.npy"))
    assert results[0] == 0
    assert results[-1] != 0
    count("memory limits in decode", len(results))
