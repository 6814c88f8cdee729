"""A Ray cluster of three raylets, all on this machine; runs in a process of its own.

Prints its address; on stdin takes the number of a raylet to end with SIGKILL, or `+` to add one,
and answers each with the number of living raylets. Ends with its stdin.
"""

from __future__ import annotations

import sys

from ray.cluster_utils import Cluster

NODE = {"num_cpus": 1, "object_store_memory": 80 * 2**20}  # bytes, the least Ray takes


def main() -> None:
    cluster = Cluster(initialize_head=True, head_node_args={**NODE, "include_dashboard": False})
    others = [cluster.add_node(**NODE) for _ in range(2)]
    print(cluster.address, flush=True)
    for line in sys.stdin:
        if line.strip() == "+":
            others.append(cluster.add_node(**NODE))
        else:
            cluster.remove_node(others.pop(int(line)), allow_graceful=False)
        print(1 + len(others), flush=True)
    cluster.shutdown()


if __name__ == "__main__":
    main()
