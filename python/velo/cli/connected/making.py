"""Makes the run from a source to a sink that the options of `velo run` describe."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import click

from velo import StreamFn
from velo._api.terms import Terms
from velo.cli.connected.job import ConnectedJob
from velo.cli.connected.kept_file import KeptFile
from velo.cli.connected.merged import Merged
from velo.cli.connected.options import dead_letters, endpoint
from velo.cli.connected.reader_source import ReaderSource
from velo.cli.connected.writer_sink import WriterSink
from velo.cli.keys import Keys
from velo.cli.parsing import Rules
from velo.cli.reading import Reader
from velo.cli.writing import Writer
from velo.connect.model import record_key as key_of_record
from velo.connect.rows import Csv, csv
from velo.connect.urls import is_url

__all__ = ["connected_job", "csv_of"]


def connected_job(
    fn: StreamFn[Any, Any],
    urls: Sequence[str],
    reader: Callable[[], Reader] | None,
    *,
    keys: Keys | None,
    record_key: bool,
    output: str,
    open_writer: Callable[[], Writer] | None,
    group: str | None,
    decode: Any,
    dead_letter: str | None,
    retries: int,
    max_pending: int,
    drain: float,
    strict: bool,
    checkpoint: Mapping[str, Any],
) -> ConnectedJob:
    """Make the run.

    Args:
        fn: The function.
        urls: The sources.
        reader: Makes the reader of the input files; None: all inputs are URLs.
        keys: Gives the key of an event.
        record_key: Whether the key is the record's own.
        output: The output: a URL, a file, or `-`.
        open_writer: Opens the output; None: it is a URL, or a file with a checkpoint.
        group: The setting `group` of all sources.
        decode: The setting `decode` of all sources: the name of a format, or rules of CSV.
        dead_letter: A file or a URL.
        retries: See `Connected.into`.
        max_pending: See `StreamFn.keyed`.
        drain: See `ConnectedJob`.
        strict: See `ConnectedJob`.
        checkpoint: See `ConnectedJob`.

    Raises:
        click.UsageError: When a URL makes no source or no sink, or the output cannot be opened.

    """
    sources = [endpoint(url, "--input", "read", group=group, decode=decode) for url in urls]
    if reader is not None:
        sources.append(ReaderSource(reader, keys))
    source = sources[0] if len(sources) == 1 else Merged(sources)
    letters = dead_letters(dead_letter)
    sink: Any
    if open_writer is not None:
        sink = WriterSink(open_writer(), output)  # last: a file that is there is emptied
    elif is_url(output):
        sink = endpoint(output, "--output", "written")
    else:
        sink = KeptFile(output, keyed=record_key or keys is not None)
    return ConnectedJob(
        fn,
        source,
        key_of_record if record_key else None if keys is None else keys.find,
        sink,
        dead_letter=letters,
        terms=Terms(max_pending=max_pending, retries=retries),
        drain=drain,
        strict=strict,
        checkpoint=checkpoint,
    )


def csv_of(decode: str, rules: Rules) -> Csv:
    """Make the setting `decode` of `csv` or `csv:FIELD,...` and the options about CSV.

    Raises:
        click.UsageError: When they do not fit.

    """
    _, given, columns = decode.partition(":")
    try:
        return csv(
            columns if given else None,
            delimiter=rules.delimiter,
            numbers=rules.numbers,
            text=rules.text,
            null=rules.null,
        )
    except ValueError as error:
        raise click.UsageError(f"`--decode {decode}`: {error}") from None
