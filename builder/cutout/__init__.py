"""Photographs in, cut-outs out."""

from builder.cutout.command import cutout_command
from builder.cutout.folder import CutoutReport, cutout

__all__ = ["CutoutReport", "cutout", "cutout_command"]
