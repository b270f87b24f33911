"""The README tells the truth: its commands run, its Python runs, its links lead somewhere."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from lookless import reference

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", README, flags=re.MULTILINE | re.DOTALL)


def commands() -> list[str]:
    lines = "\n".join(blocks("console")).replace("\\\n", " ").splitlines()
    return [line.removeprefix("$ ") for line in lines if line.startswith("$ lookless")]


def _user_files(folder: Path) -> None:
    """What the README takes for granted: ``my-model``, a model's folder, and ``mine.jsonl`` with its images."""
    shutil.copytree(reference.NAMES["reference"], folder / "my-model")
    (folder / "images").mkdir()
    lines = []
    for i in range(40):
        image, question, answer = reference.question("chart", "test", i)
        image.save(folder / f"images/{i}.png")
        lines.append(json.dumps({"image": f"images/{i}.png", "question": question, "answer": answer}))
    (folder / "mine.jsonl").write_text("\n".join(lines))


@pytest.mark.long
def test_commands_run_in_order_in_a_users_folder(tmp_path):
    """All of them in one folder, as a reader would type them."""
    _user_files(tmp_path)
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    assert len(commands()) >= 5
    for command in commands():
        words = [sys.executable, "-m", "lookless", *shlex.split(command)[1:]]
        done = subprocess.run(words, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, (command, done.stderr)
        assert done.stdout.strip(), command


@pytest.mark.long
def test_python_runs(tmp_path):
    for block in blocks("python"):
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
