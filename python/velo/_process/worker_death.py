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
    link: Link,
    how: tuple[int | None, int | None],
    ran: str,
    why: tuple[bool, str] | None,
    stack: str,
    replace: Callable[[_core.Recovery, WorkerDied], None],
) -> None:
    """Fail or recover the streams of a link, and warn of a stream that stalled the worker.

    Args:
        link: The link to the dead worker.
        how: The signal that killed it, and its exit code, as far as they are known.
        ran: Which function ran: one of this link (`"here"`), `"nothing"`, or one of another client.
        why: Whether the worker had stalled, and why the supervisor killed it. None: it did not.
        stack: The Python stack of the worker at that moment, as far as it is known.
        replace: Called for a stream that the worker had not opened.

    """
    culprit = link.end.culprit() if ran == "here" else None
    number_ran = name_ran = event = None
    if culprit is not None:
        number_ran, name_ran, event = culprit.stream, culprit.name, culprit.event
    starved = oom.said() if how[0] == signal.SIGKILL and why is None else None

    def died(stream: str, number: int, in_flight: int) -> WorkerDied:
        error = WorkerDied(
            stream,
            link.pid,
            *how,
            in_flight,
            culprit=None if ran == "nothing" else number == number_ran,
            culprit_stream=name_ran,
            event=event or None,
            stack=stack,
            why=why and why[1],
        )
        if error.culprit and stack:
            error.add_note(f"in the worker:\n{stack}")
        if starved is not None:
            error.add_note(starved)
        return error

    if why is not None and why[0]:
        what = f"stream `{name_ran}`, at event {event}, held up" if culprit else "nobody ran in"
        text = f"{what} worker process {link.pid}, which was killed: {why[1]}\n{stack}"
        warnings.warn(text.rstrip(), StallWarning, stacklevel=3)

    link.end.fail(died, replace)
