"""Cut-outs by networks: what each kind finds, the edge, refusals, resuming, credits."""

from __future__ import annotations

import csv
import json
import shutil
import struct
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
import transformers
from click.testing import CliRunner
from PIL import Image

from builder.cli import main
from builder.cutout import cutout, edge
from builder.cutout.cutter import Settings, cutter
from builder.cutout.edge import alpha_cutout, cut_by_mask, trimap_of
from builder.cutout.models import Matter, Segmenter, find_folder
from builder.cutout.objects import NotCutError, reduced
from builder.errors import CutoutError, CutoutModelError
from builder.sources import read_credits
from tests.networks import MAKERS, RED, TEXT, inputs, save, scene

Made = Callable[[str], Path]
TWO = [(0.3, 0.5, 0.16, 0.3), (0.75, 0.5, 0.12, 0.3)]


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Made:
    """The folder of a tiny network of a kind, made once."""
    base, there = tmp_path_factory.mktemp("networks"), {}

    def of(kind: str) -> Path:
        if kind not in there:
            there[kind] = MAKERS[kind](base / kind)
        return there[kind]

    return of


def cut(photograph: Image.Image, how: Path | str, **more):
    return cutter(Settings(how=str(how), **more))(photograph)


def whole_alpha(one, shape) -> np.ndarray:
    """The alpha of a cut-out where it was in the photograph, 0 to 1."""
    alpha = np.zeros(shape)
    height, width = one.pixels.shape[:2]
    alpha[one.top : one.top + height, one.left : one.left + width] = one.pixels[..., 3] / 255
    return alpha


def overlap(alpha: np.ndarray, truth: np.ndarray) -> float:
    first, second = alpha >= 0.5, truth >= 0.5
    return (first & second).sum() / (first | second).sum()


def folder_of(path: Path, n: int = 2) -> Path:
    path.mkdir(parents=True)
    for seed in range(n):
        scene(seed)[0].save(path / f"photo{seed}.png")
    return path


def rows_of(out: Path) -> dict[str, dict[str, str]]:
    with (out / "credits.csv").open(newline="") as file:
        return {row["file"]: row for row in csv.DictReader(file)}


def fgbg(*arguments: object):
    return CliRunner().invoke(main, [*map(str, arguments)], prog_name="fgbg")


# --- what each kind finds ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "least", "label", "text"),
    [
        ("mask2former", 0.98, "dog, domestic dog", ""),
        ("rf_detr", 0.98, "dog, domestic dog", ""),
        ("segformer", 0.9, "kite", ""),
        ("clipseg", 0.75, "", TEXT),
    ],
)
def test_each_kind_of_network_cuts_out_what_it_marks(made, kind, least, label, text):
    photograph, truth = scene(5)
    (one,) = cut(photograph, made(kind), text=text)
    assert overlap(whole_alpha(one, truth.shape), truth) >= least
    assert one.label == label
    assert one.cut_at == ""
    assert one.edge == "closed form"
    assert one.figures.parts == 1
    if least > 0.97:
        assert one.figures.score > 0.9
        # The edge has the thing's own colour, and alpha as it was drawn.
        alpha = one.pixels[..., 3].astype(int)
        mixed = (alpha > 40) & (alpha < 215)
        assert np.abs(one.pixels[mixed][:, :3] - np.array(RED)).mean() < 8
        assert np.abs(whole_alpha(one, truth.shape) - truth).mean() < 0.002


def test_a_class_is_chosen_by_label_and_an_unknown_one_lists_the_known(made):
    photograph, truth = scene(6)
    (one,) = cut(photograph, made("mask2former"), label="Domestic dog")
    assert overlap(whole_alpha(one, truth.shape), truth) > 0.98
    with pytest.raises(NotCutError, match="nothing that the network takes for an object"):
        cut(photograph, made("mask2former"), label="cat")
    with pytest.raises(
        CutoutModelError, match="knows no class 'cow'; it knows cat, dog, domestic dog, kite"
    ):
        cut(photograph, made("mask2former"), label="cow")


def test_several_objects_are_refused_or_made_of_each_with_instances(made):
    photograph, truth = scene(3, ellipses=TWO)
    with pytest.raises(NotCutError, match="shows 2 objects"):
        cut(photograph, made("segformer"))
    first, second = cut(photograph, made("segformer"), instances=True)
    middle = truth.shape[1] * 0.55
    assert first.left + first.pixels.shape[1] < middle < second.left
    assert (
        overlap(whole_alpha(first, truth.shape)[:, : int(middle)], truth[:, : int(middle)]) > 0.65
    )


def test_an_object_at_the_frame_says_where_or_is_refused(made):
    photograph, truth = scene(4, ellipses=[(0.1, 0.5, 0.25, 0.3)])
    (one,) = cut(photograph, made("mask2former"))
    assert one.cut_at == "left"
    assert one.left == 0
    assert overlap(whole_alpha(one, truth.shape), truth) > 0.93
    # In the second the network's mask ends a little below the frame, and alpha does not.
    for size in ((240, 180), (600, 450)):
        photograph, _ = scene(4, size=size, ellipses=[(0.0, 0.0, 0.4, 0.5)])
        with pytest.raises(NotCutError, match="cut off at the left and top"):
            cut(photograph, made("mask2former"))


def test_a_query_network_is_given_what_its_own_processor_makes(made):
    folder, (photograph, _) = made("mask2former"), scene(7)
    processor = transformers.Mask2FormerImageProcessorPil.from_pretrained(folder)
    network = transformers.Mask2FormerForUniversalSegmentation.from_pretrained(folder).eval()
    given = processor(photograph, return_tensors="pt")["pixel_values"]
    with torch.inference_mode():
        logits = network(pixel_values=given).masks_queries_logits[:, :1]
    small = reduced(photograph)[0]
    size = small.size[::-1]
    expected = torch.nn.functional.interpolate(logits, size=size, mode="bilinear").sigmoid()[0, 0]
    found = Segmenter(find_folder("model", str(folder), None)[0], "", "", "cpu")
    (segment,) = found(photograph, small.size)
    # Pictures are brought to size by another filter of Pillow, a few values apart.
    assert np.abs(segment.probability - expected.numpy()).mean() < 0.01


@pytest.mark.parametrize(
    ("kind", "size", "padded", "masks"),
    [
        ("eomt", (64, 48), (64, 64), "masks_queries_logits"),
        ("maskformer", (128, 96), (128, 96), "masks_queries_logits"),
        ("oneformer", (128, 96), (128, 96), "masks_queries_logits"),
        ("detr", (128, 96), (128, 96), "pred_masks"),
    ],
)
def test_the_queries_of_other_networks_are_read_as_they_say_them(made, kind, size, padded, masks):
    photograph, _ = scene(7)
    found = Segmenter(find_folder("model", str(made(kind)), None)[0], "", "", "cpu")
    segments = found(photograph, photograph.size)
    assert segments
    assert {one.label for one in segments} == {"dog, domestic dog"}
    auto = transformers.AutoModelForUniversalSegmentation.from_pretrained(made(kind)).eval()
    pixels = torch.zeros(1, 3, padded[1], padded[0])
    pixels[..., : size[1], : size[0]] = inputs(photograph, size)
    more = {}
    if kind == "oneformer":
        read = transformers.AutoTokenizer.from_pretrained(made(kind))
        more["task_inputs"] = read(
            ["the task is instance"], padding="max_length", max_length=77, return_tensors="pt"
        )["input_ids"]
    with torch.inference_mode():
        logits = getattr(auto(pixel_values=pixels, **more), masks)
    if padded != size:
        logits = torch.nn.functional.interpolate(logits, size=padded[::-1], mode="bilinear")
        logits = logits[..., : size[1], : size[0]]
    expected = torch.nn.functional.interpolate(logits, size=photograph.size[::-1], mode="bilinear")
    off = np.abs(expected.sigmoid()[0].numpy() - segments[0].probability)
    assert off.max((1, 2)).min() < 1e-4


@pytest.mark.parametrize(("kind", "text"), [("sam2", ""), ("sam3", "red"), ("sapiens2", "")])
def test_sam_2_and_3_and_matting_of_people_run(made, kind, text):
    photograph, _ = scene(7)
    found = Segmenter(find_folder("model", str(made(kind)), None)[0], text, "", "cpu")
    for one in found(photograph, photograph.size):
        assert one.probability.shape == photograph.size[::-1]
        assert 0 <= one.probability.min() <= one.probability.max() <= 1
        assert one.is_alpha == (kind == "sapiens2")


def test_alpha_that_a_network_says_itself_is_kept(tmp_path):
    photograph, truth = scene(3)
    soft = np.clip(truth * 1.4 - 0.2, 0, 1).astype(np.float32)
    one = alpha_cutout(photograph, soft, soft >= 0.5, 1)
    assert one.edge == "network"
    # What is hardly any alpha is none, and what is nearly all of it is all.
    assert np.abs(whole_alpha(one, truth.shape) - soft).max() < 0.025


def test_sam_is_asked_for_what_is_in_the_middle_and_its_best_mask_is_taken(made):
    folder, (photograph, _) = made("sam"), scene(8, size=(240, 160))
    processor = transformers.SamImageProcessorPil.from_pretrained(folder)
    network = transformers.SamModel.from_pretrained(folder).eval()
    given = processor(photograph, return_tensors="pt")
    size = given["reshaped_input_sizes"][0].tolist()
    assert size == [85, 128]
    with torch.inference_mode():
        outputs = network(
            pixel_values=given["pixel_values"],
            input_points=torch.tensor([[[[64.0, 42.5]]]]),
            input_labels=torch.ones(1, 1, 1, dtype=torch.long),
        )
    best = int(outputs.iou_scores[0, 0].argmax())
    logits = torch.nn.functional.interpolate(
        outputs.pred_masks[0, 0, best][None, None], size=(128, 128), mode="bilinear"
    )[..., : size[0], : size[1]]
    expected = torch.nn.functional.interpolate(logits, size=(160, 240), mode="bilinear").sigmoid()
    found = Segmenter(find_folder("model", str(folder), None)[0], "", "", "cpu")
    (segment,) = found(photograph, (240, 160))
    assert np.abs(segment.probability - expected[0, 0].numpy()).mean() < 0.01
    assert not segment.parted


def test_the_text_reaches_a_network_that_reads(made):
    photograph, _ = scene(9)
    folder = find_folder("model", str(made("clipseg")), None)[0]
    maps = [
        Segmenter(folder, text, "", "cpu")(photograph, (64, 48))[0].probability
        for text in (TEXT, TEXT, "blue chair")
    ]
    assert np.array_equal(maps[0], maps[1])
    assert np.abs(maps[0] - maps[2]).max() > 1e-3


# --- the edge ---------------------------------------------------------------------------------


def test_a_band_is_unknown_and_thin_things_keep_something_sure():
    solid = np.zeros((80, 80), bool)
    solid[20:60, 20:60] = True
    trimap = trimap_of(solid, 5)
    assert trimap[40, 14:26].tolist() == [0] + [128] * 10 + [255]
    solid[:] = False
    solid[38:44, 10:70] = True
    trimap = trimap_of(solid, 15)
    assert (trimap == 255).sum() >= 0.3 * solid.sum()
    assert not ((trimap == 255) & ~solid).any()
    assert (trimap[solid] >= 128).all()


def test_vitmatte_decides_in_the_band_and_nowhere_else(made):
    photograph, truth = scene(2, size=(192, 160))
    name, matter = "ViTMatte", Matter(find_folder("m", str(made("vitmatte")), None)[0], "cpu")
    given = []

    def noted(seen, trimap):
        given.append((seen, trimap, matter(seen, trimap)))
        return given[-1][2]

    one = cut_by_mask(photograph, truth.astype(np.float32), truth >= 0.5, 1, (name, noted))
    assert one.edge == name
    (seen, trimap, alpha) = given[0]
    processor = transformers.VitMatteImageProcessorPil.from_pretrained(made("vitmatte"))
    network = transformers.VitMatteForImageMatting.from_pretrained(made("vitmatte")).eval()
    pixels = processor(Image.fromarray(seen), Image.fromarray(trimap), return_tensors="pt")
    with torch.inference_mode():
        expected = network(**pixels).alphas[0, 0, : seen.shape[0], : seen.shape[1]].numpy()
    assert np.abs(alpha - expected).max() < 1e-4
    band = trimap == 128
    final = whole_alpha(one, truth.shape)
    assert overlap(final, truth) > 0.97
    assert ((alpha > 0.1) & (alpha < 0.9) & band).sum() > 100
    rows, columns = np.nonzero(truth >= 0.5)
    there = np.zeros_like(final)
    top, left = rows.min() - 7, columns.min() - 7  # 3 px of band, and 4 more
    there[top : top + len(seen), left : left + seen.shape[1]] = np.where(band, alpha, trimap / 255)
    assert np.abs(final - there).max() < 0.03


def test_matting_prints_nothing_beside_the_result(capfd):
    board = np.indices((23, 45)).sum(0) % 2 * np.uint8(255)
    trimap = np.full(board.shape, 128, np.uint8)
    trimap[0], trimap[-1] = 0, 255
    tile = edge._Tile(np.dstack([board] * 3), trimap, trimap)  # takes the solver several attempts
    assert edge._closed_form(tile) is not None
    assert capfd.readouterr().out == ""


def test_without_pymatting_the_edge_is_a_feather_and_still_loses_the_old_background(monkeypatch):
    photograph, truth = scene(1)
    monkeypatch.setitem(sys.modules, "pymatting", None)
    one = cut_by_mask(photograph, truth.astype(np.float32), truth >= 0.5, 1, None)
    assert one.edge == "feather"
    alpha = one.pixels[..., 3].astype(int)
    mixed = (alpha > 0) & (alpha < 255)
    assert mixed.any()
    own = np.asarray(photograph)[one.top :, one.left :][: alpha.shape[0], : alpha.shape[1]]
    error, before = (
        np.abs(pixels[mixed][:, :3].astype(int) - np.array(RED)).mean()
        for pixels in (one.pixels, own)
    )
    assert error < 0.7 * before
    assert np.abs(whole_alpha(one, truth.shape) - truth).mean() < 0.01


def test_tiles_show_no_seam_and_a_huge_edge_is_settled_in_a_smaller_picture(monkeypatch):
    photograph, truth = scene(1, size=(400, 300))
    probability = truth.astype(np.float32)
    whole = cut_by_mask(photograph, probability, truth >= 0.5, 1, None)
    monkeypatch.setattr(edge, "_TILE_PX", 60)
    tiled = cut_by_mask(photograph, probability, truth >= 0.5, 1, None)
    assert tiled.pixels.shape == whole.pixels.shape
    assert np.abs(tiled.pixels.astype(int) - whole.pixels).max() <= 6
    monkeypatch.setattr(edge, "_MOST_BAND_PX", 500)
    small = cut_by_mask(photograph, probability, truth >= 0.5, 1, None)
    assert small.edge == "closed form at 1/4 of the size"
    assert overlap(whole_alpha(small, truth.shape), truth) > 0.97
    inside = whole_alpha(small, truth.shape) == 1
    rows, columns = np.nonzero(inside)
    kept = small.pixels[rows - small.top, columns - small.left, :3]
    assert np.array_equal(kept, np.asarray(photograph)[rows, columns])


# --- what is refused --------------------------------------------------------------------------


def refusal(how: object, **more) -> str:
    with pytest.raises(CutoutModelError) as caught:
        cutter(Settings(how=str(how), **more))
    return str(caught.value)


def test_what_does_not_go_together_is_refused_in_a_sentence(made, tmp_path):
    assert "--how" in refusal("key", text="x", label="y")
    for nonsense in ("../a/b", "kye", ""):
        assert "is neither a folder nor a Hub id such as" in refusal(nonsense)
    for text in ("", " \n"):
        assert "finds what a text says" in refusal(made("clipseg"), text=text)
    assert "reads no text; leave out --text" in refusal(made("mask2former"), text="dog")
    assert "knows no classes; leave out --label" in refusal(made("sam"), label="dog")
    assert "is a folder, which has no revision" in refusal(made("sam"), revision="main")
    assert "must be told where the object is; give it with --matting" in refusal(made("vitmatte"))
    assert "refines no edges; use ViTMatte" in refusal(made("sam"), matting=str(made("sam")))
    torch.manual_seed(0)
    config = transformers.SegformerConfig(depths=[1] * 4, hidden_sizes=[8] * 4,
                                          num_attention_heads=[1] * 4)  # fmt: skip
    other = save(transformers.SegformerForImageClassification(config), tmp_path / "o", {})
    said = refusal(other)
    assert "finds no masks of objects; use RF-DETR, Mask2Former" in said
    (other / "config.json").write_text('{"model_type": "bert"}')
    assert "is of type 'bert'" in refusal(other)


def test_unsafe_or_damaged_folders_are_refused_before_anything_is_made(made, tmp_path):
    pickled = shutil.copytree(made("mask2former"), tmp_path / "pickled")
    (pickled / "model.safetensors").rename(pickled / "pytorch_model.bin")
    assert "has no .safetensors file. Pickled weights are never loaded" in refusal(pickled)

    hostile = shutil.copytree(made("mask2former"), tmp_path / "hostile")
    config = json.loads((hostile / "config.json").read_text())
    (hostile / "config.json").write_text(json.dumps(config | {"num_queries": 10**9}))
    assert "has the number 1000000000, which no cut-out model has" in refusal(hostile)
    (hostile / "config.json").write_text(json.dumps(config | {"hidden_dim": 32 * 1024}))
    assert "larger network than its" in refusal(hostile)
    (hostile / "config.json").write_text(json.dumps(config))
    for asked in (
        {"backbone": "other/model", "backbone_config": None},
        {"backbone": "hf-hub:other/model", "backbone_config": None, "use_timm_backbone": True},
        {"attn_implementation": {"backbone_config": "kernels-community/other"}},
        {"backbone_config": config["backbone_config"] | {"attn_implementation": "a/b"}},
    ):
        (hostile / "config.json").write_text(json.dumps(config | asked))
        assert "nothing is fetched but the model itself" in refusal(hostile)
    (hostile / "config.json").write_text(json.dumps(config))
    settings = {"size": {"height": 10**6, "width": 10**6}, "do_normalize": False}
    (hostile / "preprocessor_config.json").write_text(json.dumps(settings))
    with pytest.raises(CutoutModelError, match="which no picture can be brought to"):
        cut(scene(0)[0], hostile)

    lacking = shutil.copytree(made("mask2former"), tmp_path / "lacking")
    weights = safetensors.torch.load_file(lacking / "model.safetensors")
    weights.pop("class_predictor.weight")
    safetensors.torch.save_file(weights, lacking / "model.safetensors", {"format": "pt"})
    assert "lacks 1 weights" in refusal(lacking)

    for kind in ("mask2former", "rf_detr"):
        endless = shutil.copytree(made(kind), tmp_path / f"endless-{kind}")
        settings = json.loads((endless / "preprocessor_config.json").read_text())
        scaled = json.dumps(settings | {"rescale_factor": 1e300})
        (endless / "preprocessor_config.json").write_text(scaled)
        with pytest.raises(CutoutModelError, match="gives NaN or infinity"):
            cut(scene(0)[0], endless)

    remote = shutil.copytree(made("mask2former"), tmp_path / "remote")
    code = {"auto_map": {"AutoModelForUniversalSegmentation": "evil.Evil"}}
    (remote / "config.json").write_text(json.dumps(config | code))
    (remote / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    cut(scene(0)[0], remote)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("card", "license"),
    [
        ("---\nlicense: mit\n---\n", "mit"),
        ("\ufeff---\r\ntags:\r\n- a\r\nlicense: cc-by-nc-4.0\r\n---\r\n", "cc-by-nc-4.0"),
        ("---\nlicense:\n- mit\n- cc-by-nc-4.0\ntags: [a]\n---\n", "mit + cc-by-nc-4.0"),
        ("---\nlicense: other\nlicense_name: mine\n---\n", "mine"),
        ("---\nlicense: other\n---\n", "other"),
        ("---\nlicense: {a: b}\n---\n", ""),
        ("---\nlicense: *nowhere\n---\n", ""),
        ("# license: mit\n", ""),
        (None, ""),
    ],
)
def test_the_license_is_what_the_card_states(made, tmp_path, card, license):
    folder = shutil.copytree(made("mask2former"), tmp_path / "model")
    if card is not None:
        (folder / "README.md").write_text(card, newline="")
    assert find_folder("model", str(folder), None)[1].license == license


def test_a_card_that_would_grow_without_bound_is_read_at_once(made, tmp_path):
    folder = shutil.copytree(made("mask2former"), tmp_path / "model")
    lines = ["a0: &a0 {x: 1}"]
    lines += [f"a{n}: &a{n} {{<<: [{', '.join([f'*a{n - 1}'] * 9)}]}}" for n in range(1, 12)]
    (folder / "README.md").write_text("\n".join(["---", *lines, "license: mit", "---", ""]))
    assert find_folder("model", str(folder), None)[1].license == "mit"


# --- folders and credits ----------------------------------------------------------------


def test_a_folder_is_cut_out_credited_and_resumed_by_the_weights(made, tmp_path):
    photos, out = folder_of(tmp_path / "photos"), tmp_path / "out"
    (photos / "in").mkdir()
    scene(7)[0].save(photos / "in" / "third.png")
    folder = shutil.copytree(made("mask2former"), tmp_path / "first")
    (folder / "README.md").write_text("---\nlicense: mit\ntags: [a]\n---\n# Card\n")
    report = cutout(photos, out, how=str(folder))
    assert report.cut == ("in/third.png", "photo0.png", "photo1.png")
    rows = rows_of(out)
    assert rows["photo0.png"]["tool"].endswith(" first")
    assert rows["photo0.png"]["weights"].startswith("first sha256:")
    assert rows["photo0.png"]["weights_license"] == "mit"
    assert rows["photo0.png"]["category"] == "dog, domestic dog"
    assert rows["in/third.png"]["category"] == ""  # its folder says it
    text = (out / "report.html").read_text()
    assert "<dt>alpha by</dt><dd>closed form</dd>" in text
    assert "edge like background" not in text

    # The same weights in another place are the same.
    moved = shutil.move(folder, tmp_path / "second")
    assert cutout(photos, out, how=str(moved)).kept == report.cut
    weights = safetensors.torch.load_file(moved / "model.safetensors")
    weights["class_predictor.bias"][1] -= 1
    safetensors.torch.save_file(weights, moved / "model.safetensors", {"format": "pt"})
    again = cutout(photos, out, how=str(moved), weights_license="cc-by-nc-4.0")
    assert again.cut == report.cut
    assert rows_of(out)["photo0.png"]["weights_license"] == "cc-by-nc-4.0"
    with pytest.raises(CutoutError, match="nothing that the network takes for an object"):
        cutout(photos, tmp_path / "none", how=str(moved), label="cat")


def test_what_a_folder_says_of_itself_is_plain_text_in_the_credits(made, tmp_path):
    photos, out = folder_of(tmp_path / "photos", 1), tmp_path / "out"
    folder = shutil.copytree(made("mask2former"), tmp_path / "@SUM(1)\x1b[31m\nmodel@2")
    config = json.loads((folder / "config.json").read_text())
    config["id2label"]["1"] = "=HYPERLINK(1)"
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "README.md").write_text("---\nlicense: '=1+1'\n---\n")
    cutout(photos, out, how=str(folder))
    row = rows_of(out)["photo0.png"]
    assert row["weights"].startswith("SUM(1)\\x1b[31m model@2 sha256:")
    assert row["tool"].endswith(" @SUM(1)\\x1b[31m model@2")
    assert (row["weights_license"], row["category"]) == ("1+1", "HYPERLINK(1)")
    found = read_credits(out, [out / "credits.csv"], {"photo0.png"})
    assert not found.lost
    assert found.by_file["photo0.png"].tool == row["tool"]
    for wrong in ("a\x1bb", "x" * 2001):
        assert "the license given with --weights-license h" in refusal(
            folder, weights_license=wrong
        )


def test_a_matting_network_is_credited_too(made, tmp_path):
    photos, out = folder_of(tmp_path / "photos", 1), tmp_path / "out"
    matting = shutil.copytree(made("vitmatte"), tmp_path / "mat")
    (matting / "README.md").write_text("---\nlicense: other\nlicense_name: mine-nc\n---\n")
    result = fgbg("cutout", photos, out, "--how", made("rf_detr"), "--matting", matting)
    assert result.exit_code == 0, result.output
    row = rows_of(out)["photo0.png"]
    assert [one.split(" sha256:")[0] for one in row["weights"].split(" + ")] == ["rf_detr", "mat"]
    assert row["weights_license"] == "unknown + mine-nc"
    assert "<dd>ViTMatte</dd>" in (out / "report.html").read_text()


# --- rembg ------------------------------------------------------------------------------------


def field(number: int, value: bytes | str | int) -> bytes:
    """A field of a protocol buffer."""

    def varint(n: int) -> bytes:
        return bytes([n]) if n < 128 else bytes([n & 127 | 128]) + varint(n >> 7)

    if isinstance(value, int):
        return varint(number << 3) + varint(value)
    data = value.encode() if isinstance(value, str) else value
    return varint(number << 3 | 2) + varint(len(data)) + data


def onnx_of_redness(side: int) -> bytes:
    """An ONNX network whose output is red less green, as large as its input: one convolution."""

    def tensor_type(name: str, channels: int) -> bytes:
        dims = b"".join(field(1, field(1, n)) for n in (1, channels, side, side))
        return field(1, name) + field(2, field(1, field(1, 1) + field(2, dims)))

    weights = b"".join(field(1, n) for n in (1, 3, 1, 1)) + field(2, 1) + field(8, "w")
    weights += field(9, struct.pack("<3f", 1, -1, 0))
    node = field(1, "x") + field(1, "w") + field(2, "y") + field(4, "Conv")
    graph = field(1, node) + field(2, "g") + field(5, weights)
    graph += field(11, tensor_type("x", 3)) + field(12, tensor_type("y", 1))
    return field(1, 8) + field(7, graph) + field(8, field(1, "") + field(2, 13))


@pytest.mark.skipif(sys.version_info < (3, 11), reason="rembg needs Python 3.11")
def test_a_network_of_rembg_is_used_by_name(tmp_path, monkeypatch):
    home = tmp_path / "home"
    home.mkdir()
    (home / "u2netp.onnx").write_bytes(onnx_of_redness(320))
    monkeypatch.setenv("U2NET_HOME", str(home))
    monkeypatch.setenv("MODEL_CHECKSUM_DISABLED", "1")
    photos, out = folder_of(tmp_path / "photos", 1), tmp_path / "out"
    cutout(photos, out, how="rembg:u2netp")
    truth = scene(0)[1]
    (one,) = cut(scene(0)[0], "rembg:u2netp")
    assert overlap(whole_alpha(one, truth.shape), truth) > 0.95
    assert np.array_equal(np.asarray(Image.open(out / "photo0.png")), one.pixels)
    row = rows_of(out)["photo0.png"]
    assert row["tool"].endswith(" rembg u2netp")
    assert row["weights"].startswith("rembg:u2netp sha256:")
    assert row["weights_license"] == "apache-2.0"
    said = refusal("rembg:unet")
    assert "has no network 'unet'" in said
    assert "birefnet-general, " in said
    assert "withoutbg" not in said  # it would send the photographs away
    assert "rembg has no use for label" in refusal("rembg:u2netp", label="dog")
    (home / "u2netp.onnx").write_bytes(b"no network")
    assert "rembg cannot load its network 'u2netp'" in refusal("rembg:u2netp")
    monkeypatch.setitem(sys.modules, "rembg", None)
    assert "needs rembg; run `pip install fgbg-dataset[rembg]`" in refusal("rembg:u2netp")
