"""`velo run`: its options, and what they make of a run."""

from __future__ import annotations

import asyncio
import contextlib
import sys
from typing import Any

import click

from velo import StreamFn
from velo.cli.convert import Converter
from velo.cli.errors import Failure, describe
from velo.cli.job import Job
from velo.cli.parsing import Parser
from velo.cli.progress import Progress
from velo.cli.reading import Input, Reader, open_input
from velo.cli.target import load_target
from velo.cli.writing import Writer, open_output

__all__ = ["run"]

_POSITIVE = click.IntRange(min=1)


@click.command(short_help="Run a stream function over a file or a pipe.")
@click.argument("target", metavar="MODULE_OR_FILE:FUNCTION")
@click.option("-i", "--input", "source", required=True, metavar="FILE|-", help="NDJSON or CSV.")
@click.option("-o", "--output", default="-", metavar="FILE|-", help="NDJSON. [default: -]")
@click.option("-k", "--key", metavar="FIELD", help="Run one stream for each value of this field.")
@click.option("--mode", type=click.Choice(["inline", "process"]), help="Where streams run.")
@click.option("--workers", type=_POSITIVE, help="Worker processes at most, in process mode.")
@click.option("--buffer", type=_POSITIVE, help="Events and results that may wait in a stream.")
@click.option(
    "--timeout",
    type=click.FloatRange(min=0, min_open=True),
    metavar="SECONDS",
    help="End a stream that was idle for so long.",
)
@click.option("--max-concurrent", type=_POSITIVE, help="Streams that are open at a time.")
@click.option("--limit", type=_POSITIVE, help="Take only the first so many events.")
@click.option("--format", type=click.Choice(["ndjson", "csv"]), help="Of the input.")
@click.option("--no-convert", is_flag=True, help="CSV: keep all fields as text.")
@click.option("--text", multiple=True, metavar="FIELD", help="CSV: keep this field as text.")
@click.option("--null", multiple=True, metavar="VALUE", help="CSV: what means nothing, as NA.")
@click.option("--strict", is_flag=True, help="Stop at the first bad line.")
@click.option(
    "--reports",
    type=click.IntRange(min=0),
    default=5,
    metavar="N",
    show_default=True,
    help="Bad lines to report one by one.",
)
@click.option("--progress/--no-progress", default=True, help="The live line on a terminal.")
@click.pass_context
def run(
    context: click.Context,
    /,
    target: str,
    source: str,
    output: str,
    key: str | None,
    format: str | None,
    limit: int | None,
    strict: bool,
    reports: int,
    progress: bool,
    no_convert: bool,
    text: tuple[str, ...],
    null: tuple[str, ...],
    **settings: Any,
) -> None:
    r"""Run a stream function over the events of a file or a pipe, and write what it yields.

    \b
      velo run flights.py:turnarounds -i flights.csv -k tailnum --mode process -o out.ndjson
      tail -f clicks.ndjson | velo run shop.funnel:steps -i - -k user

    The input is NDJSON (.ndjson, .jsonl, .json, and standard input unless --format says otherwise)
    or CSV with a header (.csv), either of them also as .gz, or as a .zip of one file.

    Each result is a line of JSON: as it is, or {"key": ..., "result": ...} with --key. Order holds
    within a key. The output of one key does not depend on the mode or on the number of workers.

    CSV fields that are numbers become numbers, empty ones null. What looks like a code stays text:
    007, +49, 1_000.

    A line that is no event, or has no key, is reported and skipped. Ctrl-C ends the input
    and writes what was done so far.

    Settings that are not given are the function's own.
    """
    fn = _configured(load_target(target), settings)
    if no_convert and (text or null):
        raise click.UsageError("`--no-convert` keeps all text: drop `--text` and `--null`")
    input = open_input(source, format)
    if input.format != "csv" and (no_convert or text or null):
        raise click.UsageError("`--no-convert`, `--text` and `--null` are for CSV, not NDJSON")
    parser = Parser(
        input.format,
        key=key,
        limit=limit,
        strict=strict,
        converter=Converter(numbers=not no_convert, text=text, null=null),
    )
    writer = Writer(open_output(output, source), output)
    job = Job(fn, key, writer, strict=strict)
    shown = Progress(
        job.tally,
        size=None if limit else input.size,
        reports=reports,
        live=progress and not (output == "-" and sys.stdout.isatty()),
    )
    context.exit(_run(fn, job, input, parser, writer, shown))


def _configured(fn: StreamFn[Any, Any], settings: dict[str, Any]) -> StreamFn[Any, Any]:
    given = {name: value for name, value in settings.items() if value is not None}
    if "workers" in given and given.get("mode", fn.config.mode) != "process":
        raise click.UsageError("`--workers` is for process mode: add `--mode process`")
    try:
        return fn.options(**given)
    except (TypeError, ValueError) as error:
        raise click.UsageError(str(error)) from None


def _run(
    fn: StreamFn[Any, Any], job: Job, input: Input, parser: Parser, writer: Writer, shown: Progress
) -> int:
    """Do the work, say how it went, and return the exit code."""

    async def main() -> None:
        await job.run(Reader(input, parser), shown)

    failure: click.ClickException | None = None
    try:
        # The writer is closed last: whatever happens, what was done is written.
        with shown.showing(), contextlib.closing(writer):
            asyncio.run(main())
    except click.ClickException as error:
        failure = error
    except Exception as error:
        failure = Failure(describe(error, fn._name))
    if failure is not None:
        shown.say(failure.format_message())
    if job.signal is not None:
        shown.summary("stopped")
        return 128 + job.signal
    shown.summary("failed" if failure else None)
    return failure.exit_code if failure else 0
