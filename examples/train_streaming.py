"""Train a small network on streamed records: what was pasted, and how far away is everything?

    python -m examples.train_streaming                                     # the bundled pictures
    python -m examples.train_streaming --on-the-fly my/cutouts my/photos   # yours
    python -m examples.train_streaming out/mine                            # a set by `fgbg build`
    python -m examples.train_streaming somebody/set                        # a set on the Hub

The first two make scenes as they are needed: nothing is stored, and every epoch has placements of
its own. The others read stored records, from the Hub while they are downloaded. With --real IMAGES
MASKS the network is also measured on photographs that nothing was trained on; a mask has its
photograph's name and is white where the object is. The folder `--out` gets the numbers
(results.json), a picture of predictions (predictions.png) and the network
(checkpoint.safetensors). After a kill the same command with --resume ends in the same weights, bit
for bit on the same processor.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw, ImageFont
from torch import nn

from builder.depth.densedepth.metrics import DepthMetrics
from builder.files import write_text
from builder.finetune import checkpoint_state, learning_rate, load_checkpoint, save_checkpoint
from builder.record import Plan
from builder.release import LUT, DepthScale
from builder.sources import demo_folders
from examples.photographs import Photographs, photographs
from fgbg_dataset import FgbgDataset, FgbgError, RecordReader

CHECKPOINT, RESULTS, PICTURE = "checkpoint.safetensors", "results.json", "predictions.png"
WIDTHS = (16, 32, 64, 128)  # channels at 1/2, 1/4, 1/8 and 1/16 of the size
DECISIVE = ("steps", "batch_size", "learning_rate", "seed")  # with the data they fix the weights
LEARNED = ("pixel_values", "mask", "depth_m")  # of a batch
Batch = dict[str, torch.Tensor]
Arrays = dict[str, np.ndarray]

# ------------------------------------------------------------------------------------------- data


class Source:
    """The splits of a set as streams, stored or made on the fly; `reader` makes batches of rows."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.stored, self.seed = args.source, args.seed
        if self.stored:
            self.reader = RecordReader.of(self.stored)
        else:
            # Nothing stands on a ground that no depth shows.
            placement = "uniform" if args.depth_model == "none" else "ground"
            self.builder = FgbgDataset(
                *(args.on_the_fly or demo_folders()),
                layout="scenes",
                size=args.size,
                foreground_size=args.foreground_size,
                placement=placement,
                holdout=0.2,
                depth_model=args.depth_model,
                seed=args.seed,
            )
            self.reader = self.builder.reader()
        self.splits = list(Plan(self.reader.pinned).splits)

    def stream(self, split: str) -> datasets.IterableDataset:
        """Return a split; `set_epoch` on it brings another order, and on the fly new placements."""
        if self.stored:
            stream = datasets.load_dataset(self.stored, split=split, streaming=True)
            # This changes the order of the files. In a file the records are mixed already, so no
            # shuffle buffer is needed, and none is lost when a run resumes. With more than one
            # input shard at a time `datasets` 5.2 sleeps five seconds after every pass.
            stream = stream.shuffle(seed=self.seed, buffer_size=1, max_buffer_input_shards=1)
            return self.reader.undecoded(stream)  # pictures stay bytes for the reader: faster
        return self.builder.as_array_stream(split)


def endless(
    stream: datasets.IterableDataset, size: int, epoch: int, state: Any
) -> Iterator[tuple[list[dict[str, Any]], int, Any]]:
    """Yield rows by `size`, without end, with the epoch and the stream's state behind them."""
    while True:
        stream.set_epoch(epoch)  # before the state, which holds within its epoch
        if state is not None:
            stream.load_state_dict(state)
        rows = iter(stream)
        while batch := list(islice(rows, size)):
            yield batch, epoch, stream.state_dict()
        epoch, state = epoch + 1, None


def augment(batch: Batch, rng: np.random.Generator) -> Batch:
    """Mirror half of the records; change the colours of all, for new objects have others."""
    batch = {name: batch[name] for name in LEARNED if name in batch}  # of scenes there is more
    n = len(batch["mask"])
    order = np.stack([rng.permutation(3) for _ in range(n)])
    gain, shift = rng.uniform(0.7, 1.3, (n, 3, 1, 1)), rng.uniform(-0.3, 0.3, (n, 3, 1, 1))
    pixels = batch["pixel_values"][torch.arange(n)[:, None], torch.from_numpy(order)]
    pixels = pixels * torch.from_numpy(gain).float() + torch.from_numpy(shift).float()
    mirrored = torch.from_numpy(rng.random((n, 1, 1, 1)) < 0.5)
    batch = {**batch, "pixel_values": pixels}
    return {name: torch.where(mirrored, x.flip(3), x) for name, x in batch.items()}


# ---------------------------------------------------------------------------------------- network


def block(inputs: int, outputs: int) -> nn.Sequential:
    """Two 3x3 convolutions."""
    layers: list[nn.Module] = []
    for channels in (inputs, outputs):
        layers += [nn.Conv2d(channels, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs)]
        layers += [nn.ReLU(inplace=True)]
    return nn.Sequential(*layers)


def enlarged(x: torch.Tensor, factor: int) -> torch.Tensor:
    """Return maps several times as large, smoothly."""
    return F.interpolate(x, scale_factor=factor, mode="bilinear")


class Network(nn.Module):
    """A U-Net: pictures (B, 3, H, W) -> mask logits and log depth, (B, 1, H, W) each.

    To be quick on a processor it works at half the size, where four pixels go in as one with 12
    channels. Depth is smooth and read off at a quarter; the mask's outline sees every pixel.
    """

    def __init__(self) -> None:
        super().__init__()
        self.down = nn.ModuleList(map(block, (12, *WIDTHS), WIDTHS))
        self.up = nn.ModuleList(block(WIDTHS[i] + WIDTHS[i + 1], WIDTHS[i]) for i in range(3))
        self.depth = nn.Conv2d(WIDTHS[1], 1, 3, padding=1)
        self.outline = nn.Conv2d(WIDTHS[0] + 3, 12, 3, padding=1)
        self.mask = nn.Conv2d(12, 1, 1)

    def forward(self, pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return (mask logits, log depth) of normalised pictures of any size."""
        height, width = pixels.shape[2:]
        pixels = F.pad(pixels, (0, -width % 16, 0, -height % 16), mode="replicate")
        x, kept = F.pixel_unshuffle(pixels, 2), []
        for level, down in enumerate(self.down):
            x = down(F.max_pool2d(x, 2) if level else x)
            kept.append(x)
        for level in (2, 1, 0):
            x = self.up[level](torch.cat([enlarged(x, 2), kept[level]], dim=1))
            if level == 1:
                log_depth = enlarged(self.depth(x), 4)
        x = self.outline(torch.cat([enlarged(x, 2), pixels], dim=1))
        return tuple(y[..., :height, :width] for y in (self.mask(F.relu(x)), log_depth))


def losses(network: Network, batch: Batch) -> Batch:
    """Return cross entropy + Dice of the mask, and mean |log ratio| of depth where it is known."""
    logits, log_depth = network(batch["pixel_values"])
    mask, share = batch["mask"], torch.sigmoid(logits)
    overlap, total = (share * mask).sum((1, 2, 3)), (share + mask).sum((1, 2, 3))
    dice = 1 - ((2 * overlap + 1) / (total + 1)).mean()
    terms = {"mask": F.binary_cross_entropy_with_logits(logits, mask) + dice}
    if "depth_m" in batch:
        known = batch["depth_m"] > 0  # NaN, the unknown, is not
        terms["depth"] = F.l1_loss(log_depth[known], batch["depth_m"][known].log())
    return terms


# --------------------------------------------------------------------------------------- training


def begin(seed: int, rate: float) -> tuple[Network, torch.optim.Optimizer]:
    """Return the untrained network, and its optimizer."""
    torch.manual_seed(seed)
    # Channels last: half as fast again on a processor.
    network = Network().to(memory_format=torch.channels_last)
    return network, torch.optim.AdamW(network.parameters(), rate, weight_decay=0.01)


def advance(network: Network, optimizer: torch.optim.Optimizer, batch: Batch, rate: float) -> Batch:
    """Take one step, and return the losses before it."""
    optimizer.param_groups[0]["lr"] = rate
    terms = losses(network, batch)
    optimizer.zero_grad()
    sum(terms.values()).backward()
    optimizer.step()
    return terms


def train(source: Source, args: argparse.Namespace, settings: dict[str, Any]) -> Network:
    """Train to the last step, saving on the way, and return the network."""
    network, optimizer = begin(args.seed, args.learning_rate)
    checkpoint, step, epoch, state = args.out / CHECKPOINT, 0, 0, None
    if args.resume and checkpoint.exists():
        held = checkpoint_state(checkpoint)
        if held.get("settings") != settings:
            raise FgbgError(
                f"{checkpoint} was made with {held.get('settings')}, and this run has {settings}; "
                "repeat those or choose another --out."
            )
        load_checkpoint(checkpoint, network, optimizer)
        step, epoch, state = held["step"], held["epoch"], held["stream"]
    stream = endless(source.stream("train"), args.batch_size, epoch, state)
    network.train()
    while step < args.steps:
        rows, epoch, state = next(stream)
        # Chance depends on seed and step alone, so there is no random state to save.
        batch = augment(source.reader.collate(rows), np.random.default_rng([args.seed, step]))
        rate = learning_rate(step, args.steps, args.learning_rate, warmup=args.steps // 10)
        terms = advance(network, optimizer, batch, rate)
        step += 1
        if step % args.every == 0 or step == args.steps:
            where = {"step": step, "epoch": epoch, "stream": state, "settings": settings}
            save_checkpoint(checkpoint, network, optimizer, where)
            values = "".join(f"  {name} loss {float(x.detach()):.3f}" for name, x in terms.items())
            report(f"step {step} of {args.steps}  epoch {epoch}{values}")
    return network


# -------------------------------------------------------------------------- numbers and a picture


@torch.no_grad()
def predict(network: Network, source: Source, split: str, images: int) -> Arrays:
    """Return truth and prediction for the first records of a split, (images, H, W) each."""
    network.train(mode=False)
    rows, parts = islice(source.stream(split), images), []
    while batch := list(islice(rows, 16)):
        logits, log_depth = network(source.reader.collate(batch)["pixel_values"])
        found, estimate_m = (logits[:, 0] > 0).numpy(), log_depth[:, 0].exp().numpy()
        parts.append({**source.reader.decode(batch), "found": found, "estimate_m": estimate_m})
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


@torch.no_grad()
def marked(network: Network, source: Source, real: Photographs) -> Arrays:
    """Return truth and predicted mask for real photographs, (images, H, W) each."""
    network.train(mode=False)
    pixels = real.batch(source.reader.mean, source.reader.std)["pixel_values"]
    found = np.concatenate([(network(part)[0][:, 0] > 0).numpy() for part in pixels.split(16)])
    return {"fg_bg": real.pixels, "mask": real.mask, "found": found}


def overlaps(of: Arrays) -> np.ndarray:
    """Return the mask's intersection over union with the prediction, (images,)."""
    mask, found = of["mask"], of["found"]
    return (mask & found).sum((1, 2)) / (mask | found).sum((1, 2))


def measure(of: Arrays, median_m: float) -> dict[str, float]:
    """Return mean IoU and abs-rel, and beside them those of no network at all.

    That is for masks: everything is foreground (nothing would have IoU 0); for depth: everything is
    as far as the median of the train sample.
    """
    mask_iou, everything = float(overlaps(of).mean()), float(of["mask"].mean())
    result = {"images": len(of["mask"]), "mask_iou": mask_iou, "mask_iou_everything": everything}
    if "depth_m" in of:
        flat_m = np.full_like(of["estimate_m"], median_m)
        for name, estimate_m in (("", of["estimate_m"]), ("_median", flat_m)):
            metrics = DepthMetrics(1e-3, math.inf)
            for pair in zip(estimate_m, of["depth_m"], strict=True):
                metrics.add(*pair)
            result[f"depth_abs_rel{name}"] = metrics.compute()["abs_rel"]
    return result


def draw(predictions: dict[str, Arrays], source: Source, side: int = 144) -> Image.Image:
    """Draw of every split the record whose mask has the median IoU: neither lucky nor unlucky."""
    columns = {"composite": "fg_bg", "mask": "mask", "predicted mask": "found"}
    shown, scale = {}, None
    for split, of in predictions.items():
        middle = np.argsort(overlaps(of), kind="stable")[len(of["mask"]) // 2]
        shown[split] = {name: values[middle : middle + 1] for name, values in of.items()}
    if info := source.reader.pinned.depth:
        columns |= {"depth": "depth_m", "predicted depth": "estimate_m"}
        depths = [of["depth_m"] for of in shown.values() if "depth_m" in of]
        scale = DepthScale.around(depths, info)
    gap, top, pitch = 10, 28, side + 28
    picture = Image.new(
        "RGB", (len(columns) * (side + gap) + gap, top + len(shown) * pitch), "white"
    )
    pen, font = ImageDraw.Draw(picture), ImageFont.load_default(13)
    for row, (split, of) in enumerate(shown.items()):
        for column, (title, name) in enumerate(columns.items()):
            if name not in of:  # a photograph has no depth
                continue
            at, pixels = (gap + column * (side + gap), top + row * pitch), of[name][0]
            if name.endswith("_m"):
                pixels = LUT[scale.codes(pixels)]
            tile = Image.fromarray(pixels * np.uint8(255) if pixels.dtype == bool else pixels)
            picture.paste(tile.resize((side, side), Image.Resampling.BICUBIC), at)
            if row == 0:
                pen.text((at[0], 7), title, "black", font)
        text = f"{split.replace('_', ' ')}, IoU {overlaps(of)[0]:.2f}"
        if scale and row == 0:
            text += (
                f"; depth from {scale.text(scale.near)}, bright, to {scale.text(scale.far)}, dark"
            )
        pen.text((gap, top + row * pitch + side + 4), text, "#555b66", font)
    return picture


# ---------------------------------------------------------------------------------------- command


def report(line: str) -> None:
    """Print progress to standard error; standard output is for results."""
    print(line, file=sys.stderr, flush=True)


def arguments(words: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    add = parser.add_argument
    add("source", nargs="?", help="folder or Hub id of a set; without it, records on the fly")
    add("--on-the-fly", nargs=2, metavar=("FOREGROUNDS", "BACKGROUNDS"), help="folders of pictures")
    add("--size", type=int, default=128, help="px a side of records on the fly (%(default)s)")
    add("--foreground-size", default="0.4-1.1", help="of objects on the fly (%(default)s)")
    add("--depth-model", default="demo", help="for records on the fly; none: learn the mask alone")
    add("--real", nargs=2, type=Path, metavar=("IMAGES", "MASKS"), help="photographs to measure on")
    add("--out", type=Path, default=Path("out/example"), help="folder of the results (%(default)s)")
    add("--steps", type=int, default=600, help="(%(default)s)")
    add("--batch-size", type=int, default=16, help="(%(default)s)")
    add("--learning-rate", type=float, default=4e-3, help="(%(default)s)")
    add("--seed", type=int, default=0, help="(%(default)s)")
    add("--images", type=int, default=96, help="of each split, to measure on (%(default)s)")
    add("--threads", type=int, default=1, help="of torch (%(default)s)")
    add("--every", type=int, default=20, help="steps between checkpoints (%(default)s)")
    add("--resume", action="store_true", help="go on from the checkpoint in --out, if there is one")
    add("--json", action="store_true", help="print the results as JSON")
    args = parser.parse_args(words)
    if args.source and args.on_the_fly:
        parser.error("give a set or --on-the-fly, not both")
    if (args.out / CHECKPOINT).exists() and not args.resume:
        parser.error(f"{args.out / CHECKPOINT} exists; add --resume or choose another --out")
    return args


def main(words: Sequence[str] | None = None) -> None:
    """Train, measure, draw."""
    args = arguments(words)
    torch.set_num_threads(args.threads)
    args.out.mkdir(parents=True, exist_ok=True)
    source = Source(args)
    settings = {name: getattr(args, name) for name in DECISIVE}
    settings["data"] = source.reader.pinned.fingerprint
    network = train(source, args, settings)
    predictions = {split: predict(network, source, split, args.images) for split in source.splits}
    if args.real:
        real = photographs(*args.real, None, source.reader.pinned.recipe.size)
        predictions["photographs"] = marked(network, source, real)
    median_m = float(np.nanmedian(predictions["train"].get("depth_m", 0)))
    splits = {split: measure(of, median_m) for split, of in predictions.items()}
    results = {**settings, "cpu_seconds": round(time.process_time()), "splits": splits}
    draw(predictions, source).save(args.out / PICTURE, optimize=True)
    write_text(args.out / RESULTS, json.dumps(results, indent=1) + "\n")
    if args.json:
        print(json.dumps(results))
    else:
        for split, values in splits.items():
            print(f"{split:<18}", "  ".join(f"{name} {x:.3g}" for name, x in values.items()))
    report(f"{PICTURE}, {RESULTS} and {CHECKPOINT} are in {args.out}.")


if __name__ == "__main__":
    try:
        main()
    except FgbgError as error:
        report(f"Error: {error}")
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        report("Interrupted. The same command with --resume goes on from the last checkpoint.")
        sys.exit(130)
