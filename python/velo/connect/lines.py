"""Lines out of bytes that come in pieces."""

from __future__ import annotations

__all__ = ["Lines"]


class Lines:
    r"""Lines of bytes that come in pieces. They end with `\n` or `\r\n`.

    Args:
        longest: The most bytes of a line; longer lines are not kept.

    """

    def __init__(self, longest: int) -> None:
        self._longest = longest
        self._pieces: list[bytes] = []
        self._size = 0

    def feed(self, data: bytes) -> list[bytes | ValueError]:
        """Give the lines that are complete, and a `ValueError` for one that is too long."""
        return [line for line, _ in self.sized(data)]

    def sized(self, data: bytes) -> list[tuple[bytes | ValueError, int]]:
        """Give the lines that are complete, each with its size with its end."""
        *ends, rest = data.split(b"\n")
        found = []
        for end in ends:
            self._keep(end)
            found.append(self._line())
        self._keep(rest)
        return found

    def last(self) -> list[bytes | ValueError]:
        """Give what is behind the last line end."""
        return [self._line()[0]] if self._size else []

    def _keep(self, piece: bytes) -> None:
        self._size += len(piece)
        if self._size > self._longest:
            self._pieces.clear()
        elif piece:
            self._pieces.append(piece)

    def _line(self) -> tuple[bytes | ValueError, int]:
        line = b"".join(self._pieces).removesuffix(b"\r")
        size, self._size = self._size, 0
        self._pieces.clear()
        if size > self._longest:
            return ValueError(f"a line has more than {self._longest:,} bytes"), size + 1
        return line, size + 1
