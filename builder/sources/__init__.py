"""Pictures in, prepared sources out."""

from builder.sources.licenses import conflicts, terms
from builder.sources.prepare import (
    Kind,
    PreparedFolder,
    Source,
    SourceBank,
    demo_folders,
    duplicates,
    license_counts,
    prepare,
    scan,
    uncredited,
)
from builder.sources.stored import read_sources, stored_columns, write_sources

__all__ = [
    "Kind",
    "PreparedFolder",
    "Source",
    "SourceBank",
    "conflicts",
    "demo_folders",
    "duplicates",
    "license_counts",
    "prepare",
    "read_sources",
    "scan",
    "stored_columns",
    "terms",
    "uncredited",
    "write_sources",
]
