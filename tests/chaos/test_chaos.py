"""A sample of the kill matrix and of the soak; all of it with `--long`."""

import asyncio
import gc
import os

import psutil
import pytest

import matrix
import places
import soak
from helpers import until_sync
from phases import PHASES
from velo._process import clients

# How many runs of each cell there are in the sample.
SAMPLE = 1


@pytest.mark.parametrize("phase", PHASES)
@pytest.mark.parametrize("how", matrix.HOW)
@pytest.mark.parametrize("victim", matrix.VICTIMS)
def test_nothing_is_lost(victim, how, phase, long):
    outcome = matrix.cell(victim, how, phase, 200 if long else SAMPLE, seed=20)
    assert outcome.clean, outcome
    assert outcome.hits, "there was nothing to hit"


def test_soak(long):
    # Tests that have failed may hold on to something.
    clients.shutdown()
    before, had = places.segments(), soak.mapped(os.getpid())
    me = psutil.Process()
    descriptors, children = me.num_fds(), set(me.children(recursive=True))
    churn = soak.Soak(600 if long else 6, seed=1, every=1.0 if long else 0.1)
    asyncio.run(churn.run())
    assert churn.wrong == 0
    assert churn.crashed > 0
    assert churn.cancelled > 0
    if long:  # a few seconds are too short for figures that are flat
        assert max(soak.growth(churn.samples).values()) <= 1.1
    clients.shutdown()
    gc.collect()
    assert soak.mapped(os.getpid()) <= had
    assert places.segments() == before
    until_sync(lambda: me.num_fds() <= descriptors)
    until_sync(lambda: set(me.children(recursive=True)) <= children)
