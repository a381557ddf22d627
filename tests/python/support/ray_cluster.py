"""A Ray cluster of several nodes on this machine, whose nodes can be killed and added."""

import importlib.util
import os

import psutil

from leaks import LASTING

__all__ = ["INSTALLED", "RayCluster"]

INSTALLED = importlib.util.find_spec("ray") is not None
# Bytes of shared memory of each node, which velo does not use; the least that Ray takes.
_STORE = 80 << 20
# A node that is killed refuses connections, which is noticed at once; one that is busy does not.
_CHECKS = {
    "health_check_initial_delay_ms": 0,
    "health_check_period_ms": 300,
    "health_check_timeout_ms": 10_000,
    "health_check_failure_threshold": 3,
}


class RayCluster:
    """Three nodes with one core each. This process is the driver, at the first one."""

    def __init__(self):
        os.environ["RAY_DEDUP_LOGS"] = "0"
        from ray.cluster_utils import Cluster

        settings = {"num_cpus": 1, "object_store_memory": _STORE}
        self._cluster = Cluster(
            initialize_head=True,
            connect=False,
            head_node_args={**settings, "include_dashboard": False, "_system_config": _CHECKS},
        )
        self._settings = settings
        self.others = [self.add(), self.add()]
        self._connect()

    def _connect(self):
        import ray

        ray.init(
            address=self._cluster.address,
            log_to_driver=False,
            logging_level="error",
            namespace="tests",
        )

    @property
    def address(self):
        return self._cluster.address

    def add(self):
        """One node more."""
        node = self._cluster.add_node(**self._settings)
        # It lasts as long as the cluster, and leaves no process behind that is a test's.
        LASTING["pids"].update(child.pid for child in psutil.Process().children(recursive=True))
        return node

    def kill(self):
        """Kills a node with all that runs there, and gives its id."""
        node = self.others.pop()
        self._cluster.remove_node(node, allow_graceful=False)
        return node.node_id

    def alive(self):
        """How many nodes live, as far as Ray knows."""
        import ray

        return sum(node["Alive"] for node in ray.nodes())

    def restore(self):
        """Adds nodes until there are as many as at first."""
        while len(self.others) < 2:
            self.others.append(self.add())

    def close(self):
        import ray

        ray.shutdown()
        self._cluster.shutdown()
