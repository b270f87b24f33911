"""The exact files that lookless is installed from: ``make lock``, or ``python -m release.locks [--upgrade]``.

uv resolves pyproject.toml for every supported Python and platform, and keeps the versions of the lock files where it
can. Only hashes are written, and no address: they say which file, and the reader's own index says where from.

* ``locks/runtime.txt``: what lookless needs
* ``locks/cuda.txt``: what torch needs beside it where its build is for CUDA
* ``locks/dev.txt``: what the tests, the site and a release need beside that
* ``constraints.txt``: the same versions without hashes, for installs that take any file of a version
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

ROOT = Path(__file__).parents[1]
LOCKS = {name: Path("locks", f"{name}.txt") for name in ("runtime", "cuda", "dev")}
CONSTRAINTS = Path("constraints.txt")
#: As sha256sum writes it: builds of torch for CPUs, which PyTorch's own index has for Linux, and PyPI has not.
TORCH_CPU = Path("locks", "torch-cpu.sha256")

#: The oldest Python of users, and the oldest that the tools of development run on.
OLDEST, OLDEST_DEV = "3.10", "3.11.5"
EXTRAS = ("data", "dev", "docs", "release")
_CUDA = re.compile(r"(nvidia|cuda)-|triton==")

HEADS = {
    "runtime": "# What lookless needs, by hash: pip install --require-hashes --no-deps -r locks/runtime.txt\n"
    "# A build of torch for CUDA needs locks/cuda.txt, too.\n",
    "cuda": "# What torch needs on Linux where its build is for CUDA; a build for a CPU needs nothing of it.\n",
    "dev": "# What tests, site and release need beside locks/runtime.txt, for Python 3.11.5 and later.\n",
}
MADE = "# Written by `make lock`.\n"
CONSTRAINTS_HEAD = (
    "# The exact versions the tests run on: those of locks/, without hashes. Written by `make lock`.\n"
    "# Without them pip takes the newest torch, which for some platforms is gigabytes larger.\n"
)


def entries(lock: str) -> dict[str, str]:
    """Requirement, as ``numpy==2.4.6 ; python_full_version >= '3.11'``, to its lines with hashes."""
    blocks = re.split(r"^(?=[a-z0-9])", lock, flags=re.MULTILINE)[1:]
    return {block.split(" \\\n")[0].strip(): block for block in blocks}


def name_of(requirement: str) -> str:
    return requirement.split("==")[0]


def written(name: str, found: dict[str, str]) -> str:
    return HEADS[name] + MADE + "".join(found[requirement] for requirement in sorted(found))


def constraints(*locks: str) -> str:
    """``constraints.txt``, from the text of lock files; the packages of a CUDA build are torch's own affair."""
    lines = sorted(requirement for lock in locks for requirement in entries(lock))
    return CONSTRAINTS_HEAD + "\n".join(lines) + "\n"


def with_cpu_builds(found: dict[str, str], listed: str) -> dict[str, str]:
    """``found``, its torch with the hashes of ``listed`` besides PyPI's.

    Raises:
        ValueError: they are of another version.
    """
    [torch] = [requirement for requirement in found if name_of(requirement) == "torch"]
    for line in listed.splitlines():
        if f"{torch.replace('==', '-')}+cpu" not in line:
            raise ValueError(f"{TORCH_CPU}: {line.split()[1]} is no build of {torch}; list the hashes of that version")
    cpu = {f"    --hash=sha256:{line.split()[0]}" for line in listed.splitlines()}
    lines = sorted({*found[torch].rstrip("\n").split(" \\\n")[1:], *cpu})
    return {**found, torch: " \\\n".join([torch, *lines]) + "\n"}


def resolved(known: str, python: str, *options: str) -> str:
    """What uv finds for ``python`` and later; the versions of ``known`` stay where they can."""
    with TemporaryDirectory() as folder:
        out = Path(folder, "lock.txt")
        out.write_text(known)
        words = ["pip", "compile", "pyproject.toml", "--quiet", "--universal", "--python-version", python]
        words += ["--generate-hashes", "--no-header", "--no-annotate", "--no-python-downloads", "--output-file", out]
        subprocess.run([Path(sys.executable).with_name("uv"), *words, *options], cwd=ROOT, check=True)
        return out.read_text()


def main(*options: str) -> None:
    known = {name: (ROOT / path).read_text() if (ROOT / path).exists() else "" for name, path in LOCKS.items()}
    runtime = entries(resolved(known["runtime"] + known["cuda"], OLDEST, *options))
    with TemporaryDirectory() as folder:
        pinned = Path(folder, "runtime.txt")
        pinned.write_text("\n".join(runtime))
        extras = [word for extra in EXTRAS for word in ("--extra", extra)]
        dev = entries(resolved("".join(known.values()), OLDEST_DEV, "--constraint", str(pinned), *extras, *options))
    names = {name_of(requirement) for requirement in runtime}
    runtime = with_cpu_builds(runtime, (ROOT / TORCH_CPU).read_text())
    locks = {
        "runtime": {requirement: lines for requirement, lines in runtime.items() if not _CUDA.match(requirement)},
        "cuda": {requirement: lines for requirement, lines in runtime.items() if _CUDA.match(requirement)},
        "dev": {requirement: lines for requirement, lines in dev.items() if name_of(requirement) not in names},
    }
    for name, found in locks.items():
        (ROOT / LOCKS[name]).write_text(written(name, found))
    (ROOT / CONSTRAINTS).write_text(constraints(*(written(name, locks[name]) for name in ("runtime", "dev"))))


if __name__ == "__main__":
    main(*sys.argv[1:])
