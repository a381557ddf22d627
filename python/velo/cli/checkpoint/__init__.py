"""`velo checkpoint`: looking at checkpoints, and mending them."""

from __future__ import annotations

import click

from velo.cli.checkpoint.changing import compact, delete, rename, reset, set_state
from velo.cli.checkpoint.looking import copy, export, get, inspect, verify

__all__ = ["checkpoint"]


@click.group(short_help="Look at the checkpoint of a run, and mend it.")
def checkpoint() -> None:
    """Work with the folder or URL that `checkpoint=` or `velo run --checkpoint` names.

    `inspect`, `get`, `export`, `copy` and `verify` may be called while a run has it; the others
    need it for themselves. The folder of `velo supervisor start --checkpoint` has a folder
    for each function: name that, or all of them for `inspect`, `copy`, `verify` and `compact`.
    """


for command in (inspect, get, set_state, delete, export, copy, verify, reset, compact, rename):
    checkpoint.add_command(command)
