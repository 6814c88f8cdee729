"""A Ray cluster of three raylets, all on this machine; runs in a process of its own.

Prints its address; then answers each line of its stdin with the process ids of all raylets but
the head's: `-PID` ends that raylet with SIGKILL, `-` any, `+` adds one. Ends with its stdin.
"""

from __future__ import annotations

import sys

from ray._private.node import Node
from ray.cluster_utils import Cluster

NODE = {"num_cpus": 1, "object_store_memory": 80 * 2**20}  # bytes, the least Ray takes


def main() -> None:
    cluster = Cluster(initialize_head=True, head_node_args={**NODE, "include_dashboard": False})
    others = {pid_of(node): node for node in (cluster.add_node(**NODE) for _ in range(2))}
    print(cluster.address, flush=True)
    for line in map(str.strip, sys.stdin):
        if line == "+":
            node = cluster.add_node(**NODE)
            others[pid_of(node)] = node
        elif line.startswith("-"):
            node = others.pop(int(line[1:] or next(iter(others))))
            cluster.remove_node(node, allow_graceful=False)
        print(*others, flush=True)
    cluster.shutdown()


def pid_of(node: Node) -> int:
    return node.all_processes["raylet"][0].process.pid


if __name__ == "__main__":
    main()
