"""The browser that tests look at pages with: Debian's chromium, never one that is downloaded."""

import shutil

import pytest

CHROMIUM = shutil.which("chromium")
FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
needs_chromium = pytest.mark.skipif(
    CHROMIUM is None, reason="no `chromium`: apt-get install --no-install-recommends chromium"
)


def how(profile):
    """The arguments of playwright's `launch_persistent_context`, with an empty profile."""
    return {
        "user_data_dir": profile,
        "executable_path": CHROMIUM,
        "headless": True,
        "args": FLAGS,
    }
