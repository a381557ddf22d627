"""What lies under a prefix: one checkpoint for the whole source, or one for each partition.

The states of the one are not split, and those of the others are not joined: so a run that wants the
other layout is refused, in place of one that begins with empty states.
"""

from __future__ import annotations

import contextlib
import re
from dataclasses import replace

from velo._checkpoint.address import Address, below
from velo._checkpoint.bucket import Bucket
from velo._checkpoint.folder import STATE
from velo.errors import CheckpointError

__all__ = ["check_is_divided", "check_is_whole"]

_SHARD = re.compile(r".+-[0-9]+")
_NEW = "to begin with empty states, name a new prefix"


def check_is_divided(address: Address) -> None:
    """Check that a prefix is free for the checkpoints of a group.

    Raises:
        CheckpointError: When one for the whole source is there, or the store does not tell.

    """
    with contextlib.closing(Bucket(address)) as bucket:
        names = bucket.sizes()
        if any(name.startswith("commit-") for name in names):
            how = "start without `group`, as the run that has made it"
        elif STATE in names:
            how = "give the folder itself as `checkpoint`, in place of its URL"
        else:
            return
        raise CheckpointError(
            f"`{bucket.url}` holds one checkpoint for all partitions, and a group has one for "
            f"each, which moves with it: the states are not split. To go on with them, {how}; "
            f"{_NEW}"
        )


def check_is_whole(address: Address) -> None:
    """Check that a prefix without a checkpoint is free for one for the whole source.

    Raises:
        CheckpointError: When those of a group are there, or the store does not tell.

    """
    with contextlib.closing(Bucket(address)) as bucket:
        for name in filter(_SHARD.fullmatch, bucket.prefixes()):
            shard = Bucket(replace(address, url=below(address.url, name)))
            with contextlib.closing(shard):
                names = shard.sizes()
            if any(each.startswith("commit-") for each in names):
                raise CheckpointError(
                    f"`{bucket.url}` holds the checkpoints of a group, one for each partition, "
                    f"such as `{name}`, and this run has one for all of them: the states are not "
                    f"joined. To go on with them, start with the `group` of the source; {_NEW}"
                )
