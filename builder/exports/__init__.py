"""A finished set in the formats of others."""

from builder.exports.run import FORMATS, Export, export

__all__ = ["FORMATS", "Export", "export"]
