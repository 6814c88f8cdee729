"""Checkpoints as Keras and the PyTorch port write them are converted; all others are refused.

Most files hold one small-decoder DenseNet-121 with random weights, written by the installed Keras 3
or, as Keras 2 wrote it, by h5py here. The published shape, DenseNet-169 at full width, comes once.
"""

from __future__ import annotations

import json
import os
import pickle
import re
import shutil
import sys
import warnings
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from huggingface_hub import ModelCard
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import pipeline

from builder.depth.densedepth import DenseDepthForDepthEstimation, convert_densedepth
from builder.depth.densedepth.convert_densedepth import Conversion, convert
from builder.errors import DepthModelError
from builder.files import sha256_file
from tests.e2e.running import OPTIONS, fgbg, start
from tests.limits import HANG_S
from tests.parity.keras_network import (
    build_reference,
    load_keras,
    metres_in_centimetre_form,
    randomise,
    relative_error,
    run_reference,
    spread_inverse_depth,
)

h5py = pytest.importorskip("h5py")

RELATIVE_TOLERANCE = 1e-4  # float32, of the largest inverse depth; measured: 2e-6
METRES_TOLERANCE = 1e-3  # see test_densedepth_keras.py; measured: 3e-5
SIZE = (64, 64)
FILES = {"README.md", "config.json", "model.safetensors", "preprocessor_config.json"}


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> Iterator[None]:
    """Two threads wait for each other at every small layer where other work takes a core."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def keras() -> ModuleType:
    return load_keras()


@pytest.fixture(scope="module")
def images() -> np.ndarray:
    return np.random.default_rng(8).random((1, *SIZE, 3), dtype=np.float32)


def make_network(
    keras: ModuleType, images: np.ndarray, encoder: str, width: int, *, leaky: bool
) -> Any:
    """A network with one output and with the state of an optimizer, as after training."""
    stages = build_reference(keras, encoder, SIZE, width=width, leaky=leaky, aligned=True)
    randomise(stages, seed=3)
    spread_inverse_depth(stages, images)
    network = keras.Model(stages.input, stages.outputs[-1])
    network.compile(optimizer=keras.optimizers.SGD(momentum=0.9), loss="mae")
    network.optimizer.build(network.trainable_variables)
    return network


@pytest.fixture(scope="module")
def network(keras: ModuleType, images: np.ndarray) -> Any:
    return make_network(keras, images, "DenseNet121", 128, leaky=True)


@pytest.fixture(scope="module")
def files(network: Any, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The same weights in every Keras layout."""
    folder = tmp_path_factory.mktemp("keras")
    paths = {
        name: folder / f"{name}.h5"
        for name in ("whole", "numbered.weights", "legacy", "legacy_weights")
    }
    save_quietly(network.save, paths["whole"])
    save_quietly(network.save_weights, paths["numbered.weights"])
    write_legacy(network, paths["legacy"], whole=True)
    write_legacy(network, paths["legacy_weights"], whole=False)
    return paths


@pytest.fixture(scope="module")
def converted(files: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Conversion:
    return convert(files["whole"], tmp_path_factory.mktemp("converted") / "model")


@pytest.fixture(scope="module")
def tensors(converted: Conversion) -> dict[str, torch.Tensor]:
    return load_file(converted.folder / "model.safetensors")


# Files as other programs write them


def save_quietly(save: Callable[[Path], None], path: Path) -> None:
    """Keras' own use of NumPy is out of date: nothing of ours."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "__array__ implementation", DeprecationWarning)
        save(path)


def old_name(layer: str) -> str:
    """The stem's names in the Keras 2 versions of DenseNet had a slash."""
    return {"conv1_conv": "conv1/conv", "conv1_bn": "conv1/bn"}.get(layer, layer)


def write_legacy(network: Any, path: Path, *, whole: bool) -> None:
    """A file as Keras 2 on TensorFlow 1 laid it out."""
    with h5py.File(path, "w") as file:
        group = file
        if whole:
            file.attrs["model_config"] = json.dumps(legacy_graph(network)).encode()
            file.attrs["training_config"] = b"{}"
            group = file.create_group("model_weights")
            momenta = file.create_group("optimizer_weights")
            momenta.attrs["weight_names"] = [b"training/Adam/conv2/kernel/m:0"]
            momenta["training/Adam/conv2/kernel/m:0"] = np.zeros((1, 1, 4, 4), np.float32)
        group.attrs["backend"], group.attrs["keras_version"] = b"tensorflow", b"2.2.4"
        names = [old_name(layer.name).encode() for layer in network.layers]
        group.attrs["layer_names"] = names
        for layer in network.layers:
            name = old_name(layer.name)
            weights = {f"{name}/{weight.name}:0": weight for weight in layer.weights}
            folder = group.create_group(name)
            folder.attrs["weight_names"] = [weight.encode() for weight in weights]
            for weight, variable in weights.items():
                folder[weight] = variable.value.detach().numpy()


def legacy_graph(network: Any) -> dict[str, Any]:
    """The graph in the words of Keras 2.2, written from that of Keras 3."""
    layers = []
    for layer in network.get_config()["layers"]:
        config = {**layer["config"], "name": old_name(layer["config"]["name"])}
        config.pop("dtype", None)
        if "batch_shape" in config:
            config["batch_input_shape"] = [None, None, None, 3]
            del config["batch_shape"]
        if "negative_slope" in config:
            config["alpha"] = float(np.float32(config.pop("negative_slope")))
        parents = re.findall(r"'keras_history': \['([^']+)'", str(layer["inbound_nodes"]))
        nodes = [[[old_name(parent), 0, 0, {}] for parent in parents]] if parents else []
        entry = {"class_name": layer["class_name"], "config": config, "inbound_nodes": nodes}
        layers.append({"name": config["name"], **entry})
    layers = json.loads(json.dumps(layers, default=str))
    return {"class_name": "Model", "config": {"name": "model_1", "layers": layers}}


def port_names(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Our state dict under the names of the PyTorch port, with what torchvision keeps beside it."""
    rules = (
        (r"encoder\.stem\.(conv|norm)\.", r"features.\g<1>0."),
        (r"encoder\.norm\.", "features.norm5."),
        (
            r"encoder\.blocks\.(\d+)\.layers\.(\d+)\.",
            lambda m: f"features.denseblock{int(m[1]) + 1}.denselayer{int(m[2]) + 1}.",
        ),
        (r"encoder\.transitions\.(\d+)\.", lambda m: f"features.transition{int(m[1]) + 1}."),
        (r"^features\.", "encoder.original_model.features."),
        (r"decoder\.conv\.", "decoder.conv2."),
        (
            r"decoder\.up_steps\.(\d+)\.conv_([ab])\.",
            lambda m: f"decoder.up{int(m[1]) + 1}.conv{m[2].upper()}.",
        ),
        (r"^head\.", "decoder.conv3."),
    )
    state = {}
    for name, tensor in tensors.items():
        for pattern, replacement in rules:
            name = re.sub(pattern, replacement, name)
        state[name] = tensor
    state["encoder.original_model.classifier.weight"] = torch.zeros(10, 1024)
    state["encoder.original_model.classifier.bias"] = torch.zeros(10)
    return state


# What converts


def inverse_depth(folder: Path, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """y (B, 1, h, w) and metres (B, h, w) of a converted model."""
    model = DenseDepthForDepthEstimation.from_pretrained(folder).eval()
    with torch.inference_mode():
        pixels = torch.from_numpy(images.transpose(0, 3, 1, 2).copy())
        output = model(pixels, output_hidden_states=True)
    return output.hidden_states[-1].numpy(), output.predicted_depth.numpy()


def assert_equals_keras(network: Any, folder: Path, images: np.ndarray) -> None:
    expected = run_reference(lambda *args, **kwargs: [network(*args, **kwargs)], images)[0]
    y, metres = inverse_depth(folder, images)
    assert relative_error(y, expected) < RELATIVE_TOLERANCE
    assert relative_error(metres, metres_in_centimetre_form(expected[:, 0])) < METRES_TOLERANCE


def assert_same_tensors(folder: Path, tensors: dict[str, torch.Tensor]) -> None:
    ours = load_file(folder / "model.safetensors")
    assert ours.keys() == tensors.keys()
    assert [name for name in ours if not torch.equal(ours[name], tensors[name])] == []


def test_a_whole_keras_3_model_gives_the_networks_outputs(
    network: Any, files: dict[str, Path], converted: Conversion, images: np.ndarray
) -> None:
    assert {path.name for path in converted.folder.iterdir()} == FILES
    assert not list(converted.folder.parent.glob(".*"))
    assert converted.encoder == "DenseNet-121"
    assert converted.config.block_config == [6, 12, 24, 16]
    assert converted.config.decoder_channels == 128
    assert converted.config.leaky_between_convs is True
    assert converted.config.leaky_slope == 0.2
    assert converted.config.batch_norm_eps == 1.001e-5
    assert converted.processor_size == {"height": 64, "width": 64}
    assert converted.source_sha256 == sha256_file(files["whole"])
    assert (converted.leaky_assumed, converted.leaky_from) == (
        False,
        "the graph stored in the file",
    )
    assert_equals_keras(network, converted.folder, images)


def test_the_published_shape_converts(
    keras: ModuleType, images: np.ndarray, tmp_path: Path
) -> None:
    network = make_network(keras, images, "DenseNet169", 1664, leaky=False)
    save_quietly(network.save, tmp_path / "nyu.h5")
    folder = convert(tmp_path / "nyu.h5", tmp_path / "nyu").folder
    config = json.loads((folder / "config.json").read_text())
    assert config["block_config"] == [6, 12, 32, 32]
    assert config["decoder_channels"] == 1664
    assert config["leaky_between_convs"] is False
    assert config["align_corners"] is True
    assert_equals_keras(network, folder, images)


@pytest.mark.parametrize(
    ("name", "format", "leaky_from"),
    [
        ("numbered.weights", "weights only", "the list of layers stored in the file"),
        ("legacy", "whole model", "the graph stored in the file"),
        ("legacy_weights", "weights only", "the list of layers stored in the file"),
    ],
)
def test_every_keras_layout_gives_the_same_tensors(
    files: dict[str, Path],
    tensors: dict[str, torch.Tensor],
    tmp_path: Path,
    name: str,
    format: str,
    leaky_from: str,
) -> None:
    made = convert(files[name], tmp_path / "model")
    assert_same_tensors(made.folder, tensors)
    assert made.source_format == f"Keras HDF5, {format}"
    assert (made.config.leaky_between_convs, made.leaky_from) == (True, leaky_from)
    assert made.config.batch_norm_eps == 1.001e-5
    assert made.config.leaky_slope == 0.2
    assert made.processor_size == {"height": 480, "width": 640}  # no size is stored


def test_variants_of_keras_2_give_the_same_tensors(
    network: Any, tensors: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    path = tmp_path / "legacy.h5"
    write_legacy(network, path, whole=True)
    with h5py.File(path, "r+") as file:
        group = file["model_weights"]
        # A second network in one TensorFlow session: the variables' names get a number.
        layer = group["conv2"]
        layer["conv2_1/kernel_2:0"] = layer["conv2/kernel:0"][()].astype("f8")
        del layer["conv2/kernel:0"]
        layer.attrs["weight_names"] = ["conv2_1/kernel_2:0", "conv2/bias:0"]
        graph = json.loads(file.attrs["model_config"])
        for entry in graph["config"]["layers"]:
            if entry["class_name"] == "LeakyReLU":  # as the first Keras 2 wrote it
                entry["config"]["alpha"] = {"type": "ndarray", "value": 0.20000000298023224}
            if entry["class_name"] == "BatchNormalization":
                entry["class_name"] = "BatchNormalizationV1"
                entry["config"]["epsilon"] = 1e-3
        file.attrs["model_config"] = json.dumps(graph)
    made = convert(path, tmp_path / "model")
    assert_same_tensors(made.folder, tensors)
    assert made.config.leaky_slope == 0.2
    assert made.config.batch_norm_eps == 1e-3


def test_a_file_that_says_no_flavour_takes_the_callers_or_the_published_one(
    files: dict[str, Path], tensors: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    path = edited(files["numbered.weights"], tmp_path)
    with h5py.File(path, "r+") as file:
        for name in [name for name in file["layers"] if "leaky" in name]:
            del file["layers"][name]
    made = convert(path, tmp_path / "assumed")
    assert made.leaky_assumed and made.config.leaky_between_convs is False
    assert "**assumed**" in (made.folder / "README.md").read_text()
    assert_same_tensors(made.folder, tensors)
    made = convert(path, tmp_path / "told", leaky_between_convs=True)
    assert not made.leaky_assumed and made.config.leaky_between_convs is True
    assert "**assumed**" not in (made.folder / "README.md").read_text()


def test_the_pytorch_port_gives_the_same_tensors(
    tensors: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    state = port_names(tensors)
    save_file(state, tmp_path / "port.safetensors")
    # What torch.nn.DataParallel and a training script make of it.
    parallel = {f"module.{name}": tensor for name, tensor in state.items()}
    torch.save({"epoch": 3, "state_dict": parallel}, tmp_path / "script.pth")
    for name in ("port.safetensors", "script.pth"):
        made = convert(tmp_path / name, tmp_path / f"from_{name}", leaky_between_convs=True)
        zero = {name: torch.tensor(0) for name in tensors if name.endswith("batches_tracked")}
        assert_same_tensors(made.folder, tensors | zero)
        assert made.config.batch_norm_eps == 1e-5
        assert made.config.leaky_between_convs is True
    torch.save(state, tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    made = convert(tmp_path / "old.pt", tmp_path / "from_old")
    assert made.leaky_assumed and made.config.leaky_between_convs is False


def test_the_pipeline_runs_on_the_folder(converted: Conversion) -> None:
    estimate = pipeline("depth-estimation", model=str(converted.folder), trust_remote_code=False)
    pixels = np.random.default_rng(1).integers(0, 256, (50, 70, 3), np.uint8)
    result = estimate(Image.fromarray(pixels))
    depth_m = result["predicted_depth"]
    assert tuple(depth_m.shape) == (50, 70)
    assert 0.1 <= float(depth_m.min()) < float(depth_m.max()) <= 10


def test_the_card_says_what_is_in_the_folder(files: dict[str, Path], converted: Conversion) -> None:
    card = ModelCard.load(converted.folder / "README.md")
    assert card.data.pipeline_tag == "depth-estimation"
    assert card.data.library_name == "transformers"
    assert "densedepth" in card.data.tags
    assert card.data.license is None  # not ours to say
    for fact in (
        "`whole.h5` (Keras HDF5, whole model)",
        sha256_file(files["whole"]),
        "DenseNet-121",
        "128 channels",
        "after both convolutions",
        "source: the graph stored in the file",
        "aligned corners",
        "max_depth 10 m",
        "GPL-3",
    ):
        assert fact in card.text


def test_kitti_and_half_pixel_centres(files: dict[str, Path], tmp_path: Path) -> None:
    made = convert(files["legacy"], tmp_path / "kitti", max_depth=80, align_corners=False)
    config = json.loads((made.folder / "config.json").read_text())
    assert (config["max_depth"], config["min_depth"]) == (80.0, 0.8)
    assert config["align_corners"] is False
    processor = json.loads((made.folder / "preprocessor_config.json").read_text())
    assert processor["size"] == {"height": 384, "width": 1280}
    card = (made.folder / "README.md").read_text()
    assert "clip(80 / y, 0.8, 80)" in card and "half-pixel centres" in card


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_smaller_types(
    files: dict[str, Path], tensors: dict[str, torch.Tensor], tmp_path: Path, dtype: str
) -> None:
    folder = convert(files["whole"], tmp_path / "model", dtype=dtype).folder
    kind = getattr(torch, dtype)
    expected = {n: t.to(kind) if t.is_floating_point() else t for n, t in tensors.items()}
    assert_same_tensors(folder, expected)
    assert json.loads((folder / "config.json").read_text())["dtype"] == dtype


def test_an_empty_folder_is_filled_and_parents_are_made(
    files: dict[str, Path], tmp_path: Path
) -> None:
    (tmp_path / "empty").mkdir()
    for place in (tmp_path, tmp_path / "empty"):  # a conversion was killed here
        left = place / f".empty.{'0' * 16}.tmp"
        left.mkdir()
        (left / "model.safetensors").write_bytes(b"half")
        os.utime(left, (0, 0))
    assert convert(files["whole"], tmp_path / "empty").folder == tmp_path / "empty"
    assert not [*tmp_path.rglob(".*")]
    assert convert(files["whole"], tmp_path / "a" / "b" / "c").folder.is_dir()
    assert {path.name for path in (tmp_path / "empty").iterdir()} == FILES


def test_a_link_is_followed_to_what_is_or_will_be_there(
    files: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("there", "missing"):
        target = tmp_path / "elsewhere" / name
        if name == "there":
            target.mkdir(parents=True)
        (tmp_path / name).symlink_to(target)
        assert convert(files["whole"], tmp_path / name).folder == target
        assert {path.name for path in target.iterdir()} == FILES
        assert (tmp_path / name).is_symlink()
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    convert(files["whole"], Path())
    assert {path.name for path in (tmp_path / "here").iterdir()} == FILES


def test_neither_keras_nor_tensorflow_is_imported(
    files: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [name for name in sys.modules if name.split(".")[0] in ("keras", "tensorflow")]:
        monkeypatch.delitem(sys.modules, name)
    for name in ("keras", "tensorflow"):
        monkeypatch.setitem(sys.modules, name, None)  # importing it now fails
    assert convert(files["legacy"], tmp_path / "model").folder.is_dir()


# What is refused


def edited(path: Path, tmp_path: Path) -> Path:
    """A copy to spoil."""
    return Path(shutil.copy(path, tmp_path / "spoilt.h5"))


def refusal(source: Path, tmp_path: Path, **arguments: Any) -> str:
    """The sentence, after checking that it names the file and that nothing was left behind."""
    out = tmp_path / "refused"
    before = set(tmp_path.iterdir())
    with pytest.raises(DepthModelError) as caught:
        convert(source, out, **arguments)
    assert set(tmp_path.iterdir()) == before
    text = str(caught.value)
    assert text.startswith(f"{source}: ") and text.endswith(".") and "\n" not in text
    return text.removeprefix(f"{source}: ")


@pytest.fixture
def spoilt(files: dict[str, Path], tmp_path: Path) -> Path:
    return edited(files["legacy"], tmp_path)


def group_of(file: Any, layer: str) -> Any:
    return file["model_weights"][layer]


def test_a_truncated_file(spoilt: Path, tmp_path: Path) -> None:
    whole = spoilt.read_bytes()
    for share in (0.1, 0.5, 0.99):
        spoilt.write_bytes(whole[: int(len(whole) * share)])
        assert refusal(spoilt, tmp_path) == (
            "is truncated or damaged, HDF5 cannot open it; fetch it again."
        )


def test_a_damaged_file(spoilt: Path, tmp_path: Path) -> None:
    content = bytearray(spoilt.read_bytes())
    content[4096 : len(content) // 8] = bytes(len(content) // 8 - 4096)
    spoilt.write_bytes(content)
    assert "fetch" in refusal(spoilt, tmp_path)
    with h5py.File(spoilt, "w") as file:
        file.create_group(b"layers/conv2d_\xff/vars")  # no UTF-8: h5py names it in bytes
    assert "its groups cannot be read" in refusal(spoilt, tmp_path)


def test_a_file_that_is_not_hdf5(tmp_path: Path) -> None:
    path = tmp_path / "page.h5"
    path.write_text("<html>Not Found</html>")
    assert "is not an HDF5 file; give a Keras .h5 file" in refusal(path, tmp_path)
    path.write_bytes(b"")
    assert "is not an HDF5 file" in refusal(path, tmp_path)
    archive = tmp_path / "model.keras"
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr("config.json", "{}")
    assert "unzip a .keras archive and give its model.weights.h5" in refusal(archive, tmp_path)
    assert "there is no such file" in refusal(tmp_path / "absent.h5", tmp_path)
    assert "there is no such file" in refusal(tmp_path, tmp_path)


@pytest.mark.parametrize("layer", ["conv1/bn", "conv3_block7_1_bn", "up2_convA"])
def test_a_missing_weight(spoilt: Path, tmp_path: Path, layer: str) -> None:
    parameter = "beta" if layer.endswith("bn") else "bias"
    with h5py.File(spoilt, "r+") as file:
        layer_group = group_of(file, layer)
        del layer_group[f"{layer}/{parameter}:0"]
    assert refusal(spoilt, tmp_path) == (
        "of the weights of a DenseDepth with DenseNet-121, 1 missing "
        f"({layer.replace('/', '_')}/{parameter}); give the complete, unchanged checkpoint."
    )


def test_a_missing_layer(spoilt: Path, tmp_path: Path) -> None:
    with h5py.File(spoilt, "r+") as file:
        del file["model_weights/up3_convB"]
    assert "2 missing (up3_convB/bias, up3_convB/kernel)" in refusal(spoilt, tmp_path)
    with h5py.File(spoilt, "r+") as file:
        del file["model_weights/conv2"]
    assert "'conv2/kernel', the first of a DenseDepth decoder, is missing" in refusal(
        spoilt, tmp_path
    )


def test_an_extra_weight(spoilt: Path, tmp_path: Path) -> None:
    with h5py.File(spoilt, "r+") as file:
        layer = group_of(file, "conv3")
        layer["conv3/scale:0"] = np.ones(1, np.float32)
    assert "its own list of names lacks (conv3/conv3/scale:0)" in refusal(spoilt, tmp_path)
    with h5py.File(spoilt, "r+") as file:
        layer = group_of(file, "conv3")
        layer.attrs["weight_names"] = [b"conv3/kernel:0", b"conv3/bias:0", b"conv3/scale:0"]
    assert "DenseNet-121, 1 not part of it (conv3/scale:0); give" in refusal(spoilt, tmp_path)


def test_a_weight_stored_twice(spoilt: Path, tmp_path: Path) -> None:
    with h5py.File(spoilt, "r+") as file:
        layer = group_of(file, "conv3")
        layer["conv3/bias_1:0"] = layer["conv3/bias:0"][()]
        layer.attrs["weight_names"] = [b"conv3/kernel:0", b"conv3/bias:0", b"conv3/bias_1:0"]
    assert "'conv3/bias:0' and 'conv3/bias_1:0' both stand for 'conv3/bias'" in refusal(
        spoilt, tmp_path
    )


def test_a_renamed_weight(spoilt: Path, tmp_path: Path) -> None:
    with h5py.File(spoilt, "r+") as file:
        layer = group_of(file, "up1_convA")
        layer.move("up1_convA/kernel:0", "up1_convA/weights:0")
        layer.attrs["weight_names"] = [b"up1_convA/weights:0", b"up1_convA/bias:0"]
    text = refusal(spoilt, tmp_path)
    assert "1 missing (up1_convA/kernel) and 1 not part of it (up1_convA/weights:0)" in text


def replace_kernel(path: Path, layer: str, **dataset: Any) -> None:
    with h5py.File(path, "r+") as file:
        name = f"{layer}/kernel:0"
        del group_of(file, layer)[name]
        group_of(file, layer).create_dataset(name, **dataset)


def test_a_misshapen_weight(spoilt: Path, tmp_path: Path) -> None:
    replace_kernel(spoilt, "conv2_block1_1_conv", data=np.zeros((1, 1, 128, 64), np.float32))
    assert (
        "weight 'conv2_block1_1_conv/kernel:0' has shape (1, 1, 128, 64) where DenseDepth has "
        "(1, 1, 64, 128)"
    ) in refusal(spoilt, tmp_path)


def test_a_shape_of_terabytes_is_refused_unread(spoilt: Path, tmp_path: Path) -> None:
    huge = {"dtype": "f4", "chunks": True, "compression": "gzip"}
    replace_kernel(spoilt, "up1_convA", shape=(3, 3, 10**6, 10**6), **huge)
    assert "has shape (3, 3, 1000000, 1000000) where" in refusal(spoilt, tmp_path)
    replace_kernel(spoilt, "conv2", shape=(1, 1, 1024, 10**9), **huge)
    assert "from 1024 to at most 1024 channels there" in refusal(spoilt, tmp_path)
    replace_kernel(spoilt, "conv2", data=np.float32(1))
    assert "weight 'conv2/kernel:0' has shape ()" in refusal(spoilt, tmp_path)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_numbers_that_are_none(spoilt: Path, tmp_path: Path, value: float) -> None:
    with h5py.File(spoilt, "r+") as file:
        group_of(file, "up4_convB")["up4_convB/kernel:0"][1, 1, :2, 0] = value
    assert refusal(spoilt, tmp_path) == (
        "weight 'up4_convB/kernel:0' holds NaN or infinity (2 of 576 values); "
        "use a sound copy of the checkpoint."
    )


def test_numbers_that_can_not_be(spoilt: Path, tmp_path: Path) -> None:
    with h5py.File(spoilt, "r+") as file:
        group_of(file, "bn")["bn/moving_variance:0"][5] = -1
    assert "'bn/moving_variance:0' holds negative variances" in refusal(spoilt, tmp_path)
    replace_kernel(spoilt, "conv3", data=np.full((3, 3, 8, 1), 1e6, np.float32))
    with h5py.File(spoilt, "r+") as file:
        group_of(file, "bn")["bn/moving_variance:0"][5] = 1
    text = refusal(spoilt, tmp_path, dtype="float16")
    assert text == (
        "weight 'head.weight' has values beyond the range of float16; convert to float32."
    )
    for kind in ("i4", ">f4"):
        replace_kernel(spoilt, "conv3", data=np.ones((3, 3, 8, 1), kind))
        text = refusal(spoilt, tmp_path)
        assert "'conv3/kernel:0' does not hold float16, float32 or float64" in text


def test_a_link_out_of_the_file(spoilt: Path, files: dict[str, Path], tmp_path: Path) -> None:
    with h5py.File(spoilt, "r+") as file:
        layer = group_of(file, "conv3")
        del layer["conv3/bias:0"]
        path = "/model_weights/conv3/conv3/bias:0"
        layer["conv3/bias:0"] = h5py.ExternalLink(str(files["legacy"]), path)
    assert "'conv3/bias:0' is a link and not data" in refusal(spoilt, tmp_path)
    raw = tmp_path / "raw"
    raw.write_bytes(bytes(4))
    with h5py.File(spoilt, "r+") as file:
        layer = group_of(file, "conv3")
        del layer["conv3/bias:0"]
        layer.create_dataset("conv3/bias:0", (1,), "f4", external=[(str(raw), 0, 4)])
    assert "'conv3/bias:0' is a link and not data" in refusal(spoilt, tmp_path)


def test_another_network(keras: ModuleType, tmp_path: Path) -> None:
    other = keras.Sequential([keras.Input((8, 8, 3)), keras.layers.Conv2D(4, 3, name="first")])
    for name in ("other.h5", "other.weights.h5"):
        path = tmp_path / name
        save_quietly(other.save if name == "other.h5" else other.save_weights, path)
        text = refusal(path, tmp_path)
        assert "is not a DenseDepth" in text
    assert "its weights are layers/conv2d/vars/0 (first), layers/conv2d/vars/1 (first)" in text
    with h5py.File(tmp_path / "empty.h5", "w"):
        pass
    assert "it holds no weights" in refusal(tmp_path / "empty.h5", tmp_path)


def test_layers_without_names(files: dict[str, Path], tmp_path: Path) -> None:
    path = edited(files["numbered.weights"], tmp_path)
    with h5py.File(path, "r+") as file:  # as the first Keras 3 wrote it
        for layer in file["layers"].values():
            del layer["vars"].attrs["name"]
    assert "is not a DenseDepth checkpoint: no weight is named" in refusal(path, tmp_path)


def test_other_encoders_and_a_bare_one(tmp_path: Path) -> None:
    def save(blocks: tuple[int, ...], *decoder: str) -> Path:
        names = [
            f"encoder.original_model.features.denseblock{block}.denselayer{layer}.norm1.weight"
            for block, layers in enumerate(blocks, start=1)
            for layer in range(1, layers + 1)
        ]
        path = tmp_path / "port.safetensors"
        save_file({name: torch.zeros(1) for name in (*names, *decoder)}, path)
        return path

    text = refusal(save((6, 12, 36, 24)), tmp_path)
    assert "its dense blocks have (6, 12, 36, 24) layers" in text
    assert "DenseNet-121 (6, 12, 24, 16)" in text
    assert "this is a bare DenseNet or an incomplete" in refusal(save((6, 12, 48, 32)), tmp_path)
    text = refusal(save((6, 12, 48, 32), "decoder.conv2.weight"), tmp_path)
    assert "'decoder.conv2.weight' has shape (1,), but DenseDepth with DenseNet-201" in text


def test_a_graph_that_is_not_densedepths(spoilt: Path, tmp_path: Path) -> None:
    def refuse_graph(text: str) -> str:
        with h5py.File(spoilt, "r+") as file:
            file.attrs["model_config"] = text
        return refusal(spoilt, tmp_path)

    def only(name: str, **changes: Any) -> Any:
        return lambda layer: layer["config"].update(changes) if layer["name"] == name else None

    def unleak(layer: dict[str, Any]) -> None:
        if layer["name"] == "leaky_re_lu_2":
            layer["class_name"] = "ReLU"

    def rename(layer: dict[str, Any]) -> None:
        if layer["name"] == "up2_convB":
            layer["config"]["name"] = layer["name"] = "up2_conv"

    with h5py.File(spoilt, "r") as file:
        text = file.attrs["model_config"]
    for edit, sentence in (
        (only("up1_convA", activation="relu"), "layer 'up1_convA' has the activation 'relu'"),
        (only("bn", epsilon=1e-3), "BatchNormalization is not the same everywhere (0.001, 1.001e"),
        (only("bn", epsilon="x"), "epsilon of BatchNormalization is not a number between 0 and 1"),
        (unleak, "its graph has 7 LeakyReLU layers, "),
        (rename, "its graph has no layer 'up2_convB'"),
    ):
        graph = json.loads(text)
        for layer in graph["config"]["layers"]:
            edit(layer)
        assert sentence in refuse_graph(json.dumps(graph))
    for text in ("{", "[]", '{"config": {"layers": [3]}}', "[" * 10**5):
        assert "its model_config is not the graph of a Keras model" in refuse_graph(text)


def test_a_flavour_the_file_contradicts(files: dict[str, Path], tmp_path: Path) -> None:
    for name, where in (("whole", "the graph"), ("numbered.weights", "the list of layers")):
        text = refusal(files[name], tmp_path, leaky_between_convs=False)
        assert text == (
            f"{where} stored in the file says leaky_between_convs is True, but False was asked "
            "for; leave it out."
        )


class Code:
    """Pickles to a call; loading it would write a file."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.write_text, (self.mark, "run")


def test_a_pickle_with_code_is_not_run(tmp_path: Path) -> None:
    path, mark = tmp_path / "evil.pt", tmp_path / "mark"
    torch.save({"decoder.conv2.weight": Code(mark)}, path)
    assert refusal(path, tmp_path) == (
        "holds Python objects beside tensors (getattr), and loading them would run code, so "
        "nothing was loaded; save the state dict alone: `torch.save(model.state_dict(), file)`."
    )
    torch.save(torch.nn.Conv2d(1, 1, 1), path)
    assert "(torch.nn.modules.conv.Conv2d)" in refusal(path, tmp_path)
    for protocol in (2, 5):
        path.write_bytes(pickle.dumps({"a": Code(mark)}, protocol))
        refusal(path, tmp_path)
    assert not mark.exists()


def test_pytorch_files_that_hold_no_state_dict(tmp_path: Path) -> None:
    path = tmp_path / "port.pt"
    torch.save([torch.zeros(1)], path)
    assert "holds no state dict" in refusal(path, tmp_path)
    torch.save({"lr": 0.1}, path)
    assert "entry 'lr' is not a dense tensor" in refusal(path, tmp_path)
    torch.save({"a": torch.zeros(1).to_sparse()}, path)
    assert "entry 'a' is not a dense tensor" in refusal(path, tmp_path)
    torch.save({"a": torch.zeros(1), "module.a": torch.zeros(1)}, path)
    assert "weights 'a' and 'module.a' both stand for 'a'" in refusal(path, tmp_path)
    torch.save({"a": torch.zeros(10**5)}, path)
    path.write_bytes(path.read_bytes()[:1000])
    assert "is not a PyTorch state dict, or truncated or damaged" in refusal(path, tmp_path)
    path.write_text("nothing")
    assert "is not a PyTorch state dict, or truncated or damaged" in refusal(path, tmp_path)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data/0", bytes(10**7))
    assert "is not a PyTorch state dict, or truncated or damaged" in refusal(path, tmp_path)
    path = tmp_path / "port.safetensors"
    save_file({"a": torch.zeros(1000)}, path)
    path.write_bytes(path.read_bytes()[:1000])
    assert "is not a safetensors file, or truncated or damaged" in refusal(path, tmp_path)


def test_arguments_and_output_folders(
    files: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = files["whole"]
    for bad in (0, -1, float("nan"), float("inf")):
        with pytest.raises(DepthModelError, match="max_depth must be a positive number"):
            convert(source, tmp_path / "out", max_depth=bad)
    with pytest.raises(DepthModelError, match="'int8' is not known; use one of float32, bfloat16"):
        convert(source, tmp_path / "out", dtype="int8")  # type: ignore[arg-type]
    kept = tmp_path / "full" / "kept"
    kept.parent.mkdir()
    kept.write_text("mine")
    for taken in (kept.parent, kept):
        with pytest.raises(DepthModelError, match="is not an empty folder; choose another"):
            convert(source, taken)
    with pytest.raises(DepthModelError, match=r"cannot be written .*choose another output"):
        convert(source, kept / "out")
    assert kept.read_text() == "mine"
    monkeypatch.setattr(convert_densedepth, "_MAX_SOURCE_BYTES", 1000)
    assert "more than any DenseDepth checkpoint" in refusal(source, tmp_path)


def test_h5py_is_asked_for(
    files: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "h5py", None)
    assert 'install it with `pip install "fgbg-dataset[convert]"`.' in refusal(
        files["whole"], tmp_path
    )


def test_what_reads_back_differently_is_not_kept(
    files: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def flip_a_bit(path: Path) -> dict[str, torch.Tensor]:
        tensors = load_file(path)
        tensors["head.bias"].view(torch.int32)[0] ^= 1
        return tensors

    monkeypatch.setattr(convert_densedepth, "load_file", flip_a_bit)
    with pytest.raises(DepthModelError, match="reads back differently"):
        convert(files["whole"], tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_leaves_nothing(
    files: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(self: Any, folder: Path) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(DenseDepthForDepthEstimation, "save_pretrained", full)
    with pytest.raises(DepthModelError, match="No space left on device"):
        convert(files["whole"], tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_the_command_converts_and_says_what_it_found(
    files: dict[str, Path], tensors: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    source, folder = next(iter(files.values())), tmp_path / "model"
    done = fgbg("convert-depth", source, folder, "--half-pixel", "--max-depth", "80", "--json")
    result = json.loads(done.stdout)
    assert result["encoder"] == "DenseNet-121"
    assert result["source_sha256"] == sha256_file(source)
    assert (result["align_corners"], result["max_depth"]) == (False, 80)
    assert_same_tensors(folder, tensors)
    refused = fgbg("convert-depth", __file__, tmp_path / "other", code=2)
    assert "Error: " in refused.stderr
    assert "Traceback" not in refused.stderr
    assert not (tmp_path / "other").exists()


def build_with(checkpoint: Path, sources: tuple[Path, Path], out: Path) -> tuple[object, ...]:
    command = ("build", *sources, out, *OPTIONS, "--placements", "1", "--no-flip")
    return (*command, "--depth-model", checkpoint)


@pytest.mark.parametrize("half_filled", [False, True])
def test_builds_take_a_checkpoint_and_convert_it_once(
    files: dict[str, Path],
    sources: tuple[Path, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    half_filled: bool,
) -> None:
    """Two that were started together; an empty folder lies where the model goes, or half of it."""
    source = tmp_path / "nyu.h5"
    shutil.copy(files["legacy"], source)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    cache = tmp_path / "home" / "fgbg" / "densedepth"
    (cache / sha256_file(source)).mkdir(parents=True)
    if half_filled:
        (cache / sha256_file(source) / "model.safetensors").write_bytes(b"of a killed conversion")
    both = [start(*build_with(source, sources, tmp_path / name)) for name in "ab"]
    for process in both:
        _, stderr = process.communicate(timeout=HANG_S)
        assert process.returncode == 0, stderr
    (kept,) = cache.iterdir()
    assert {path.name for path in kept.iterdir()} == FILES
    recipe = json.loads((tmp_path / "a" / "recipe.json").read_text())
    assert recipe["depth"]["model_type"] == "densedepth"
    assert recipe["depth"]["weights_sha256"] == sha256_file(kept / "model.safetensors")
    before = (kept / "model.safetensors").stat().st_mtime_ns
    fgbg(*build_with(source, sources, tmp_path / "a"))
    assert (kept / "model.safetensors").stat().st_mtime_ns == before


def test_a_cache_that_cannot_be_written_is_named_with_the_next_step(
    files: dict[str, Path],
    sources: tuple[Path, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (tmp_path / "home").write_text("a file where a folder should be")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    done = fgbg(*build_with(files["legacy"], sources, tmp_path / "out"), code=2)
    assert "set HF_HOME to a folder" in done.stderr
    assert not (tmp_path / "out").exists()
