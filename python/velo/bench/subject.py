"""The process of one subject: `python -m velo.bench.subject MODULE:FUNCTION ARGUMENTS`.

Prints the figures that the function returns as JSON, in the last line of its output.
"""

from __future__ import annotations

import importlib
import json
import sys

if __name__ == "__main__":
    module, _, function = sys.argv[1].partition(":")
    figures = getattr(importlib.import_module(module), function)(*json.loads(sys.argv[2]))
    print(json.dumps(figures))
