"""The `velo` command. Nothing outside this package imports click or rich.

Exit codes: 0 done, 1 failed, 2 called wrongly, 128 + the signal's number when a signal ended it.
"""

from __future__ import annotations

import sys

import velo
from velo._load import reason
from velo.cli import hash_seed, standard_streams

__all__ = ["main"]


def main() -> None:
    """Run the command that `sys.argv` names, and exit."""
    if not hasattr(velo, "StreamFn"):
        sys.exit(f"velo: `import velo` finds another package: {reason()}")
    if sys.platform == "win32":
        sys.exit("velo: the command needs Linux or macOS; the library works on Windows, inline")
    hash_seed.fix(sys.argv)
    standard_streams.fill()  # after it: a process that starts again has no closed stream left
    # Here, because a process that starts itself again needs none of it.
    import signal

    import click

    from velo.cli.command import velo as command
    from velo.cli.errors import NobodyReads
    from velo.cli.text import echo

    usage = ""
    try:
        code = command.main(prog_name="velo", standalone_mode=False)
    except click.exceptions.NoArgsIsHelpError as error:
        usage, code = error.format_message(), 2
    except click.ClickException as error:
        message = error.format_message()
        echo(f"velo: {message[:1].lower()}{message[1:]}", err=True)
        if isinstance(error, click.UsageError) and error.ctx is not None:
            echo(f"try `{error.ctx.command_path} --help`", err=True)
        code = error.exit_code
    except NobodyReads:
        code = _unread()
    except (click.Abort, KeyboardInterrupt):
        code = 128 + signal.SIGINT
    try:
        if usage:
            click.echo(usage)
        sys.stdout.flush()
    except OSError:
        code = _unread()
    # All is written: whoever is impatient may end what is left, without a word.
    for number in (signal.SIGINT, signal.SIGTERM):
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, signal.SIG_DFL)
    sys.exit(code)


def _unread() -> int:
    """Write nothing more to a pipe without a reader, and return the exit code."""
    import os
    import signal

    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 1)
    os.close(null)
    return 128 + getattr(signal, "SIGPIPE", 13)
