"""The command line: what a user types, sees and gets back, in real processes or by `main`."""

import os
import re
import subprocess
import sys

import pandas as pd
import pytest

from skinlesion.cli import main
from skinlesion.data import synthetic

COMMANDS = [
    "sample",
    "copy",
    "check",
    "split",
    "audit",
    "near-duplicates",
    "train",
    "cross-validate",
    "calibrate",
    "evaluate",
    "score",
    "compare",
    "predict",
    "export",
    "demo",
]


def skinlesion(*arguments, **environment):
    """Run a command the way a user does."""
    return subprocess.run(
        [sys.executable, "-m", "skinlesion", *map(str, arguments)],
        capture_output=True,
        text=True,
        env=os.environ | environment,
        check=False,
    )


def test_help_lists_every_command():
    shown = skinlesion("--help")
    assert shown.returncode == 0
    assert re.findall(r"^  ([a-z-]+)  ", shown.stdout, re.M)[-len(COMMANDS) :] == COMMANDS
    assert "..." not in shown.stdout.split("Commands:")[1]  # no description is cut off
    assert "not for clinical use" in shown.stdout


@pytest.mark.parametrize("command", COMMANDS)
def test_the_help_of_each_command_fits_a_screen_and_has_an_example(command, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "80")
    assert main([command, "--help"]) == 0
    shown = capsys.readouterr().out
    assert len(shown.splitlines()) <= 30
    assert f"Example:\n    python -m skinlesion {command} " in shown
    assert "--debug" in shown


def test_version():
    from skinlesion import __version__

    assert skinlesion("--version").stdout.strip() == f"skinlesion {__version__}"


def test_the_whole_way(tmp_path):
    """sample, copy, split, train, evaluate, predict: each reads what the one before wrote."""
    data, images, run = tmp_path / "sample", tmp_path / "images", tmp_path / "run"
    steps = [
        ("sample", data, "--images-per-class", 12),
        ("copy", "--data", data, "--out", images),
        ("split", "--data", images, "--out", tmp_path / "splits.csv", "--fold", "1/4"),
        ("train", "--data", images, "--splits", tmp_path / "splits.csv", "--run", run, "--weights",
         "none", "--image-size", 32, 48, "--epochs", 1, "--limit", 28, "--set", "top_stage=conv2"),
        ("audit", tmp_path / "splits.csv", "--data", images),
        ("evaluate", "--run", run, "--data", images, "--tta"),
        ("compare", run, run, "--out", tmp_path / "compared"),
        ("predict", "--run", run / "model", images / "ISIC_9000001.jpg", "--out",
         tmp_path / "p.csv"),
    ]  # fmt: skip
    for step in steps:
        finished = skinlesion(*step)
        assert finished.returncode == 0, finished.stderr
    assert "Synthetic sample" in finished.stdout
    assert "not for clinical use" in finished.stdout
    assert pd.read_csv(tmp_path / "p.csv")["prediction"].notna().all()
    assert (run / "evaluation" / "metrics.json").is_file()


def test_a_file_that_cannot_be_read_is_status_1_and_the_others_are_predicted(
    trained_run, sample, tmp_path
):
    image = next(sample.glob("*_part_1/*.jpg"))
    (tmp_path / "broken.jpg").write_bytes(b"no image")
    out = tmp_path / "p.csv"
    finished = skinlesion("predict", "--run", trained_run, image, tmp_path, "--out", out)
    assert finished.returncode == 1, finished.stderr
    table = pd.read_csv(out).set_index("file")
    assert table["error"].notna().sum() == 1
    assert table["prediction"].notna().sum() == 1


def test_damage_is_status_1_and_bad_input_status_2(flat_data, tmp_path):
    command = ("check", "--data", flat_data, "--out", tmp_path / "report")
    assert skinlesion(*command).returncode == 0
    next(flat_data.glob("*_part_1/*.jpg")).unlink()
    finished = skinlesion(*command)
    assert finished.returncode == 1
    assert "| rows without an image |     1 | ISIC_" in finished.stdout
    assert (tmp_path / "report/data_report.json").is_file()
    (flat_data / "HAM10000_metadata.csv").write_text("a,b")
    refused = skinlesion(*command)
    assert refused.returncode == 2
    assert refused.stderr.splitlines()[-1].startswith("error: ")
    assert "Traceback" not in refused.stderr


def test_a_leak_is_status_1(sample, tmp_path):
    splits = tmp_path / "s.csv"
    skinlesion("split", "--data", sample, "--out", splits, "--recipe", "original")
    finished = skinlesion("audit", splits, "--data", sample)
    assert finished.returncode == 1
    assert "not clean" in finished.stdout
    assert finished.stderr == ""


def test_the_variable_names_the_dataset(flat_data, tmp_path):
    out = tmp_path / "splits.csv"
    finished = skinlesion("split", "--out", out, HAM10000_DIR=str(flat_data))
    assert finished.returncode == 0, finished.stderr
    assert len(pd.read_csv(out)) == 98


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "Missing command"),
        (("nonsense",), "No such command 'nonsense'"),
        (("--nonsense",), "No such option: --nonsense"),
        (("sample",), "Missing argument 'OUT'"),
        (("train",), "Missing option '--run'"),
        (("train", "--run", "x", "--epoch", "3"), "No such option: --epoch"),
        (("train", "--run", "x", "--epochs", "two"), "valid integer"),
        (("train", "--run", "x", "--image-size", "64"), "requires 2 arguments"),
        (("train", "--run", "x", "--image-size", "64", "0"), "image_size: "),
        (("train", "--run", "x", "--time-limit", "0"), "Invalid value for '--time-limit'"),
        (("train", "--run", "x", "--set", "epochs"), "must be NAME=VALUE. Received: epochs"),
        (("train", "--run", "x", "--set", "epoch=3"), "did you mean epochs?"),
        (("split", "--data", "nowhere", "--out", "x.csv"), "no such folder"),
        (("split", "--data", "{flat}", "--out", "."), "is a folder; name a file to write"),
        (("split", "--fold", "2", "--out", "x.csv"), "must be K/N"),
        (("audit", "{binary}", "--data", "{flat}"), "cannot be read as a split file"),
        (("audit", "absent.csv", "--data", "nowhere"), "absent.csv: cannot be read"),
        (("sample", "/dev/null/x"), "cannot be"),
        (("copy", "--data", "{incomplete}", "--out", "x"), "or leave these out: allow_incomplete"),
        (("train", "--run", "{binary}"), "binary: is a file; name the folder of a run"),
        (
            (
                "train",
                "--run",
                "x",
                "--data",
                "{flat}",
                "--splits",
                "{predictions}",
                "--weights",
                "none",
            ),
            "a split file has image_id, lesion_id, dx, split, and this one image_id, MEL",
        ),
        (
            ("score", "--predictions", "{predictions}", "--truth", "{header}", "--out", "o"),
            "header: has a header but no row; expected a truth file",
        ),
        (("evaluate", "--run", "nowhere"), "nowhere: no such folder"),
        (("evaluate", "--run", "a", "--images", "b", "--truth", "c"), "with --out"),
        (("evaluate", "--run", "a", "--images", "b", "--out", "c"), "belong together"),
        (("evaluate", "--run", "a", "--out", "c"), "omit --out"),
        (("evaluate", "--run", "a", "--metadata", "c"), "--metadata is for external images"),
        (
            (
                "evaluate",
                "--run",
                "a",
                "--data",
                "d",
                "--images",
                "b",
                "--truth",
                "c",
                "--out",
                "o",
            ),
            "--data is for the test images of the run",
        ),
        (("score", "--predictions", "p", "--truth", "t", "--out", "o"), "cannot be read as a"),
        (("compare", "a", "b", "--out", "o"), "a: no such folder"),
        (("calibrate", "--run", "nowhere", "--costs", "absent.csv"), "nowhere: no such folder"),
        (("predict", "--run", "nowhere", "absent.jpg", "--out", "p.csv"), "no such"),
        (("export", "--run", "x", "--format", "tf", "--out", "y"), "Invalid value for '--format'"),
        (("demo", "--run", "x", "--port", "99999"), "Invalid value for '--port'"),
        (("demo", "--run", "x", "--auth", "me"), "must be USER:PASSWORD"),
    ],
)
def test_the_users_mistakes_get_one_clear_line_and_status_2(
    arguments, message, flat_data, tmp_path, capfd
):
    """By the function whose status is that of the process."""
    (tmp_path / "binary").write_bytes(bytes(range(256)) * 4)
    header = "image,MEL,NV,BCC,AKIEC,BKL,DF,VASC\n"
    (tmp_path / "header").write_text(header)
    (tmp_path / "predictions").write_text(f"{header}a,1.0,0.0,0.0,0.0,0.0,0.0,0.0\n")
    places = {f"{{{name}}}": tmp_path / name for name in ("binary", "header", "predictions")}
    places["{flat}"] = flat_data
    if "{incomplete}" in arguments:
        next(flat_data.rglob("*.jpg")).unlink()
        places["{incomplete}"] = flat_data
    assert main([str(places.get(argument, argument)) for argument in arguments]) == 2
    said = capfd.readouterr().err
    (line,) = [line for line in said.splitlines() if line.startswith("error: ")]
    assert message in line
    assert said.endswith(f"{line}\n")
    assert "Traceback" not in said


@pytest.mark.parametrize(
    "arguments", [("split", "--fold", "2", "--out", "x", "--debug"), ("--debug", "train")]
)
def test_debug_shows_the_traceback(arguments):
    finished = skinlesion(*arguments)
    assert finished.returncode == 2
    assert "Traceback" in finished.stderr
    assert finished.stderr.splitlines()[-1].startswith("error: ")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this machine has no named pipes")
def test_an_interrupt_is_status_130(tmp_path, monkeypatch, capsys):
    def interrupt(out, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr(synthetic, "make_sample", interrupt)
    assert main(["sample", str(tmp_path / "sample")]) == 130
    assert capsys.readouterr().err == "interrupted\n"
