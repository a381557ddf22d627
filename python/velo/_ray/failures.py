"""The errors that have to do with one node, for all that calls actors."""

from __future__ import annotations

from velo import _core
from velo._function import exceptions
from velo.errors import NodeDied, PoolError

__all__ = [
    "check_version",
    "located",
    "no_node",
    "node_died",
    "not_started",
    "packed",
    "reason_of",
    "said",
    "unpacked",
]


# The most bytes of an exception on its way from a node.
_LONGEST = 1 << 20


def reason_of(error: BaseException) -> str:
    """Return the text of an error, or its type where it has none."""
    return str(error).strip() or type(error).__name__


def said(error: BaseException) -> str:
    """Return what Ray says of a call that has failed."""
    return f"Ray says: {reason_of(error)}"


def located(error: BaseException, place: str) -> BaseException:
    """Return an error, with a note of the node that it comes from."""
    error.add_note(f"on {place}")
    return error


def packed(error: BaseException) -> exceptions.Packed:
    """Return an exception as it travels from a node, where it may have come from a worker."""
    return exceptions.pack(error, _LONGEST, again=True)


def unpacked(packed: exceptions.Packed, place: str) -> BaseException:
    """Return an exception that was packed on a node, to raise it here."""
    return located(exceptions.unpack(packed), place)


def node_died(stream: str, place: str, pid: int, reason: str = "") -> NodeDied:
    """Return the error of a stream whose node has gone.

    Args:
        stream: The name of the stream.
        place: The node.
        pid: The process id of the actor there.
        reason: For a note; empty where there is none.

    """
    died = NodeDied(stream, pid)
    died.node = place
    if reason:
        died.add_note(reason)
    return died


def no_node() -> PoolError:
    """Return the error of a cluster without nodes."""
    return PoolError("the Ray cluster has no node that lives")


def not_started(place: str, what: str, error: BaseException, waited: float) -> PoolError:
    """Return the error of a node whose actor does not answer.

    Args:
        place: The node.
        what: What the actor is to run, as a plural.
        error: Of the call; without a text when the actor has not answered in time.
        waited: For how many seconds the call has waited.

    """
    reason = str(error).strip() or f"nothing for {waited:g} s"
    return PoolError(f"{place} runs no {what}; Ray says: {reason}")


def check_version(version: str, place: str) -> None:
    """Compare the version of velo on a node with that of this process.

    Raises:
        PoolError: When they are not the same.

    """
    if version != _core.__version__:
        raise PoolError(
            f"{place} has velo {version}, and this process {_core.__version__}: install the same "
            "version on all nodes"
        )
