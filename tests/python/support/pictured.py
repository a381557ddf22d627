"""The program in the pictures of the documentation, and what it needs around it."""

import subprocess
import sys
from pathlib import Path

from helpers import environment, until_sync
from servers.server import free_port
from velo import _core

PROGRAM = Path(__file__).with_name("dashboard_program.py")


def shop(stack, place):
    """Run the shop until the stack ends; returns its process and the port of its metrics."""
    (place / "shop.py").write_text(PROGRAM.read_text())
    port = free_port()
    program = start(stack, [place / "shop.py"], cwd=place, env=environment(METRICS_PORT=str(port)))
    until_sync(lambda: program.pid in [pid for pid, _ in _core.programs()])
    return program, port


def start(stack, words, **more):
    process = subprocess.Popen([sys.executable, *map(str, words)], **more)
    stack.callback(process.wait)
    stack.callback(process.terminate)
    return process
