"""The errors of streams whose worker has died."""

from __future__ import annotations

import signal
import warnings
from collections.abc import Callable

from velo import _core
from velo._diagnostics import oom
from velo._process.links import Link
from velo.errors import StallWarning, WorkerDied

__all__ = ["tell"]


def tell(
    link: Link, death: _core.WorkerDeath, replace: Callable[[_core.Recovery, WorkerDied], None]
) -> None:
    """Fail or recover the streams of a link, and warn of a stream that stalled the worker.

    Args:
        link: The link to the dead worker.
        death: What is known of the death.
        replace: Called for a stream that the worker had not opened.

    """
    stack, why = death.stack, death.why
    culprit = link.end.culprit() if death.ran == "here" else None
    number_ran = name_ran = event = None
    if culprit is not None:
        number_ran, name_ran, event = culprit.stream, culprit.name, culprit.event
    starved = oom.said() if death.signal == signal.SIGKILL and why is None else None

    def died(stream: str, number: int, in_flight: int) -> WorkerDied:
        error = WorkerDied(
            stream,
            link.pid,
            death.signal,
            death.code,
            in_flight,
            culprit=None if death.ran == "nothing" else number == number_ran,
            culprit_stream=name_ran,
            event=event or None,
            stack=stack,
            why=why,
        )
        if error.culprit and stack:
            error.add_note(f"in the worker:\n{stack}")
        if starved is not None:
            error.add_note(starved)
        return error

    link.end.fail(died, replace)

    if death.stalled:
        what = (
            f"stream `{name_ran}`, at event {event}, held up" if culprit else "no function ran in"
        )
        text = f"{what} worker process {link.pid}, which was killed: {why}\n{stack}"
        # Last: with `-W error` it raises, and the streams have failed by then.
        warnings.warn(text.rstrip(), StallWarning, stacklevel=3)
