"""The examples of the client for Rust, built."""

import functools
import json
import shutil
import subprocess

import pytest

from helpers import ROOT


@functools.cache
def example(name):
    """The path of a built example of `velo-supervisor`; without Cargo, the test is skipped."""
    cargo = shutil.which("cargo")
    if cargo is None:
        pytest.skip("there is no `cargo`, which the client for Rust is built with")
    # As `make test-rust` builds them, so that it is done once.
    command = [cargo, "build", "--workspace", "--all-features", "--example", name]
    done = subprocess.run(
        [*command, "--message-format", "json"], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    made = [json.loads(line) for line in done.stdout.splitlines()]
    [path] = [
        message["executable"]
        for message in made
        if message["reason"] == "compiler-artifact"
        and message["target"]["name"] == name
        and message.get("executable")
    ]
    return path
