"""Measure depth models on pictures that none was trained on, and draw them: `python -m
factory.measure_densedepth MODEL [BEFORE]`.

Writes MODEL/metrics.json and MODEL/README.md, and with --sheet a picture of photographs and
composites beside the depth of MODEL and of the teacher. BEFORE is a second model folder to measure
in the same way. What is fetched and rendered lies in the work folder of the training.

Depth maps are (h, w) in metres. Errors against exact depth count every pixel, the sky at 10 m.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import numpy as np
import numpy.typing as npt
import torch
from PIL import Image, ImageDraw

from builder.depth.densedepth import DenseDepthForDepthEstimation
from builder.depth.densedepth.metrics import METRICS, depth_errors
from factory import photographs, scenes
from factory.scenes import Bytes
from factory.train_densedepth import WORK, Pool, ScenePool, cached, load_model, render_scenes

Depth = npt.NDArray[np.float32]
Inside = npt.NDArray[np.bool_]
Predict = Callable[[Image.Image], Depth]
Figures = dict[str, Any]

FOREGROUNDS = Path(__file__).parents[1] / "builder" / "demo" / "foregrounds"
CARD = Path(__file__).with_name("demo_card.md")
SIDE_PX = 256
HELD_OUT_SEED = 1_000_000
HELD_OUT_SCENES = 240
OTHER_SCENES = 36  # of each other set
NEARER = 0.97  # a cut-out seen at this share of the depth it covers, or less, is seen as nearer
FIELDS_OF_VIEW_DEG = (40, 85)


# ----------------------------------------------------------------------------------------- figures


def spearman(one: npt.NDArray[Any], other: npt.NDArray[Any]) -> float:
    """Rank correlation of two arrays of one shape, -1..1; ties share their mean rank."""
    first, second = _ranks(one), _ranks(other)
    return float(np.corrcoef(first, second)[0, 1])


def _ranks(values: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    _, place, count = np.unique(values.ravel(), return_inverse=True, return_counts=True)
    ranks: npt.NDArray[np.float64] = (np.cumsum(count) - (count - 1) / 2)[place.ravel()]
    return ranks


def nearest(values: npt.NDArray[Any], shape: tuple[int, ...]) -> npt.NDArray[Any]:
    """A map (H, W) at another (h, w), each pixel the one under its centre."""
    rows, columns = (
        ((np.arange(new) + 0.5) * old / new).astype(np.int64)
        for new, old in zip(shape, values.shape, strict=True)
    )
    return values[rows[:, None], columns]


def predictor(model: DenseDepthForDepthEstimation) -> Predict:
    """What a model sees in a picture of any size, squeezed to its input: (128, 128) metres."""

    @torch.no_grad()
    def predict(picture: Image.Image) -> Depth:
        resized = picture.resize((SIDE_PX, SIDE_PX), Image.Resampling.BILINEAR)
        pixels = torch.from_numpy(np.array(resized)).permute(2, 0, 1)[None].float() / 255
        depth: Depth = model(pixels).predicted_depth[0].numpy()
        return depth

    return predict


def height_baseline(pool: ScenePool, count: int) -> Predict:
    """'Higher in the picture is farther': the mean depth of each row of training scenes."""
    rows = np.concatenate([c.depth_mm.mean((0, 2))[None] for c in pool.first(count)]).mean(0) / 1000
    depth = nearest(rows[:, None].repeat(2, 1), (SIDE_PX // 2, SIDE_PX // 2)).astype(np.float32)
    return lambda _picture: depth


def scene_errors(predict: Predict, pool: Pool) -> list[dict[str, float]]:
    """The errors of each scene, at the size of the predictions."""
    errors = []
    for rgb, depth_mm in zip(*pool, strict=True):
        predicted = predict(Image.fromarray(rgb))
        errors.append(depth_errors(predicted, nearest(depth_mm, predicted.shape) / 1000))
    return errors


def mean_errors(errors: list[dict[str, float]]) -> dict[str, float]:
    """The mean of each error over images."""
    return {name: float(np.mean([error[name] for error in errors])) for name in METRICS}


def board_errors(predict: Predict, pasted: Pool, bare: Pool) -> dict[str, float]:
    """How pasted cut-outs come out: abs-rel inside them, and the share that comes out nearer.

    "Nearer" counts the pictures where the depth inside the cut-outs is at least 3 % less than in
    the same pixels of the same picture without them, in the median.
    """
    errors, nearer = [], []
    for rgb, depth_mm, without, behind_mm in zip(*pasted, *bare, strict=True):
        predicted, was = (predict(Image.fromarray(picture)) for picture in (rgb, without))
        inside = nearest(depth_mm < behind_mm, predicted.shape)
        if inside.sum() < 20:
            continue
        true_m = nearest(depth_mm, predicted.shape) / 1000
        errors.append(float(np.mean(np.abs(predicted / true_m - 1)[inside])))
        nearer.append(float(np.median((predicted / was)[inside])) < NEARER)
    return {"abs_rel": float(np.mean(errors)), "nearer": float(np.mean(nearer))}


class HeldOut:
    """Every picture that models are measured on."""

    def __init__(self, work: Path) -> None:
        fetched, pool = work / "fetched", work / "pool"
        photographs.fetch(fetched)

        def scenes_of(name: str, count: int, **how: object) -> Pool:
            return cached(
                pool / f"held-out-{name}-{count}.npz",
                lambda: render_scenes(HELD_OUT_SEED, count, SIDE_PX, **how),
            )

        self.scenes = scenes_of("plain", HELD_OUT_SCENES)
        self.others = {"handheld": scenes_of("handheld", OTHER_SCENES, handheld=True)}
        for fov in FIELDS_OF_VIEW_DEG:
            self.others[f"{fov} degrees"] = scenes_of(f"fov{fov}", OTHER_SCENES, fov_deg=fov)
        self.pasted = scenes_of("pasted", OTHER_SCENES, pasted=True)
        self.bare = scenes_of("bare", OTHER_SCENES, pasted=False)
        _, self.photographs = photographs.split(photographs.photographs(fetched))
        self.stamps = photographs.stamps(fetched, kept=True)
        self.teacher = photographs.Teacher(fetched)
        motorcycle, disparity = (fetched / "scikit-image" / name for name in photographs.MOTORCYCLE)
        self.motorcycle = Image.open(motorcycle).convert("RGB")
        with np.load(disparity, allow_pickle=False) as file:
            self.disparity = file["arr_0"]

    def composite(self, name: str, cutout: Bytes) -> tuple[Image.Image, Image.Image, Inside]:
        """A held-out photograph with a cut-out pasted into it, without, and where it is."""
        bare = self.photographs[name].resize((SIDE_PX, SIDE_PX), Image.Resampling.BICUBIC)
        picture = np.asarray(bare, np.float32) / 255
        depth_m = np.full((SIDE_PX, SIDE_PX), 6, np.float32)
        scenes.paste(picture, depth_m, cutout, np.random.default_rng([5, len(name)]))
        rgb = np.round(picture * 255).astype(np.uint8)
        return Image.fromarray(rgb), bare, depth_m < 6

    def seen_as_nearer(self, predict: Predict) -> float:
        """Share of composites of photographs whose cut-out comes out nearer: see board_errors."""
        seen = []
        for index, name in enumerate(sorted(self.photographs)):
            picture, bare, mask = self.composite(name, self.stamps[index % len(self.stamps)])
            ratio = predict(picture) / predict(bare)
            inside = nearest(mask, ratio.shape)
            seen.append(float(np.median(ratio[inside])) < NEARER)
        return float(np.mean(seen))

    def measure(self, predict: Predict) -> Figures:
        """Every figure of one model."""
        errors = scene_errors(predict, self.scenes)
        kinds = len(scenes.KINDS)
        figures: Figures = {"scenes": mean_errors(errors)}
        for index, kind in enumerate(scenes.KINDS):
            first = (index - HELD_OUT_SEED) % kinds
            figures[kind] = mean_errors(errors[first::kinds])
        for name, pool in self.others.items():
            figures[name] = mean_errors(scene_errors(predict, pool))
        figures["boards"] = board_errors(predict, self.pasted, self.bare)
        depth = predict(self.motorcycle)
        disparity = nearest(self.disparity, depth.shape)
        known = np.isfinite(disparity) & (disparity > 0)
        figures["motorcycle"] = spearman(-depth[known], disparity[known])
        agreement = []
        for picture in self.photographs.values():
            taught = self.teacher.depth_m(picture)
            depth = predict(picture)
            agreement.append(spearman(nearest(depth, (112, 112)), nearest(taught, (112, 112))))
        figures["photographs"] = float(np.nanmean(agreement))
        figures["composites"] = self.seen_as_nearer(predict)
        return figures


# ------------------------------------------------------------------------------------------- model


def count_gflop(model: DenseDepthForDepthEstimation, side: int = SIDE_PX) -> float:
    """Operations (two per multiply-add) of the convolutions for one image, in 1e9."""
    total = 0

    def count(module: torch.nn.Module, _inputs: Any, output: torch.Tensor) -> None:
        nonlocal total
        weights = sum(p.numel() for p in module.parameters() if p.ndim > 1)
        total += 2 * weights * output.shape[-1] * output.shape[-2]

    hooks = [
        m.register_forward_hook(count) for m in model.modules() if isinstance(m, torch.nn.Conv2d)
    ]
    with torch.no_grad():
        model(torch.zeros(1, 3, side, side))
    for hook in hooks:
        hook.remove()
    return total / 1e9


def images_per_second(
    model: DenseDepthForDepthEstimation, side: int = SIDE_PX, repeats: int = 5
) -> float:
    """Float32 images per second of one thread's CPU time, batches of 4, best of `repeats`."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    pictures = torch.rand(4, 3, side, side)
    best = 0.0
    with torch.no_grad():
        for _ in range(repeats):
            start = time.process_time()
            model(pictures)
            best = max(best, 4 / (time.process_time() - start))
    torch.set_num_threads(threads)
    return best


def describe(model: DenseDepthForDepthEstimation, folder: Path) -> dict[str, float]:
    """Size and cost of a model."""
    return {
        "parameters": sum(p.numel() for p in model.parameters()),
        "size_mb": (folder / "model.safetensors").stat().st_size / 1e6,
        "gflop": count_gflop(model),
        "images_per_second": images_per_second(model),
    }


# -------------------------------------------------------------------------------------------- card

_ROWS = {
    "scenes": "**all held-out scenes**",
    **dict(zip(scenes.KINDS, scenes.KINDS, strict=True)),
    "handheld": "other cameras: 38 to 88 degrees, tilted, rolled",
    **{f"{fov} degrees": f"field of view of {fov} degrees" for fov in FIELDS_OF_VIEW_DEG},
}
_COLUMNS = ("abs_rel", "rmse", "log10", "delta1", "delta2", "delta3")


def model_card(metrics: Figures) -> str:
    """The demo model's README.md, every number of it from metrics.json."""
    figures = metrics["figures"]
    model = figures["model"]
    errors = [(title, model[row]) for row, title in _ROWS.items()]
    errors += [
        ("all held-out scenes: " + title, figures[name]["scenes"])
        for name, title in _COMPARED.items()
        if name in figures
    ]
    table = "\n".join(
        f"| {title} | " + " | ".join(f"{row[column]:.3f}" for column in _COLUMNS) + " |"
        for title, row in errors
    )
    compared = {"model": "**this model**", **_COMPARED}
    orders = "\n".join(
        f"| {title} | {figures[name]['photographs']:.2f} | {figures[name]['motorcycle']:.2f} "
        f"| {figures[name]['boards']['abs_rel']:.3f} | {figures[name]['boards']['nearer']:.2f} "
        f"| {figures[name]['composites']:.2f} |"
        for name, title in compared.items()
        if name in figures
    )
    aims = {
        "abs-rel at most 0.10 on held-out scenes": model["scenes"]["abs_rel"] <= 0.10,
        "delta < 1.25 of at least 0.90 there": model["scenes"]["delta1"] >= 0.90,
        "rank correlation with the teacher of at least 0.80 on held-out photographs": model[
            "photographs"
        ]
        >= 0.80,
    }
    aims_text = "\n".join(
        f"- {aim}: {'reached' if yes else '**not reached**'}" for aim, yes in aims.items()
    )
    return CARD.read_text(encoding="utf-8").format(
        **metrics["model"],
        **metrics["pictures"],
        table=table,
        orders=orders,
        aims=aims_text,
        held_scenes=HELD_OUT_SCENES,
        other_scenes=OTHER_SCENES,
        first=HELD_OUT_SEED,
        training=metrics["training"]["text"],
    )


_COMPARED = {
    "before": "the demo model before",
    "teacher": "the teacher, FastDepth",
    "height": "higher in the picture is farther",
}


# ------------------------------------------------------------------------------------------- sheet


def shown(depth: Depth, side: int) -> Image.Image:
    """A depth map in grey, near is light: a logarithmic scale from its own 2 % to its own 98 %."""
    low, high = np.log(np.percentile(depth, [2, 98]))
    level = 1 - (np.log(depth) - low) / max(0.2, high - low)
    grey = Image.fromarray((level.clip(0, 1) * 255).astype(np.uint8))
    return grey.resize((side, side), Image.Resampling.BILINEAR).convert("RGB")


def draw_sheet(held: HeldOut, models: dict[str, Predict], side: int = 128) -> Image.Image:
    """Free photographs, composites of them, and scenes beside the depth of every model.

    The cut-outs are those of the package's demo: they were drawn for it, and never trained on.
    """
    cutouts = [np.array(Image.open(path)) for path in sorted(FOREGROUNDS.glob("*.png"))]
    free = [n for n in sorted(held.photographs) if n.split("/")[-1] in photographs.CC0]
    pictures = [held.photographs[name] for name in free]
    pictures += [held.composite(name, cutouts[2 * k + 1])[0] for k, name in enumerate(free)]
    pictures += [Image.fromarray(held.pasted.rgb[index]) for index in range(len(scenes.KINDS))]
    columns = ["picture", *models]
    blocks = -(-len(pictures) // 2)
    sheet = Image.new("RGB", (2 * len(columns) * side, blocks * side + 14), "white")
    draw = ImageDraw.Draw(sheet)
    for index, picture in enumerate(pictures):
        left, top = index // blocks * len(columns) * side, index % blocks * side + 14
        sheet.paste(picture.resize((side, side), Image.Resampling.BICUBIC), (left, top))
        for column, predict in enumerate(models.values(), 1):
            sheet.paste(shown(predict(picture), side), (left + column * side, top))
    for index, name in enumerate(columns * 2):
        draw.text((index * side + 4, 1), name, fill="black")
    return sheet


@click.command()
@click.argument("folder", metavar="MODEL", type=click.Path(exists=True, path_type=Path))
@click.argument("before", required=False, type=click.Path(exists=True, path_type=Path))
@click.option("--work", type=click.Path(path_type=Path), default=WORK, show_default=True,
              help="Work folder of the training.")  # fmt: skip
@click.option("--sheet", type=click.Path(path_type=Path), help="PNG file to draw.")
def main(folder: Path, before: Path | None, work: Path, sheet: Path | None) -> None:
    """Measure MODEL, write its metrics.json and card."""
    torch.set_num_threads(1)
    path = folder / "metrics.json"
    training = json.loads(path.read_text())["training"]
    held = HeldOut(work)
    model = load_model(folder)
    predictors = {"model": predictor(model)}
    if before:
        predictors["before"] = predictor(load_model(before))
    predictors["teacher"] = held.teacher.depth_m
    predictors["height"] = height_baseline(ScenePool(work / "pool", SIDE_PX), 400)
    figures = {}
    for name, predict in predictors.items():
        figures[name] = held.measure(predict)
        click.echo(f"{name}: {json.dumps(figures[name])}")
    metrics = {
        "figures": figures,
        "model": describe(model, folder),
        "training": training,
        "pictures": {"photographs": len(held.photographs), "stamps": len(held.stamps)},
    }
    if sheet:
        drawn = {"ours": predictors["model"], "teacher": held.teacher.depth_m}
        draw_sheet(held, drawn).quantize(128).save(sheet, optimize=True)
    rounded = json.loads(json.dumps(metrics), parse_float=lambda text: round(float(text), 4))
    path.write_text(json.dumps(rounded, indent=1) + "\n")
    (folder / "README.md").write_text(model_card(rounded))


if __name__ == "__main__":
    main()
