"""Checkpoints in a store that is a folder."""

import pytest


@pytest.fixture
def place(tmp_path):
    from object_stores import Folder

    return Folder(tmp_path, patience=0.2)


@pytest.fixture
def small_bases(monkeypatch):
    from velo._checkpoint import remote

    monkeypatch.setattr(remote, "_LEAST", 1)
