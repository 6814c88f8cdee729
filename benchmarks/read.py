"""Samples per second of reading records for training, against plain files and Pillow.

    python benchmarks/read.py [--records 512] [--repeats 7] [--json]

Every reader gives the same batches of 32: `pixel_values` normalised, `mask` of 0 and 1, `depth_m`
in metres with NaN where unknown, as float32 tensors, which are compared with the baseline's before
anything is timed. Loose files, Parquet, a tar and litdata's chunks hold the same encoded bytes, all
in memory. One process on one pinned core runs them in turns; figures are medians of the repeats.
Each line names its decoder; the output of Pillow and simplejpeg goes through the same few lines of
torch.

The composed lines read nothing: their records are made from recipe and sources, without depth.

litdata is measured where it can be imported. No extra of ours installs it, because it requires
torchvision, whose presence makes Transformers choose other image processors. So:

    pip install --no-deps --target DIR litdata lightning-utilities obstore boto3 botocore \\
        s3transfer jmespath requests urllib3 charset-normalizer tifffile
    PYTHONPATH=DIR python benchmarks/read.py
"""

from __future__ import annotations

import argparse
import io
import json
import os
import platform
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import simplejpeg
import torch
from compose import Workload, workload
from PIL import Image
from torch.utils.data import DataLoader

from builder.batches import RecordReader
from builder.recipe import NO_DEPTH_MODEL, DepthFormat
from builder.record import DepthCodec, Encoder, Tally
from builder.schema import features, record_columns
from builder.tables import write_table
from fgbg_dataset import FgbgDataset

Array = npt.NDArray[Any]
Batch = dict[str, torch.Tensor]
Row = dict[str, Any]

BATCH = 32
FILES = 4  # Parquet files, as many shards
BASELINE = "files, Pillow, png16"
PICTURES = ("fg_bg", "mask", "depth")


# --- what every reader reads ----------------------------------------------------------------------


class Stored:
    """The records in every container, for one way of storing depth."""

    def __init__(self, work: Workload, depth_format: DepthFormat, folder: Path) -> None:
        self.pinned, renderer = work.ours(depth_format)
        self.folder = folder
        encoder, tally = Encoder(self.pinned), Tally(256, 3)
        rows = []
        for record_id in work.ids:
            record = replace(renderer.compose(record_id), depth=work.depths[record_id])
            tally.add(record.fg_bg)
            rows.append(encoder.row(record))
        self.reader = RecordReader.counted(self.pinned, tally)
        self.order = np.random.default_rng(0).permutation(len(rows)).tolist()
        self.endings = {"fg_bg": "jpg", "mask": "png"}
        self.endings["depth"] = "png" if depth_format == "png16" else "jpg"
        self._write(rows)
        self.ids = [row["record_id"] for row in rows]
        files = {"train": str(folder / "*.parquet")}
        cache = str(folder / "cache")
        self.mapped = datasets.load_dataset(
            "parquet", data_files=files, split="train", cache_dir=cache
        )
        self.streamed = datasets.load_dataset(
            "parquet", data_files=files, split="train", streaming=True
        )

    def _write(self, rows: list[Row]) -> None:
        (self.folder / "files").mkdir(parents=True)
        for row in rows:
            for name in PICTURES:
                self.path(row["record_id"], name).write_bytes(row[name]["bytes"])
        schema = features(record_columns(self.pinned.recipe)).arrow_schema
        size = -(-len(rows) // FILES)
        for start in range(0, len(rows), size):
            write_table(
                self.folder / f"{start:06d}.parquet", "parquet", schema, rows[start : start + size]
            )
        self._write_tar(rows)
        if find_spec("litdata"):
            self._write_litdata(rows)

    def _write_tar(self, rows: list[Row]) -> None:
        import webdataset

        with webdataset.TarWriter(str(self.folder / "records.tar")) as tar:
            for row in rows:
                parts = {f"{name}.{self.endings[name]}": row[name]["bytes"] for name in PICTURES}
                tar.write({"__key__": f"{row['record_id']:09d}", **parts})

    def _write_litdata(self, rows: list[Row]) -> None:
        from litdata.streaming import Cache

        cache = Cache(str(self.folder / "litdata"), chunk_bytes="16MB")
        for number, row in enumerate(rows):
            cache[number] = {name: row[name]["bytes"] for name in PICTURES}
        cache.done()
        cache.merge()

    def path(self, record_id: int, name: str) -> Path:
        """Return the loose file of a picture."""
        return self.folder / "files" / f"{record_id:09d}.{name}.{self.endings[name]}"


# --- as people do it ------------------------------------------------------------------------------


def by_pillow(data: bytes) -> Array:
    """Decode with Pillow."""
    return np.asarray(Image.open(io.BytesIO(data)))


def by_simplejpeg(data: bytes) -> Array:
    """Decode JPEG with simplejpeg, all else with Pillow."""
    if data[:2] != b"\xff\xd8":
        return by_pillow(data)
    space = simplejpeg.decode_jpeg_header(data)[2]
    pixels = simplejpeg.decode_jpeg(data, "GRAY" if space == "Gray" else "RGB")
    return pixels[..., 0] if space == "Gray" else pixels


class Usual:
    """Decoded pictures to tensors, in a few lines of torch."""

    def __init__(self, stored: Stored) -> None:
        self._mean, self._factor = (
            torch.tensor(values, dtype=torch.float32).view(3, 1, 1)
            for values in (255 * stored.reader.mean, 1 / (255 * stored.reader.std))
        )
        assert stored.pinned.depth is not None
        codec = DepthCodec(stored.pinned.recipe, stored.pinned.depth)
        if stored.pinned.recipe.depth_format == "jpeg8":
            self._metres: Any = codec.metres
        else:
            self._metres = self._millimetres

    @staticmethod
    def _millimetres(depth: Array) -> Array:
        metres = depth.astype(np.float32) / np.float32(1000)
        metres[depth == 0] = np.nan
        return metres

    def collate(self, rows: list[dict[str, Array]]) -> Batch:
        pixels = torch.from_numpy(np.stack([row["fg_bg"] for row in rows])).permute(0, 3, 1, 2)
        # Four times as fast as pixels.float(), which keeps the order of the bytes in memory.
        values = torch.empty(pixels.shape).copy_(pixels)
        mask = torch.from_numpy(np.stack([row["mask"] for row in rows]))[:, None]
        depth = torch.from_numpy(np.stack([self._metres(row["depth"]) for row in rows]))
        return {
            "pixel_values": values.sub_(self._mean).mul_(self._factor),
            "mask": (mask != 0).float(),
            "depth_m": depth[:, None],
        }


class LooseFiles(torch.utils.data.Dataset[dict[str, Array]]):
    """One file a picture."""

    def __init__(self, stored: Stored, decode: Callable[[bytes], Array]) -> None:
        self._stored, self._decode = stored, decode

    def __len__(self) -> int:
        return len(self._stored.ids)

    def __getitem__(self, index: int) -> dict[str, Array]:
        record_id = self._stored.ids[index]
        return {
            name: self._decode(self._stored.path(record_id, name).read_bytes()) for name in PICTURES
        }


def decoded(decode: Callable[[bytes], Array], row: Row) -> dict[str, Array]:
    """Decode a sample of bytes by the first part of its keys."""
    return {k.split(".")[0]: decode(v) for k, v in row.items() if k.split(".")[0] in PICTURES}


def loose_files(stored: Stored, decode: Callable[[bytes], Array]) -> Iterator[Batch]:
    rows = LooseFiles(stored, decode)
    return iter(DataLoader(rows, BATCH, sampler=stored.order, collate_fn=Usual(stored).collate))


def tar(stored: Stored, decode: Callable[[bytes], Array]) -> Iterator[Batch]:
    import webdataset

    rows = webdataset.WebDataset(str(stored.folder / "records.tar"), shardshuffle=False)
    rows = rows.map(partial(decoded, decode))
    return iter(DataLoader(rows, BATCH, collate_fn=Usual(stored).collate))


def litdata_chunks(stored: Stored, decode: Callable[[bytes], Array]) -> Iterator[Batch]:
    import litdata

    rows = litdata.StreamingDataset(str(stored.folder / "litdata"), shuffle=False)
    usual = Usual(stored)

    def collate(samples: list[Row]) -> Batch:
        return usual.collate([decoded(decode, sample) for sample in samples])

    return iter(litdata.StreamingDataLoader(rows, batch_size=BATCH, collate_fn=collate))


def by_datasets(stored: Stored, *, streaming: bool) -> Iterator[Batch]:
    """The library's own decoding, to Pillow images."""
    usual = Usual(stored)

    def collate(rows: list[Row]) -> Batch:
        return usual.collate([{name: np.asarray(row[name]) for name in PICTURES} for row in rows])

    return loader(stored, stored.streamed if streaming else stored.mapped, collate)


# --- ours -----------------------------------------------------------------------------------------


def by_reader(stored: Stored, *, streaming: bool) -> Iterator[Batch]:
    """Undecoded rows, decoded by the batch."""
    rows = stored.reader.undecoded(stored.streamed if streaming else stored.mapped)
    return loader(stored, rows, stored.reader.collate)


def loader(stored: Stored, rows: Any, collate: Callable[[list[Row]], Batch]) -> Iterator[Batch]:
    rows = rows.select_columns(list(PICTURES))
    if isinstance(rows, datasets.IterableDataset):
        rows.set_epoch(1)  # the files in another order
        if collate == stored.reader.collate:  # it takes columns too, which spares making rows
            return iter(DataLoader(rows.batch(BATCH), batch_size=None, collate_fn=collate))
        return iter(DataLoader(rows, BATCH, collate_fn=collate))
    return iter(DataLoader(rows, BATCH, sampler=stored.order, collate_fn=collate))


class Composed:
    """Records made on the fly, without depth: arrays, or whole batches."""

    def __init__(self, work: Workload, folder: Path, reader: RecordReader) -> None:
        builder = FgbgDataset(
            folder / "foregrounds",
            folder / "backgrounds",
            recipe=replace(work.pinned.recipe, depth_model=NO_DEPTH_MODEL),
            skip_bad=True,
            cache_dir=str(folder / "cache"),
        )
        self._stream = builder.as_array_stream("train").take(len(work.ids))
        self._reader = reader

    def arrays(self) -> Iterator[Any]:
        rows: Iterator[Any] = self._stream.iter(BATCH)
        return rows

    def batches(self) -> Iterator[Batch]:
        return iter(DataLoader(self._stream, BATCH, collate_fn=self._reader.collate))


# --- measuring ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Variant:
    """One line of the table; `target` is a ratio to the baseline, or samples per CPU-second."""

    name: str
    make: Callable[[], Iterator[Any]]
    target: float | None = None


def variants(work: Workload, folder: Path, stored: dict[DepthFormat, Stored]) -> list[Variant]:
    """Return the lines of the table, the baseline first."""
    png16, jpeg8 = stored["png16"], stored["jpeg8"]
    lines = [
        Variant(BASELINE, partial(loose_files, png16, by_pillow)),
        Variant("files, simplejpeg, png16", partial(loose_files, png16, by_simplejpeg)),
        Variant("webdataset, Pillow, png16", partial(tar, png16, by_pillow)),
        Variant("webdataset, simplejpeg, png16", partial(tar, png16, by_simplejpeg)),
    ]
    if find_spec("litdata"):
        lines += [
            Variant("litdata, Pillow, png16", partial(litdata_chunks, png16, by_pillow)),
            Variant("litdata, simplejpeg, png16", partial(litdata_chunks, png16, by_simplejpeg)),
        ]
    lines += [
        Variant("datasets map, png16", partial(by_datasets, png16, streaming=False)),
        Variant("datasets streaming, png16", partial(by_datasets, png16, streaming=True)),
        Variant("ours, map, png16", partial(by_reader, png16, streaming=False), 1.2),
        Variant("ours, streaming, png16", partial(by_reader, png16, streaming=True), 1.2),
        Variant("files, Pillow, jpeg8", partial(loose_files, jpeg8, by_pillow)),
        Variant("ours, map, jpeg8", partial(by_reader, jpeg8, streaming=False), 2.0),
        Variant("ours, streaming, jpeg8", partial(by_reader, jpeg8, streaming=True), 2.0),
    ]
    composed = Composed(work, folder, png16.reader)
    return [
        *lines,
        Variant("composed, uint8 arrays, no depth", composed.arrays, 15_000),
        Variant("composed, batches, no depth", composed.batches),
    ]


def n_samples(batch: Any) -> int:
    """Return the samples of a batch of tensors or of arrays."""
    return len(batch["mask"])


def check(lines: list[Variant]) -> None:
    """See that all readers of one format give the same samples, whatever their order.

    Raises:
        AssertionError: they do not.
    """
    wanted: dict[str, list[tuple[float, ...]]] = {}
    for line in lines:
        if "composed" in line.name:
            continue
        rows = []
        for batch in line.make():
            assert set(batch) == {"pixel_values", "mask", "depth_m"}, line.name
            sums = [batch[name].double().nan_to_num().sum((1, 2, 3)) for name in sorted(batch)]
            rows += torch.stack(sums, 1).tolist()
        rows.sort(key=lambda row: row[1:])  # of mask and depth: they are exact
        expected = wanted.setdefault(line.name.rsplit(", ", 1)[1], rows)
        np.testing.assert_allclose(rows, expected, rtol=1e-4, err_msg=line.name)


def measure(lines: list[Variant], repeats: int) -> dict[str, list[tuple[float, float]]]:
    """Run all readers in turns; return (samples/s, samples per CPU-second) per repeat, by name."""
    rates: dict[str, list[tuple[float, float]]] = {line.name: [] for line in lines}
    for repeat in range(repeats + 1):  # the first fills caches and is not counted
        turn = repeat % len(lines)
        for line in lines[turn:] + lines[:turn]:
            cpu, wall = time.process_time(), time.perf_counter()
            count = sum(n_samples(batch) for batch in line.make())
            cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
            if repeat:
                rates[line.name].append((count / wall, count / cpu))
        print(f"\rrepeat {repeat}/{repeats}", end="", file=sys.stderr)
    print(file=sys.stderr)
    return rates


def rows_of(lines: list[Variant], rates: dict[str, list[tuple[float, float]]]) -> list[Row]:
    """Return the table; a ratio is the median of the repeats' own ratios."""
    table = []
    base = np.array(rates[BASELINE])
    for line in lines:
        own = np.array(rates[line.name])  # (repeats, 2): by wall clock, by CPU time
        wall, cpu = np.median(own, axis=0).tolist()
        ratio, ratio_cpu = np.median(own / base, axis=0).tolist()
        row: Row = {"reader": line.name, "samples_per_s": wall, "samples_per_cpu_s": cpu}
        row |= {"ratio": ratio, "ratio_cpu": ratio_cpu}
        if line.target:
            row["target"] = line.target
        table.append(row)
    return table


def show(table: list[Row], about: dict[str, str]) -> None:
    """Print the table for people."""
    for name, text in about.items():
        print(f"{name}: {text}")
    print(f"\n{'reader':34} {'/s':>7} {'ratio':>6} {'/CPU-s':>7} {'ratio':>6} {'target':>7}")
    for row in table:
        target = f"{row['target']:g}" if "target" in row else ""
        print(
            f"{row['reader']:34} {row['samples_per_s']:7.0f} {row['ratio']:6.2f} "
            f"{row['samples_per_cpu_s']:7.0f} {row['ratio_cpu']:6.2f} {target:>7}"
        )
    print(f"\nratio: to {BASELINE!r}. Targets above 100 are samples per CPU-second.")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--records", type=int, default=512, help="records of each reader's pass")
    parser.add_argument("--repeats", type=int, default=7, help="counted turns of all readers")
    parser.add_argument("--json", action="store_true", help="print JSON instead of the table")
    options = parser.parse_args()
    core = max(os.sched_getaffinity(0))
    torch.set_num_threads(1)
    pa.set_cpu_count(1)
    datasets.disable_progress_bars()
    memory = Path("/dev/shm")
    base = str(memory) if os.access(memory, os.W_OK) else None
    with tempfile.TemporaryDirectory(prefix="fgbg-bench-", dir=base) as name:
        work = workload(Path(name), options.records)
        formats: tuple[DepthFormat, ...] = ("png16", "jpeg8")
        stored = {f: Stored(work, f, Path(name) / f) for f in formats}
        os.sched_setaffinity(0, {core})  # after preparing, which may use all of them
        lines = variants(work, Path(name), stored)
        check(lines)
        table = rows_of(lines, measure(lines, options.repeats))
    about = {
        **work.about,
        "measured": f"{options.records} records x {options.repeats} repeats, batches of {BATCH}, "
        f"interleaved, core {core}, medians; {platform.machine()}, {os.cpu_count()} CPUs, load "
        f"{os.getloadavg()[0]:.1f}",
        "containers": f"in {base or tempfile.gettempdir()}"
        f"{' (tmpfs: no disk is timed)' if base else ''}",
    }
    if not find_spec("litdata"):
        about["litdata"] = "not measured: not installed (see the head of this file)"
    if options.json:
        print(json.dumps({"about": about, "rows": table}, indent=1))
    else:
        show(table, about)


if __name__ == "__main__":
    main()
