"""`velo run`: its options, and the run that they describe."""

from __future__ import annotations

import asyncio
import signal
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import click

from velo import StreamFn
from velo.cli.connected.keeping import check_kept, is_plain, kept_settings
from velo.cli.decoding import check_encoding
from velo.cli.errors import Failure, describe
from velo.cli.inputs import find_inputs
from velo.cli.job import Job
from velo.cli.keys import Keys
from velo.cli.metrics import add_run, serving
from velo.cli.parsing import Rules
from velo.cli.probes import Probes
from velo.cli.progress import Progress, Tally
from velo.cli.reading import Reader
from velo.cli.signals import Signals
from velo.cli.target import load_target
from velo.cli.writing import Unread, Writer, open_output, resume_output
from velo.connect.urls import is_url

if TYPE_CHECKING:
    from velo.cli.connected.job import ConnectedJob

__all__ = ["record", "run"]

_POSITIVE = click.IntRange(min=1)


@click.command(short_help="Run a stream function over files or a pipe.")
@click.argument("target", metavar="MODULE_OR_FILE:FUNCTION")
@click.option(
    "-i",
    "--input",
    "paths",
    required=True,
    multiple=True,
    metavar="FILE|PATTERN|URL|-",
    help="NDJSON, JSON, CSV or TSV, or a URL: kafka://HOST/TOPIC; may be given several times.",
)
@click.option("-o", "--output", default="-", metavar="FILE|URL|-", help="NDJSON. [default: -]")
@click.option("-k", "--key", metavar="FIELD", help="Run one stream for each value of this field.")
@click.option("--record-key", is_flag=True, help="URLs: run one stream for each key of a record.")
@click.option("--group", metavar="NAME", help="URLs: the group that shares the input.")
@click.option(
    "--decode",
    metavar="FORMAT",
    help="URLs: what records hold: json, msgpack, text, bytes, csv, csv:FIELD,... [default: json]",
)
@click.option("--dead-letter", metavar="FILE|URL", help="Put failed records there.")
@click.option("--retries", type=click.IntRange(min=0), default=0, help="URLs: of a failed record.")
@click.option(
    "--max-pending",
    type=_POSITIVE,
    default=10_000,
    metavar="N",
    help="URLs: records of a partition that are read and not handled. [default: 10000]",
)
@click.option("--mode", type=click.Choice(["inline", "process", "ray"]), help="Where streams run.")
@click.option("--workers", type=_POSITIVE, help="Worker processes at most, in process mode.")
@click.option("--buffer", type=_POSITIVE, help="Events and results that may wait in a stream.")
@click.option(
    "--timeout",
    type=click.FloatRange(min=0, min_open=True),
    metavar="SECONDS",
    help="End a stream that was idle for this time.",
)
@click.option("--max-concurrent", type=_POSITIVE, help="Streams that are open at a time.")
@click.option("--limit", type=_POSITIVE, help="Take only the first N events.")
@click.option("--follow", is_flag=True, help="Wait for more at the end of files, as `tail -F`.")
@click.option(
    "--checkpoint",
    metavar="FOLDER|URL",
    help="Keep states and positions there: in a folder, or at s3://BUCKET/PREFIX, gs:// or az://.",
)
@click.option(
    "--checkpoint-every",
    type=click.FloatRange(min=0, min_open=True),
    metavar="SECONDS",
    help="Between two ticks of the checkpoint. [default: 1]",
)
@click.option("--unload", is_flag=True, help="Checkpoint: keep streams that are idle on disk only.")
@click.option(
    "--ttl",
    type=click.FloatRange(min=0, min_open=True),
    metavar="SECONDS",
    help="Checkpoint: forget a key whose state has not changed for this time.",
)
@click.option("--trust", is_flag=True, help="Checkpoint: keep pickled states, which run code.")
@click.option("--resume", is_flag=True, help="Complete the output of an earlier run.")
@click.option(
    "--drain",
    type=click.FloatRange(min=0),
    default=3.0,
    metavar="SECONDS",
    show_default=True,
    help="How long streams may finish their work, after Ctrl-C or SIGTERM.",
)
@click.option("--record", metavar="FOLDER", help="Record each stream there, for `velo replay`.")
@click.option(
    "--metrics", metavar="HOST:PORT", help="Serve figures to Prometheus, and answer probes."
)
@click.option("--format", type=click.Choice(["ndjson", "json", "csv", "tsv"]), help="Of the input.")
@click.option("--encoding", metavar="NAME", help="Of the input: latin-1, utf-16. [default: utf-8]")
@click.option("--delimiter", metavar="C", help="CSV: between fields, as `;` or `tab`.")
@click.option("--no-convert", is_flag=True, help="CSV: keep all fields as text.")
@click.option("--text", multiple=True, metavar="FIELD", help="CSV: keep this field as text.")
@click.option("--null", multiple=True, metavar="VALUE", help="CSV: a value that means null, as NA.")
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
    paths: tuple[str, ...],
    output: str,
    key: str | None,
    record_key: bool,
    group: str | None,
    decode: str | None,
    dead_letter: str | None,
    retries: int,
    max_pending: int,
    limit: int | None,
    follow: bool,
    checkpoint: str | None,
    checkpoint_every: float | None,
    unload: bool,
    ttl: float | None,
    trust: bool,
    resume: bool,
    drain: float,
    metrics: str | None,
    format: str | None,
    encoding: str | None,
    delimiter: str | None,
    no_convert: bool,
    text: tuple[str, ...],
    null: tuple[str, ...],
    strict: bool,
    reports: int,
    progress: bool,
    **settings: Any,
) -> None:
    """Run a stream function over the events of files or a pipe, and write its results.

    \b
      velo run flights.py:turnarounds -i flights.csv -k tailnum -o out.ndjson
      velo run shop.funnel:steps -i 'clicks-*.ndjson.gz' -i today.ndjson -k user
      velo run shop.funnel:steps -i clicks.ndjson -k user --mode process --follow

    The input is NDJSON (.ndjson, .jsonl), an array of JSON (.json), or CSV or TSV with a header
    (.csv, .tsv), each of them also as .gz, .zst, .bz2 or .xz, or as a .zip of one file. Standard
    input is NDJSON unless --format says otherwise. Several inputs are read one after the other, and
    the files of a pattern in the order of their names.

    Each result is a line of JSON: as it is, or {"key": ..., "result": ...} with --key. Order holds
    within a key. The output of one key does not depend on the mode or on the number of workers.
    Keys are compared as they are written: 3.1 and 3.10 are two keys.

    CSV fields that are numbers become numbers, empty fields null. Values that look like codes stay
    text: 007, +49, 1_000. The delimiter is found in the header. --decode csv reads the lines of a
    URL by these rules, the first line being the header; csv:user,amount names the fields of rows
    without a header, such as messages.

    A line that is no event, or has no key, is reported and skipped, and so is a result that has no
    form in JSON. The exit code is 1 if the run failed, an input gave no event at all, or results
    were left out. Ctrl-C and SIGTERM end the input, and the results so far are written; the exit
    code is 130 or 143. A second signal stops the run at once.

    With --resume, the same command completes the output of a run that was stopped in any way, kill
    -9 included: the results in the output file stay, and only the missing ones are written. The
    input is read from its beginning again, which rebuilds the state of the streams.

    Other settings are those of the function itself.
    """  # noqa: D301
    # (Click leaves lines alone that stand below a backspace: the docstring has to hold one.)
    fn = _configured(load_target(target), settings)
    if no_convert and (text or null):
        raise click.UsageError("`--no-convert` keeps all text: drop `--text` and `--null`")
    if resume and "-" in paths:
        raise click.UsageError("`--resume` reads the input again, which standard input cannot be")
    if encoding is not None:
        encoding = check_encoding(encoding)
    urls = [path for path in paths if is_url(path)]
    files = [path for path in paths if not is_url(path)]
    connected = (
        bool(urls)
        or is_url(output)
        or dead_letter is not None
        or retries > 0
        or checkpoint is not None
    )
    kept = kept_settings(checkpoint, checkpoint_every, unload, ttl, trust)
    if not connected and (record_key or group is not None or decode is not None):
        raise click.UsageError("`--record-key`, `--group` and `--decode` are for URLs")
    if checkpoint is not None:
        check_kept(fn, paths, follow=follow, resume=resume)
    if connected and resume:
        raise click.UsageError(
            "`--resume` is for files alone: a group or a position of the source says where to go on"
        )
    if record_key and (key is not None or files):
        raise click.UsageError("`--record-key` takes no `--key`, and no files as input")
    inputs = find_inputs(tuple(files), format, follow=follow, encoding=encoding) if files else []
    if resume and any(input.pipe is not None for input in inputs):
        raise click.UsageError("`--resume` reads the input again, which a named pipe cannot be")
    if resume and follow and len(inputs) > 1:
        raise click.UsageError(
            "`--resume` with `--follow` takes one file: events of several come in no fixed order"
        )
    csv = decode if decode is not None and decode.partition(":")[0] == "csv" else None
    if not (csv or any(input.format in ("csv", "tsv") for input in inputs)) and (
        no_convert or text or null or delimiter
    ):
        raise click.UsageError(
            "`--no-convert`, `--text`, `--null` and `--delimiter` are for CSV, not NDJSON"
        )
    keys = None if key is None else Keys(key)
    read = [input.path for input in inputs]
    keyed = key is not None or record_key
    if connected:
        from velo.cli.connected.options import check_apart

        check_apart([*urls, *read], output, dead_letter)
    if limit is not None and urls:
        raise click.UsageError("`--limit` is for files: a URL has `until=` to end at")
    sizes = [input.size for input in inputs if input.size is not None]
    whole = not urls and not connected and len(sizes) == len(inputs) and not limit
    job: Job | ConnectedJob | None = None

    def tally() -> Tally:
        return Tally() if job is None else job.tally()

    shown = Progress(
        tally,
        size=sum(sizes) if whole else None,
        reports=reports,
        live=progress and not (output == "-" and sys.stdout.isatty()),
    )

    rules = Rules(
        keys=keys,
        numbers=not no_convert,
        text=text,
        null=null,
        delimiter=None if delimiter is None else _delimiter(delimiter),
        lines=fn.config.mode != "inline" and not connected,
        say=shown.say,
    )

    def reader() -> Reader:
        return Reader(inputs, rules, follow=follow, limit=limit, strict=strict)

    def open_writer() -> Writer:
        if not resume:
            return Writer(open_output(output, read), output, keyed=keyed)
        file, written = resume_output(output, read, keyed=keyed)
        return Writer(file, output, keyed=keyed, written=written)

    probes = Probes()
    # The output is opened when nothing else can be wrong with the call: that empties the file.
    with serving(metrics, lambda registry: add_run(registry, tally), probes):
        if connected:
            from velo.cli.connected.making import connected_job, csv_of

            own = is_url(output) or (kept and is_plain(output))
            job = connected_job(
                fn,
                urls,
                reader if files else None,
                keys=keys,
                record_key=record_key,
                output=output,
                open_writer=None if own else open_writer,
                group=group,
                decode=decode if csv is None else csv_of(csv, rules),
                dead_letter=dead_letter,
                retries=retries,
                max_pending=max_pending,
                drain=drain,
                strict=strict,
                checkpoint=kept,
            )
        else:
            job = Job(fn, keys, open_writer(), strict=strict, drain=drain)
        code = _run(job, reader, shown, probes)
    context.exit(code)


def _as_record() -> click.Command:
    """Make the command `velo record` from `velo run`: the same run, with recordings."""
    params = [param for param in run.params if param.name != "record"]
    folder = click.Option(
        ["--record"],
        default="recordings",
        show_default=True,
        metavar="FOLDER",
        help="Where each stream has a file.",
    )
    help = """Run a stream function as `velo run` does, and record each of its streams.

    \b
      velo record flights.py:turnarounds -i flights.csv -k tailnum -o out.ndjson
      velo replay recordings

    A recording has all that the function of one stream was given, and all that it made of it.
    """
    return click.Command(
        "record",
        params=[*params, folder],
        callback=run.callback,
        help=help,
        short_help="Run a stream function, and record its streams.",
    )


record = _as_record()


def _configured(fn: StreamFn[Any, Any], settings: dict[str, Any]) -> StreamFn[Any, Any]:
    given = {name: value for name, value in settings.items() if value is not None}
    if "workers" in given and given.get("mode", fn.config.mode) == "inline":
        raise click.UsageError("`--workers` is for process mode: add `--mode process`")
    try:
        return fn.options(**given)
    except (TypeError, ValueError) as error:
        raise click.UsageError(str(error)) from None


def _delimiter(text: str) -> str:
    found = {"tab": "\t", "\\t": "\t", "space": " ", "comma": ","}.get(text, text)
    if len(found) != 1 or not found.isascii() or found in '"\r\n\0':
        raise click.UsageError(f"`--delimiter {text}` must be one ASCII character, or `tab`")
    return found


def _run(
    job: Job | ConnectedJob, reader: Callable[[], Reader], shown: Progress, probes: Probes
) -> int:
    """Run the job, print the summary, and return the exit code."""
    signals = Signals(shown.abandon)

    async def main() -> None:
        with probes.sampling(job.sample):
            if isinstance(job, Job):
                await job.run(reader(), shown, signals)
            else:
                await job.run(shown, signals)

    failure: click.ClickException | None = None
    try:
        with shown.showing():
            asyncio.run(main())
    except click.ClickException as error:
        failure = error
    except Exception as error:
        failure = Failure(describe(error, job.fn._spec.name, getattr(job, "place", None)))
    if isinstance(failure, Unread) and job.signal is None:
        shown.summary("stopped")
        return 128 + getattr(signal, "SIGPIPE", 13)
    lost = job.tally().lost
    if failure is None and lost:
        failure = Failure(f"{lost:,} results could not be written")
    if failure is not None:
        shown.say(failure.format_message())
    if job.signal is not None:
        shown.summary("stopped")
        return 128 + job.signal
    shown.summary("failed" if failure else None)
    return failure.exit_code if failure else 0
