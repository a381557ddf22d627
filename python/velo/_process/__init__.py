"""The client of process mode: its supervisor, its links to workers, and the choice among them."""

from velo import _core
from velo.errors import PoolError

if not _core.PROCESS_MODE:
    raise PoolError(
        "this build of velo has no process mode: it needs Linux, and a build with the feature "
        '`process`, which every wheel for Linux is; use `mode="inline"`, the default'
    )
