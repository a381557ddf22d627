"""Runs a command several times beside processes that burn CPU.

    python tests/busy.py --times 5 --burners 2 -- make test

Stops at the first run that fails, and ends with its exit code.
"""

import argparse
import subprocess
import sys
import time

# Ends by itself when its parent is gone, however that ended.
BURN = """
import os
parent = os.getppid()
while os.getppid() == parent:
    for _ in range(1_000_000):
        pass
"""


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--times", type=int, default=5)
    parser.add_argument("--burners", type=int, default=2)
    parser.add_argument("command", nargs="+")
    options = parser.parse_args()
    burners = [subprocess.Popen([sys.executable, "-c", BURN]) for _ in range(options.burners)]
    try:
        for number in range(1, options.times + 1):
            began = time.monotonic()
            code = subprocess.run(options.command).returncode
            took = time.monotonic() - began
            print(f"busy: run {number} of {options.times}: exit {code}, {took:.0f} s", flush=True)
            if code:
                return code
        return 0
    finally:
        for burner in burners:
            burner.kill()
            burner.wait()


if __name__ == "__main__":
    sys.exit(main())
