"""Objects of a checkpoint in a store: what they are, what they hold, and that they are whole.

```
velo-checkpoint 1 hmac-sha256 <digest of the next line>
{"bytes": 812, "kind": "tick", "name": "commit-0000000000000017", "sha256": ..., ...}
<812 bytes>
```

With a key, the digest is an HMAC: an object that someone without the key has written is refused.
"""

from __future__ import annotations

import hashlib
import hmac
import json
from collections.abc import Iterable, Iterator
from typing import Any

from velo.errors import CheckpointError

__all__ = ["FORMAT", "Seal"]

FORMAT = 1
"""The version of this format."""

_MAGIC = "velo-checkpoint"
_PLAIN, _SIGNED = "sha256", "hmac-sha256"
# The first two lines are no longer than this; bytes.
_LONGEST = 1024 * 1024


class Seal:
    """Seals objects, and opens them.

    Args:
        key: What they are signed with; None: they are not.
        url: The checkpoint, for messages.

    """

    def __init__(self, key: bytes | None, url: str) -> None:
        self._key = key
        self._url = url
        self._kind = _PLAIN if key is None else _SIGNED

    def head(self, name: str, about: dict[str, Any], count: int, digest: str) -> bytes:
        """Return what comes before the payload.

        Args:
            name: The name of the object.
            about: What it says of itself.
            count: The bytes of the payload.
            digest: Their SHA-256.

        """
        told = {**about, "name": name, "bytes": count, "sha256": digest}
        line = json.dumps(told, sort_keys=True, separators=(",", ":")).encode()
        return f"{_MAGIC} {FORMAT} {self._kind} {self._digest(line)}\n".encode() + line + b"\n"

    def closed(self, name: str, about: dict[str, Any], payload: bytes = b"") -> bytes:
        """Return an object."""
        digest = hashlib.sha256(payload).hexdigest()
        return self.head(name, about, len(payload), digest) + payload

    def opened(self, name: str, data: bytes) -> tuple[dict[str, Any], bytes]:
        """Return what an object says of itself, and its payload.

        Raises:
            CheckpointError: When it is torn, foreign, of a newer velo, or signed with another key.

        """
        pieces = self.pieces(name, [data])
        about: Any = next(pieces)
        return about, b"".join(pieces)

    def pieces(self, name: str, data: Iterable[bytes]) -> Iterator[Any]:
        """Yield what an object says of itself, and then its payload in pieces.

        Only after the last one it is known whether the payload is whole.

        Raises:
            CheckpointError: As `opened`.

        """
        rest = iter(data)
        begun = b""
        while begun.count(b"\n", 0, _LONGEST) < 2 and len(begun) < _LONGEST:
            piece = next(rest, None)
            if piece is None:
                break
            begun += piece
        first, _, behind = begun.partition(b"\n")
        line, end, payload = behind.partition(b"\n")
        about = self._about(name, first, line if end else b"")
        yield about
        whole, count = hashlib.sha256(payload), len(payload)
        yield payload
        for piece in rest:
            whole.update(piece)
            count += len(piece)
            yield piece
        if count != about.get("bytes") or whole.hexdigest() != about.get("sha256"):
            raise self.torn(name, f"it has {count:,} bytes that are not those that were written")

    def _about(self, name: str, first: bytes, line: bytes) -> dict[str, Any]:
        words = first.decode("ascii", "replace").split(" ")
        if words[0] != _MAGIC:
            raise CheckpointError(
                f"`{name}` in `{self._url}` is no object of a checkpoint of velo; name another "
                "prefix"
            )
        if len(words) != 4 or not words[1].isdecimal():
            raise self.torn(name, "its first line is not what was written")
        _, format, kind, digest = words
        if int(format) > FORMAT:
            raise CheckpointError(
                f"`{name}` of the checkpoint `{self._url}` was written by a newer velo, in format "
                f"{format}; this one reads up to format {FORMAT}: update velo"
            )
        if kind != self._kind and kind in (_PLAIN, _SIGNED):
            raise self._other_kind(name)
        if not hmac.compare_digest(digest.encode(), self._digest(line).encode()):
            if self._key is None:
                raise self.torn(name, "its second line is not what was written")
            raise CheckpointError(
                f"`{name}` of the checkpoint `{self._url}` was signed with another key, or changed "
                "since; give the key that it was written with"
            )
        about: dict[str, Any] = json.loads(line)
        if about.get("name") != name:
            raise self.torn(name, f"it was written as `{about.get('name')}`")
        return about

    def _other_kind(self, name: str) -> CheckpointError:
        if self._key is None:
            return CheckpointError(
                f"`{name}` of the checkpoint `{self._url}` is signed with a key; give it, by "
                "`VELO_CHECKPOINT_KEY`, `VELO_CHECKPOINT_KEY_FILE`, or `?key_file=` in the URL"
            )
        return CheckpointError(
            f"`{name}` of the checkpoint `{self._url}` is not signed, and a key is given: anyone "
            "may have written it; `velo checkpoint copy` without the key, and back with it, signs "
            "a checkpoint whose writer you know"
        )

    def torn(self, name: str, why: str) -> CheckpointError:
        """Return the error of an object that differs from the one that velo has written."""
        return CheckpointError(
            f"the checkpoint `{self._url}` is torn: `{name}`: {why}; restore the prefix from a "
            "copy, or name another one to begin anew"
        )

    def _digest(self, line: bytes) -> str:
        if self._key is None:
            return hashlib.sha256(line).hexdigest()
        return hmac.new(self._key, line, hashlib.sha256).hexdigest()
