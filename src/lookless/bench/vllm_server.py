"""A vLLM server as a child: started on a free port, awaited, asked, and ended for certain.

What it writes is kept in a file, whose last complaints are told when it dies.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..errors import ServingError
from ..serving.counters import Counts, parse_metrics

HOST = "127.0.0.1"
PATIENCE_S = 1800.0  # a large model is loaded and compiled for minutes
GRACE_S = 20.0
TAIL = 12  # lines


@dataclass(frozen=True)
class Server:
    """One that answers.

    Attributes:
        name: what it is called in messages.
        log: the file with all it wrote.
    """

    name: str
    port: int
    log: Path
    process: subprocess.Popen[bytes]

    @property
    def address(self) -> str:
        return f"http://{HOST}:{self.port}"

    @property
    def is_healthy(self) -> bool:
        """Whether it is up and answers."""
        try:
            self.get("/health")
        except OSError:
            return False
        return True

    def get(self, path: str) -> str:
        """Raises: OSError: it does not answer, or not well."""
        with urllib.request.urlopen(self.address + path, timeout=10) as answer:
            told: bytes = answer.read()
        return told.decode()

    def check(self) -> None:
        """Raises: ServingError: it died; with the end of its log."""
        code = self.process.poll()
        if code is not None:
            raise ServingError(f"the {self.name} server ended with code {code}; {tail(self.log)}")

    def visual_rows(self) -> Counts | None:
        """What its workers counted so far; None of a server without a plan.

        Raises:
            ServingError: it died.
        """
        try:
            return parse_metrics(self.get("/metrics"))
        except OSError as problem:
            self.check()
            raise ServingError(f"the {self.name} server tells no metrics: {problem}.") from problem


@contextlib.contextmanager
def running(
    name: str, words: Sequence[str], log: Path, *, say: Callable[[str], None] = print, patience: float = PATIENCE_S
) -> Iterator[Server]:
    """The server that ``words`` start, ready; ended with all its processes when the block is left, however it is left.

    Raises:
        ServingError: it died before it was ready, or was not ready in ``patience`` seconds.
    """
    port = _free_port()
    with _ended_by_sigterm():
        with log.open("wb") as file:
            process = subprocess.Popen(
                [*words, "--host", HOST, "--port", str(port)],
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # one group, to be killed as one
            )
        server = Server(name, port, log, process)
        try:
            _await(server, say, patience)
            yield server
        finally:
            _end(process)


def tail(log: Path) -> str:
    """The end of ``log``, and before it the errors that stand further up: the cause is seldom told last."""
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    shown, before = lines[-TAIL:], lines[:-TAIL]
    raised = re.compile(r"^((?!WARNING).)*\b\w*(Error|Exception): ")
    errors = list(dict.fromkeys(filter(raised.match, before)))
    return "\n".join([f"the end of {log}:", *(f"  {line}" for line in (*errors[-3:], *shown))])


def _await(server: Server, say: Callable[[str], None], patience: float) -> None:
    started, told = time.monotonic(), 0
    while not server.is_healthy:
        server.check()
        passed = time.monotonic() - started
        if passed > patience:
            raise ServingError(f"the {server.name} server was not ready in {patience:.0f} s; {tail(server.log)}")
        if passed >= told:
            say(f"starting the {server.name} server: {told} s")
            told += 10
        time.sleep(0.5)


def _end(process: subprocess.Popen[bytes]) -> None:
    """Ask it to stop; then kill whatever is left of its group, the server or workers that it left behind."""
    process.terminate()
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(GRACE_S)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


@contextlib.contextmanager
def _ended_by_sigterm() -> Iterator[None]:
    """Being asked to stop unwinds this process, as Ctrl-C does: otherwise its children would be left behind."""
    if threading.current_thread() is not threading.main_thread():  # where no handler can be set
        yield
        return
    before = signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _free_port() -> int:
    with socket.socket() as asked:
        asked.bind((HOST, 0))
        port: int = asked.getsockname()[1]
        return port
