"""Runs Python scripts one after the other, each as `__main__` of a fork of this process.

Reads lines of JSON from standard input: the script, and the folder to run it in, where its output
goes to `stdout` and `stderr`. Answers each with a line that holds the exit code. A fork has velo
and asyncio imported already: most of what it takes to start Python for every script.
"""

import asyncio  # noqa: F401
import json
import os
import runpy
import signal
import sys

from velo import Stream, StreamConfig, stream_fn  # noqa: F401

LIMIT = 40  # seconds that a script may take


def child(script, folder):
    signal.alarm(LIMIT)
    os.chdir(folder)
    for number, name in enumerate((os.devnull, "stdout", "stderr")):
        target = os.open(name, os.O_RDWR | os.O_CREAT | os.O_TRUNC)
        os.dup2(target, number)
        os.close(target)
    sys.argv = [script]
    sys.path[0] = folder
    runpy.run_path(script, run_name="__main__")


for line in sys.stdin:
    job = json.loads(line)
    pid = os.fork()
    if pid == 0:
        child(*job)
        break  # and leave as any script does
    _, status = os.waitpid(pid, 0)
    print(os.waitstatus_to_exitcode(status), flush=True)
