"""The clients of this process's workers; in a build without process mode, there are none."""

from velo import _core

__all__ = ["clients"]

if _core.PROCESS_MODE:
    from velo._process import clients
else:

    class clients:  # noqa: N801
        """What the tests of both modes call of it."""

        @staticmethod
        def shutdown():
            """There is nothing to end."""
