"""How the build scales with workers, engines and records, and what that means for large sets.

    python benchmarks/scale.py --save        measures; writes benchmarks/scale.json
    python benchmarks/scale.py --arithmetic  puts its figures, and what follows, into docs/scale.md

Every run is a `fgbg build` of its own. Its rate comes from the times at which its shards were
finished, after the first one, or with two workers in the second half, when both are surely at work.
So it leaves out what is paid once (starting, loading the model, card, preview). The model has one
thread in every process.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from builder.sources import demo_folders

ROOT = Path(__file__).parents[1]
MEASURED, PAGE = ROOT / "benchmarks" / "scale.json", ROOT / "docs" / "scale.md"

TARGET_RECORDS = {"4e5": 400_000, "1e7": 10_000_000, "1e9": 1_000_000_000}
DEPTH_NAMES = {"none": "none", "demo": "demo model", "densedepth": "DenseDepth, 480 px"}

# https://huggingface.co/docs/hub/storage-limits, read 2026-11-25
HUB_FILES_PER_FOLDER, HUB_FILES_PER_COMMIT = 10_000, 100


@dataclass(frozen=True)
class Load:
    """What is built for one kind of depth: sources, records for each worker, records a shard."""

    foregrounds: int
    backgrounds: int
    records: int
    shard: int
    options: tuple[str, ...]


LOADS = {
    "none": Load(12, 12, 4320, 144, ("--depth-model", "none")),
    "demo": Load(4, 4, 48, 4, ("--depth-model", "demo")),
    "densedepth": Load(2, 2, 8, 2, ("--depth-input", "480")),
}


@dataclass(frozen=True)
class Run:
    """What one build took."""

    records: int
    records_per_s: float
    seconds: float
    peak_rss_mib: float
    bytes_per_record: float


class Bench:
    """A temporary folder with sources and the full-size DenseDepth; builds and measures."""

    def __init__(self, folder: Path, quick: bool) -> None:
        self._folder, self._quick = folder, quick

    def sources(self, foregrounds: int, backgrounds: int) -> tuple[Path, Path]:
        pair = self._folder / f"{foregrounds}x{backgrounds}"
        kinds = zip(("fg", "bg"), demo_folders(), (foregrounds, backgrounds), strict=True)
        for name, bundled, count in kinds:
            (pair / name).mkdir(parents=True, exist_ok=True)
            for path in sorted(p for p in bundled.iterdir() if p.suffix in (".png", ".jpg"))[
                :count
            ]:
                shutil.copy(path, pair / name)
        return pair / "fg", pair / "bg"

    def dense_depth(self) -> Path:
        """Return the full-size DenseDepth with random weights: speed does not depend on them."""
        folder = self._folder / "densedepth"
        if not folder.exists():
            # In another process: a build's peak memory is never reported below its parent's.
            maker = multiprocessing.get_context("spawn").Process(target=save_model, args=(folder,))
            maker.start()
            maker.join()
        return folder

    def build(self, depth: str, engine: str, workers: int, records: int = 0, shard: int = 0) -> Run:
        """Build and measure; `records` and `shard` (records in one) are the load's by default."""
        load = LOADS[depth]
        records = records or load.records * workers // (4 if self._quick else 1)
        pairs = load.foregrounds * load.backgrounds
        placements = -(-records // pairs)
        records = placements * pairs
        out = self._folder / "out"
        options = [*load.options, "--no-flip", "--holdout", 0, "--placements", placements]
        if depth == "densedepth":
            options += ["--depth-model", self.dense_depth()]
        options += ["--shard-records", shard or max(1, load.shard // (4 if self._quick else 1))]
        options += ["--workers", workers, "--engine", engine, "--quiet"]
        command = ["build", *self.sources(load.foregrounds, load.backgrounds), out, *options]
        program = "from builder.cli import main; main(prog_name='fgbg')"
        began = time.perf_counter()
        process = subprocess.Popen(
            [sys.executable, "-c", program, *map(str, command)],
            env={**os.environ, "RAY_AUTH_MODE": "disabled"},  # no token in the home folder
        )
        _, process.returncode, usage = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - began
        if process.returncode:
            raise SystemExit(f"this build failed: fgbg {' '.join(map(str, command))}")
        run = Run(
            records=records,
            records_per_s=steady_rate(out, from_first=workers == 1),
            seconds=seconds,
            peak_rss_mib=usage.ru_maxrss / 1024,
            bytes_per_record=sum(p.stat().st_size for p in (out / "data").iterdir()) / records,
        )
        shutil.rmtree(out)
        return run


def save_model(folder: Path) -> None:
    import torch
    from transformers.utils import logging

    from builder.depth.densedepth import (
        DenseDepthConfig,
        DenseDepthForDepthEstimation,
        DenseDepthImageProcessor,
    )

    logging.disable_progress_bar()
    torch.manual_seed(0)
    DenseDepthForDepthEstimation(DenseDepthConfig()).save_pretrained(folder)
    DenseDepthImageProcessor().save_pretrained(folder)


def steady_rate(out: Path, from_first: bool) -> float:
    """Return records/s after a build's first shard, or over the second half of its shards."""
    content = json.loads((out / "assets" / "statistics.json").read_text())
    shards = content["splits"]["train"]["shards"]
    finished = sorted(((out / s["file"]).stat().st_mtime_ns, s["rows"]) for s in shards)
    if not from_first:
        finished = finished[len(finished) // 2 - 1 :]
    return sum(rows for _, rows in finished[1:]) * 1e9 / (finished[-1][0] - finished[0][0])


def measure(bench: Bench, repeats: int, depths: list[str], engines: list[str]) -> dict[str, Any]:
    """Interleave all runs, so that other work on the machine affects all of them."""
    runs: dict[tuple[str, str, int], list[Run]] = defaultdict(list)
    for repeat in range(repeats):
        for depth in depths:
            for engine in engines:
                for workers in (1, 2) if repeat % 2 == 0 else (2, 1):
                    run = bench.build(depth, engine, workers)
                    runs[depth, engine, workers].append(run)
                    report(
                        f"{depth:<11}{engine:<6}{workers}  {run.records_per_s:8.2f} records/s  "
                        f"{run.seconds:5.1f} s in all  {run.peak_rss_mib:5.0f} MiB"
                    )
    rates: dict[str, Any] = {}
    for (depth, engine, workers), some in runs.items():
        rate = statistics.median(run.records_per_s for run in some)
        rates.setdefault(depth, {}).setdefault(engine, {})[str(workers)] = round(rate, 3)
    size = {d: round(runs[d, engines[0], 1][0].bytes_per_record) for d in depths}
    return {"repeats": repeats, "records_per_s": rates, "bytes_per_record": size}


def measure_growth(bench: Bench, sizes: list[int]) -> list[dict[str, float]]:
    """Build sets of growing size without depth, with one worker; the small ones three times."""
    growth = []
    for size in sizes:
        repeats = 1 if size >= 100_000 else 3
        runs = [bench.build("none", "local", 1, size, shard=125) for _ in range(repeats)]
        row: dict[str, float] = {"records": runs[0].records}
        for name in ("records_per_s", "seconds", "peak_rss_mib"):
            row[name] = round(statistics.median(getattr(run, name) for run in runs), 1)
        growth.append(row)
        report("  ".join(f"{value} {name}" for name, value in row.items()))
    return growth


def measured_table(measured: dict[str, Any]) -> list[str]:
    """Rates of one and two workers and their efficiency, then growth, as Markdown."""
    lines = [
        f"{measured['date']}, {measured['machine']}, medians of {measured['repeats']}:",
        "",
        "| depth | engine | 1 worker, records/s | 2, records/s | efficiency | bytes a record |",
        "|---|---|---|---|---|---|",
    ]
    for depth, engines in measured["records_per_s"].items():
        size = measured["bytes_per_record"][depth]
        for engine, rates in engines.items():
            one, two = rates["1"], rates["2"]
            lines.append(
                f"| {DEPTH_NAMES[depth]} | {engine} | {one:.4g} | {two:.4g} | {two / one / 2:.2f} "
                f"| {size} |"
            )
    lines += ["", "| records, without depth | us a record | all of it, s | peak memory, MiB |"]
    lines.append("|---|---|---|---|")
    for row in measured["growth"]:
        lines.append(
            f"| {row['records']} | {1e6 / row['records_per_s']:.0f} | {row['seconds']:.0f} "
            f"| {row['peak_rss_mib']:.0f} |"
        )
    return lines


def derived_table(measured: dict[str, Any]) -> list[str]:
    """Bytes, files, commits and time of the three sizes, as Markdown."""
    head = "records | depth | bytes | `--shard-records` | files | a file | commits | 2 workers"
    columns = [*head.split(" | "), "100 workers", "1,000 workers"]
    lines = ["| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
    for name, records in TARGET_RECORDS.items():
        for depth, engines in measured["records_per_s"].items():
            size_bytes = records * measured["bytes_per_record"][depth]
            shard = shard_records(records)
            files = -(-records // shard)
            rates = engines["local"]
            each = rates["2"] / 2
            times = [records / (each * min(workers, files)) for workers in (2, 100, 1000)]
            cells = [
                *(name, DEPTH_NAMES[depth], bytes_text(size_bytes), f"{shard:,}", f"{files:,}"),
                *(bytes_text(size_bytes / files), f"{-(-files // HUB_FILES_PER_COMMIT):,}"),
                *map(time_text, times),
            ]
            lines.append("| " + " | ".join(cells) + " |")
    return lines


def shard_records(records: int) -> int:
    """Return the smallest round shard that keeps a set's files in one folder of the Hub."""
    for shard in (s * 10**power for power in range(3, 7) for s in (1, 2, 5)):
        if records <= 0.9 * HUB_FILES_PER_FOLDER * shard:
            return shard
    raise ValueError(f"{records} records do not fit")


def bytes_text(size_bytes: float) -> str:
    for unit, size in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6)):
        if size_bytes >= size:
            return f"{size_bytes / size:.3g} {unit}"
    return f"{size_bytes / 1e3:.3g} kB"


def time_text(seconds: float) -> str:
    for unit, length in (("years", 31_557_600), ("days", 86_400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.3g} {unit}"
    return f"{seconds:.0f} s" if seconds >= 10 else f"{seconds:.2g} s"


def with_tables(page: str, measured: dict[str, Any]) -> str:
    """Return the page with both tables made from what was measured."""
    for name, table in (("measured", measured_table), ("derived", derived_table)):
        before, rest = page.split(f"<!-- {name} -->\n")
        after = rest.split(f"<!-- /{name} -->\n")[1]
        lines = "\n".join(table(measured))
        page = f"{before}<!-- {name} -->\n{lines}\n<!-- /{name} -->\n{after}"
    return page


def machine() -> str:
    model = next(
        (
            line.split(":")[1].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if line.startswith("model name")
        ),
        platform.processor(),
    )
    return f"{os.cpu_count()} cores of {model}"


def report(text: str) -> None:
    print(text, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--save", action="store_true", help=f"write {MEASURED.name}")
    parser.add_argument("--arithmetic", action="store_true", help="write the tables of the page")
    parser.add_argument("--quick", action="store_true", help="a quarter of the records, once")
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--depths", nargs="+", choices=list(LOADS), default=list(LOADS))
    parser.add_argument("--engines", nargs="+", choices=["local", "ray"], default=["local", "ray"])
    chosen = parser.parse_args()
    if chosen.save or not chosen.arithmetic:
        repeats = 1 if chosen.quick else chosen.repeats
        sizes = [1000, 5000] if chosen.quick else [1000, 10_000, 100_000]
        with tempfile.TemporaryDirectory() as folder:
            bench = Bench(Path(folder), chosen.quick)
            rates = measure(bench, repeats, chosen.depths, chosen.engines)
            growth = measure_growth(bench, sizes)
        measured = {
            "date": time.strftime("%Y-%m-%d", time.gmtime()),
            "machine": machine(),
            **rates,
            "growth": growth,
        }
        if chosen.save:
            MEASURED.write_text(json.dumps(measured, indent=1) + "\n")
        report("\n".join(["", *measured_table(measured), "", *derived_table(measured)]))
    if chosen.arithmetic:
        PAGE.write_text(with_tables(PAGE.read_text(), json.loads(MEASURED.read_text())))


if __name__ == "__main__":
    main()
