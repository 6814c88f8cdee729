"""`fgbg finetune` on a set that `fgbg build` made, as a person runs it."""

from __future__ import annotations

import json
import shutil
import subprocess
from functools import partial
from pathlib import Path

import datasets
import huggingface_hub
import numpy as np
import pytest
import torch
from click.testing import CliRunner
from huggingface_hub import ModelCard
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from builder.cli import main
from builder.depth.densedepth import DenseDepthForDepthEstimation, DenseDepthImageProcessor
from builder.finetune.loop import _sha256
from tests.e2e.hub import TOKEN, serve
from tests.e2e.running import COMMAND, files_of, is_newer, wait_until, written
from tests.limits import HANG_S

# 54 records in batches of 8: nearly nine epochs, so that a stop falls into any part of one.
RUN = (
    *("--eval-split", "unseen_both", "--steps", "60", "--batch-size", "8", "--warmup", "6"),
    *("--learning-rate", "0.01", "--threads", "1", "--save-every", "7"),
)
CHECKPOINT = "checkpoint.safetensors"
MADE = {"README.md", CHECKPOINT, "config.json", "metrics.json", "model.safetensors",
        "preprocessor_config.json"}  # fmt: skip


def run(*arguments: object, code: int = 0) -> str:
    """Run the command in this process, where every warning is an error."""
    result = CliRunner().invoke(main, ["finetune", *(str(argument) for argument in arguments)])
    assert result.exit_code == code, (result.output, result.exception)
    return result.output


def start(*arguments: object, **options) -> subprocess.Popen[str]:
    """Start the command in a process of its own."""
    command = [*COMMAND, "finetune", *map(str, arguments)]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, **options)


@pytest.fixture(scope="module")
def model(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Another model than the set's depth is by: it takes everything to be far nearer."""
    folder = tmp_path_factory.mktemp("finetune") / "near"
    network = DenseDepthForDepthEstimation.from_pretrained(tiny_model)
    with torch.no_grad():
        network.head.bias.fill_(8)
    network.save_pretrained(folder)
    DenseDepthImageProcessor.from_pretrained(tiny_model).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module", params=["mapped", "streaming"])
def tuned(request, built: Path, model: Path, tmp_path_factory: pytest.TempPathFactory):
    """An undisturbed run: its options, its folder and what it printed."""
    options = (*RUN, "--streaming") if request.param == "streaming" else RUN
    root = tmp_path_factory.mktemp(request.param)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(datasets.config, "HF_DATASETS_CACHE", str(root / "cache"))
        threads = torch.get_num_threads()
        printed = run(model, built, root / "tuned", *options)
        torch.set_num_threads(threads)
    return options, root / "tuned", printed


def test_the_loss_falls_and_held_out_errors_shrink(tuned):
    options, out, printed = tuned
    assert {path.name for path in out.iterdir()} == MADE
    metrics = json.loads((out / "metrics.json").read_text())
    losses = [loss for _, loss in metrics["loss"]]
    assert losses[-1] < 0.6 * losses[0]
    before, after = metrics["before"]["unseen_both"], metrics["after"]["unseen_both"]
    assert before["images"] == after["images"] == 12
    assert after["abs_rel"] < 0.8 * before["abs_rel"]
    assert after["rmse"] < 0.8 * before["rmse"]
    assert after["delta3"] > before["delta3"] + 0.2
    assert metrics["settings"]["streaming"] == ("--streaming" in options)
    for when, errors in (("before", before), ("after", after)):
        assert f"{when:<6}  unseen_both  abs_rel {errors['abs_rel']:.4f}" in printed


def test_the_card_tells_the_measured_errors_and_no_local_path(tuned, built, model):
    _, out, _ = tuned
    after = json.loads((out / "metrics.json").read_text())["after"]["unseen_both"]
    card = ModelCard.load(out / "README.md")
    results = {result.metric_type: result.metric_value for result in card.data.eval_results}
    assert results == {k: round(v, 5) for k, v in after.items() if k != "images"}
    assert {result.dataset_split for result in card.data.eval_results} == {"unseen_both"}
    assert card.data.pipeline_tag == "depth-estimation"
    assert f"| unseen_both | 12 | **after** | {after['abs_rel']:.4f} |" in card.text
    for file in ("README.md", "metrics.json"):
        text = (out / file).read_text()
        assert str(built.parent) not in text
        assert str(model.parent) not in text


def test_the_tuned_folder_is_the_evaluated_model(tuned):
    _, out, _ = tuned
    weights, checkpoint = load_file(out / "model.safetensors"), load_file(out / CHECKPOINT)
    held = {name.removeprefix("model."): value for name, value in checkpoint.items()}
    assert all(torch.equal(value, held[name]) for name, value in weights.items())
    reloaded = DenseDepthForDepthEstimation.from_pretrained(out)
    assert reloaded.dtype == torch.float32


def test_a_killed_run_resumes_to_the_same_bytes(tuned, built, model, tmp_path, monkeypatch):
    """SIGKILL after the first checkpoint and again after a later one."""
    options, undisturbed, _ = tuned
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    out = tmp_path / "tuned"
    checkpoint = out / CHECKPOINT
    kills = 0
    for _ in range(2):
        held = written(checkpoint)
        process = start(model, built, out, *options, "--resume")
        further = wait_until(process, partial(is_newer, checkpoint, held))
        process.kill()
        _, stderr = process.communicate()
        assert further, stderr
        kills += not (out / "model.safetensors").exists()
    assert kills, "it ended before it could be disturbed"
    process = start(model, built, out, *options, "--resume")
    _, stderr = process.communicate(timeout=HANG_S)
    assert process.returncode == 0, stderr
    assert files_of(out) == files_of(undisturbed)


def test_other_settings_and_forgotten_resume_are_refused(tuned, built, model):
    options, out, _ = tuned
    files = files_of(out)
    text = run(model, built, out, *options, code=2)
    assert "is of an earlier run; add --resume" in text
    text = run(model, built, out, *options, "--seed", "5", "--resume", code=2)
    assert "seed was 0, now is 5" in text
    assert files_of(out) == files


def test_what_is_in_out_is_never_overwritten(built, model, tmp_path):
    """The data set itself, the model, any folder, a file; --resume is no excuse."""
    data, start_model, notes = (tmp_path / name for name in ("data", "start", "notes"))
    shutil.copytree(built, data)
    shutil.copytree(model, start_model)
    notes.mkdir()
    (notes / "README.md").write_text("mine")
    (tmp_path / "file").write_text("mine")
    before = files_of(tmp_path)
    for out in (data, start_model, notes, tmp_path / "file"):
        for more in ((), ("--resume",)):
            text = run(start_model, data, out, "--steps", "1", *more, code=2)
            inside = out == data
            due = "is in the data set" if inside else "is not empty and holds no checkpoint of this"
            assert f"{out} {due}" in text
    text = run(start_model, data, data / "assets" / "new", "--steps", "1", code=2)
    assert f"{data / 'assets' / 'new'} is in the data set {data}; choose another OUT." in text
    assert files_of(tmp_path) == before


@pytest.mark.parametrize("tuned", ["mapped"], indirect=True)
def test_a_checkpoint_that_was_changed_is_refused(tuned, built, model, tmp_path):
    options, undisturbed, _ = tuned
    for change in ("state", "tensor", "settings", "none of ours", "newer", "of another hand"):
        out = tmp_path / change.replace(" ", "-")
        out.mkdir()
        with safe_open(undisturbed / CHECKPOINT, "pt") as file:
            header = json.loads(file.metadata()["state"])
        tensors = load_file(undisturbed / CHECKPOINT)
        if change == "state":
            header["state"]["step"] = "seven"
        elif change == "tensor":
            tensors["model.head.bias"] += 1
        elif change == "settings":
            del header["state"]["settings"]
        elif change == "none of ours":
            header = {"step": 7}
        else:  # whole, by its sha256
            header["state"] |= {"newer": {"pace": 1}, "of another hand": {"recent": "x"}}[change]
            header["sha256"] = _sha256(header["state"], tensors)
        save_file(tensors, out / CHECKPOINT, {"state": json.dumps(header)})
        before = files_of(out)
        text = run(model, built, out, *options, "--resume", code=2)
        assert text.count("Error: ") == 1 and str(out / CHECKPOINT) in text, text
        assert files_of(out) == before


def test_decimal_depth_is_not_guessed(built, model, tmp_path):
    """Metres as floats, which would train as millimetres; with the flag they train."""
    rows = datasets.load_dataset(str(built), split="train").select(range(8))
    depth_m = [np.asarray(row["depth"]).astype(np.float32) / 1000 for row in rows]
    features = datasets.Features(
        {"fg_bg": datasets.Image(), "depth": datasets.Array2D(depth_m[0].shape, "float32")}
    )
    columns = {"fg_bg": [row["fg_bg"] for row in rows], "depth": depth_m}
    floats = datasets.Dataset.from_dict(columns, features=features)
    (tmp_path / "floats").mkdir()
    floats.to_parquet(tmp_path / "floats" / "train.parquet")
    arguments = (model, tmp_path / "floats", tmp_path / "out", "--steps", "1", "--warmup", "0")
    text = run(*arguments, code=2)
    assert "--depth-scale: 1 for metres, 1000 for millimetres" in text
    run(*arguments, "--depth-scale", "1")
    assert (tmp_path / "out" / "model.safetensors").exists()


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A Hub that takes uploads."""
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    with serve(tmp_path / "hub") as hub:
        monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", hub.endpoint)
        yield hub


@pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")  # huggingface_hub's own
@pytest.mark.parametrize("tuned", ["mapped"], indirect=True)
def test_uploaded_are_model_processor_and_card(tuned, built, model, tmp_path, hub):
    options, tuned_folder, _ = tuned
    out = tmp_path / "tuned"
    shutil.copytree(tuned_folder, out)
    push = (*options, "--resume", "--push-to-hub", "ann/tuned", "--private")
    refusal = hub.fail("PUT", "/_lfs/", 400, times=100)
    refused = run(model, built, out, *push, code=2)
    assert f"The model is in {out}, but it could not be uploaded; the same command" in refused
    refusal.times = 0
    hub.requests.clear()
    printed = run(model, built, out, *push)
    assert hub.paths[0] == "/api/repos/create"  # before any training
    assert hub.created[0]["visibility"] == "private"
    repo = hub.repo("ann/tuned", "models")
    assert f"/ann/tuned/commit/{repo.refs['main']}" in printed
    expected = files_of(tuned_folder)
    del expected[CHECKPOINT]
    assert hub.files("ann/tuned", kind="models") == expected
    # Again: what is there already is not sent again, and stays.
    run(model, built, out, *push)
    assert hub.files("ann/tuned", kind="models") == expected
    assert len(repo.commits) == 2


def test_a_hub_that_refuses_is_told_before_the_training(built, model, tmp_path, monkeypatch, hub):
    push = (model, built, tmp_path / "out", "--steps", "1", "--push-to-hub")
    assert "bob/tuned cannot be made on the Hub" in run(*push, "bob/tuned", code=2)
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr(huggingface_hub.constants, "HF_TOKEN_PATH", str(tmp_path / "none"))
    assert "is `hf auth login` done?" in run(*push, "ann/tuned", code=2)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("how", ["mapped", "streaming"])
def test_a_set_on_the_hub_trains_as_the_same_set_here(built, model, tmp_path, monkeypatch, how):
    options = ("--steps", "4", "--warmup", "0", "--threads", "1", "--eval-split", "unseen_both")
    options += ("--streaming",) if how == "streaming" else ()
    run(model, built, tmp_path / "here", *options)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    with serve(tmp_path / "hub") as server:
        server.put_folder("ann/blobs", built)
        monkeypatch.setenv("HF_ENDPOINT", server.endpoint)
        process = start(model, "ann/blobs", tmp_path / "there", *options)
        _, stderr = process.communicate(timeout=HANG_S)
        assert process.returncode == 0, stderr
    assert any(path.endswith("/recipe.json") for path in server.paths)
    files = files_of(tmp_path / "there")
    assert files["model.safetensors"] == files_of(tmp_path / "here")["model.safetensors"]
    card = ModelCard.load(tmp_path / "there" / "README.md")
    assert card.data.datasets == ["ann/blobs"]
    assert card.data.eval_results[0].dataset_type == "ann/blobs"
    assert card.data.base_model is None  # a folder of this machine is nothing to link to


def test_options_that_fit_together_train(built, model, tmp_path):
    """Everything that changes how a step is taken, at once, and no evaluation."""
    options = ("--steps", "2", "--batch-size", "3", "--input-size", "96", "64", "--threads", "1")
    many = ("--freeze-encoder", "--gradient-checkpointing", "--precision", "bfloat16")
    run(model, built, tmp_path / "out", *options, *many, "--no-augment", "--license", "mit")
    old, new = load_file(model / "model.safetensors"), load_file(tmp_path / "out/model.safetensors")
    changed = {name for name in old if not torch.equal(old[name], new[name])}
    assert changed == {name for name in old if not name.startswith("encoder.")}
    assert DenseDepthImageProcessor.from_pretrained(tmp_path / "out").size == {
        "height": 96,
        "width": 64,
    }
    card = ModelCard.load(tmp_path / "out" / "README.md")
    assert card.data.license == "mit"
    assert "Not measured" in card.text


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("--image-column", "image"), "has no column 'image' in split 'train'; it has "),
        (("--split", "validation"), "split 'validation' of "),
        (("--input-size", "100", "64"), "both must be multiples of 32"),
        (("--depth-scale", "1e9"), "Give the unit with --depth-scale"),
    ],
)
def test_what_is_wrong_is_told_in_one_sentence(built, model, tmp_path, arguments, sentence):
    text = run(model, built, tmp_path / "out", *arguments, "--steps", "1", code=2)
    assert sentence in text
    assert text.count("Error: ") == 1
