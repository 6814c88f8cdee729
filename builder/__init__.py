"""fgbg-dataset: foregrounds and backgrounds in, a dataset of (fg_bg, mask, depth) records out.

Arrays are (H, W, C) uint8 RGB in NumPy and (B, C, H, W) float32 in torch. Importing this package
loads neither torch nor ray; the rooms that need them import them when they are used.
"""

from builder.encoding import DepthCodec
from builder.errors import (
    BadSourcesError,
    BuildFailedError,
    CardError,
    DepthModelError,
    FgbgError,
    NotABuildError,
    OutputError,
    PublishError,
    PublishFailedError,
    RecipeError,
    RecipeMismatchError,
    UnfinishedError,
)
from builder.reading import RecordReader
from builder.recipe import PinnedRecipe, Recipe

__all__ = [
    "BadSourcesError",
    "BuildFailedError",
    "CardError",
    "DepthCodec",
    "DepthModelError",
    "FgbgError",
    "NotABuildError",
    "OutputError",
    "PinnedRecipe",
    "PublishError",
    "PublishFailedError",
    "Recipe",
    "RecipeError",
    "RecipeMismatchError",
    "RecordReader",
    "UnfinishedError",
    "__version__",
]

__version__ = "0.1.0"
