"""What all commands share: the application, options, printing, and errors as one sentence."""

from __future__ import annotations

import errno
import functools
import inspect
import json
import os
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from contextvars import ContextVar
from dataclasses import MISSING, Field, dataclass, fields, is_dataclass
from inspect import Parameter, Signature
from typing import TYPE_CHECKING, Annotated, Any, NoReturn, TypeVar, get_type_hints

import typer
from rich.console import Console
from rich.measure import Measurement
from rich.table import Table

from ..errors import LooklessError, first_line, is_out_of_memory
from ..processes import follow, leading, place
from ..version import __version__

if TYPE_CHECKING:
    from pydantic import BaseModel

    from ..data import Reading, Samples
    from ..geometry import Geometry
    from ..loading import Loaded
    from ..plan import Plan

app = typer.Typer(
    help="Make multimodal language models look less, at the right depth: measure which decoder layers' visual work "
    "changes nothing, plan to skip it, apply the plan, and see what it costs and saves.\n\n"
    "Begin with `lookless demo`.\n\n"
    "An error is one sentence and exit code 2. Set LOOKLESS_DEBUG=1 to see its traceback and its cause.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)
#: The variable that shows tracebacks.
DEBUG = "LOOKLESS_DEBUG"
#: Words that are no option of a command are read by the command: a method's knobs.
OPEN = {"allow_extra_args": True, "ignore_unknown_options": True}
#: The commands whose samples are split over the processes of ``accelerate launch`` or ``torchrun``.
SPLIT = ("calibrate", "eval", "optimize", "search")


class Pipe(Console):
    """A console that leaves a closed pipe to :func:`reporting`."""

    def on_broken_pipe(self) -> None:
        raise BrokenPipeError


out, err = Pipe(), Pipe(stderr=True)
Command = TypeVar("Command", bound=Callable[..., None])
Model = Annotated[
    str,
    typer.Argument(
        metavar="MODEL", help="`reference`, `reference-qwen3-vl`, `reference-qwen3-5`, a local folder, or a hub id."
    ),
]
Data = Annotated[
    str,
    typer.Option(
        help="`reference:TASK`, `reference` for all tasks, or a file of JSON lines with image (or images), question, "
        "answer and perhaps task and id, paths relative to the file; or CSV, parquet, a saved data set, or a task file."
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON and nothing else.")]
Device = Annotated[str, typer.Option(help="Where to run: cpu, cuda, cuda:1, ...")]
Dtype = Annotated[str, typer.Option(help="auto, float32, bfloat16 or float16.")]
Revision = Annotated[str | None, typer.Option(help="Branch, tag or commit of a model on the hub.")]
#: What is more is a slip, and would fail in torch's own words.
MOST_TOKENS, MOST_PROMPTS, MOST_PIXELS = 10_000_000, 100_000, 100_000
#: A panel of the help.
READING = "How data are read and scored"
Columns = Annotated[
    str | None,
    typer.Option(
        help="Names that the data give to our keys: `image=img,question=q,answer=a`; further keys are images, video, "
        "messages, id and task. Others are not read.",
        rich_help_panel=READING,
    ),
]
Suffix = Annotated[
    str | None, typer.Option(help="Added to each question: `Answer with a single word.`", rich_help_panel=READING)
]
SkipBad = Annotated[
    bool,
    typer.Option(
        "--skip-bad",
        help="Skip samples that cannot be read, and say which, instead of stopping.",
        rich_help_panel=READING,
    ),
]
MetricName = Annotated[
    str | None,
    typer.Option(
        "--metric",
        help="How answers are scored: exact (default), gqa, contains, choice, numeric, relaxed, anls, vqav2, textvqa, "
        "yes-no, pope or mme, as lmms-eval scores those tasks; also choice:ABCD and numeric:0.05.",
        rich_help_panel=READING,
    ),
]


@dataclass(frozen=True)
class DataOptions:
    """How data are read: of every command that takes them."""

    columns: Columns = None
    prompt_suffix: Suffix = None
    skip_bad: SkipBad = False

    @property
    def reading(self) -> Reading:
        """Raises: LooklessError: the columns are not of their form."""
        from ..data import Reading

        return Reading(columns=named_columns(self.columns), prompt_suffix=self.prompt_suffix, skip_bad=self.skip_bad)


@dataclass(frozen=True)
class ScoredDataOptions(DataOptions):
    """As :class:`DataOptions`, of every command that scores answers."""

    metric: MetricName = None

    @property
    def reading(self) -> Reading:
        """Raises: LooklessError: there is no such metric, or as the base."""
        from ..metrics import metric_named

        if self.metric is not None:
            metric_named(self.metric)
        return super().reading.model_copy(update={"metric": self.metric})


#: What the command holds.
_held: ContextVar[ExitStack] = ContextVar("held")


def until_the_end(held: AbstractContextManager[None]) -> None:
    """Enter ``held``, and leave it when the command ends."""
    _held.get().enter_context(held)


@contextmanager
def reporting() -> Iterator[None]:
    """One sentence on standard error and exit code 2 for every error of :mod:`lookless.errors`."""
    try:
        with ExitStack() as held:
            before = _held.set(held)
            try:
                yield
            finally:
                _held.reset(before)
    except LooklessError as error:
        _exit(str(error))
    except BrokenPipeError:  # the reader has closed the pipe: what is left in the buffer goes nowhere
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise typer.Exit(141) from None
    except KeyboardInterrupt:
        _exit("interrupted.", code=130)
    except OSError as problem:  # a full disk, a folder that may not be written
        full = problem.errno in (errno.ENOSPC, errno.EDQUOT)
        more = ": make room and start again, what is finished is kept" if full else ""
        _exit(f"{first_line(problem)}{more}.")
    except (MemoryError, RuntimeError) as problem:
        if not is_out_of_memory(problem):
            raise
        _exit(f"there is not enough memory ({first_line(problem)}): ask for less at once.")


def _exit(sentence: str, code: int = 2) -> NoReturn:
    """End with ``sentence``; with :data:`DEBUG` set, print the traceback and its causes before it."""
    if os.environ.get(DEBUG, "0") not in ("", "0"):
        traceback.print_exc()
    typer.echo(f"lookless: {sentence}", err=True)
    raise typer.Exit(code) from None


def one_sentence(command: Command) -> Command:
    """``command``, which reports errors as :func:`reporting` does."""

    @functools.wraps(command)
    def run(*args: Any, **kwargs: Any) -> None:
        with reporting():
            command(*args, **kwargs)

    return run  # type: ignore[return-value]


def spread(command: Command) -> Command:
    """``command``, whose parameter of a dataclass is as many options: what several commands take is declared once, as
    the fields of the class."""
    # not get_type_hints, which until Python 3.10 hides what is annotated within Optional where a default is None
    declared = inspect.signature(command, eval_str=True).parameters
    groups: dict[str, Any] = {name: one.annotation for name, one in declared.items() if is_dataclass(one.annotation)}

    def parts(parameter: Parameter) -> Iterator[Parameter]:
        if parameter.name not in groups:
            yield parameter.replace(kind=Parameter.KEYWORD_ONLY)
            return
        group = groups[parameter.name]
        inner = get_type_hints(group, include_extras=True)
        for field in fields(group):
            yield Parameter(field.name, Parameter.KEYWORD_ONLY, annotation=inner[field.name], default=_default(field))

    @functools.wraps(command)
    def run(**given: Any) -> None:
        made = {name: group(**{f.name: given.pop(f.name) for f in fields(group)}) for name, group in groups.items()}
        command(**given, **made)

    parameters = [part for parameter in declared.values() for part in parts(parameter)]
    run.__signature__ = Signature(parameters)  # type: ignore[attr-defined]
    run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return run  # type: ignore[return-value]


def _default(field: Field[Any]) -> Any:
    return Parameter.empty if field.default is MISSING else field.default


def print_whole(table: Table) -> None:
    """Print ``table`` with nothing cut: where it is too wide for a terminal, or for the 80 columns that a pipe is taken
    to have, its lines are longer. A column that may not be wrapped keeps its lines, the others their words."""
    free = out.options.update_width(10_000)
    for column in table.columns:
        sizes = [Measurement.get(out, free, cell) for cell in (column.header, *column.cells)]
        column.min_width = max(size.maximum if column.no_wrap else size.minimum for size in sizes)
    least = Measurement.get(out, free, table).minimum
    if least > out.width:
        table.width = least
    out.print(table, crop=False)


def print_json(record: BaseModel | dict[str, Any]) -> None:
    data = record if isinstance(record, dict) else record.model_dump(mode="json")
    typer.echo(json.dumps(data, indent=2))


def named_columns(text: str | None) -> dict[str, str] | None:
    """Of each of our keys, the data's own name for it.

    Raises:
        LooklessError: ``text`` is not of the form ``image=img,question=q``.
    """
    if text is None:
        return None
    pairs = [pair.partition("=") for pair in text.split(",")]
    if not all(ours.strip() and sign and theirs.strip() for ours, sign, theirs in pairs):
        raise LooklessError(f"--columns {text!r} is not of the form image=img,question=q,answer=a.")
    return {ours.strip(): theirs.strip() for ours, _, theirs in pairs}


def asked_of(loaded: Loaded, samples: Samples, reading: Reading) -> Samples:
    """``samples`` that the model can be asked, if bad ones are to be skipped; says which were."""
    from ..data import warn_of_skipped

    fit = loaded.fitting(samples) if reading.skip_bad else samples
    warn_of_skipped(fit.bad)
    return fit


def _version(asked: bool) -> None:
    if asked:
        typer.echo(__version__)
        raise typer.Exit


def _warn(message: Warning | str, category: type[Warning], *_: Any, **__: Any) -> None:
    """In place of :func:`warnings.showwarning`: what happened in one line, and not where in our code."""
    typer.echo(f"lookless: {category.__name__}: {message}", err=True)


@app.callback()
def _main(
    ctx: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and stop.")
    ] = False,
) -> None:
    ctx.with_resource(warnings.catch_warnings())
    warnings.showwarning = _warn
    with reporting():
        _join(ctx)


def _join(ctx: typer.Context) -> None:
    """Under ``accelerate launch`` or ``torchrun`` lead the other processes, or be one of them until the first ends."""
    rank, size = place()
    if size == 1:
        return
    if ctx.invoked_subcommand not in SPLIT:
        raise LooklessError(
            f"{ctx.invoked_subcommand} runs in one process, and this is one of {size}: start it without accelerate "
            f"launch or torchrun, which split {', '.join(SPLIT)}."
        )
    if rank:
        follow()
        raise typer.Exit
    ctx.with_resource(leading(size))


def is_runnable(name: str, plan: Plan, geometry: Geometry) -> bool:
    """Whether a decoder can run ``plan``; if not, why ``name`` is left out is told."""
    try:
        plan.check(geometry)
    except LooklessError as problem:
        typer.echo(f"{name} is left out: {problem}", err=True)
        return False
    return True
