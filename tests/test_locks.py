"""Lock files: complete, by hash, without an address, and one with constraints.txt and pyproject.toml."""

from __future__ import annotations

import re
from importlib import metadata

import pytest
import tomllib
from packaging.markers import default_environment
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from helpers.documents import text
from release import locks
from release.locks import CONSTRAINTS, EXTRAS, LOCKS, TORCH_CPU, constraints, entries, with_cpu_builds

#: The Pythons that lookless supports, as markers see them.
PYTHONS = {"3.10": "3.10.13", "3.11": "3.11.7", "3.12": "3.12.1", "3.13": "3.13.0"}


def locked(*names: str, python: str | None = None) -> dict[str, str]:
    """Versions by package, on this machine; ``python`` is another Python."""
    there = {"python_version": python, "python_full_version": PYTHONS[python]} if python else {}
    found = {}
    for name in names:
        for line in entries(text(str(LOCKS[name]))):
            requirement = Requirement(line)
            if requirement.marker is None or requirement.marker.evaluate({**default_environment(), **there}):
                assert requirement.name not in found, f"{requirement.name} twice"
                found[requirement.name] = str(requirement.specifier).removeprefix("==")
    return found


@pytest.mark.parametrize("name", LOCKS)
def test_every_file_is_named_by_its_hashes_and_no_address_is_written(name):
    lock = text(str(LOCKS[name]))
    assert len(entries(lock)) > 5
    for requirement, lines in entries(lock).items():
        assert re.fullmatch(r"[a-z0-9-]+==[\w.]+( ; .+)?", requirement)
        hashes = lines.replace(" \\\n", "\n").splitlines()[1:]
        assert hashes, requirement
        assert all(re.fullmatch(r"    --hash=sha256:[0-9a-f]{64}", line) for line in hashes), requirement
    assert not re.search(r"://| @ |^-", lock, re.MULTILINE)


def test_constraints_are_those_of_the_locks():
    """`make lock` writes both."""
    assert text(str(CONSTRAINTS)) == constraints(text("locks/runtime.txt"), text("locks/dev.txt"))


@pytest.mark.parametrize("python", PYTHONS)
def test_the_lock_is_within_what_is_asked_for(python):
    project = tomllib.loads(text("pyproject.toml"))["project"]
    runtime = [Requirement(line) for line in project["dependencies"]]
    assert len(runtime) > 10
    found = locked("runtime", python=python)
    for one in runtime:
        assert one.specifier.contains(found[canonicalize_name(one.name)]), one
    if python == "3.10":
        return  # what tests need has left it
    found |= locked("dev", python=python)
    extras = [Requirement(line) for extra in EXTRAS for line in project["optional-dependencies"][extra]]
    assert len(extras) > 10
    for one in extras:
        assert one.specifier.contains(found[canonicalize_name(one.name)]), one


def test_the_lock_is_complete():
    """Whatever the packages that are installed here ask for, one after another, is in it."""
    found = locked("runtime", "cuda")
    todo, seen = ["lookless"], set()
    while todo:
        name = todo.pop()
        seen.add(name)
        for line in metadata.requires(name) or []:
            requirement = Requirement(line)
            if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
                todo += {canonicalize_name(requirement.name)} - seen
    assert seen - {"lookless"} <= found.keys()
    assert {"torch", "transformers", "numpy"} <= seen


def test_builds_of_torch_for_a_cpu_are_in_the_lock_and_of_its_version():
    [lines] = [lines for name, lines in entries(text("locks/runtime.txt")).items() if name.startswith("torch==")]
    listed = [line.split() for line in text(str(TORCH_CPU)).splitlines()]
    assert len(listed) > 5
    for digest, name in listed:
        assert f"--hash=sha256:{digest}" in lines
        assert name.startswith(f"torch-{locked('runtime')['torch']}+cpu-")
    with pytest.raises(ValueError, match=r"is no build of torch==9\.9\.9"):
        with_cpu_builds({"torch==9.9.9": "torch==9.9.9 \\\n    --hash=sha256:0\n"}, text(str(TORCH_CPU)))


def test_a_lock_is_written_of_what_uv_finds(monkeypatch, tmp_path):
    """Packages of CUDA apart, and what is in the first in no other."""
    hashed = " \\\n    --hash=sha256:" + "0" * 64 + "\n"
    runtime = [
        f"{name}{hashed}" for name in ("nvidia-nccl==1", "numpy==2", "torch==2.13.0", "triton==3", "tritonia==4")
    ]
    calls = []

    def resolved(known: str, python: str, *options: str) -> str:
        calls.append((python, options))
        return "".join(runtime if "--extra" not in options else [*runtime, f"ruff==5{hashed}"])

    monkeypatch.setattr(locks, "resolved", resolved)
    monkeypatch.setattr(locks, "ROOT", tmp_path)
    (tmp_path / "locks").mkdir()
    (tmp_path / TORCH_CPU).write_text(text(str(TORCH_CPU)))
    locks.main("--upgrade")
    written = {name: list(entries((tmp_path / path).read_text())) for name, path in LOCKS.items()}
    assert written == {
        "runtime": ["numpy==2", "torch==2.13.0", "tritonia==4"],
        "cuda": ["nvidia-nccl==1", "triton==3"],
        "dev": ["ruff==5"],
    }
    assert (tmp_path / CONSTRAINTS).read_text().splitlines()[2:] == [
        "numpy==2",
        "ruff==5",
        "torch==2.13.0",
        "tritonia==4",
    ]
    assert [python for python, _ in calls] == ["3.10", "3.11.5"]
    assert all(options[-1] == "--upgrade" for _, options in calls)
