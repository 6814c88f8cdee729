"""Hostile folders given as --depth-model: refused with a sentence, and nothing in them is run."""

from __future__ import annotations

import json
import os
import shutil
import struct
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.hostile.running import GIB, PEAK, assert_sentence, limited

# What any of these folders would leave behind if something in it were run.
_CANARY = "ran"

_LOAD = f"""{PEAK}
import json, sys
from builder.depth import DepthEstimator, locate_model
from builder.errors import FgbgError
from builder.recipe import Recipe
for folder in json.load(sys.stdin):
    try:
        recipe = Recipe(size=32, foreground_size=16, depth_model=folder, depth_input=64)
        recipe, model = locate_model(recipe)
        DepthEstimator(model, recipe, device="cpu", backend="torch")
        told = "loaded"
    except FgbgError as error:
        told = str(error)
    print(json.dumps([Path(folder).name, told, peak_mib()]), flush=True)
"""


class Payload:
    """Writes a file when it is unpickled."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.write_text, (self.canary, "from a pickle")


def pickled(folder: Path, name: str) -> None:
    torch.save({"head.weight": Payload(folder.parent / _CANARY)}, folder / name)


def edit(file: str, **changes: Any) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        content = json.loads((folder / file).read_text())
        for key, value in changes.items():
            content[key] = value
        (folder / file).write_text(json.dumps(content))

    return change


def write(file: str, content: str | bytes) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        data = content if isinstance(content, bytes) else content.encode()
        (folder / file).write_bytes(data)

    return change


def only_pickles(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    for name in ("pytorch_model.bin", "model.pt", "model.ckpt"):
        pickled(folder, name)


def pickle_by_config(folder: Path) -> None:
    pickled(folder, "adapter_model.bin")
    edit("config.json", transformers_weights="adapter_model.bin")(folder)


def pickle_by_index(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "part.safetensors")
    pickled(folder, "evil.bin")
    index = {"metadata": {}, "weight_map": {"head.weight": "evil.bin"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def index_out_of_the_folder(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "part.safetensors")
    index = {"metadata": {}, "weight_map": {"head.weight": "../../../etc/passwd"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def pickle_named_safetensors(folder: Path) -> None:
    pickled(folder, "model.safetensors")


def custom_code(folder: Path, model_type: str) -> None:
    canary = folder.parent / _CANARY
    (folder / "evil.py").write_text(f"open({str(canary)!r}, 'w').write('from custom code')\n")
    auto_map = {name: f"evil.{name}" for name in ("AutoConfig", "AutoModelForDepthEstimation")}
    edit("config.json", auto_map=auto_map, model_type=model_type)(folder)
    edit("preprocessor_config.json", auto_map={"AutoImageProcessor": "evil.P"})(folder)


def pipe_for(file: str) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        (folder / file).unlink()
        os.mkfifo(folder / file)

    return change


def header_of(shape: list[int], end: int, length: int | None = None) -> bytes:
    header = {"head.weight": {"dtype": "F32", "shape": shape, "data_offsets": [0, end]}}
    text = json.dumps(header).encode()
    return struct.pack("<Q", length or len(text)) + text + bytes(64)


def endless_weights(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors").symlink_to("/dev/zero")


CONFIG, PIXELS, WEIGHTS = "config.json", "preprocessor_config.json", "model.safetensors"
DEEP = "[" * 100_000
# Folder -> what is done to a good one, and what the sentence says.
CASES: dict[str, tuple[Callable[[Path], None], str]] = {
    "only-pickles": (only_pickles, "has no .safetensors file. Pickled weights are never loaded"),
    "pickle-by-config": (pickle_by_config, "asks for the weights 'adapter_model.bin'"),
    "pickle-by-index": (pickle_by_index, "asks for the weights 'evil.bin'"),
    "pickle-named-safetensors": (pickle_named_safetensors, "cannot be loaded"),
    "index-out": (index_out_of_the_folder, "asks for the weights '../../../etc/passwd'"),
    "adapter": (write("adapter_config.json", "{}"), "is an adapter of another model"),
    "code-unknown-type": (lambda folder: custom_code(folder, "evil"), "is of type 'evil'"),
    "wide": (edit(CONFIG, num_init_features=10**9), "has the number 1000000000"),
    "wide-100k": (edit(CONFIG, num_init_features=100_000), "describes a larger network"),
    "growth": (edit(CONFIG, growth_rate=500_000), "describes a larger network"),
    "deep": (edit(CONFIG, block_config=[900_000] * 4), "describes a larger network"),
    "infinite": (write(CONFIG, '{"model_type": "dpt", "x": 1e999}'), "number inf"),
    "nan": (write(CONFIG, '{"model_type": "dpt", "x": NaN}'), "NaN is not a number of JSON"),
    "twice": (write(CONFIG, '{"x": "dpt", "x": "glpn"}'), "'x' stands there twice"),
    "nested": (write(CONFIG, DEEP), "cannot be read"),
    "list": (write(CONFIG, "[1]"), "holds no JSON object"),
    "bytes": (write(CONFIG, b"\xff\xfe{"), "cannot be read"),
    "endless-config": (write(CONFIG, b" " * (2**24 + 1)), "at most 16,777,216 are read"),
    "type-is-a-list": (edit(CONFIG, model_type=["dpt"]), "has no model_type"),
    "depth-is-text": (edit(CONFIG, max_depth="far"), "is not a number"),
    "depth-is-infinite": (edit(CONFIG, max_depth="1e999"), "is not a number"),
    "depth-is-none": (edit(CONFIG, max_depth="nan"), "is not a number"),
    "weights-are-a-list": (edit(CONFIG, transformers_weights=[["x"]]), "asks for the weights [['"),
    "depth-is-negative": (edit(CONFIG, max_depth=-1), "must lie between"),
    "blocks-are-text": (edit(CONFIG, block_config="abcd"), "cannot be loaded from"),
    "backbone-is-text": (
        edit(CONFIG, model_type="dpt", backbone_config="x"), "cannot be loaded from",
    ),
    "config-is-a-pipe": (pipe_for(CONFIG), "is not a regular file"),
    "weights-are-a-pipe": (pipe_for(WEIGHTS), "has no .safetensors file"),
    "weights-are-endless": (endless_weights, "has no .safetensors file"),
    "header-too-long": (write(WEIGHTS, header_of([1], 4, 2**60)), "cannot be loaded"),
    "header-lies": (write(WEIGHTS, header_of([2**31, 2**31], 64)), "cannot be loaded"),
    "header-past-end": (write(WEIGHTS, header_of([2**20], 2**22)), "cannot be loaded"),
    "mean-is-text": (
        edit(PIXELS, do_normalize=True, image_mean="a", image_std=[1]),
        "does not say how pixels are scaled",
    ),
    "std-is-zero": (
        edit(PIXELS, do_normalize=True, image_mean=[0.5], image_std=[0]),
        "does not say how pixels are scaled",
    ),
    "scale-is-missing": (
        edit(PIXELS, do_rescale=True, rescale_factor=None),
        "does not say how pixels are scaled",
    ),
    "pixels-are-a-list": (write(PIXELS, "[]"), "holds no JSON object"),
}  # fmt: skip
HARMLESS = {"good": lambda _folder: None, "code-known-type": lambda f: custom_code(f, "densedepth")}


@pytest.fixture(scope="module")
def told(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[str, int]]:
    """What loading each folder led to, and the peak memory after it, all in one process."""
    root = tmp_path_factory.mktemp("models")
    changes = {**{name: change for name, (change, _) in CASES.items()}, **HARMLESS}
    for name, change in changes.items():
        shutil.copytree(tiny_model, root / name)
        change(root / name)
    script = [sys.executable, "-c", _LOAD]
    folders = json.dumps([str(root / name) for name in changes])
    done = limited(script, memory=12 * GIB, input=folders, cwd=root)
    assert done.returncode == 0, done.stderr
    assert not (root / _CANARY).exists(), (root / _CANARY).read_text()
    return {name: (text, peak) for name, text, peak in map(json.loads, done.stdout.splitlines())}


@pytest.mark.parametrize("name", CASES)
def test_a_hostile_folder_is_refused_in_one_sentence(
    told: dict[str, tuple[str, int]], name: str
) -> None:
    text, _ = told[name]
    assert CASES[name][1] in text
    if "cannot be loaded from" not in text:  # that passes on what Transformers says
        assert_sentence(text)


@pytest.mark.parametrize("name", HARMLESS)
def test_code_beside_a_model_of_a_known_type_is_left_alone(
    told: dict[str, tuple[str, int]], name: str
) -> None:
    assert told[name][0] == "loaded"


def test_nothing_was_allocated_that_the_files_only_claim(told: dict[str, tuple[str, int]]) -> None:
    assert list(told)[-1] == "code-known-type"
    assert max(peak for _, peak in told.values()) < 1500


def test_the_payload_would_run_if_it_were_unpickled(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    pickled(tmp_path / "folder", "x.bin")
    torch.load(tmp_path / "folder" / "x.bin", weights_only=False)
    assert (tmp_path / _CANARY).read_text() == "from a pickle"
