"""What other libraries raise becomes one sentence of ours, whatever they say."""

from __future__ import annotations

import re

import pytest
import transformers
from typer.testing import CliRunner

import lookless
from lookless.bench import traffic
from lookless.cli.main import app
from lookless.errors import ModelError, PlanError, first_line
from lookless.plan import Plan


@pytest.mark.parametrize(
    ("problem", "line"),
    [
        (ValueError("wrong"), "wrong"),
        (ValueError("\n  wrong here. \nand more\n"), "wrong here"),
        (ValueError(""), "ValueError"),
        (KeyError(), "KeyError"),
        (OSError("\n"), "OSError"),
    ],
)
def test_the_first_line(problem, line):
    assert first_line(problem) == line


def test_an_error_without_a_message_is_one_sentence_everywhere(tmp_path, monkeypatch):
    def fails(*_, **__):
        raise ValueError

    (tmp_path / "config.json").write_text("{}")
    monkeypatch.setattr(transformers.AutoConfig, "from_pretrained", fails)
    monkeypatch.setattr("huggingface_hub.hf_hub_download", fails)
    with pytest.raises(ModelError, match=r"cannot be loaded: ValueError\.$"):
        lookless.load_model(str(tmp_path))
    with pytest.raises(ModelError, match=r"cannot be loaded: ValueError\.$"):
        traffic._geometry(str(tmp_path))
    with pytest.raises(PlanError, match=r"\(ValueError\)\.$"):
        Plan.from_pretrained("owner/name")
    result = CliRunner().invoke(app, ["flops", "--geometry", str(tmp_path), "--visual", "5", "--text", "5"])
    assert result.exit_code == 2
    assert re.search(r"cannot be read as a configuration: ValueError\.\n$", result.stderr)
