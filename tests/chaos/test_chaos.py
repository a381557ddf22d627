"""A sample of the kill matrix and of the soak; all of it with `--long`."""

import asyncio
import gc
import os

import pytest

import matrix
import places
import soak
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
    before, had = places.segments(), soak.mapped(os.getpid())
    churn = soak.Soak(600 if long else 6, seed=1, every=1.0 if long else 0.1)
    asyncio.run(churn.run())
    assert churn.wrong == 0
    assert churn.crashed > 0
    assert churn.cancelled > 0
    # A few seconds are too short for figures that are flat; they still find what runs away.
    assert max(soak.growth(churn.samples).values()) <= (1.1 if long else 1.5)
    clients.shutdown()
    gc.collect()
    assert soak.mapped(os.getpid()) <= had
    assert places.segments() == before
