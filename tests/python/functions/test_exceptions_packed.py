"""Exceptions as they travel from a worker to its client."""

import subprocess
import sys

PACKS = """
import sys
from velo._function import exceptions
from velo.errors import EventTimeout
error = EventTimeout("spree", 2, 0.5)
packed = exceptions.pack(error, 65536)
assert "cloudpickle" not in sys.modules
again = exceptions.unpack(packed)
print(type(again).__name__, again.stream, again.event, again.seconds)
"""


def test_an_exception_of_a_library_needs_no_import():
    """The import would take time that `event_timeout` counts."""
    program = subprocess.run(
        [sys.executable, "-c", PACKS], capture_output=True, text=True, check=True
    )
    assert program.stdout == "EventTimeout spree 2 0.5\n"
