"""The command line as real processes: what a user types, sees and gets back."""

import os
import re
import subprocess
import sys

import pandas as pd
import pytest

COMMANDS = [
    "sample",
    "copy",
    "check",
    "split",
    "audit",
    "near-duplicates",
    "train",
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
    clean = {k: v for k, v in os.environ.items() if k not in ("HAM10000_DIR", "SKINLESION_WEIGHTS")}
    return subprocess.run(
        [sys.executable, "-m", "skinlesion", *map(str, arguments)],
        capture_output=True,
        text=True,
        env=clean | environment,
        check=False,
    )


def test_help_lists_every_command():
    shown = skinlesion("--help")
    assert shown.returncode == 0
    assert re.findall(r"^  ([a-z-]+)  ", shown.stdout, re.M)[-len(COMMANDS) :] == COMMANDS
    assert "not for clinical use" in shown.stdout


@pytest.mark.parametrize("command", COMMANDS)
def test_the_help_of_each_command_fits_a_screen_and_has_an_example(command):
    shown = skinlesion(command, "--help")
    assert shown.returncode == 0
    assert len(shown.stdout.splitlines()) <= 30
    assert f"Example: python -m skinlesion {command} " in " ".join(shown.stdout.split())


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


def test_damage_is_status_1(flat_data):
    assert skinlesion("check", "--data", flat_data).returncode == 0
    next(flat_data.glob("*_part_1/*.jpg")).unlink()
    finished = skinlesion("check", "--data", flat_data)
    assert finished.returncode == 1
    assert "rows without an image: 1. ISIC_" in finished.stdout


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
        (("split", "--data", "nowhere", "--out", "x.csv"), "there is no such folder"),
        (("evaluate", "--run", "nowhere"), "nowhere: no such folder"),
        (("train", "--run", "x", "--epochs", "two"), "valid integer"),
        (("sample", "/dev/null/x"), "cannot be"),
        (("evaluate", "--run", "a", "b"), "name a folder for the results with --out"),
        (("evaluate", "--run", "a", "--images", "b", "--out", "c"), "belong together"),
        (("evaluate", "--run", "a", "--out", "c"), "leave out --out"),
        (
            ("score", "--predictions", "p", "--truth", "t", "--out", "o"),
            "cannot be read as a truth",
        ),
        (("split", "--data", "{flat}", "--out", "."), "is a folder; name a file to write"),
        (("audit", "{binary}", "--data", "{flat}"), "cannot be read as a split file"),
        (("compare", "a", "b", "--out", "o"), "a: no such folder"),
        (("audit", "absent.csv", "--data", "nowhere"), "absent.csv: cannot be read"),
        (("train", "--run", "x", "--image-size", "64", "0"), "image_size: "),
        (("split", "--fold", "2", "--out", "x.csv"), "must be K/N"),
        (("train", "--run", "x", "--recipe", "best"), "unknown recipe 'best'"),
        (("train", "--run", "x", "--set", "epochs"), "must be NAME=VALUE, not 'epochs'"),
        (("train", "--run", "x", "--set", "mixing=mixup"), "unknown setting mixing"),
        (("train", "--run", "x", "--epoch", "3"), "No such option: --epoch"),
        (("nonsense",), "No such command 'nonsense'"),
        ((), "Missing command"),
        (("train", "--run", "x", "--time-limit", "0"), "a number of hours above 0"),
        (("predict", "--run", "nowhere", "absent.jpg", "--out", "p.csv"), "no such"),
    ],
)
def test_the_users_mistakes_get_one_clear_line_and_status_2(
    arguments, message, flat_data, tmp_path
):
    (tmp_path / "binary").write_bytes(bytes(range(256)) * 4)
    places = {"{flat}": flat_data, "{binary}": tmp_path / "binary"}
    finished = skinlesion(*[places.get(argument, argument) for argument in arguments])
    assert finished.returncode == 2
    assert message in finished.stderr.splitlines()[-1]
    assert "Traceback" not in finished.stderr


def test_debug_shows_the_traceback():
    finished = skinlesion("evaluate", "--run", "nowhere", "--debug")
    assert finished.returncode == 2
    assert "Traceback" in finished.stderr
