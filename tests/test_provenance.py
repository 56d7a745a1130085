"""What is written down about the software and the machine of a run."""

from importlib.metadata import version

from skinlesion.model import provenance
from skinlesion.model.provenance import describe_environment, describe_versions

CPU_INFO = """\
processor\t: 0
model name\t: Some CPU @ 2.00GHz
flags\t\t: fpu sse sse4_2 avx2 avx512_vnni hypervisor
bogomips\t: 4000.00
"""


def test_every_installed_package_is_named_with_its_version():
    packages = describe_environment()["packages"]
    assert packages["scikit-learn"] == version("scikit-learn")
    assert packages["typing-extensions"] == version("typing_extensions")
    assert describe_versions()["keras"] == version("keras")


def test_variables_that_change_results_are_kept_and_passwords_are_not(monkeypatch):
    for name in ("TF_ENABLE_ONEDNN_OPTS", "CUDA_VISIBLE_DEVICES"):
        monkeypatch.setenv(name, "0")
    for name in ("TF_TOKEN_EXAMPLE_ORG", "TF_VAR_password", "NVIDIA_API_KEY", "KAGGLE_KEY"):
        monkeypatch.setenv(name, "secret")
    described = describe_environment()
    assert described["variables"]["TF_ENABLE_ONEDNN_OPTS"] == "0"
    assert described["variables"]["CUDA_VISIBLE_DEVICES"] == "0"
    assert "secret" not in str(described)


def test_the_processor_is_named_with_its_instruction_sets(monkeypatch, tmp_path):
    (tmp_path / "cpuinfo").write_text(CPU_INFO)
    monkeypatch.setattr(provenance, "CPU_INFO", tmp_path / "cpuinfo")
    cpu = describe_environment()["cpu"]
    assert cpu["model"] == "Some CPU @ 2.00GHz"
    assert cpu["flags"] == ["sse4_2", "avx2", "avx512_vnni"]


def test_where_nothing_tells_the_processor_it_is_unknown(monkeypatch, tmp_path):
    monkeypatch.setattr(provenance, "CPU_INFO", tmp_path / "absent")
    cpu = describe_environment()["cpu"]
    assert (cpu["model"], cpu["flags"]) == (None, [])
