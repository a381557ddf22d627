"""Sessions of one function in several processes of one server, each of which has its own."""

from __future__ import annotations

import contextlib
import hashlib
import os
import socket
import sys
import warnings

from velo._system import after_fork

__all__ = ["claim", "give_back"]

# By the name of the claim: a socket that holds the name while this process lives. None: another
# process has it.
_claims: dict[bytes, socket.socket | None] = {}


def claim(origin: str, function: str, *, inline: bool) -> None:
    """Warn once if another process of this server has sessions of this function, too.

    The processes of a server are those of one process group. A claim is a name that the system
    lets one process have, and gives back with the end of that process. Only Linux has such names.

    Args:
        origin: Where the function is defined.
        function: Its name, for the warning.
        inline: Whether its sessions are in the event loop, and not in workers of this process.

    """
    if sys.platform != "linux":
        return
    text = f"{os.getuid()}:{os.getpgrp()}:{origin}".encode(errors="surrogateescape")
    name = hashlib.sha256(text).hexdigest()[:32].encode()
    if name in _claims:
        return
    holder = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    try:
        holder.bind(b"\0velo-keys-" + name)  # of Linux: in no folder
    except FileNotFoundError:
        holder.close()
        return
    except OSError:
        holder.close()
        _claims[name] = None
        first = 'set `mode="process"`, start' if inline else "start"
        warnings.warn(
            f"another process of this server has sessions of `{function}` too, and the same key is "
            f"another session there: {first} one supervisor for all processes (`velo supervisor "
            "start`), and set `VELO_SUPERVISOR=daemon` for them",
            RuntimeWarning,
            stacklevel=2,
        )
    else:
        _claims[name] = holder


def give_back() -> None:
    """Give all claims back."""
    for holder in _claims.values():
        if holder is not None:
            with contextlib.suppress(OSError):
                holder.close()
    _claims.clear()


# The name stays with the parent, which closes its own descriptor.
after_fork(give_back)
