"""Which node has the sessions of a key.

Sessions belong to 1,024 buckets by a hash of function and key, which is the same in every process.
The first program that asks for a bucket places it, and the cluster's own store keeps that for all
others. A bucket stays on its node for as long as the node lives: a node that comes gets buckets
that nobody has asked for, and those of nodes that have gone.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable

from velo._ray.cluster import NodeInfo

__all__ = ["BUCKETS", "bucket_of", "node_of"]

BUCKETS = 1024


def bucket_of(digest: bytes) -> int:
    """Return the bucket of a digest."""
    return int.from_bytes(digest[:8], "big") % BUCKETS


def node_of(bucket: int, alive: Callable[[], list[NodeInfo]]) -> NodeInfo | None:
    """Return the node of a bucket, after placing it if it has none that lives. None: no node lives.

    Args:
        bucket: The bucket.
        alive: Returns the nodes that live now.

    """
    from ray.experimental import internal_kv

    nodes = {node.id: node for node in alive()}
    turn = 0
    while nodes:
        key = f"velo/bucket/{bucket}/{turn}".encode()
        held = internal_kv._internal_kv_get(key)
        if held is None:
            # Where two programs place it at once, the first one has.
            internal_kv._internal_kv_put(key, _chosen(bucket, nodes).encode(), overwrite=False)
            continue
        if (node := nodes.get(held.decode())) is not None:
            return node
        nodes = {node.id: node for node in alive()}  # it may have come just now
        if held.decode() not in nodes:
            turn += 1  # it has gone, and does not come back under this name
    return None


def _chosen(bucket: int, nodes: dict[str, NodeInfo]) -> str:
    """Choose a node, spread evenly (rendezvous hashing)."""
    return max(nodes, key=lambda id: hashlib.sha256(f"{bucket}/{id}".encode()).digest())
