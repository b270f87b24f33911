"""What a release is checked for, and what is then done: built, tested as it will be installed, and tagged.

Nothing leaves the machine. What does, the maintainer types.
"""

from __future__ import annotations

import hashlib
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

_VERSION = re.compile(r"\d+\.\d+\.\d+((a|b|rc)\d+)?")
_SECTION = re.compile(r"^## \[(.+?)\](?: - (\d{4}-\d\d-\d\d))?$", re.MULTILINE)


class ReleaseError(Exception):
    """What is not as a release needs it, and what to do."""


def said(root: Path, *words: str) -> str:
    """What git prints."""
    return subprocess.run(["git", *words], cwd=root, capture_output=True, text=True, check=True).stdout.strip()


def run(root: Path, *words: str) -> None:
    """Raises: ReleaseError: the command fails."""
    if subprocess.run(words, cwd=root).returncode:
        raise ReleaseError(f"`{' '.join(words)}` failed; what it printed is above")


def check(root: Path, version: str) -> None:
    """That ``root`` is what is to be released as ``version``.

    Raises:
        ReleaseError: it is not.
    """
    if not _VERSION.fullmatch(version):
        raise ReleaseError(f"{version!r} is no version; write `make release VERSION=1.2.3`")
    if changed := said(root, "status", "--porcelain"):
        raise ReleaseError(f"files are not committed: {', '.join(line[3:] for line in changed.splitlines()[:5])}")
    if said(root, "tag", "--list", f"v{version}"):
        raise ReleaseError(f"the tag v{version} is there already; choose the next version")
    [written] = re.findall(r'^__version__ = "(.+)"$', (root / "src/lookless/version.py").read_text(), re.MULTILINE)
    if written != version:
        raise ReleaseError(f"src/lookless/version.py says {written} and VERSION is {version}; change one and commit")
    check_changelog((root / "CHANGELOG.md").read_text(), version)


def check_changelog(text: str, version: str) -> None:
    """That the newest dated section is that of ``version``, and nothing waits for a later one.

    Raises:
        ReleaseError: it is not, or something waits.
    """
    parts = _SECTION.split(text)[1:]
    sections = {
        name: (date, body.strip()) for name, date, body in zip(parts[::3], parts[1::3], parts[2::3], strict=True)
    }
    _, waiting = sections.pop("Unreleased", (None, ""))
    newest = next(iter(sections), None)
    if newest != version:
        found = f"the newest section of CHANGELOG.md is {newest}, not" if newest else "CHANGELOG.md has no section for"
        raise ReleaseError(f"{found} {version}; put `## [{version}] - YYYY-MM-DD` below `## [Unreleased]` and commit")
    date, body = sections[version]
    if date is None or not body:
        raise ReleaseError(f"section {version} of CHANGELOG.md has no {'text' if date else 'date'}; write it")
    if waiting:
        raise ReleaseError(f"CHANGELOG.md has changes under [Unreleased]; move them to {version} and commit")


def release(root: Path, *words: str, run: Callable[..., None] = run) -> str:
    """Check, build, test and tag ``root``; what is left to do, in words. ``words`` is the version.

    Raises:
        ReleaseError: something is not as it must be, or a step fails. Nothing is tagged then.
    """
    version = " ".join(words)
    check(root, version)
    run(root, "make", "lint", "test-wheel")  # which builds what is in dist/
    files = sorted(root.glob("dist/*"))
    run(root, sys.executable, "-m", "twine", "check", "--strict", *map(str, files))
    if {path.name for path in files} != {f"lookless-{version}.tar.gz", f"lookless-{version}-py3-none-any.whl"}:
        raise ReleaseError(f"dist/ has {', '.join(path.name for path in files) or 'nothing'}, and not {version} alone")
    run(root, "git", "tag", "--annotate", f"v{version}", "--message", f"lookless {version}")
    sums = "\n".join(f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.relative_to(root)}" for path in files)
    return (
        f"{sums}\n"
        f"lookless {version} is built, tested and tagged here, and nothing is uploaded. To publish it, type\n"
        f"    git push origin v{version}\n"
        f"    {os.path.relpath(sys.executable, root)} -m twine upload dist/*\n"
        f"To take it back: git tag --delete v{version}"
    )
