"""Checkpoints that a test opens by itself, without a run."""

import contextlib

from velo._checkpoint.checkpoint import Checkpoint


@contextlib.contextmanager
def opened(path, function="fraud", **settings):
    """A checkpoint, which is closed in the end."""
    checkpoint = Checkpoint.open(path, function, **settings)
    try:
        yield checkpoint
    finally:
        checkpoint.close()
