"""The README and the first page of the site tell the truth: commands run, Python runs, links lead somewhere."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys

import pytest

from helpers.documents import ROOT, blocks, commands, text, user_files

README = text("README.md")
#: What docs/start.md shows beside the README's commands; it continues their run.
STARTED = [command for command in commands(text("docs/start.md")) if command not in commands(README)]


@pytest.mark.long
def test_commands_run_in_order_in_a_users_folder(tmp_path):
    """All of them in one folder, as a reader would type them."""
    user_files(tmp_path)
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    assert len(commands(README)) >= 5
    assert len(STARTED) < len(commands(text("docs/start.md")))
    for command in commands(README) + STARTED:
        words = [sys.executable, "-m", "lookless", *shlex.split(command)[1:]]
        done = subprocess.run(words, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, (command, done.stderr)
        assert done.stdout.strip(), command


@pytest.mark.long
def test_python_runs(tmp_path):
    for block in blocks(README, "python"):
        done = subprocess.run([sys.executable, "-c", block], cwd=tmp_path, capture_output=True, text=True, check=False)
        assert done.returncode == 0, (block, done.stderr)


def test_make_targets_are_there():
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE)
    for target in re.findall(r"`?make ([a-z-]+)", README):
        assert target in targets


def test_links_lead_somewhere():
    pages = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *ROOT.glob("docs/*.md")]
    for page in pages:
        for link in re.findall(r"\]\(([^)#]+?)(?:#[^)]*)?\)", page.read_text()):
            if not link.startswith(("http://", "https://", "mailto:")):
                assert (page.parent / link).exists(), (page.name, link)
