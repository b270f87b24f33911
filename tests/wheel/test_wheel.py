"""The distributions in dist/, and an environment that has nothing but the wheel and what it asks for."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tarfile
import textwrap
import zipfile
from email import message_from_bytes
from pathlib import Path

import pytest

import test_public_api
from lookless.version import __version__

ROOT = Path(__file__).parents[2]
PYTHON = Path(os.environ["WHEEL_PYTHON"]).absolute()
SHIPPED = ("model", "qwen3_vl", "qwen3_5")
#: A package index takes files of up to 100 MB.
MEBIBYTES = 60


@pytest.fixture(scope="module")
def wheel() -> Path:
    [found] = (ROOT / "dist").glob("*.whl")
    return found


@pytest.fixture(scope="module")
def sdist() -> Path:
    [found] = (ROOT / "dist").glob("*.tar.gz")
    return found


def run(folder: Path, *words: str, **environment: str) -> str:
    """A program of the environment, where no checkout is in reach; what it prints. Fails where the program fails."""
    clean = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "COLUMNS")}
    command = [str(PYTHON.with_name(words[0])), *words[1:]]
    done = subprocess.run(
        command, cwd=folder, env={**clean, "OMP_NUM_THREADS": "1", **environment}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def python(folder: Path, code: str, *words: str) -> str:
    return run(folder, PYTHON.name, "-c", textwrap.dedent(code), *words)


def test_what_is_in_the_wheel(wheel):
    """The package and nothing else: its code, its types and the models."""
    with zipfile.ZipFile(wheel) as archive:
        inside = set(archive.namelist())
        about = f"lookless-{__version__}.dist-info"
        metadata = message_from_bytes(archive.read(f"{about}/METADATA"))
        points = archive.read(f"{about}/entry_points.txt").decode()
    assert {name.split("/")[0] for name in inside} == {"lookless", about}
    tracked = subprocess.run(["git", "ls-files", "src"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert {f"src/{name}" for name in inside if name.startswith("lookless/")} == set(tracked.split())
    assert {f"lookless/reference/{name}/model.safetensors" for name in SHIPPED} <= inside
    assert {"lookless/py.typed", "lookless/__init__.pyi", f"{about}/licenses/LICENSE"} <= inside
    assert metadata["Version"] == __version__
    assert metadata["Requires-Python"] == ">=3.10"
    assert metadata["License-Expression"] == "Apache-2.0"
    assert metadata.get_payload().startswith("# lookless")
    for group in ("console_scripts", "lmms_eval.models", "vllm.general_plugins"):
        assert f"[{group}]" in points


def test_distributions_are_small_enough_for_an_index(wheel, sdist):
    assert max(path.stat().st_size for path in (wheel, sdist)) < MEBIBYTES * 2**20


def test_the_wheel_is_made_of_the_sdist_and_the_sdist_has_the_tests(wheel, sdist):
    with tarfile.open(sdist) as archive:
        inside = {name.split("/", 1)[1] for name in archive.getnames() if "/" in name}
    with zipfile.ZipFile(wheel) as archive:
        assert {f"src/{name}" for name in archive.namelist() if name.startswith("lookless/")} <= inside
    assert {"tests/test_apply.py", "docs/api.md", "constraints.txt", "locks/runtime.txt", "Makefile"} <= inside
    assert not {name for name in inside if name.startswith((".venv", "dist", ".git/", "site/"))}


def test_the_environment_has_what_the_wheel_asks_for_and_no_checkout(tmp_path):
    assert "No broken requirements" in run(tmp_path, PYTHON.name, "-m", "pip", "check")
    where = Path(python(tmp_path, "import lookless; print(lookless.__file__)").strip())
    assert where.is_relative_to(PYTHON.parents[1])
    assert "hypothesis" not in run(tmp_path, PYTHON.name, "-m", "pip", "freeze")


def test_every_public_name_is_imported(tmp_path):
    code = """
        import sys
        from importlib import import_module
        for package in sys.argv[1:]:
            module = import_module(package)
            shown = [name for name in dir(module) if name[0] != "_"]
            print(len([getattr(module, name) for name in shown]))
    """
    counts = python(tmp_path, code, *test_public_api.PACKAGES).split()
    assert len(counts) == len(test_public_api.PACKAGES)
    assert int(counts[0]) == len(test_public_api.names("lookless"))


def test_every_module_is_imported(tmp_path):
    """But those that need an engine, which says so itself."""
    code = """
        import pkgutil, lookless
        for module in pkgutil.walk_packages(lookless.__path__, "lookless."):
            if module.name == "lookless.__main__":
                continue
            try:
                __import__(module.name)
            except ModuleNotFoundError as error:
                print(error.name.split(".")[0])
    """
    assert set(python(tmp_path, code).split()) <= {"vllm", "prometheus_client", "lmms_eval", "loguru"}


def test_commands(tmp_path):
    """From a model that is in the wheel to an answer under a plan."""
    assert "doctor" in run(tmp_path, "lookless", "--help")
    assert __version__ in run(tmp_path, "lookless", "--version")
    chart = ("--data", "reference:chart")
    run(tmp_path, "lookless", "calibrate", "reference", *chart, "--samples", "2", "--out", "scores.json")
    run(tmp_path, "lookless", "plan", "v-skip", "--scores", "scores.json", "--layers", "7", "--out", "plan")
    shown = run(tmp_path, "lookless", "show", "plan")
    assert len(re.findall(r"\d+ │ skip", shown)) == 7
    told = run(tmp_path, "lookless", "eval", "reference", *chart, "--plan", "plan", "--limit", "4", "--json")
    assert '"samples": 4' in told


def test_the_demo(tmp_path):
    """One of its tasks, with a few questions."""
    code = """
        from pathlib import Path
        from lookless import demo
        demo.tasks_of, demo.CALIBRATION_SAMPLES = lambda model: ["chart"], 2
        [row] = demo.run_demo(Path("out"), test_samples=8).rows
        print(len(row.skipped_layers))
    """
    assert python(tmp_path, code).split() == ["7"]
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"chart", "demo.json", "profile.png"}
    assert "skip" in run(tmp_path, "lookless", "show", "out/chart/plan")


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_a_shell_completes(tmp_path, shell):
    words = {"COMP_WORDS": "lookless cal", "COMP_CWORD": "1", "_TYPER_COMPLETE_ARGS": "lookless cal"}
    words |= {"_LOOKLESS_COMPLETE": f"complete_{shell}", "_TYPER_COMPLETE_FISH_ACTION": "get-args"}
    assert "calibrate" in run(tmp_path, "lookless", **words)


PROGRAM = """
import lookless
plan = lookless.Plan.full(12).at([3], attention=lookless.Skip())
reveal_type(plan)
"""


#: Large libraries beside lookless, which would take minutes and say nothing of it.
MYPY = """
[mypy]
strict = True
[mypy-torch.*,transformers.*,scipy.*,matplotlib.*,PIL.*,huggingface_hub.*]
follow_imports = skip
"""


def mypy(folder: Path, program: str) -> subprocess.CompletedProcess[str]:
    """A user's program, checked against the types of the installed wheel alone."""
    (folder / "program.py").write_text(program)
    (folder / "mypy.ini").write_text(MYPY)
    words = ["-m", "mypy", "--python-executable", str(PYTHON), "program.py"]
    clean = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "MYPYPATH")}
    return subprocess.run([sys.executable, *words], cwd=folder, env=clean, capture_output=True, text=True)


def test_a_users_program_is_type_checked(tmp_path):
    right = mypy(tmp_path, PROGRAM)
    assert 'Revealed type is "lookless.plan.Plan"' in right.stdout, right.stdout + right.stderr
    assert right.returncode == 0, right.stdout
    wrong = mypy(tmp_path, PROGRAM.replace("[3]", '"three"'))
    assert wrong.returncode == 1
    assert 'Argument 1 to "at" of "Plan" has incompatible type "str"' in wrong.stdout
