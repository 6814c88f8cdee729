"""Make the shards of a set and put it together."""

from builder.build.backdrops import find_grounds
from builder.build.engine import build_shards
from builder.build.estimate import forecast
from builder.build.finish import (
    already_built,
    begun_project,
    build_status,
    copy_as_parquet,
    write_metadata,
)
from builder.build.ledger import FinishedSplit, Ledger
from builder.build.options import BuildOptions
from builder.build.project import Project
from builder.build.shards import ROW_GROUP_RECORDS, write_shard
from builder.build.work import FINISH, WorkFolder
from builder.build.worker import load_estimator

__all__ = [
    "FINISH",
    "ROW_GROUP_RECORDS",
    "BuildOptions",
    "FinishedSplit",
    "Ledger",
    "Project",
    "WorkFolder",
    "already_built",
    "begun_project",
    "build_shards",
    "build_status",
    "copy_as_parquet",
    "find_grounds",
    "forecast",
    "load_estimator",
    "write_metadata",
    "write_shard",
]
