"""Networks of rembg, by name, where it is installed."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from builder.cutout.models import Segment, Weights
from builder.errors import CutoutModelError
from builder.files import sha256_file
from builder.untrusted import one_line

PREFIX = "rembg:"

# The licenses that the authors of these weights state; of the others nothing is said.
_LICENSES = {
    "u2net": "apache-2.0",
    "u2netp": "apache-2.0",
    "u2net_human_seg": "apache-2.0",
    "isnet-general-use": "apache-2.0",
    "birefnet-general": "mit",
    "birefnet-general-lite": "mit",
    "birefnet-dis": "mit",
    "birefnet-hrsod": "mit",
    "birefnet-cod": "mit",
    "birefnet-massive": "mit",
    "bria-rmbg": "cc-by-nc-4.0",
}
# What needs a prompt or a file beside its name, or gives clothes instead of an object.
_OF_ANOTHER_KIND = ("sam", "u2net_cloth_seg", "u2net_custom", "dis_custom", "ben_custom")


class RembgSegmenter:
    """A network of rembg. It is downloaded by rembg where it is not there yet.

    Args:
        name: as rembg calls it.

    Raises:
        CutoutModelError: rembg or the network cannot be had.
    """

    def __init__(self, name: str) -> None:
        missing = [one for one in ("rembg", "onnxruntime") if find_spec(one) is None]
        if missing:
            raise CutoutModelError(
                f"{PREFIX}{name} needs {' and '.join(missing)}; run "
                "`pip install fgbg-dataset[rembg]` (Python 3.11 or later)."
            )
        import onnxruntime
        from rembg.sessions import sessions

        usable = sorted(
            key
            for key, kind in sessions.items()
            # Others send the photographs to a service.
            if kind.is_local() and key not in _OF_ANOTHER_KIND
        )
        if name not in usable:
            raise CutoutModelError(
                f"rembg has no network {name!r} that cuts objects out here; it has "
                f"{', '.join(usable)}."
            )
        options = onnxruntime.SessionOptions()
        # Several photographs are worked on at once, each on a core.
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        try:
            path = Path(str(sessions[name].download_models()))
            self._session: Any = sessions[name](name, options)
        except Exception as error:  # noqa: BLE001 - of the network, or of a file that is no network
            raise CutoutModelError(
                f"rembg cannot load its network {name!r} ({one_line(error)}); check the "
                f"connection, or remove what lies under {name} in its folder and try again."
            ) from None
        digest = sha256_file(path)
        self.weights = Weights(
            f"rembg {name}", f"{PREFIX}{name} sha256:{digest[:12]}", _LICENSES.get(name, ""), digest
        )

    def __call__(self, photograph: Image.Image, size: tuple[int, int]) -> list[Segment]:
        """Return what the network takes for foreground, in a mask of some width and height."""
        from rembg import remove

        # A copy without EXIF: rembg would turn the photograph a second time.
        seen = Image.fromarray(np.asarray(photograph))
        mask = remove(seen, session=self._session, only_mask=True).convert("L")
        resized = np.asarray(mask.resize(size, Image.Resampling.BILINEAR, reducing_gap=2))
        return [Segment(resized.astype(np.float32) / np.float32(255), parted=True)]
