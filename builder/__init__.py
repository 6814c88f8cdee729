"""The rooms of fgbg-dataset; every public name is in `fgbg_dataset`.

Arrays are (H, W, C) uint8 RGB in NumPy and (B, C, H, W) float32 in torch. Importing this package
loads neither torch nor ray; the rooms that need them import them when they are used.
"""

from typing import Any

__version__ = "0.2.0"


def __getattr__(name: str) -> Any:
    """Find what the cards of sets made by 0.1.0 import from here."""
    if name not in ("DepthCodec", "RecordReader"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import fgbg_dataset

    return getattr(fgbg_dataset, name)
