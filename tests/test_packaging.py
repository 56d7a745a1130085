"""What is shipped: the wheel, its requirements, the notebooks that carry it, the public address."""

import json
import os
import platform
import re
import runpy
import shutil
import subprocess
import sys
import tomllib
from importlib.metadata import version
from pathlib import Path

import environment
import lock
import make_kaggle
import nbformat
import pytest
import set_address
from packaging.metadata import Metadata
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

import skinlesion

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def read_requirements():
    lines = (ROOT / "requirements.txt").read_text().splitlines()
    return [Requirement(text) for line in lines if (text := line.partition("#")[0].strip())]


def read_lock(stack):
    """Name to version of what a stack has installed."""
    _, *lines = (ROOT / f"requirements/{stack}.txt").read_text().splitlines()
    pins = map(Requirement, lines)
    return {canonicalize_name(pin.name): str(pin.specifier)[2:] for pin in pins}


def test_the_docs_give_a_reason_for_each_dependency():
    extras = [
        Requirement(text) for some in PROJECT["optional-dependencies"].values() for text in some
    ]
    wanted = {one.name for one in (*read_requirements(), *extras)} - {"skinlesion"}
    rows = (ROOT / "docs" / "dependencies.md").read_text().splitlines()
    reasons = [row.split("|")[1].strip() for row in rows if row.startswith("| ")]
    assert sorted(set(reasons) - {"package", "---"}) == sorted(wanted)


def test_the_bounds_include_the_security_fixes_that_the_docs_name():
    """A fix that is not included is one that some stack cannot have."""
    extras = [
        Requirement(text) for some in PROJECT["optional-dependencies"].values() for text in some
    ]
    bounds = {
        one.name: bound.version
        for one in (*extras, *read_requirements())
        for bound in one.specifier
        if bound.operator == ">="
    }
    text = (ROOT / "docs" / "dependencies.md").read_text().split("## Security fixes")[1]
    rows = re.findall(r"^\| ([\w-]+) \| ([\d.]+) \| (.*?) \| (.*?) \|", text, re.MULTILINE)
    assert len(rows) >= 6
    for name, bound, included, missing in rows:
        assert bounds[name] == bound
        fixed = re.findall(r"\(([\d.]+)\)", included)
        assert fixed and max(map(Version, fixed)) <= Version(bound), name
        for fix in re.findall(r"\(([\d.]+)\)", missing):
            locked = [Version(read_lock(stack)[name]) for stack in environment.STACKS]
            assert min(locked) < Version(fix), f"raise the bound of {name} to {fix}"


def test_no_page_is_unfinished():
    pages = [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("skinlesion/**/*.md")]
    assert len(pages) > 10
    for page in pages:
        text = page.read_text()
        assert not re.findall(r"\b(PLACEHOLDER|TODO|FIXME|TBD)\b", text), page
        for file, name in re.findall(r"`(tests/\w+\.py)::(\w+)`", text):
            assert f"def {name}(" in (ROOT / file).read_text(), (page, name)
        # A row without text is a header without text, which a line of dashes follows.
        assert not re.findall(r"^\|[ |]*\|\n(?!\| ?-)", text, re.MULTILINE), page


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    return make_kaggle.build_wheel(Path(sys.executable), tmp_path_factory.mktemp("wheel"))


@pytest.fixture(scope="module")
def unpacked(wheel, tmp_path_factory):
    folder = tmp_path_factory.mktemp("unpacked")
    shutil.unpack_archive(wheel, folder, "zip")
    return folder


def run_unpacked(unpacked, *command, cwd):
    return subprocess.run(
        [sys.executable, "-m", *command],
        env=os.environ | {"PYTHONPATH": str(unpacked), "TF_CPP_MIN_LOG_LEVEL": "2"},
        cwd=cwd,
        capture_output=True,
        text=True,
        check=False,
    )


def test_the_wheel_asks_for_what_requirements_txt_lists(unpacked):
    text = (unpacked / f"skinlesion-{skinlesion.__version__}.dist-info/METADATA").read_bytes()
    metadata = Metadata.from_email(text, validate=False)
    plain = [r for r in metadata.requires_dist if not r.marker]
    assert sorted(map(str, plain)) == sorted(map(str, read_requirements()))
    assert {"dev", "export"} <= set(metadata.provides_extra)
    assert metadata.license_expression == "MIT"


def test_the_citation_and_the_changelog_name_the_version():
    assert f"\nversion: {skinlesion.__version__}\n" in (ROOT / "CITATION.cff").read_text()
    assert f"## [{skinlesion.__version__}]" in (ROOT / "CHANGELOG.md").read_text()


def test_requirements_are_lower_bounds_only():
    for requirement in read_requirements():
        assert [bound.operator for bound in requirement.specifier] == [">="], requirement


def test_the_wheel_holds_the_package_and_nothing_else(unpacked):
    def list_files(folder):
        paths = [path for path in folder.rglob("*") if path.is_file()]
        return sorted(path.relative_to(folder) for path in paths if path.suffix != ".pyc")

    assert list_files(unpacked / "skinlesion") == list_files(ROOT / "skinlesion")
    assert len(list(unpacked.iterdir())) == 2


def test_the_same_source_gives_the_same_wheel(wheel, tmp_path):
    assert (
        make_kaggle.build_wheel(Path(sys.executable), tmp_path).read_bytes() == wheel.read_bytes()
    )


def test_the_wheel_works_without_the_repository(unpacked, tmp_path):
    answer = run_unpacked(unpacked, "skinlesion", "--version", cwd=tmp_path)
    assert answer.stdout == f"skinlesion {skinlesion.__version__}\n"
    for arguments in (
        ("sample", "data", "--images-per-class", "8"),
        ("split", "--data", "data", "--out", "splits.csv"),
        ("audit", "splits.csv", "--data", "data"),
    ):
        finished = run_unpacked(unpacked, "skinlesion", *arguments, cwd=tmp_path)
        assert finished.returncode == 0, finished.stderr
    where = run_unpacked(unpacked, "site", cwd=tmp_path).stdout
    assert str(unpacked) in where


def test_every_stack_keeps_to_our_lower_bounds():
    bounds = {r.name: r.specifier for r in read_requirements()}
    for stack in environment.STACKS.values():
        for pin in map(Requirement, stack.preinstalled):
            (exact,) = pin.specifier
            assert bounds.get(pin.name, pin.specifier).contains(exact.version), pin


@pytest.mark.parametrize("stack", environment.STACKS)
def test_the_lock_file_of_a_stack_fits_what_it_is_made_from(stack):
    """It has the versions that the platform preinstalls, and each of our own requirements."""
    python = (ROOT / f"requirements/{stack}.txt").read_text().splitlines()[0]
    assert python.startswith(f"# Python {environment.STACKS[stack].python}")
    locked = read_lock(stack)
    preinstalled = map(Requirement, environment.STACKS[stack].preinstalled)
    for wanted in [*preinstalled, *read_requirements()]:
        assert wanted.specifier.contains(locked[canonicalize_name(wanted.name)]), wanted
    assert "skinlesion" not in locked


def test_a_lock_file_lists_what_an_environment_holds(tmp_path, monkeypatch):
    monkeypatch.setattr(lock, "FOLDER", tmp_path / "requirements")
    written = lock.write_lock("newest", Path(sys.executable)).read_text()
    assert written.startswith(f"# Python {platform.python_version()}; written by scripts/lock.py\n")
    assert f"\nnumpy=={version('numpy')}\n" in written
    assert "skinlesion" not in written


def test_the_other_stacks_run_test_files_that_exist():
    script = runpy.run_path(str(ROOT / "scripts/test.py"))
    missing = [
        name for name in script["ON_OTHER_STACKS"] if not (ROOT / f"tests/test_{name}.py").is_file()
    ]
    assert missing == []


def test_two_scripts_that_start_together_install_once(tmp_path):
    """Both find no environment; the second one waits for the first and uses what it made."""
    shutil.copytree(ROOT / "scripts", tmp_path / "scripts")
    for name in ("pyproject.toml", "requirements.txt"):
        shutil.copy(ROOT / name, tmp_path / name)
    code = "import environment; environment.run = lambda *_, **__: None; "
    code += "print(environment.prepare_environment())"
    started = [
        subprocess.Popen(
            [sys.executable, "-c", code],
            cwd=tmp_path / "scripts",
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(2)
    ]
    answers = [process.communicate()[0].splitlines() for process in started]
    assert [process.returncode for process in started] == [0, 0]
    assert len({lines[-1] for lines in answers}) == 1
    assert sorted(len(lines) for lines in answers) == [1, 2]  # one of them says that it installs


def test_a_stack_whose_python_is_missing_is_skipped_with_the_reason(tmp_path):
    shutil.copytree(ROOT / "scripts", tmp_path / "scripts")
    for name in ("pyproject.toml", "requirements.txt"):
        shutil.copy(ROOT / name, tmp_path / name)
    finished = subprocess.run(
        [sys.executable, tmp_path / "scripts/test.py", "--stack", "kaggle"],
        env={"PATH": str(tmp_path), "PYENV_ROOT": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert finished.stdout.endswith("stack kaggle: skipped: no Python 3.12 on this machine\n")
    assert finished.returncode == 0


class TestNotebooksForKaggle:
    @pytest.fixture(scope="class")
    def made(self, tmp_path_factory):
        out = tmp_path_factory.mktemp("kaggle")
        command = [sys.executable, ROOT / "scripts/make_kaggle.py", "--user", "someone"]
        command += ["--out", out, "--python", sys.executable]
        subprocess.run(command, check=True)
        return out

    def test_one_folder_a_notebook_and_one_for_all(self, made):
        names = sorted(path.stem for path in (ROOT / "notebooks").glob("*.ipynb"))
        assert sorted(path.name for path in made.iterdir()) == [*names, "all_in_one"]

    def test_each_is_a_valid_notebook_without_outputs_that_carries_the_wheel(self, made):
        for path in made.glob("*/*.ipynb"):
            notebook = nbformat.read(path, as_version=4)
            nbformat.validate(notebook)
            codes = [cell for cell in notebook.cells if cell.cell_type == "code"]
            assert not any(cell.outputs for cell in codes)
            assert codes[0].metadata["tags"] == ["wheel"]
            assert codes[1].metadata["tags"] == ["bootstrap"]
            assert "WHEEL = [" not in codes[1].source
            assert "WHEEL" in codes[1].source
            assert sum("parameters" in c.metadata.get("tags", ()) for c in codes) == 1
            assert "colab" not in "".join(cell.source for cell in notebook.cells[:4])
            assert "not for clinical use" in notebook.cells[0].source
            assert path.stat().st_size < 1_000_000  # Kaggle's limit for a notebook

    def test_all_in_one_does_not_speak_of_other_notebooks_to_open(self, made):
        notebook = nbformat.read(made / "all_in_one/all_in_one.ipynb", as_version=4)
        text = "".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")
        assert "**next**" not in text
        assert text.count("## Parameters") == 1
        assert [f"# {number}." in text for number in range(1, 6)] == [True] * 5

    def test_the_metadata_is_ready_to_be_pushed(self, made):
        described = {p.parent.name: json.loads(p.read_text()) for p in made.glob("*/*.json")}
        ids = {kernel["id"] for kernel in described.values()}
        assert len(ids) == 6
        for name, kernel in described.items():
            assert (made / name / kernel["code_file"]).is_file()
            slug = re.sub(r"[^a-z0-9]+", "-", kernel["title"].lower())
            assert kernel["id"] == f"someone/{slug}"
            assert "kmader/skin-cancer-mnist-ham10000" in kernel["dataset_sources"]
            assert set(kernel["kernel_sources"]) <= ids
            assert isinstance(kernel["enable_internet"], bool)
            assert kernel["enable_gpu"] == (kernel.get("machine_shape") == "NvidiaTeslaT4")
        assert described["03_train"]["enable_gpu"]
        assert described["04_evaluate"]["kernel_sources"] == ["someone/skinlesion-03-train"]

    def test_without_an_account_it_says_what_to_do(self, tmp_path):
        finished = subprocess.run(
            [sys.executable, ROOT / "scripts/make_kaggle.py", "--out", tmp_path / "out"],
            env={"PATH": os.environ["PATH"], "HOME": str(tmp_path)},
            capture_output=True,
            text=True,
            check=False,
        )
        assert finished.returncode == 2
        assert "name your Kaggle account: --user NAME" in finished.stderr
        assert not (tmp_path / "out").exists()


class TestThePublicAddress:
    @staticmethod
    def addresses(root):
        """Owner and name in every address of the project in README and notebooks."""
        texts = [p.read_text() for p in (root / "README.md", *root.glob("notebooks/*.ipynb"))]
        return set(re.findall(r"github(?:\.com)?/([\w-]+/skin[\w-]*)", "".join(texts)))

    def test_is_the_same_everywhere(self):
        path = PROJECT["urls"]["Repository"].removeprefix("https://github.com/")
        assert self.addresses(ROOT) == {path}

    def test_the_notebooks_fetch_the_version_that_they_belong_to(self):
        for path in (ROOT / "notebooks").glob("*.ipynb"):
            first = nbformat.read(path, as_version=4).cells[1].source
            assert f'git+{PROJECT["urls"]["Repository"]}@v{skinlesion.__version__}"' in first

    def test_can_be_changed_with_one_command(self, tmp_path, monkeypatch):
        shutil.copytree(ROOT / "notebooks", tmp_path / "notebooks")
        for name in ("README.md", "pyproject.toml"):
            shutil.copy(ROOT / name, tmp_path / name)
        new = "https://github.com/some-one/skin-lesions"
        monkeypatch.setattr(sys, "argv", ["set_address", f"{new}.git", "--root", str(tmp_path)])
        set_address.main()
        assert self.addresses(tmp_path) == {"some-one/skin-lesions"}
        project = tomllib.loads((tmp_path / "pyproject.toml").read_text())["project"]
        assert project["urls"]["Repository"] == new
        for path in (tmp_path / "notebooks").glob("*.ipynb"):
            nbformat.validate(nbformat.read(path, as_version=4))

    @pytest.mark.parametrize("address", ["someone/name", "https://example.org/a/b", ""])
    def test_another_kind_of_address_is_refused(self, address, monkeypatch, capsys):
        monkeypatch.setattr(sys, "argv", ["set_address", address])
        with pytest.raises(SystemExit):
            set_address.main()
        assert "expected https://github.com/OWNER/NAME" in capsys.readouterr().err
