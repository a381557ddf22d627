"""Values in few characters, whatever they are and whatever their methods do."""

from __future__ import annotations

import reprlib
from typing import Any

__all__ = ["LONGEST", "shorten"]

# How many characters of a value are shown.
LONGEST = 200


class _Short(reprlib.Repr):
    def __init__(self) -> None:
        super().__init__()
        self.maxstring = self.maxother = self.maxlong = LONGEST
        self.maxlist = self.maxtuple = self.maxdict = self.maxset = self.maxdeque = 8

    def repr(self, x: Any) -> str:
        try:
            text = super().repr(x)
        except Exception as error:
            text = f"<{type(x).__qualname__}, whose repr raised {type(error).__qualname__}>"
        return text if len(text) <= LONGEST else f"{text[:LONGEST]}..."


shorten = _Short().repr
