"""A release: what it is refused for, and that nothing is tagged before all else is done."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from helpers.documents import text
from lookless.version import __version__
from release.steps import ReleaseError, check, check_changelog, release, run, said

CHANGELOG = """# Changelog

## [Unreleased]

## [1.2.3] - 2026-01-02

### Added

- all

## [1.2.2] - 2025-01-02

- a
"""


@pytest.fixture
def project(tmp_path) -> Path:
    """A repository that is ready to be released as 1.2.3."""
    (tmp_path / "src/lookless").mkdir(parents=True)
    (tmp_path / "src/lookless/version.py").write_text('__version__ = "1.2.3"\n')
    (tmp_path / "CHANGELOG.md").write_text(CHANGELOG)
    (tmp_path / ".gitignore").write_text("dist/\n")
    said(tmp_path, "init", "--quiet")
    for name in ("name", "email"):
        said(tmp_path, "config", f"user.{name}", "somebody")
    commit(tmp_path)
    return tmp_path


def commit(folder: Path) -> None:
    said(folder, "add", "--all")
    said(folder, "commit", "--quiet", "--message", "all")


def builder(*files: str, fails: str = ""):
    """In the place of `run`: make leaves ``files`` in dist/, git is git, and ``fails`` fails."""
    commands = []

    def ran(root: Path, *words: str) -> None:
        commands.append(words)
        if fails and fails in words:
            raise ReleaseError(fails)
        if words[0] == "make":
            (root / "dist").mkdir()
            for name in files:
                (root / "dist" / name).write_text(name)
        if words[0] == "git":
            run(root, *words)

    return ran, commands


BOTH = ("lookless-1.2.3-py3-none-any.whl", "lookless-1.2.3.tar.gz")


def test_a_release_is_built_tested_and_tagged_and_stops_there(project):
    ran, commands = builder(*BOTH)
    told = release(project, "1.2.3", run=ran)
    assert [words[0] for words in commands] == ["make", commands[1][0], "git"]
    assert commands[0] == ("make", "lint", "test-wheel")
    assert commands[1][1:4] == ("-m", "twine", "check")
    assert said(project, "tag", "--list") == "v1.2.3"
    assert said(project, "cat-file", "-t", "v1.2.3") == "tag"
    assert "nothing is uploaded" in told
    assert "git push origin v1.2.3\n" in told
    assert "-m twine upload dist/*\n" in told
    sums = subprocess.run(["sha256sum", "--check"], input="\n".join(told.split("\n")[:2]), cwd=project, text=True)
    assert sums.returncode == 0


@pytest.mark.parametrize("fails", ["test-wheel", "twine"])
def test_nothing_is_tagged_when_a_step_fails(project, fails):
    with pytest.raises(ReleaseError, match=fails):
        release(project, "1.2.3", run=builder(*BOTH, fails=fails)[0])
    assert said(project, "tag", "--list") == ""


def test_nothing_is_tagged_when_another_version_was_built(project):
    with pytest.raises(ReleaseError, match=r"dist/ has lookless-1\.2\.2\.tar\.gz"):
        release(project, "1.2.3", run=builder("lookless-1.2.2.tar.gz")[0])
    assert said(project, "tag", "--list") == ""


@pytest.mark.parametrize("version", ["", "1.2", "v1.2.3", "1.2.3; true"])
def test_no_version(project, version):
    with pytest.raises(ReleaseError, match="is no version; write `make release"):
        check(project, version)


def test_a_file_that_is_not_committed(project):
    (project / "new.py").write_text("")
    with pytest.raises(ReleaseError, match=r"not committed: new\.py"):
        check(project, "1.2.3")


def test_a_tag_that_is_there(project):
    said(project, "tag", "v1.2.3")
    with pytest.raises(ReleaseError, match=r"tag v1\.2\.3 is there already"):
        check(project, "1.2.3")


def test_another_version_in_the_code(project):
    with pytest.raises(ReleaseError, match=r"says 1\.2\.3 and VERSION is 1\.2\.4"):
        check(project, "1.2.4")


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ("[1.2.3]", "[1.2.1]", r"is 1\.2\.1, not 1\.2\.3; put"),
        (" - 2026-01-02", "", "has no date"),
        ("### Added\n\n- all", "", "has no text"),
        ("## [Unreleased]\n", "## [Unreleased]\n\n- later\n", r"under \[Unreleased\]"),
    ],
)
def test_a_changelog_that_does_not_agree(old, new, says):
    check_changelog(CHANGELOG, "1.2.3")
    with pytest.raises(ReleaseError, match=says):
        check_changelog(CHANGELOG.replace(old, new, 1), "1.2.3")


def test_our_own_changelog_is_read():
    """It has no section yet, or one that a release would take."""
    ready = text("CHANGELOG.md").replace("## [Unreleased]\n", f"## [Unreleased]\n\n## [{__version__}] - 2026-01-02\n")
    check_changelog(ready, __version__)
    with pytest.raises(ReleaseError):
        check_changelog(text("CHANGELOG.md"), "99.0.0")
