"""benchmarks/realism.py on tiny pictures: its arithmetic, what it writes and what it refuses."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from PIL import Image

from benchmarks import realism
from examples.train_streaming import Network
from fgbg_dataset import FgbgError
from tests.pictures import scene

SIZE = 32
RUN = ("--steps", "2", "--batch-size", "4", "--size", str(SIZE), "--seeds", "0,3")


@pytest.fixture(autouse=True)
def _threads():
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def real(tmp_path_factory):
    """Four photographs with a box of an object each, and with depth."""
    root = tmp_path_factory.mktemp("real")
    for name in ("images", "masks", "depth"):
        (root / name).mkdir()
    for i in range(4):
        pixels, mask = np.array(scene(i, SIZE, SIZE)), np.zeros((SIZE, SIZE), np.uint8)
        mask[4 : 12 + 3 * i, 6:20], mask[0, 0] = 128, 127  # 127 is not the object
        Image.fromarray(pixels).save(root / "images" / f"{i}.png")
        Image.fromarray(mask).save(root / "masks" / f"{i}.png")
        depth_mm = np.full((SIZE, SIZE), 2000 + 500 * i, np.uint16)
        depth_mm[:2] = 0
        Image.fromarray(depth_mm).save(root / "depth" / f"{i}.png")
    return root


@pytest.fixture(scope="module")
def words(sources, real):
    return [str(path) for path in (*sources, real / "images", real / "masks")]


def area(i: int) -> int:
    return (8 + 3 * i) * 14


def ran(words, capsys, *more):
    realism.main([*words, *RUN, *map(str, more)])
    return capsys.readouterr()


def test_a_table_of_choices_that_goes_on_where_it_stopped(
    words, real, tmp_path, capsys, monkeypatch
):
    out = tmp_path / "results" / "realism.json"
    said = ran(words, capsys, "--choices", "pairs,sizes", "--real-train", "--out", out)
    lines = said.out.splitlines()
    assert (
        lines[0] == "| choice | IoU, seed 0 | IoU, seed 3 | mean | spread | blind | CPU s a run |"
    )
    names = ["everything marked", "nothing trained", "pairs", "sizes", "2 real pictures"]
    assert [line.split(" | ")[0] for line in lines[2:]] == [f"| {name}" for name in names]
    everything = np.mean([area(i) / SIZE**2 for i in range(4)])
    assert lines[2].split(" | ")[1] == f"{everything:.3f}"

    held = json.loads(out.read_text())
    assert held["reference"]["iou"] == pytest.approx(everything)
    assert held["runs"]["sizes"]["recipe"] == {"foreground_size": "0.2-1.1"}
    for name, cells in zip(names[1:], (line.split(" | ") for line in lines[3:]), strict=True):
        ious = [held["runs"][name]["seeds"][seed]["iou"] for seed in ("0", "3")]
        wanted = [*ious, np.mean(ious), abs(ious[0] - ious[1])]
        assert cells[1:5] == [f"{value:.3f}" for value in wanted]

    assert lines[3].split(" | ")[5] == ""  # nothing is known of where objects lie
    for name, line in zip(names[2:], lines[4:], strict=True):
        blinds = [one["blind"] for one in held["runs"][name]["seeds"].values()]
        assert line.split(" | ")[5] == f"{np.mean(blinds):.3f}"

    # The untrained network again, one picture and one pixel at a time.
    torch.manual_seed(3)
    network = Network().train(mode=False)
    ious = []
    for i in range(4):
        pixels = np.asarray(Image.open(real / "images" / f"{i}.png")) / 255
        values = torch.from_numpy((pixels - 0.5) / 0.25).permute(2, 0, 1)[None].float()
        with torch.no_grad():
            logits = network(values)[0][0, 0].tolist()
        found = {(y, x) for y in range(SIZE) for x in range(SIZE) if logits[y][x] > 0}
        mask = {(y, x) for y in range(4, 12 + 3 * i) for x in range(6, 20)}
        ious.append(len(found & mask) / len(found | mask))
    assert held["runs"]["nothing trained"]["seeds"]["3"]["iou"] == pytest.approx(np.mean(ious))

    # The same again to another file is the same to the bit; to the same file it is no work.
    again = tmp_path / "again.json"
    ran(words, capsys, "--choices", "sizes", "--out", again)
    for seed, one in json.loads(again.read_text())["runs"]["sizes"]["seeds"].items():
        assert one["iou"] == held["runs"]["sizes"]["seeds"][seed]["iou"]
    with monkeypatch.context() as patch:
        patch.setattr(realism, "run", None)
        said = ran(words, capsys, "--choices", "sizes", "--out", out, "--json")
    assert list(json.loads(said.out)["runs"]) == ["nothing trained", "sizes"]
    assert json.loads(out.read_text()) == held  # of other choices, too
    monkeypatch.setitem(realism.CHOICES, "sizes", {"foreground_size": "0.4-0.6"})
    said = ran(words, capsys, "--choices", "sizes", "--out", out)
    assert said.err.count("sizes, seed") == 2  # a choice that is another one now

    with pytest.raises(FgbgError, match=r"was measured with another steps; choose another --out"):
        realism.main([*words, *RUN, "--steps", "3", "--out", str(out)])


def test_depth_is_learnt_and_measured_where_it_is_given(words, real, tmp_path, capsys):
    out = tmp_path / "out.json"
    said = ran(
        [*words, str(real / "depth")],
        capsys,
        *("--choices", "scenes", "--seeds", "0", "--out", out),
    )
    assert said.out.splitlines()[0].endswith("| abs-rel | abs-rel, scaled | CPU s a run |")
    held = json.loads(out.read_text())
    depths_m = [2, 2.5, 3, 3.5]
    errors = [abs(2.75 / depth_m - 1) for depth_m in depths_m]
    assert held["reference"]["abs_rel"] == pytest.approx(np.mean(errors))
    assert held["reference"]["abs_rel_scaled"] == pytest.approx(0, abs=1e-6)
    one = held["runs"]["scenes"]["seeds"]["0"]
    assert 0 < one["abs_rel_scaled"] != one["abs_rel"]


def test_blind_is_the_best_cut_through_the_mean_of_the_masks():
    masks = np.zeros((5, 8, 8), bool)
    masks[:3, 2:6, 2:6] = True
    masks[3] = True  # the last marks nothing
    centre, everywhere = (3 + 16 / 64) / 4, (3 * 16 / 64 + 1) / 4
    assert centre > everywhere
    assert np.array_equal(realism.blind(masks)[0], masks[0])
    masks[1:3] = True
    assert realism.blind(masks).all()


def test_pictures_are_squeezed_to_the_square_the_network_sees(tmp_path):
    for name in ("images", "masks"):
        (tmp_path / name).mkdir()
    pixels = np.zeros((20, 80, 3), np.uint8)
    pixels[:, 40:] = 255
    Image.fromarray(pixels).save(tmp_path / "images" / "a.png")
    Image.fromarray(pixels[..., 0] > 0).save(tmp_path / "masks" / "a.png")  # of one bit
    real = realism.photographs(tmp_path / "images", tmp_path / "masks", None, 20)
    assert real.pixels.shape == (1, 20, 20, 3)
    assert real.mask[0, :, :9].sum() == 0
    assert real.mask[0, :, 11:].all()
    assert real.depth_m is None


def test_bad_input_is_refused_in_a_sentence(words, real, tmp_path, capsys):
    def masks(**kinds):
        folder = tmp_path / "-".join(kinds)
        folder.mkdir()
        for i in range(4):
            if kinds.get("without") != i:
                side = 16 if kinds.get("small") == i else SIZE
                Image.new("L", (side, side), 0 if kinds.get("black") == i else 255).save(
                    folder / f"{i}.png"
                )
        return str(folder)

    for folder, sentence in (
        (masks(without=2), r"2\.png has no picture 2 in .*without; add it"),
        (masks(small=1), r"1\.png is 16 x 16 px and its photograph 32 x 32"),
        (masks(black=3), r"3\.png marks nothing"),
        (str(tmp_path / "nowhere"), "nowhere is not a folder"),
    ):
        with pytest.raises(FgbgError, match=sentence):
            realism.main([*words[:3], folder, "--out", str(tmp_path / "out.json")])
    with pytest.raises(FgbgError, match="is not a 16-bit grey PNG in mm"):
        realism.main([*words, str(real / "images"), "--out", str(tmp_path / "out.json")])
    (tmp_path / "out.json").write_text("[]")
    with pytest.raises(FgbgError, match="is not a file of results; choose another --out"):
        realism.main([*words, "--out", str(tmp_path / "out.json")])
    for more, sentence in (
        (("--choices", "pears"), "there is no choice 'pears'; there are pairs, sizes"),
        (("--seeds", "a"), "--seeds is 'a'; give whole numbers such as 0,1"),
        (("--steps", "0"), "--steps is 0; give 1 or more"),
    ):
        with pytest.raises(SystemExit):
            realism.main([*words, *more])
        assert sentence in capsys.readouterr().err
