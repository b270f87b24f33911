"""A vLLM server as a child process: start on a free port, wait until ready, query, always terminate.

Its output goes to a log file; the last errors are quoted if it dies.
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
    """A running server.

    Attributes:
        name: what it is called in messages.
        log: the file with its output.
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
        """Whether it answers."""
        try:
            self.get("/health")
        except OSError:
            return False
        return True

    def get(self, path: str) -> str:
        """Raises: OSError: it does not answer, or with an error."""
        with urllib.request.urlopen(self.address + path, timeout=10) as answer:
            body: bytes = answer.read()
        return body.decode()

    def check(self) -> None:
        """Raises: ServingError: it died; with the end of its log."""
        code = self.process.poll()
        if code is not None:
            raise ServingError(f"the {self.name} server ended with code {code}; {tail(self.log)}")

    def visual_rows(self) -> Counts | None:
        """What its workers have counted; None for a server without a plan.

        Raises:
            ServingError: it died.
        """
        try:
            return parse_metrics(self.get("/metrics"))
        except OSError as problem:
            self.check()
            raise ServingError(f"the {self.name} server gives no metrics: {problem}.") from problem


@contextlib.contextmanager
def running(
    name: str, words: Sequence[str], log: Path, *, log_line: Callable[[str], None] = print, patience: float = PATIENCE_S
) -> Iterator[Server]:
    """The server that ``words`` start, once it is ready; always terminated, with all its processes, on exit.

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
            _await(server, log_line, patience)
            yield server
        finally:
            _end(process)


def tail(log: Path) -> str:
    """The end of ``log``, and before it the last errors further up: the cause is seldom the last line."""
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    shown, before = lines[-TAIL:], lines[:-TAIL]
    raised = re.compile(r"^((?!WARNING).)*\b\w*(Error|Exception): ")
    errors = list(dict.fromkeys(filter(raised.match, before)))
    return "\n".join([f"the end of {log}:", *(f"  {line}" for line in (*errors[-3:], *shown))])


def _await(server: Server, log_line: Callable[[str], None], patience: float) -> None:
    started, next_line = time.monotonic(), 0
    while not server.is_healthy:
        server.check()
        passed = time.monotonic() - started
        if passed > patience:
            raise ServingError(f"the {server.name} server was not ready in {patience:.0f} s; {tail(server.log)}")
        if passed >= next_line:
            log_line(f"starting the {server.name} server: {next_line} s")
            next_line += 10
        time.sleep(0.5)


def _end(process: subprocess.Popen[bytes]) -> None:
    """Terminate it; then kill what remains of its process group, such as workers."""
    process.terminate()
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(GRACE_S)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


@contextlib.contextmanager
def _ended_by_sigterm() -> Iterator[None]:
    """Make SIGTERM unwind the stack as Ctrl-C does, so that child processes are terminated."""
    if threading.current_thread() is not threading.main_thread():  # where no handler can be set
        yield
        return
    before = signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _free_port() -> int:
    with socket.socket() as free:
        free.bind((HOST, 0))
        port: int = free.getsockname()[1]
        return port
