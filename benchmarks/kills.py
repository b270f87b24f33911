"""Commands that are killed at random moments, and started again, end with the same bytes as if nothing had happened.

    python benchmarks/kills.py eval --kills 50
    python benchmarks/kills.py eval --full 50

The command runs once undisturbed. Then it is started in another folder, killed by SIGKILL at a random moment of its CPU
time, and started again until it ends, over and over until it was killed so often; every folder in which it ended is
compared with the undisturbed one, file by file. With ``--full`` it is not killed, but after a random number of files
the disk is full, which has to end it with one sentence and exit code 2.

What is said in seconds is compared without them: :data:`SECONDS` and :data:`TIME`. Modules and the model are loaded
before the command's process is forked, so that kills hit its work, and not imports.
"""

from __future__ import annotations

import argparse
import errno
import json
import math
import os
import random
import re
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path

SECONDS = {"seconds"}  #: keys of times that were measured, in any file
TIME = re.compile(rb"<dt>time</dt><dd>.*?</dd>")  #: the same of a page
#: Ends with a certificate, in so few tries that it is killed often.
SHORT = ("--samples", "1", "--tuning", "2", "--selection", "2", "--certification", "7", "--proposals", "2")
COMMANDS: dict[str, tuple[str, ...]] = {
    "calibrate": (
        *("calibrate", "reference", "--data", "reference:chart", "--samples", "8"),
        *("--measure", "visual_information_gain", "--measure", "ffn_effect", "--out", "scores"),
    ),
    "screen": (
        *("calibrate", "reference", "--data", "reference:chart", "--samples", "6", "--screen", "7"),
        *("--measure", "visual_information_gain", "--measure", "ffn_effect", "--out", "scores"),
    ),
    "eval": (
        *("eval", "reference", "--data", "reference:chart", "--limit", "24", "--batch", "2"),
        *("--plan", "../plan", "--out", "answers.json"),
    ),
    "certify": (
        *("certify", "reference", "--data", "reference:chart", "--data", "reference:attribute", "--limit", "24"),
        *("--batch", "2", "--plan", "../plan", "--plan", "../bold", "--retention", "0.5", "--out", "certificate.json"),
    ),
    "optimize": (
        *("optimize", "reference", "--data", "reference:chart", *SHORT, "--retention", "0.6", "--by", "flops"),
        *("--engine", "vllm", "--no-fitted", "--out", "run"),
    ),
    "table": (
        *("table", "reference", "--method", "v-skip", "--method", "fastv", "--data", "reference:chart"),
        *("--questions", "6", "--samples", "2", "--step", "answers", "--out", "results.md", "--work", "work"),
    ),
    "experiment": (
        *("experiment", "v-skip-masks", "reference", "--data", "reference:chart"),
        *("--questions", "6", "--samples", "2", "--seeds", "2", "--out", "experiments"),
    ),
}


def run(words: Sequence[str], folder: Path, room: float = math.inf) -> int:
    """Start the command in ``folder``, whose disk is full after ``room`` files: the process that runs it."""
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        os.chdir(folder)
        quiet = os.open("output.log", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(quiet, 1)
        os.dup2(quiet, 2)
        from lookless.cli.main import app

        os.fsync = Disk(os.fsync, room)
        app(list(words), prog_name="lookless")
    except SystemExit as ended:
        code = int(ended.code or 0)
    finally:
        sys.stdout.flush()
        os._exit(code)


class Disk:
    """``os.fsync`` of a disk that has room for so many files more."""

    def __init__(self, fsync: Callable[[int], None], room: float) -> None:
        self._fsync, self._room, self._written = fsync, room, 0

    def __call__(self, handle: int) -> None:
        if self._written >= self._room:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        self._fsync(handle)
        self._written += 1
        Path("written.log").write_text(str(self._written))


def cpu(child: int) -> float:
    """Seconds of CPU time that the process has taken."""
    fields = Path(f"/proc/{child}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def ended(child: int, moment: float = math.inf) -> int:
    """The exit code of the process; that of SIGKILL, if it was killed after ``moment`` seconds of CPU time."""
    while os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
        if cpu(child) >= moment:
            os.kill(child, signal.SIGKILL)
            break
        time.sleep(0.002)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def is_done(code: int, folder: Path) -> bool:
    """Whether a command that ended with ``code`` has its result, or is to be started again.

    Raises:
        RuntimeError: it failed otherwise than by the kill or the full disk, or in more than a sentence.
    """
    said = (folder / "output.log").read_text()
    sentences = [line for line in said.splitlines() if line.startswith("lookless: ") and "Warning" not in line]
    if code == -signal.SIGKILL:
        return False
    if code == 2 and len(sentences) == 1 and "Traceback" not in said:
        if "No space left on device" in sentences[0]:
            return False
        if "is there already" in sentences[0]:  # it was killed after its last word
            return True
    if code != 0:
        raise RuntimeError(f"the command ended with {code} and said: {said}")
    return True


def content(folder: Path) -> dict[str, object]:
    """What every file below ``folder`` holds, by name."""
    files = [path for path in sorted(folder.rglob("*")) if not path.is_dir() and path.suffix != ".log"]
    return {str(path.relative_to(folder)): _content(path) for path in files}


def _content(path: Path) -> object:
    if path.suffix != ".json":
        return TIME.sub(b"", path.read_bytes()) if path.suffix == ".html" else path.read_bytes()
    untimed: Callable[[dict[str, object]], object] = lambda one: {k: one[k] for k in one.keys() - SECONDS}  # noqa: E731
    return json.loads(path.read_text(), object_hook=untimed)


def differences(one: dict[str, object], other: dict[str, object]) -> list[str]:
    """The names of files that are not the same in both."""
    return sorted(name for name in one.keys() | other.keys() if one.get(name) != other.get(name))


@dataclass(frozen=True)
class Trial:
    """What came of a command.

    Attributes:
        disturbed, ends: how often it was, and how often it ended nevertheless.
        most: disturbances before one end.
        wrong: files that differed.
    """

    disturbed: int
    ends: int
    most: int
    wrong: tuple[str, ...]


def tried(words: Sequence[str], work: Path, times: int, is_full: bool, rng: random.Random) -> Trial:
    """Disturb the command so often: kill it, or give its disk no room."""
    whole = work / "whole"
    whole.mkdir()
    before = sum(os.times()[2:4])
    assert is_done(ended(run(words, whole)), whole)
    took, files = sum(os.times()[2:4]) - before, int((whole / "written.log").read_text())
    expected, ends, most, wrong, done = content(whole), 0, 0, [], 0
    while done < times:
        folder, here = work / f"{ends}", 0
        folder.mkdir()
        prepare(whole, folder)
        while True:
            left = math.inf if done >= times else rng.random() ** 2
            code = ended(run(words, folder, left * files)) if is_full else ended(run(words, folder), left * took)
            if is_done(code, folder):
                break
            done, here = done + 1, here + 1
        ends, most = ends + 1, max(most, here)
        found = differences(expected, content(folder))
        wrong += [f"{folder.name}: {name}" for name in found]
        if not found:
            shutil.rmtree(folder)
    return Trial(done, ends, most, tuple(wrong))


def prepare(whole: Path, folder: Path) -> None:
    """Give the run the milliseconds of the undisturbed one, as no two measurements are alike."""
    if (whole / "run" / "latency.json").exists():
        (folder / "run").mkdir()
        shutil.copy(whole / "run" / "latency.json", folder / "run")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("commands", nargs="*", default=list(COMMANDS), help=f"of {', '.join(COMMANDS)}; default: all")
    parser.add_argument("--kills", type=int, default=50, help="of each command")
    parser.add_argument("--full", type=int, help="instead of kills: how often each command finds a full disk")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    os.environ |= {"OMP_NUM_THREADS": "1", "TQDM_DISABLE": "1"}
    import lookless.loading
    from lookless import methods
    from lookless.configs import geometry_named

    lookless.loading.load_model = cache(lookless.loading.load_model)
    lookless.loading.load_model("reference", dtype="auto", device="cpu", revision=None)
    import lookless.bench.latency
    import lookless.optimize.run
    import lookless.search.seeds

    lookless.optimize.run.measure_latency = partial(lookless.optimize.run.measure_latency, repeats=1)
    lookless.optimize.run.LADDER, lookless.search.seeds.STEPS, lookless.bench.latency.CHECKED = (0.7,), 2, 1
    geometry = geometry_named("reference")
    failed = False
    for name in given.commands:
        work = Path(tempfile.mkdtemp(prefix=f"kills-{name}-"))
        methods.fastv(geometry, layer=2, keep=0.7).save_pretrained(work / "plan")
        methods.fastv(geometry, layer=2, keep=0.4).save_pretrained(work / "bold")
        rng, times = random.Random(f"{name} {given.seed}"), given.full or given.kills
        found = tried(COMMANDS[name], work, times, given.full is not None, rng)
        what = "killed" if given.full is None else "out of room"
        print(f"{name}: {what} {found.disturbed} times, ended {found.ends} times, after {found.most} at most: ", end="")
        print(f"differs: {', '.join(found.wrong)} (in {work})" if found.wrong else "always the same", flush=True)
        if found.wrong:
            failed = True
        else:
            shutil.rmtree(work)
    raise SystemExit(failed)


if __name__ == "__main__":
    main()
