import os
import subprocess
import sys
from pathlib import Path

import pytest

from skinlesion import machine
from skinlesion.machine import (
    bring_earlier,
    default_images_dir,
    default_weights,
    default_work_dir,
    describe,
    find_platform,
    how_to_attach,
    list_gpus,
)

WEIGHTS_NAME = "resnet50_weights_tf_dim_ordering_tf_kernels_notop.h5"


@pytest.fixture
def laptop(monkeypatch, tmp_path):
    monkeypatch.delenv("KAGGLE_KERNEL_RUN_TYPE", raising=False)
    monkeypatch.delenv("SKINLESION_CACHE", raising=False)
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def kaggle(laptop, monkeypatch, tmp_path):
    """A Kaggle session whose input is an empty folder: yields that folder."""
    monkeypatch.setenv("KAGGLE_KERNEL_RUN_TYPE", "Interactive")
    monkeypatch.setattr(machine, "KAGGLE_INPUT", tmp_path / "input")
    (tmp_path / "input").mkdir()
    return tmp_path / "input"


@pytest.fixture
def colab(laptop, monkeypatch, tmp_path):
    """Colab, without Drive: yields where Drive would be."""
    package = tmp_path / "packages" / "google" / "colab"
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    monkeypatch.syspath_prepend(tmp_path / "packages")
    monkeypatch.delitem(sys.modules, "google", raising=False)
    monkeypatch.setattr(machine, "COLAB_DRIVE", tmp_path / "drive")
    return tmp_path / "drive"


def write(path: Path, text: str = "") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def test_a_laptop(laptop, tmp_path):
    assert find_platform() == "laptop"
    assert default_work_dir() == tmp_path / "outputs"
    assert default_images_dir(default_work_dir()) == tmp_path / "outputs/images"


def test_kaggle_keeps_results_and_not_images(kaggle):
    assert find_platform() == "kaggle"
    assert default_work_dir() == Path("/kaggle/working")
    assert not default_images_dir(Path("/kaggle/working")).is_relative_to("/kaggle")
    assert not default_images_dir(Path("/kaggle/working/more")).is_relative_to("/kaggle")


def test_a_folder_named_from_inside_a_saved_one_is_saved_too(kaggle, monkeypatch, tmp_path):
    monkeypatch.setattr(machine, "KAGGLE_WORKING", tmp_path)
    assert not default_images_dir(Path("results")).absolute().is_relative_to(tmp_path)


def test_a_folder_of_ones_own_holds_the_images_too(kaggle, tmp_path):
    assert default_images_dir(tmp_path) == tmp_path / "images"


def test_kaggles_input_alone_is_no_kaggle(colab, monkeypatch, tmp_path):
    (tmp_path / "input").mkdir()
    monkeypatch.setattr(machine, "KAGGLE_INPUT", tmp_path / "input")
    assert find_platform() == "colab"


def test_colab_keeps_results_in_drive_where_it_is_mounted(colab, tmp_path):
    assert default_work_dir() == tmp_path / "outputs"
    assert "lost when the session ends; to keep them, mount Google Drive" in describe()
    colab.mkdir()
    assert default_work_dir() == colab / "skinlesion"
    assert not default_images_dir(colab / "skinlesion").is_relative_to(colab)
    assert "kept in your Drive" in describe()


@pytest.mark.parametrize(
    "folder", ["notebooks/someone/skinlesion-03-train", "skinlesion-03-train", "datasets/a/b"]
)
def test_what_an_earlier_notebook_left_is_copied_and_can_be_added_to(kaggle, folder, tmp_path):
    run = kaggle / folder / "runs" / "default"
    write(run / "config.json", "{}")
    write(run / "model" / "bundle.json", "[]")
    for path in (run / "model" / "bundle.json", run / "model", run):
        path.chmod(0o555 if path.is_dir() else 0o444)
    brought = bring_earlier("runs/default", tmp_path / "work")
    assert brought == tmp_path / "work/runs/default"
    assert (brought / "model" / "bundle.json").read_text() == "[]"
    for path in (brought / "model" / "bundle.json", brought / "model", brought):
        assert path.stat().st_mode & 0o200


def test_a_file_that_an_earlier_notebook_left_is_brought(kaggle, tmp_path, capsys):
    source = write(kaggle / "notebooks/someone/first/splits_default.csv", "rows")
    write(kaggle / "notebooks/someone/second/splits_default.csv", "others")
    assert bring_earlier("splits_default.csv", tmp_path / "work").read_text() == "rows"
    said = capsys.readouterr().out
    assert f"taken from {source}" in said
    assert "the first of 2" in said


def test_a_finished_run_is_brought_before_an_interrupted_one(kaggle, tmp_path):
    write(kaggle / "notebooks/someone/first/runs/default/config.json", "interrupted")
    finished = kaggle / "notebooks/someone/second/runs/default"
    write(finished / "config.json", "finished")
    write(finished / "model/bundle.json", "{}")
    brought = bring_earlier("runs/default", tmp_path / "work")
    assert (brought / "config.json").read_text() == "finished"


def test_the_lock_of_an_interrupted_run_is_not_brought(kaggle, tmp_path):
    write(kaggle / "notebooks/someone/first/runs/default/config.json", "interrupted")
    write(kaggle / "notebooks/someone/first/runs/default/train.lock", "{}")
    brought = bring_earlier("runs/default", tmp_path / "work")
    assert [path.name for path in brought.iterdir()] == ["config.json"]


def test_what_is_there_already_stays(kaggle, tmp_path):
    write(kaggle / "notebooks/someone/first/splits_default.csv", "theirs")
    mine = write(tmp_path / "work/splits_default.csv", "mine")
    assert bring_earlier("splits_default.csv", tmp_path / "work") == mine
    assert mine.read_text() == "mine"


def test_nothing_is_brought_where_nothing_is(kaggle, tmp_path):
    assert not bring_earlier("runs/default", tmp_path / "work").exists()
    assert not (tmp_path / "work").exists()


@pytest.mark.parametrize(
    ("platform", "said"),
    [("laptop", "set `work`"), ("kaggle", "Add Input"), ("colab", "drive.mount")],
)
def test_how_to_attach_is_said_for_each_platform(platform, said, request):
    request.getfixturevalue(platform)
    assert said in how_to_attach()


@pytest.mark.parametrize(
    "folder",
    [
        "datasets/keras/resnet50",
        "resnet50",
        "models/keras/resnet50/keras/notop/1",
        "resnet50/keras/notop/1",
    ],
)
def test_attached_weights_are_found(kaggle, folder):
    assert default_weights() is None
    path = write(kaggle / folder / WEIGHTS_NAME)
    assert default_weights() == str(path)


def test_other_weights_are_left_alone(kaggle):
    write(kaggle / "datasets/a/b/vgg16_weights_notop.h5")
    write(kaggle / "datasets/a/b/resnet50_weights_with_top.h5")
    write(kaggle / "datasets/a/b/resnet50v2_weights_tf_dim_ordering_tf_kernels_notop.h5")
    assert default_weights() is None


def test_the_variable_names_the_weights_on_kaggle_too(kaggle, monkeypatch):
    write(kaggle / "resnet50" / WEIGHTS_NAME)
    monkeypatch.setenv("SKINLESION_WEIGHTS", "mine.h5")
    assert default_weights() == "mine.h5"


def test_the_driver_is_asked_for_gpus(tmp_path, monkeypatch):
    tool = write(tmp_path / "bin" / "nvidia-smi", "#!/bin/sh\necho Tesla T4\necho Tesla T4\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}")
    assert list_gpus() == ["Tesla T4", "Tesla T4"]
    assert "2 x Tesla T4" in describe()
    tool.write_text("#!/bin/sh\necho no devices were found\nexit 6\n")
    assert list_gpus() == []
    assert "no GPU" in describe()


def test_programs_that_a_notebook_starts_find_the_package_of_the_clone(tmp_path):
    root = Path(__file__).parent.parent
    ask = "import skinlesion, sys; print(skinlesion.__file__)"
    code = (
        f"import sys; sys.path.insert(0, {str(root)!r})\n"
        "import skinlesion.machine; skinlesion.machine.start()\n"
        f"import subprocess; subprocess.run([sys.executable, '-c', {ask!r}], check=True)"
    )
    finished = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=tmp_path
    )
    assert finished.stdout.splitlines()[-1] == str(root / "skinlesion" / "__init__.py")


def test_onednn_is_turned_on_where_the_processor_has_avx2(monkeypatch, tmp_path):
    info = tmp_path / "cpuinfo"
    monkeypatch.setattr(machine, "CPU_INFO", info)
    for flags, expected in (("fma avx2 bmi1", "1"), ("fma avx bmi1", None)):
        monkeypatch.setenv("TF_ENABLE_ONEDNN_OPTS", "")  # so that it is restored afterwards
        monkeypatch.delenv("TF_ENABLE_ONEDNN_OPTS")
        info.write_text(f"processor : 0\nflags : fpu {flags} sse4_2\n")
        machine.prepare_tensorflow()
        assert os.environ.get("TF_ENABLE_ONEDNN_OPTS") == expected


def test_importing_the_package_keeps_what_the_user_set():
    code = "import os, skinlesion; print(os.environ['TF_ENABLE_ONEDNN_OPTS'])"
    environment = os.environ | {"TF_ENABLE_ONEDNN_OPTS": "0"}
    command = [sys.executable, "-c", code]
    answer = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    assert answer.stdout.strip() == "0"
