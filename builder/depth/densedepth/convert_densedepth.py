"""Turn a DenseDepth checkpoint of its authors' code into a Transformers model folder.

Reads Keras HDF5 files (h5py alone, neither Keras nor TensorFlow) and state dicts of the authors'
PyTorch port. What is read is checked against the network's own table of names and shapes before
any array is loaded, and nothing that a file holds is ever executed.

HDF5 layouts:
    whole model, `model.save("x.h5")`: attribute `model_config` (the graph, JSON) and a group
        `model_weights` laid out as the next one; `optimizer_weights` is ignored.
    weights only, Keras 1 and 2: attribute `layer_names`, a group per layer with an attribute
        `weight_names`, whose arrays lie at that path below the group. A slash in a name nests
        groups (`conv1/conv/conv1/conv/kernel:0`).
    weights only, Keras 3, `save_weights("x.weights.h5")`: `layers/<class>_<n>/vars/<i>`. The
        attribute `name` of `vars` holds the layer's name; `i` counts kernel, bias in a convolution
        and gamma, beta, moving_mean, moving_variance in a norm.

Layer names are those of keras.applications' DenseNet and of the paper's decoder; see `_MODULES`.
"""

from __future__ import annotations

import importlib
import json
import math
import os
import re
import shutil
import warnings
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, NoReturn

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file

from builder.errors import DepthModelError
from builder.files import sha256_file, sweep, temporary_name
from builder.untrusted import listed

from .configuration_densedepth import MIN_DECODER_CHANNELS, DenseDepthConfig
from .image_processing_densedepth import DenseDepthImageProcessor
from .modeling_densedepth import INPUT_MULTIPLE, DenseDepthForDepthEstimation

Dtype = Literal["float32", "bfloat16", "float16"]
DTYPES: dict[str, torch.dtype] = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}
ENCODERS: dict[tuple[int, ...], str] = {
    (6, 12, 24, 16): "DenseNet-121",
    (6, 12, 32, 32): "DenseNet-169",
    (6, 12, 48, 32): "DenseNet-201",
}
KERAS_EPSILON = 1.001e-5  # keras.applications' DenseNet
TORCHVISION_EPSILON = 1e-5
LEAKY_SLOPE = 0.2
NYU_SIZE = {"height": 480, "width": 640}
KITTI_MAX_DEPTH_M, KITTI_SIZE = 80.0, {"height": 384, "width": 1280}  # paper, section 4.1

_MAX_SOURCE_BYTES = 4 * 2**30  # DenseNet-201 at full width with Adam's state is 0.6 GB
_MAX_INPUT_SIDE = 8192
_HDF5_SIGNATURE = b"\x89HDF\r\n\x1a\n"
_TORCH_SUFFIXES = (".pt", ".pth")

# Our module path -> the layer's name in Keras -> its name in the PyTorch port, which wraps
# torchvision's DenseNet. We count from 0, torchvision from 1; Keras' block 1 is "conv2_block".
_TORCHVISION = "encoder.original_model.features."
_MODULES: tuple[tuple[str, str, str], ...] = (
    (r"encoder\.stem\.conv", "conv1_conv", _TORCHVISION + "conv0"),
    (r"encoder\.stem\.norm", "conv1_bn", _TORCHVISION + "norm0"),
    *(
        (
            rf"encoder\.blocks\.(?P<block>\d+)\.layers\.(?P<layer>\d+)\.{ours}",
            "conv{stage}_block{layer}_" + keras,
            _TORCHVISION + "denseblock{block}.denselayer{layer}." + ours,
        )
        for ours, keras in (
            ("norm1", "0_bn"),
            ("conv1", "1_conv"),
            ("norm2", "1_bn"),
            ("conv2", "2_conv"),
        )
    ),
    *(
        (
            rf"encoder\.transitions\.(?P<block>\d+)\.{part}",
            "pool{stage}_" + keras,
            _TORCHVISION + "transition{block}." + part,
        )
        for part, keras in (("norm", "bn"), ("conv", "conv"))
    ),
    (r"encoder\.norm", "bn", _TORCHVISION + "norm5"),
    (r"decoder\.conv", "conv2", "decoder.conv2"),
    (r"decoder\.up_steps\.(?P<block>\d+)\.conv_a", "up{block}_convA", "decoder.up{block}.convA"),
    (r"decoder\.up_steps\.(?P<block>\d+)\.conv_b", "up{block}_convB", "decoder.up{block}.convB"),
    (r"head", "conv3", "decoder.conv3"),
)
_CONV_PARAMETERS = {"weight": "kernel", "bias": "bias"}
_NORM_PARAMETERS = {
    "weight": "gamma",
    "bias": "beta",
    "running_mean": "moving_mean",
    "running_var": "moving_variance",
}
_KERAS_LAYER = re.compile(
    r"conv1_(conv|bn)|bn|conv[2-5]_block\d+_(0_bn|1_conv|1_bn|2_conv)|pool[2-4]_(bn|conv)"
    r"|conv[23]|up[1-4]_conv[AB]"
)
# TensorFlow appends ":0" to every name, and "_1" where a session held two networks.
_KERAS_WEIGHT = re.compile(
    r"(?:.*/)?(?P<parameter>kernel|bias|gamma|beta|moving_mean|moving_variance)"
    r"(?:_\d+)?(?::0)?"
)
_BLOCK_NAMES = {
    "keras": re.compile(r"conv(\d+)_block(\d+)_"),
    "torch": re.compile(r"denseblock(\d+)\.denselayer(\d+)\."),
}
_FIRST_BLOCK = {"keras": 2, "torch": 1}
_DECODER_CONV = {"keras": "conv2/kernel", "torch": "decoder.conv2.weight"}


@dataclass(frozen=True)
class Conversion:
    """What a conversion made, and what it found in the source file.

    `leaky_from` says in words where the activation flavour was read; `leaky_assumed` is True where
    neither the file nor the caller says it, and that of before 2019-03-11 was taken.
    `processor_size` is the image processor's, in pixels.
    """

    folder: Path
    source: str
    source_sha256: str
    source_format: str
    encoder: str
    leaky_from: str
    leaky_assumed: bool
    dtype: str
    processor_size: dict[str, int]
    config: DenseDepthConfig


@dataclass(frozen=True)
class _Weight:
    """One array of a source file: its name there, and how to load it in the file's layout."""

    name: str
    shape: tuple[int, ...]
    is_float: bool
    read: Callable[[], torch.Tensor]


@dataclass(frozen=True)
class _Graph:
    """What the stored graph of a whole Keras model says."""

    leaky_between_convs: bool
    leaky_slope: float
    batch_norm_eps: float
    input_size: dict[str, int] | None


@dataclass(frozen=True)
class _Checkpoint:
    """A source file opened: its weights by canonical name, and what else it says."""

    path: Path
    layout: Literal["keras", "torch"]
    format: str
    weights: Mapping[str, _Weight]
    graph: _Graph | None = None
    leaky_layers: int = 0  # how many layers its list of layers calls LeakyReLU; 0 without a list


def convert(
    source: Path,
    out_dir: Path,
    *,
    align_corners: bool = True,
    max_depth: float = 10.0,
    leaky_between_convs: bool | None = None,
    dtype: Dtype = "float32",
    refill: bool = False,
) -> Conversion:
    """Convert a DenseDepth checkpoint to a Transformers model folder.

    Encoder and decoder width come from the stored names and shapes; activation flavour and
    BatchNorm epsilon from the stored graph where there is one. Every weight is mapped by name
    exactly once, and what was written is read back and compared bit for bit.

    Args:
        source: a Keras HDF5 file (.h5, .hdf5; whole model or weights only), or a state dict of the
            authors' PyTorch port (.safetensors, .pt, .pth; the latter two without running code).
        out_dir: becomes the folder with config.json, preprocessor_config.json, model.safetensors
            and README.md; it appears whole or not at all. Must be absent or empty.
        align_corners: up-sampling as in TensorFlow 1 and the published checkpoints (True), or with
            half-pixel centres. No file stores it.
        max_depth: farthest depth in metres: 10 for NYU Depth v2, 80 for KITTI.
        leaky_between_convs: LeakyReLU after an up-step's first convolution too. Needed only where
            the file does not say it; None then means no, as before 2019-03-11.
        dtype: type of the saved weights.
        refill: whether `out_dir` may hold what a conversion that was killed, or is at work, has
            put there.

    Returns:
        What was found and made.

    Raises:
        DepthModelError: the file is not a whole and sound DenseDepth checkpoint, an argument
            contradicts it, or `out_dir` cannot be used; the text names file and weight.

    Source: arXiv 1812.11941, sections 3.1, 3.2 and 4.1.
    """
    source, out_dir = Path(source), Path(os.path.realpath(out_dir))  # a link may be to nothing yet
    _check_arguments(source, out_dir, max_depth, dtype, refill)
    with _open_checkpoint(source) as checkpoint:
        leaky, leaky_from = _find_flavour(checkpoint, leaky_between_convs)
        config = _find_config(checkpoint, leaky, align_corners, max_depth)
        state = _load_state(checkpoint, config)
    made = Conversion(
        folder=out_dir,
        source=re.sub(r"[`|\r\n]", "_", source.name),  # it stands in the card's Markdown
        source_sha256=sha256_file(source),
        source_format=checkpoint.format,
        encoder=ENCODERS[tuple(config.block_config)],
        leaky_from=leaky_from or "assumed",
        leaky_assumed=leaky_from is None,
        dtype=dtype,
        processor_size=_processor_size(checkpoint, max_depth),
        config=config,
    )
    _write(_build_model(source, config, state, dtype), made)
    return made


def _refuse(path: Path, reason: str) -> NoReturn:
    raise DepthModelError(f"{path}: {reason}") from None


def _check_arguments(
    source: Path, out_dir: Path, max_depth: float, dtype: str, refill: bool
) -> None:
    """Refuse what can be refused before the file is opened."""
    if dtype not in DTYPES:
        raise DepthModelError(f"dtype {dtype!r} is not known; use one of {', '.join(DTYPES)}.")
    if not 0 < max_depth < math.inf:
        raise DepthModelError(
            f"max_depth must be a positive number of metres, got {max_depth}; "
            "use 10 for NYU Depth v2 or 80 for KITTI."
        )
    if not source.is_file():
        _refuse(source, "there is no such file; give the path of a DenseDepth checkpoint.")
    if not os.access(source, os.R_OK):
        _refuse(source, "may not be read; change its permissions.")
    if source.stat().st_size > _MAX_SOURCE_BYTES:
        _refuse(
            source,
            f"has {source.stat().st_size / 2**30:.1f} GiB, more than any DenseDepth checkpoint; "
            "give the checkpoint itself.",
        )
    for place in (out_dir, out_dir.parent):  # a conversion may have been killed here
        sweep(place / out_dir.name)
    try:
        filled = out_dir.is_dir() and any(out_dir.iterdir())
        taken = (filled and not refill) or (out_dir.exists() and not out_dir.is_dir())
    except OSError as error:
        _refuse(out_dir, f"cannot be read ({error.strerror}); choose another output folder.")
    if taken:
        _refuse(out_dir, "exists and is not an empty folder; choose another output folder.")


# What a checkpoint is made of


def _keras_and_torch_names(target: str) -> dict[str, str]:
    """Return the canonical names, by layout, of one key of our state dict."""
    module, _, parameter = target.rpartition(".")
    for pattern, keras, torchvision in _MODULES:
        match = re.fullmatch(pattern, module)
        if match is None:
            continue
        numbers = {name: int(number) + 1 for name, number in match.groupdict().items()}
        numbers["stage"] = numbers.get("block", 0) + 1
        layer = keras.format(**numbers)
        return {
            "keras": f"{layer}/{_parameters(layer)[parameter]}",
            "torch": f"{torchvision.format(**numbers)}.{parameter}",
        }
    raise AssertionError(f"no line of _MODULES names {target}")  # a test goes through all of them


def _parameters(keras_layer: str) -> dict[str, str]:
    """Ours -> Keras' parameter names of a layer, in the order Keras numbers them."""
    return _NORM_PARAMETERS if keras_layer.endswith("bn") else _CONV_PARAMETERS


def _find_flavour(checkpoint: _Checkpoint, asked: bool | None) -> tuple[bool, str | None]:
    """Return whether a LeakyReLU stands between the convolutions, and who says so, if anyone."""
    stored, where = None, ""
    if checkpoint.graph is not None:
        stored, where = checkpoint.graph.leaky_between_convs, "the graph stored in the file"
    elif checkpoint.leaky_layers in (4, 8):
        # Weights alone do not show it, but Keras lists layers without weights too.
        stored, where = checkpoint.leaky_layers == 8, "the list of layers stored in the file"
    if stored is None:
        return (False, None) if asked is None else (asked, "given when converting")
    if asked is not None and asked != stored:
        _refuse(
            checkpoint.path,
            f"{where} says leaky_between_convs is {stored}, but {asked} was asked for; "
            "leave it out.",
        )
    return stored, where


def _find_config(
    checkpoint: _Checkpoint, leaky: bool, align_corners: bool, max_depth: float
) -> DenseDepthConfig:
    """Work out encoder and decoder width from names and shapes, without loading an array."""
    blocks = _find_blocks(checkpoint)
    graph = checkpoint.graph
    default_eps = KERAS_EPSILON if checkpoint.layout == "keras" else TORCHVISION_EPSILON
    config = DenseDepthConfig(
        block_config=blocks,
        leaky_between_convs=leaky,
        align_corners=align_corners,
        max_depth=float(max_depth),
        batch_norm_eps=graph.batch_norm_eps if graph else default_eps,
        leaky_slope=graph.leaky_slope if graph else LEAKY_SLOPE,
    )
    name = _DECODER_CONV[checkpoint.layout]
    if name not in checkpoint.weights:
        _refuse(
            checkpoint.path,
            f"weight '{name}', the first of a DenseDepth decoder, is missing; this is a bare "
            "DenseNet or an incomplete checkpoint, give a complete DenseDepth one.",
        )
    shape, full = checkpoint.weights[name].shape, config.encoder_channels[-1]
    width = shape[-1 if checkpoint.layout == "keras" else 0] if len(shape) == 4 else 0
    if not MIN_DECODER_CHANNELS <= width <= full:
        _refuse(
            checkpoint.path,
            f"weight '{checkpoint.weights[name].name}' has shape {shape}, but DenseDepth with "
            f"{ENCODERS[blocks]} has a 1x1 convolution from {full} to at most {full} channels "
            "there; give a DenseDepth checkpoint.",
        )
    config.decoder_channels = width
    return config


def _find_blocks(checkpoint: _Checkpoint) -> tuple[int, ...]:
    """Return the layer counts of the four dense blocks, those of a known encoder."""
    counts = [0, 0, 0, 0]
    first = _FIRST_BLOCK[checkpoint.layout]
    for key in checkpoint.weights:
        match = _BLOCK_NAMES[checkpoint.layout].search(key)
        if match and 0 <= int(match[1]) - first < 4:
            block = int(match[1]) - first
            counts[block] = max(counts[block], int(match[2]))
    if not any(counts):
        names = [weight.name for weight in checkpoint.weights.values()]
        found = f"its weights are {listed(sorted(names))}" if names else "it holds no weights"
        _refuse(
            checkpoint.path,
            f"is not a DenseDepth checkpoint: no weight is named like a DenseNet's, {found}; "
            "give a Keras .h5 file of DenseDepth or a state dict of its PyTorch port.",
        )
    if tuple(counts) not in ENCODERS:
        known = ", ".join(f"{name} {blocks}" for blocks, name in ENCODERS.items())
        _refuse(
            checkpoint.path,
            f"its dense blocks have {tuple(counts)} layers, unlike any of DenseDepth's encoders "
            f"({known}); give a complete checkpoint of one of them.",
        )
    return tuple(counts)


def _processor_size(checkpoint: _Checkpoint, max_depth: float) -> dict[str, int]:
    """Input size for the image processor: the graph's where it is fixed, else the paper's."""
    if checkpoint.graph is not None and checkpoint.graph.input_size is not None:
        return checkpoint.graph.input_size
    return KITTI_SIZE if max_depth == KITTI_MAX_DEPTH_M else NYU_SIZE


def _load_state(checkpoint: _Checkpoint, config: DenseDepthConfig) -> dict[str, torch.Tensor]:
    """Load every weight into our names and layout; names and shapes are all checked before."""
    with torch.device("meta"):
        targets = DenseDepthForDepthEstimation(config).state_dict()
    counters = {key for key in targets if key.endswith("num_batches_tracked")}
    names = {
        key: _keras_and_torch_names(key)[checkpoint.layout]
        for key in targets
        if key not in counters
    }
    _check_names(checkpoint, set(names.values()), ENCODERS[tuple(config.block_config)])
    for key, name in names.items():
        _check_shape(checkpoint, checkpoint.weights[name], tuple(targets[key].shape))
    state = {key: torch.tensor(0) for key in counters}
    for key, name in names.items():
        weight = checkpoint.weights[name]
        array = _load(checkpoint.path, weight)
        if checkpoint.layout == "keras" and array.ndim == 4:
            array = array.permute(3, 2, 0, 1)  # HWIO -> OIHW
        if key.endswith("running_var") and array.numpy().min() < 0:
            _refuse(
                checkpoint.path,
                f"weight '{weight.name}' holds negative variances; use a sound copy of the file.",
            )
        state[key] = array.contiguous()
    return state


def _check_names(checkpoint: _Checkpoint, expected: set[str], encoder: str) -> None:
    """Refuse missing and surplus weights, both in one sentence: a renamed one is both."""
    missing = expected - set(checkpoint.weights)
    extra = {weight.name for key, weight in checkpoint.weights.items() if key not in expected}
    faults = []
    if missing:
        faults.append(f"{len(missing)} missing ({listed(sorted(missing))})")
    if extra:
        faults.append(f"{len(extra)} not part of it ({listed(sorted(extra))})")
    if faults:
        _refuse(
            checkpoint.path,
            f"of the weights of a DenseDepth with {encoder}, {' and '.join(faults)}; "
            "give the complete, unchanged checkpoint.",
        )


def _check_shape(checkpoint: _Checkpoint, weight: _Weight, target: tuple[int, ...]) -> None:
    """Refuse a weight of another shape or type than the network's."""
    expected = target
    if checkpoint.layout == "keras" and len(target) == 4:
        expected = (target[2], target[3], target[1], target[0])  # OIHW -> HWIO
    if weight.shape != expected:
        _refuse(
            checkpoint.path,
            f"weight '{weight.name}' has shape {weight.shape} where DenseDepth has {expected}; "
            "the file is damaged or of another network, give an unchanged checkpoint.",
        )
    if not weight.is_float:
        _refuse(
            checkpoint.path,
            f"weight '{weight.name}' does not hold float16, float32 or float64 numbers; "
            "save the checkpoint again in float32.",
        )


def _load(path: Path, weight: _Weight) -> torch.Tensor:
    """Load one array as float32, and refuse NaN and infinity."""
    try:
        array = weight.read()
    except (OSError, RuntimeError, ValueError, SafetensorError):
        _refuse(
            path,
            f"weight '{weight.name}' cannot be read, the file is truncated or damaged; "
            "fetch it again.",
        )
    array = array.to(torch.float32)
    # NumPy is several times faster than torch at thousands of small arrays on a busy machine.
    bad = array.numel() - int(np.isfinite(array.numpy()).sum())
    if bad:
        _refuse(
            path,
            f"weight '{weight.name}' holds NaN or infinity ({bad} of {array.numel()} values); "
            "use a sound copy of the checkpoint.",
        )
    return array


def _build_model(
    source: Path, config: DenseDepthConfig, state: dict[str, torch.Tensor], dtype: str
) -> DenseDepthForDepthEstimation:
    """Load the state strictly into a network of the type asked for."""
    largest = torch.finfo(DTYPES[dtype]).max
    for key, tensor in state.items():
        if tensor.is_floating_point():
            if np.abs(tensor.numpy()).max() > largest:
                _refuse(
                    source,
                    f"weight '{key}' has values beyond the range of {dtype}; convert to float32.",
                )
            state[key] = tensor.to(DTYPES[dtype])
    with torch.device("meta"):
        model = DenseDepthForDepthEstimation(config)
    model.load_state_dict(state, strict=True, assign=True)
    return model


# Reading the source file


@contextmanager
def _open_checkpoint(path: Path) -> Iterator[_Checkpoint]:
    """Open a file by its suffix, and by its first bytes where the suffix is not one of torch's."""
    suffix = path.suffix.lower()
    if suffix == ".safetensors":
        with _open_safetensors(path) as checkpoint:
            yield checkpoint
    elif suffix in _TORCH_SUFFIXES:
        yield _torch_checkpoint(path, _load_pickle(path), "PyTorch state dict")
    else:
        with _open_hdf5(path) as checkpoint:
            yield checkpoint


@contextmanager
def _open_hdf5(path: Path) -> Iterator[_Checkpoint]:
    with path.open("rb") as file:
        start = file.read(len(_HDF5_SIGNATURE))
    if start[:4] == b"PK\x03\x04":
        _refuse(
            path,
            "is a .keras archive or a PyTorch file; unzip a .keras archive and give its "
            "model.weights.h5, or let a PyTorch file end in .pt or .pth.",
        )
    if start != _HDF5_SIGNATURE:
        _refuse(
            path,
            "is not an HDF5 file; give a Keras .h5 file of DenseDepth, or a state dict of its "
            "PyTorch port as .safetensors, .pt or .pth.",
        )
    try:
        # By name, so that neither type checkers nor this module need it.
        h5py: Any = importlib.import_module("h5py")
    except ImportError:
        _refuse(
            path,
            "reading Keras files needs h5py; "
            'install it with `pip install "fgbg-dataset[convert]"`.',
        )
    try:
        file = h5py.File(path, "r")
    except OSError:
        _refuse(path, "is truncated or damaged, HDF5 cannot open it; fetch it again.")
    with file:
        try:
            checkpoint = _hdf5_checkpoint(h5py, path, file)
        # What h5py raises at a damaged tree.
        except (OSError, RuntimeError, LookupError, ValueError, TypeError):
            _refuse(path, "is truncated or damaged, its groups cannot be read; fetch it again.")
        yield checkpoint


def _hdf5_checkpoint(h5py: Any, path: Path, file: Any) -> _Checkpoint:
    """Tell the layouts apart, and list the weights without loading one."""
    text = file.attrs.get("model_config")
    graph = None if text is None else _read_graph(path, text)
    root = _follow(h5py, path, file, "model_weights") or file
    if "layer_names" in root.attrs:
        layers = _strings(root, "layer_names")
        found = _list_legacy(h5py, path, root, layers)
    else:
        layers, found = _list_numbered(h5py, path, file)
    weights: dict[str, _Weight] = {}
    for key, name, dataset in found:
        if key in weights:
            _refuse(
                path,
                f"weights '{weights[key].name}' and '{name}' both stand for '{key}'; "
                "give a checkpoint of one network.",
            )
        weights[key] = _hdf5_weight(name, dataset)
    return _Checkpoint(
        path,
        "keras",
        "Keras HDF5, " + ("weights only" if graph is None else "whole model"),
        weights,
        graph,
        sum("leakyrelu" in layer.replace("_", "").lower() for layer in layers),
    )


def _hdf5_weight(name: str, dataset: Any) -> _Weight:
    # Only the expected shape is ever read, so a file cannot ask for more memory than that.
    return _Weight(
        name,
        tuple(int(side) for side in dataset.shape or ()),
        dataset.dtype in (np.float16, np.float32, np.float64),
        lambda: torch.from_numpy(np.asarray(dataset[()])),
    )


def _strings(group: Any, name: str) -> list[str]:
    """Read a list of strings from an attribute."""
    return [
        value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)
        for value in np.atleast_1d(group.attrs.get(name, [])).tolist()
    ]


def _follow(h5py: Any, path: Path, group: Any, name: str) -> Any:
    """Return what lies at a path below a group, or None; links out of the file are refused."""
    node = group
    for part in name.split("/"):
        if not part:
            continue
        link = node.get(part, getlink=True) if isinstance(node, h5py.Group) else None
        if link is None:
            return None
        if not isinstance(link, h5py.HardLink):
            _refuse_link(path, name)
        node = node[part]
    if isinstance(node, h5py.Dataset) and (node.external or node.is_virtual):
        _refuse_link(path, name)
    return node


def _refuse_link(path: Path, name: str) -> NoReturn:
    _refuse(path, f"'{name}' is a link and not data; give the file as Keras wrote it.")


def _walk(group: Any) -> list[tuple[str, Any]]:
    """Path and node of everything below a group (links are not followed).

    Raises:
        UnicodeDecodeError: a name is not UTF-8, as in damaged files; h5py gives such ones as bytes.
    """
    found: list[tuple[str, Any]] = []

    def visit(name: str | bytes, node: Any) -> None:
        found.append((name if isinstance(name, str) else name.decode(), node))

    group.visititems(visit)
    return found


def _datasets(h5py: Any, group: Any) -> set[str]:
    """Paths of all arrays below a group."""
    return {name for name, node in _walk(group) if isinstance(node, h5py.Dataset)}


def _is_optimizers(name: str) -> bool:
    """Whether a path from the file's root belongs to the optimizer's state."""
    return name.split("/")[0] in ("optimizer", "optimizer_weights")


def _list_legacy(h5py: Any, path: Path, root: Any, layers: list[str]) -> list[tuple[str, str, Any]]:
    """(canonical name, name in the file, array) of every weight in the layout of Keras 1 and 2."""
    found, known = [], set()
    for layer in layers:
        group = _follow(h5py, path, root, layer)
        if not isinstance(group, h5py.Group):
            continue  # its weights turn out to be missing, by name
        for weight in _strings(group, "weight_names"):
            dataset = _follow(h5py, path, group, weight)
            if isinstance(dataset, h5py.Dataset):
                found.append((_canonical(layer, weight), weight, dataset))
                known.add(f"{layer}/{weight}")
    unlisted = _datasets(h5py, root) - known
    if root.name == "/":
        unlisted = {name for name in unlisted if not _is_optimizers(name)}
    if unlisted:
        _refuse(
            path,
            f"holds weights that its own list of names lacks ({listed(sorted(unlisted))}); "
            "give the file as Keras wrote it.",
        )
    return found


def _canonical(layer: str, weight: str) -> str:
    """'conv1/bn', 'conv1/bn_1/gamma:0' -> 'conv1_bn/gamma'; a foreign name stays as it is."""
    match, plain = _KERAS_WEIGHT.fullmatch(weight), layer.replace("/", "_")
    if match is None or not _KERAS_LAYER.fullmatch(plain):
        return f"{layer}/{weight}"
    return f"{plain}/{match['parameter']}"


def _list_numbered(
    h5py: Any, path: Path, file: Any
) -> tuple[list[str], list[tuple[str, str, Any]]]:
    """Layers' names in the file, and its weights as `_list_legacy`, in the layout of Keras 3."""
    owners = [
        name.removesuffix("/vars")
        for name, node in _walk(file)
        if isinstance(node, h5py.Group) and name.endswith("/vars") and not _is_optimizers(name)
    ]
    names = {owner: "".join(_strings(file[f"{owner}/vars"], "name")[:1]) for owner in owners}
    found = []
    for name in sorted(_datasets(h5py, file)):
        if _is_optimizers(name):
            continue
        owner, _, index = name.rpartition("/vars/")
        layer = names.get(owner, "")
        parameters = list(_parameters(layer).values())
        known = _KERAS_LAYER.fullmatch(layer) and index.isdecimal() and int(index) < len(parameters)
        key = f"{layer}/{parameters[int(index)]}" if known else name
        found.append((key, f"{name} ({layer})" if layer else name, _follow(h5py, path, file, name)))
    return [owner.rpartition("/")[2] for owner in owners], found


# The graph of a whole Keras model


def _read_graph(path: Path, text: Any) -> _Graph:
    """Read flavour, slope, epsilon and input size from the attribute `model_config`."""
    try:
        layers = [
            {**layer, "class_name": str(layer["class_name"])}
            for layer in json.loads(text)["config"]["layers"]
        ]
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        _refuse(
            path,
            "its model_config is not the graph of a Keras model; save the weights alone and "
            "convert those, or fetch the file again.",
        )
    by_name = {str(layer["config"].get("name", layer.get("name"))): layer for layer in layers}
    for name, layer in by_name.items():
        activation = layer["config"].get("activation", "linear")
        if isinstance(activation, dict):
            activation = activation.get("config")
        if "Conv2D" in layer["class_name"] and activation != "linear":
            _refuse(
                path,
                f"layer '{name}' has the activation {activation!r}, but DenseDepth's convolutions "
                "have none; give a DenseDepth checkpoint.",
            )
    norms = [
        layer["config"].get("epsilon", KERAS_EPSILON)
        for layer in layers
        if layer["class_name"].startswith("BatchNormalization")
    ]
    return _Graph(
        _graph_flavour(path, by_name),
        _one_number(path, "slope of LeakyReLU", _slopes(layers), LEAKY_SLOPE),
        _one_number(path, "epsilon of BatchNormalization", norms, KERAS_EPSILON),
        _graph_input_size(layers),
    )


def _is_leaky(layer: dict[str, Any]) -> bool:
    return str(layer["class_name"]) == "LeakyReLU"


def _slopes(layers: list[dict[str, Any]]) -> list[Any]:
    """Slopes of every LeakyReLU: `alpha` in Keras 2, `negative_slope` in Keras 3."""
    slopes = []
    for layer in filter(_is_leaky, layers):
        slope = layer["config"].get("alpha", layer["config"].get("negative_slope", LEAKY_SLOPE))
        # Early Keras 2 wrote the slope as an array of one number.
        slopes.append(slope.get("value") if isinstance(slope, dict) else slope)
    return slopes


def _one_number(path: Path, what: str, values: list[Any], default: float) -> float:
    """Return the one value that all have, as the shortest number that is the same in float32."""
    if not all(isinstance(value, int | float) and 0 < value < 1 for value in values):
        _refuse(path, f"the {what} is not a number between 0 and 1; give a DenseDepth checkpoint.")
    numbers = {float(str(np.float32(value))) for value in values} or {default}
    if len(numbers) > 1:
        _refuse(
            path,
            f"the {what} is not the same everywhere ({listed(sorted(map(str, numbers)))}); "
            "give a DenseDepth checkpoint.",
        )
    return numbers.pop()


def _graph_flavour(path: Path, by_name: dict[str, dict[str, Any]]) -> bool:
    """Whether each up-step's second convolution takes its input from a LeakyReLU."""
    between = []
    for step in range(1, 5):
        layer = by_name.get(f"up{step}_convB")
        if layer is None:
            _refuse(
                path,
                f"is not a DenseDepth model: its graph has no layer 'up{step}_convB'; "
                "give a DenseDepth checkpoint.",
            )
        parents = _words(layer.get("inbound_nodes")) & set(by_name)
        between.append(any(_is_leaky(by_name[parent]) for parent in parents))
    count = sum(map(_is_leaky, by_name.values()))
    if len(set(between)) > 1 or count != (8 if between[0] else 4):
        _refuse(
            path,
            f"its graph has {count} LeakyReLU layers, {sum(between)} of them between the two "
            "convolutions of an up-step, where DenseDepth has 4 and 0 or 8 and 4; "
            "give a DenseDepth checkpoint.",
        )
    return between[0]


def _words(value: Any) -> set[str]:
    """All strings inside nested lists and dicts: every Keras nests a node's inputs differently."""
    if isinstance(value, str):
        return {value}
    parts = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return set().union(*map(_words, parts))


def _graph_input_size(layers: list[dict[str, Any]]) -> dict[str, int] | None:
    """The input's height and width where the graph fixes them and the network can take them."""
    for layer in layers:
        if layer["class_name"] == "InputLayer":
            config = layer["config"]
            shape = config.get("batch_input_shape", config.get("batch_shape"))
            if isinstance(shape, list) and len(shape) == 4 and shape[-1] == 3:
                height, width = shape[1:3]
                sides = range(INPUT_MULTIPLE, _MAX_INPUT_SIDE + 1, INPUT_MULTIPLE)
                if height in sides and width in sides:
                    return {"height": height, "width": width}
    return None


# State dicts of the PyTorch port


@contextmanager
def _open_safetensors(path: Path) -> Iterator[_Checkpoint]:
    try:
        with safe_open(path, framework="pt") as file:
            weights = {}
            for name in file.keys():  # noqa: SIM118  # not a mapping
                part = file.get_slice(name)
                is_float = part.get_dtype() in ("F16", "F32", "F64")
                read = partial(file.get_tensor, name)
                weights[name] = _Weight(name, tuple(part.get_shape()), is_float, read)
            yield _torch_checkpoint(path, weights, "safetensors state dict")
    except (SafetensorError, OSError):
        _refuse(path, "is not a safetensors file, or truncated or damaged; fetch it again.")


def _load_pickle(path: Path) -> dict[str, _Weight]:
    """Load the tensors of a .pt or .pth file; what needs code to load is refused."""
    try:
        if _is_compressed(path):
            raise zipfile.BadZipFile("compressed")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about pickle protocols; what comes of them is checked
            content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # noqa: BLE001  # a damaged pickle can raise anything
        foreign = re.search(r"(?:GLOBAL|function|of type) ([\w.]+)", str(error))
        if foreign:
            _refuse(
                path,
                f"holds Python objects beside tensors ({foreign[1]}), and loading them would run "
                "code, so nothing was loaded; save the state dict alone: "
                "`torch.save(model.state_dict(), file)`.",
            )
        _refuse(
            path,
            "is not a PyTorch state dict, or truncated or damaged; fetch it again, or save it with "
            "`torch.save(model.state_dict(), file)`.",
        )
    for name in ("state_dict", "model_state_dict"):
        if isinstance(content, dict) and isinstance(content.get(name), dict):
            content = content[name]
    if not isinstance(content, dict):
        _refuse(path, "holds no state dict; save it with `torch.save(model.state_dict(), file)`.")
    weights = {}
    for name, value in content.items():
        if not isinstance(value, torch.Tensor) or value.layout != torch.strided:
            _refuse(
                path,
                f"entry '{name}' is not a dense tensor; save the state dict alone: "
                "`torch.save(model.state_dict(), file)`.",
            )
        is_float = value.dtype in (torch.float16, torch.float32, torch.float64)
        weights[str(name)] = _Weight(str(name), tuple(value.shape), is_float, value.detach)
    return weights


def _is_compressed(path: Path) -> bool:
    """Whether an archive unpacks to more than its size, which could be any size.

    torch.save compresses nothing.
    """
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return sum(entry.file_size for entry in archive.infolist()) > path.stat().st_size


def _torch_checkpoint(path: Path, found: Mapping[str, _Weight], format: str) -> _Checkpoint:
    """Bring names to the canonical form, and drop what DenseDepth does not use."""
    weights: dict[str, _Weight] = {}
    for name, weight in found.items():
        key = name.removeprefix("module.")  # torch.nn.DataParallel
        if key.endswith(".num_batches_tracked") or ".original_model.classifier." in key:
            continue
        if key in weights:
            _refuse(
                path,
                f"weights '{weights[key].name}' and '{name}' both stand for '{key}'; "
                "give a checkpoint of one network.",
            )
        weights[key] = weight
    return _Checkpoint(path, "torch", format, weights)


# Writing the model's folder


def _write(model: DenseDepthForDepthEstimation, made: Conversion) -> None:
    """Write, read back and compare in a hidden folder, then put in place.

    A folder that is not there yet appears whole; one that is, which may be a link or the mount of
    a disk, is filled, and gets config.json, which makes it a model, last.
    """
    out_dir = made.folder
    filled = out_dir.is_dir()
    try:
        out_dir.parent.mkdir(parents=True, exist_ok=True)
        folder = (out_dir if filled else out_dir.parent) / temporary_name(out_dir.name)
        folder.mkdir()
    except OSError as error:
        _refuse(out_dir, f"cannot be written ({error.strerror}); choose another output folder.")
    try:
        model.save_pretrained(folder)
        DenseDepthImageProcessor(size=made.processor_size).save_pretrained(folder)
        (folder / "README.md").write_text(_card(made), encoding="utf-8")
        _compare(model, folder)
        readable = (folder / "config.json").stat().st_mode
        files = sorted(folder.iterdir(), key=lambda path: path.name == "config.json")
        for path in files:
            path.chmod(readable)  # safetensors makes its files readable by their owner alone
            with path.open("rb+") as file:
                os.fsync(file.fileno())
        if filled:
            for path in files:
                path.rename(out_dir / path.name)
        else:
            folder.rename(out_dir)
    except (OSError, SafetensorError) as error:
        _refuse(
            out_dir,
            f"cannot be written ({getattr(error, 'strerror', None) or error}); free some space or "
            "choose another output folder.",
        )
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _compare(model: DenseDepthForDepthEstimation, folder: Path) -> None:
    """Check that what was written is what was meant, bit for bit."""
    meant, written = model.state_dict(), load_file(folder / "model.safetensors")
    config = DenseDepthConfig.from_pretrained(folder)
    same = (
        meant.keys() == written.keys()
        and all(_same_bits(meant[key], written[key]) for key in meant)
        and all(
            getattr(config, field) == getattr(model.config, field)
            for field in DenseDepthConfig.__annotations__
        )
    )
    if not same:
        _refuse(folder, "what was written reads back differently; check the disk and try again.")


def _same_bits(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Whether two tensors have the same type, shape and bytes."""
    bytes_a, bytes_b = (x.reshape(-1).view(torch.uint8).numpy() for x in (a, b))
    return a.dtype == b.dtype and a.shape == b.shape and np.array_equal(bytes_a, bytes_b)


def _card(made: Conversion) -> str:
    """Write the model card: what the file said, what was assumed, and whose weights they are."""
    return f"""---
library_name: transformers
pipeline_tag: depth-estimation
tags:
- depth-estimation
- densedepth
---

# DenseDepth, converted from `{made.source}`

Metric depth from one RGB image: Alhashim and Wonka, "High Quality Monocular Depth Estimation via
Transfer Learning", [arXiv 1812.11941](https://arxiv.org/abs/1812.11941). Converted by
`fgbg convert-depth`; every weight was mapped by name once and read back bit for bit.

| | |
|---|---|
{_card_rows(made)}

## Use

```python
import builder.depth.densedepth  # registers DenseDepth with the Auto classes
from transformers import pipeline

estimate = pipeline("depth-estimation", model="path/to/this/folder")
depth_m = estimate("photo.jpg")["predicted_depth"]  # metres
```

or `fgbg build FOREGROUNDS BACKGROUNDS OUT --depth-model path/to/this/folder`.

## Whose weights these are

They are not by the authors of this converter. The published DenseDepth checkpoints are by Ibraheem
Alhashim and Peter Wonka; their repository is under GPL-3, and under which terms the trained weights
and the data behind them may be used is not clear. Check that before you use or share them.
"""


def _card_rows(made: Conversion) -> str:
    """Write the table's rows: one fact each, with where it comes from where that is in doubt."""
    config, size = made.config, made.processor_size
    width = config.decoder_widths[0]
    full = width == config.encoder_channels[-1]
    near, far = config.depth_range_m
    if config.leaky_between_convs:
        flavour = "after both convolutions of an up-step (as in code since 2019-03-11)"
    else:
        flavour = "after an up-step's second convolution only (as in code before 2019-03-11)"
    if made.leaky_assumed:
        flavour += (
            ": **assumed**, for the file holds weights only, which do not show it; if the depth "
            "looks wrong, convert again with the other flavour"
        )
    else:
        flavour += f"; source: {made.leaky_from}"
    corners = "aligned corners (TensorFlow 1)" if config.align_corners else "half-pixel centres"
    rows = {
        "source file": f"`{made.source}` ({made.source_format})",
        "source sha256": f"`{made.source_sha256}`",
        "encoder": f"{made.encoder}, BatchNorm epsilon {config.batch_norm_eps:g}",
        "decoder width": f"{width} channels, "
        + ("as many as the encoder (the paper's)" if full else "fewer than the encoder's"),
        "LeakyReLU": f"slope {config.leaky_slope:g}, {flavour}",
        "up-sampling": f"bilinear, {corners}; source: given when converting, no file stores it",
        "depth": f"metres, clip({far:g} / y, {near:g}, {far:g}) of the network's output y; "
        f"max_depth {far:g} m, given when converting",
        "input": "RGB in [0, 1], no mean or deviation, sides multiples of 32; "
        f"preset {size['height']} x {size['width']} (height x width)",
        "output": "half the input's height and width",
        "weights": made.dtype,
    }
    return "\n".join(f"| {name} | {fact} |" for name, fact in rows.items())


__all__ = ["DTYPES", "ENCODERS", "Conversion", "Dtype", "convert"]
