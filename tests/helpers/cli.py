"""The command line without a process."""

from __future__ import annotations

from typer.testing import CliRunner

from lookless.cli.main import app

runner = CliRunner()


def run(*arguments):
    return runner.invoke(app, [str(a) for a in arguments], prog_name="lookless")


def fails(*arguments) -> str:
    """The one sentence of a refused command."""
    result = run(*arguments)
    assert result.exit_code == 2, result.output
    assert result.stdout == ""
    assert "Traceback" not in result.output
    lines = result.stderr.strip().splitlines()
    assert len(lines) == 1, lines
    assert lines[0].startswith("lookless: ")
    return lines[0]
