"""Images per second of the depth network against Keras `predict`, by precision and backend.

    python benchmarks/depth.py [--quick] [--cores 0,1] [--keras PYTHON] [--demo FOLDER] [--json]

Everything is full-width DenseDepth at 480x480. Every variant has warmed-up processes of its own
(Keras one over all cores, ours and the matrix products that give the ceiling one for each core),
and variants take turns, so that other work on the machine affects all alike. Ours is the real path,
`DepthEstimator`, from uint8 composites of 224 px to stored depth; Keras is given floats of 480 px.
Ratios are medians over the rounds: per CPU-second (user + system), which other work on the machine
hardly changes, and of wall time. The share of the ceiling counts the network's plain arithmetic,
even where tap-wise up-steps need less.

Weights are random, with a head that spreads the depths over 1..10 m; speed does not depend on
them. The shifts against float32 are measured with them and with the demo model. With a CUDA device
ours runs there, Keras stays on the processor, and only wall time means anything.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shlex
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

SIDE = 480
KERAS = "Keras predict, batch 2"
CEILING = {"float32": "matrix product, float32", "bfloat16": "matrix product, bfloat16"}
PRODUCT = 2048  # side of the matrices

# (backend, precision): what the issue asks for against Keras
WANTED = {
    ("torch", "float32"): None,
    ("openvino", "float32"): 1.1,
    ("torch", "mixed"): None,
    ("openvino", "mixed"): 3.5,
    ("torch", "bfloat16"): 4.5,
    ("openvino", "bfloat16"): 7.0,
}


# --- in the processes that are measured -----------------------------------------------------------


def estimate(model: str, backend: str, precision: str, batch: int | None) -> Callable[[], int]:
    """Return a function that estimates the depth of one batch."""
    import numpy as np

    from builder.depth import DepthEstimator, locate_model
    from builder.recipe import Recipe

    recipe, located = locate_model(
        Recipe(depth_model=model, depth_input=SIDE, precision=precision)  # type: ignore[arg-type]
    )
    assert located is not None
    estimator = DepthEstimator(located, recipe, backend=backend, batch_size=batch)  # type: ignore[arg-type]
    shape = (estimator.batch_size, 224, 224, 3)
    images = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    return lambda: len(estimator(images))


def multiply(precision: str) -> Callable[[], int]:
    """Return a function that multiplies two matrices; an 'image' is 1 GFLOP."""
    import torch

    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.set_num_threads(1)
    matrix = torch.rand(PRODUCT, PRODUCT, dtype=getattr(torch, precision), device=device)
    times = 1 if precision == "float32" else 4

    def run() -> int:
        for _ in range(times):
            matrix @ matrix
        if device == "cuda":
            torch.cuda.synchronize()
        return round(times * 2 * PRODUCT**3 / 1e9)

    return run


def work(task: dict[str, Any]) -> None:
    """Run a variant each time a line comes in on stdin; answer with images and seconds."""
    os.sched_setaffinity(0, task["cores"])
    about = ""
    if task["kind"] == "keras":
        from keras_peer import runner

        run, about = runner(SIDE)
    elif task["kind"] == "multiply":
        run = multiply(task["precision"])
    else:
        run = estimate(task["model"], task["backend"], task["precision"], task["batch"])
    run()
    run()
    print(json.dumps(about), flush=True)
    for _ in sys.stdin:
        wall, cpu, count = time.perf_counter(), time.process_time(), 0
        while time.perf_counter() - wall < task["seconds"]:
            count += run()
        result = [count, time.perf_counter() - wall, time.process_time() - cpu]
        print(json.dumps(result), flush=True)


# --- in the process that measures -----------------------------------------------------------------


@dataclass
class Variant:
    """A line of the table: its processes, and what they did in each round."""

    name: str
    wanted: float | None
    processes: list[subprocess.Popen[str]]
    about: str = ""

    def __post_init__(self) -> None:
        self.rates: list[tuple[float, float]] = []  # a second of CPU, a second of wall time
        for process in self.processes:
            assert process.stdout is not None
            ready = process.stdout.readline()
            if not ready:
                raise SystemExit(f"{self.name} did not start: {shlex.join(process.args)}")  # type: ignore[arg-type]
            self.about = json.loads(ready)

    def measure(self) -> None:
        """Run all processes at once, and note images per second."""
        for process in self.processes:
            assert process.stdin is not None
            print(file=process.stdin, flush=True)
        answers = [json.loads(p.stdout.readline()) for p in self.processes if p.stdout]
        count, cpu = sum(a[0] for a in answers), sum(a[2] for a in answers)
        self.rates.append((count / cpu, sum(a[0] / a[1] for a in answers)))

    def medians(self) -> tuple[float, float]:
        """Images per CPU-second and per second."""
        return statistics.median(r[0] for r in self.rates), statistics.median(
            r[1] for r in self.rates
        )


def start(python: str, cores: list[int], per_core: bool, **task: Any) -> list[Any]:
    """Start the processes of a variant, one a core or one over all."""
    groups = [[core] for core in cores] if per_core else [cores]
    root = Path(__file__).parent
    paths = [str(root.parent), str(root), os.environ.get("PYTHONPATH", "")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
    return [
        subprocess.Popen(
            [python, __file__, "--worker", json.dumps({**task, "cores": group})],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env=environment,
        )
        for group in groups
    ]


def random_model(folder: Path) -> float:
    """Save a full-width model with random weights; return the GFLOP of one image."""
    import torch
    from torch import nn

    from builder.depth.densedepth import (
        DenseDepthConfig,
        DenseDepthForDepthEstimation,
        DenseDepthImageProcessor,
    )

    torch.manual_seed(0)
    model = DenseDepthForDepthEstimation(DenseDepthConfig()).eval()
    flop = 0

    def count(module: Any, _inputs: Any, output: torch.Tensor) -> None:
        nonlocal flop
        flop += 2 * output.numel() * module.weight[0].numel()

    hooks = [m.register_forward_hook(count) for m in model.modules() if isinstance(m, nn.Conv2d)]
    with torch.inference_mode():
        y = model.inverse_depth(model.decoder(model.encoder(torch.rand(1, 3, SIDE, SIDE)))[-1])
    for hook in hooks:
        hook.remove()
    with torch.no_grad():  # y of 4 +- 1.5, that is 1.5 to 10 m
        gain = 1.5 / y.std()
        model.head.weight.mul_(gain)
        model.head.bias.fill_(4 - gain * y.mean())
    model.save_pretrained(folder)
    DenseDepthImageProcessor().save_pretrained(folder)
    return flop / 1e9


def shifts(model: str, backend: str) -> dict[str, float]:
    """Return the mean shift of each precision against float32, on the fixed set."""
    from builder.depth import locate_model, precision_shifts
    from builder.recipe import Recipe

    recipe, located = locate_model(Recipe(depth_model=model))
    assert located is not None
    return dict(precision_shifts(located, recipe, backend=backend))  # type: ignore[arg-type]


def table(variants: list[Variant], gflop: float, clock: int) -> list[dict[str, Any]]:
    """Return the lines of the table; the ceiling goes by CPU time (clock 0) or wall time (1)."""
    rates = {variant.name: variant.medians() for variant in variants}
    lines = []
    for variant in variants:
        line: dict[str, Any] = {"variant": variant.name, "wanted": variant.wanted}
        line["per_cpu_second"], line["per_second"] = rates[variant.name]
        if KERAS in rates and variant.name not in CEILING.values():
            line["ratio_cpu"] = line["per_cpu_second"] / rates[KERAS][0]
            line["ratio_wall"] = line["per_second"] / rates[KERAS][1]
            kind = "bfloat16" if "bfloat16" in variant.name else "float32"
            if "mixed" not in variant.name and CEILING[kind] in rates:
                rate, most = rates[variant.name][clock], rates[CEILING[kind]][clock]
                line["of_ceiling"] = rate * gflop / most
        lines.append(line)
    return lines


def show(lines: list[dict[str, Any]]) -> None:
    print(f"{'':32}{'/CPU-s':>8}{'/s':>8}{'ratio':>8}{'wall':>8}{'wanted':>8}{'ceiling':>9}")
    for line in lines:
        cells = [f"{line['per_cpu_second']:8.3g}{line['per_second']:8.3g}"]
        cells += [f"{line[k]:8.2f}" if line.get(k) else f"{'':8}" for k in
                  ("ratio_cpu", "ratio_wall", "wanted")]  # fmt: skip
        cells += [f"{line['of_ceiling']:9.0%}" if "of_ceiling" in line else ""]
        print(f"{line['variant']:32}{''.join(cells)}")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="3 short rounds on one core")
    parser.add_argument("--cores", default="0", help="such as 0,1; default 0")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=4.0, help="of a variant in a round")
    parser.add_argument("--batch", type=int, help="composites per call; default as in a build")
    parser.add_argument(
        "--only", default="", help="backend to measure; all need 1.5 GB a core each"
    )
    parser.add_argument("--keras", default=sys.executable, help="a Python that has tf_keras")
    parser.add_argument("--demo", default="demo", help="the demo model, for its shifts")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        work(json.loads(options.worker))
        return
    if options.quick:
        options.rounds, options.seconds, options.cores = 3, 2.0, options.cores[:1]
    with tempfile.TemporaryDirectory() as folder:
        report(options, Path(folder))


def report(options: argparse.Namespace, folder: Path) -> None:
    """Measure, and print the result."""
    import torch

    cores, gpu = [int(core) for core in options.cores.split(",")], torch.cuda.is_available()
    mine = cores[:1] if gpu else cores
    gflop = random_model(folder)
    common = {"seconds": options.seconds, "model": str(folder), "batch": options.batch}
    variants = [Variant(KERAS, None, start(options.keras, cores, False, kind="keras", **common))]
    for precision, name in CEILING.items():
        task = {"kind": "multiply", "precision": precision, **common}
        variants.append(Variant(name, None, start(sys.executable, mine, True, **task)))
    for (backend, precision), wanted in WANTED.items():
        if (gpu and backend == "openvino") or options.only not in ("", backend):
            continue
        task = {"kind": "ours", "backend": backend, "precision": precision, **common}
        processes = start(sys.executable, mine, True, **task)
        variants.append(Variant(f"{precision}, {backend}", wanted, processes))
    try:
        for _ in range(options.rounds):
            for variant in variants:
                variant.measure()
    finally:
        for variant in variants:
            for process in variant.processes:
                process.kill()
    lines = table(variants, gflop, 1 if gpu else 0)
    moved = {
        f"{name}, {backend}": shifts(model, backend)
        for name, model in (("random full model", str(folder)), ("demo model", options.demo))
        for backend in (("torch",) if gpu else ("torch", "openvino"))
    }
    if options.json:
        print(json.dumps({"lines": lines, "gflop": gflop, "shifts": moved}))
        return
    print(f"{variants[0].about}; {platform.processor() or platform.machine()}, cores {cores}, "
          f"{gflop:.1f} GFLOP an image, {options.rounds} rounds of {options.seconds:g} s; matrix "
          "products in GFLOP")  # fmt: skip
    show(lines)
    for name, by_precision in moved.items():
        text = ", ".join(f"{k} {v:.3%}" for k, v in by_precision.items())
        print(f"mean shift against float32, {name}: {text}")


if __name__ == "__main__":
    main()
