"""Make the shards of a set and put it together."""

from builder.build.engine import (
    POLL_SECONDS,
    BuildOptions,
    Engine,
    EngineName,
    build_shards,
    load_estimator,
    map_shards,
)
from builder.build.estimate import forecast
from builder.build.machine import ShardRange
from builder.build.project import Project
from builder.build.ray_engine import map_shards_on_ray
from builder.build.shards import ROW_GROUP_RECORDS, write_shard
from builder.build.work import (
    FINISH,
    FinishedSplit,
    Ledger,
    WorkFolder,
    already_built,
    begun_project,
    build_status,
    copy_as_parquet,
    write_metadata,
)

__all__ = [
    "FINISH",
    "POLL_SECONDS",
    "ROW_GROUP_RECORDS",
    "BuildOptions",
    "Engine",
    "EngineName",
    "FinishedSplit",
    "Ledger",
    "Project",
    "ShardRange",
    "WorkFolder",
    "already_built",
    "begun_project",
    "build_shards",
    "build_status",
    "copy_as_parquet",
    "forecast",
    "load_estimator",
    "map_shards",
    "map_shards_on_ray",
    "write_metadata",
    "write_shard",
]
