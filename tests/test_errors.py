"""What other libraries raise becomes one sentence of ours, whatever they say."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest
import transformers
from typer.testing import CliRunner

import lookless
from lookless.bench import traffic_client
from lookless.cli.main import app
from lookless.errors import GeometryError, ModelError, PlanError, first_line
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
    with pytest.raises(GeometryError, match=r"cannot be read as a configuration: ValueError\.$"):
        traffic_client.served_model(str(tmp_path), tmp_path)
    with pytest.raises(PlanError, match=r"\(ValueError\)\.$"):
        Plan.from_pretrained("owner/name")
    result = CliRunner().invoke(app, ["flops", "--geometry", str(tmp_path), "--visual", "5", "--text", "5"])
    assert result.exit_code == 2
    assert re.search(r"cannot be read as a configuration: ValueError\.\n$", result.stderr)


def test_the_cause_of_an_error_is_kept_and_shown_when_asked_for(tmp_path, monkeypatch):
    """One sentence by default; with LOOKLESS_DEBUG=1 the traceback and the other library's error before it."""
    (tmp_path / "data.jsonl").write_text('{"question": 3')
    words = ["eval", "reference", "--data", str(tmp_path / "data.jsonl")]
    monkeypatch.setenv("LOOKLESS_DEBUG", "0")
    plain = CliRunner().invoke(app, words)
    monkeypatch.setenv("LOOKLESS_DEBUG", "1")
    debugged = CliRunner().invoke(app, words)
    assert plain.exit_code == debugged.exit_code == 2
    assert plain.stderr.count("\n") == 1
    assert debugged.stderr.endswith(plain.stderr)
    assert "json.decoder.JSONDecodeError" in debugged.stderr
    assert debugged.stderr.count("direct cause of the following exception") == 2
    assert "LOOKLESS_DEBUG=1" in CliRunner().invoke(app, ["--help"]).stdout


def test_no_error_hides_its_cause():
    """The command line, which ends the process, may."""
    source = Path(lookless.__file__).parent
    raised = [
        (path.relative_to(source), node.lineno)
        for path in source.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Raise) and isinstance(node.cause, ast.Constant) and "Exit" not in ast.unparse(node)
    ]
    assert not raised
