"""Values that do harm when they are pickled or unpickled, and where."""

import ctypes
import os

__all__ = ["HARMS", "AsItLeaves", "AsItArrives", "do"]


class Harm(Exception):
    """What the mildest of them raises."""


def _raise():
    raise Harm("on the way")


def _exit():
    os._exit(3)


def _crash():
    ctypes.string_at(0)


HARMS = {"raise": _raise, "exit": _exit, "crash": _crash}


def do(what):
    """Do it here and now."""
    HARMS[what]()


class AsItArrives:
    """Harms the process that unpickles it."""

    def __init__(self, what):
        self.what = what

    def __reduce__(self):
        return do, (self.what,)


class AsItLeaves:
    """Harms the process that pickles it, if that is not the one that made it."""

    def __init__(self, what, home):
        self.what = what
        self.home = home

    def __reduce__(self):
        if os.getpid() != self.home:
            do(self.what)
        return AsItLeaves, (self.what, self.home)
