"""on_ray: what a worker takes of a node, and how many have room.

Tables as Ray reports them stand for clusters; real clusters are in tests/e2e/test_ray.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from builder.build.on_ray import _resources, _room
from builder.build.options import BuildOptions
from builder.build.worker import Job
from builder.depth import DepthModel
from builder.errors import FgbgError
from tests.strategies import depth_info

JOB = Job(Path("out"), "f" * 64, "parquet", DepthModel(Path("model"), depth_info()), BuildOptions())


def cluster(*nodes: dict[str, float], dead: tuple[int, ...] = ()) -> Any:
    table = [{"Alive": i not in dead, "Resources": node} for i, node in enumerate(nodes)]
    total = {key: sum(node.get(key, 0) for node in nodes) for node in nodes for key in node}
    return SimpleNamespace(nodes=lambda: table, cluster_resources=lambda: total)


@pytest.mark.parametrize(("gpus", "workers"), [(0, 20), (1, 1), (0.25, 4), (0.1, 4), (0.5, 2)])
def test_workers_fill_the_living_nodes(gpus: float, workers: int) -> None:
    ray = cluster({"CPU": 4, "GPU": 1}, {"CPU": 16}, {"CPU": 8, "GPU": 8}, dead=(2,))
    assert _room(ray, {"num_cpus": 1, "num_gpus": gpus}) == workers


def test_a_cluster_without_room_says_what_to_do() -> None:
    with pytest.raises(FgbgError) as error:
        _room(cluster({"CPU": 8, "GPU": 1}), {"num_cpus": 1, "num_gpus": 2})
    assert str(error.value) == (
        "no node of the Ray cluster has 1 processor and 2 GPUs for a worker; start such a node, "
        "lower --num-gpus-per-worker, or say with --workers how many an autoscaler shall make "
        "room for."
    )


@pytest.mark.parametrize(
    ("model", "device", "asked", "gpus"),
    [
        (True, "auto", None, 1),
        (True, "cuda", None, 1),
        (True, "cpu", None, 0),
        (False, "auto", None, 0),
        (True, "auto", 0.25, 0.25),
        (True, "auto", 0, 0),
    ],
)
def test_a_depth_model_has_a_gpu_where_there_are_some(
    model: bool, device: Any, asked: float | None, gpus: float
) -> None:
    options = BuildOptions(device=device, num_gpus_per_worker=asked)
    job = replace(JOB, options=options, model=JOB.model if model else None)
    assert _resources(cluster({"CPU": 4, "GPU": 1}), job) == {"num_cpus": 1, "num_gpus": gpus}
    without = _resources(cluster({"CPU": 4}), job)
    assert without["num_gpus"] == (asked or 0)
