"""What each choice of appearance costs: processor time of a record of scenes, counted and encoded.

    python benchmarks/looks.py [--records 300]

All are measured in turn in one run, 40 records at a time, at 512 px with composed depth, after the
caches have filled. The last row has all choices at once.
"""

from __future__ import annotations

import argparse
import itertools
import time
from collections.abc import Iterator
from typing import Any

from builder.record import Encoder, Plan, Record, Renderer, Statistics
from builder.sources import SourceBank, demo_folders
from fgbg_dataset import FgbgDataset

CHOICES: dict[str, dict[str, Any]] = {
    "--blend mixed": {"blend": "mixed"},
    "--match 0-0.5": {"match": "0-0.5"},
    "--shadow 0.1-0.4": {"shadow": "0.1-0.4"},
    "--match-sharpness": {"match_sharpness": True},
    "--match-noise": {"match_noise": True},
    "--jpeg-history 40-95": {"jpeg_history": "40-95"},
    "--background-flip": {"background_flip": True},
    "--jitter 0.2": {"jitter": 0.2},
    "--object-jitter 0.3": {"object_jitter": 0.3},
    "--distractors 0-2": {"distractors": "0-2"},
}
PLAIN = {
    "layout": "scenes",
    "records": 40_000,
    "blend": "none",
    "background_flip": False,
    "object_jitter": 0.0,
}
STEP = 40


class Maker:
    """Makes, encodes and counts records of one recipe, as a build does."""

    def __init__(self, **fields: Any) -> None:
        project = FgbgDataset(*demo_folders(), **{**PLAIN, **fields}).project
        bank = SourceBank(project.foregrounds, project.backgrounds)
        self._records = Renderer(Plan(project.pinned), bank, None).records("train", 0, 20_000)
        self._encoder, self._counted = Encoder(project.pinned), Statistics.of(project.pinned.recipe)
        self.seconds = 0.0

    def make(self, records: Iterator[Record]) -> None:
        for record in records:
            self._encoder.row(record, statistics=self._counted)

    def step(self, n: int) -> None:
        start = time.process_time()
        self.make(itertools.islice(self._records, n))
        self.seconds += time.process_time() - start


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--records", type=int, default=320, help="of each row (%(default)s)")
    steps = -(-parser.parse_args().records // STEP)
    together = {name: value for fields in CHOICES.values() for name, value in fields.items()}
    makers = {
        "nothing": Maker(),
        **{name: Maker(**fields) for name, fields in CHOICES.items()},
        "all of them": Maker(**together),
    }
    for maker in makers.values():
        maker.step(4 * STEP)
        maker.seconds = 0.0
    for _ in range(steps):
        for maker in makers.values():
            maker.step(STEP)
    plain = makers["nothing"].seconds
    print("| choice | ms a record | of nothing |\n|---|---|---|")
    for name, maker in makers.items():
        one_ms = 1000 * maker.seconds / steps / STEP
        print(f"| `{name}` | {one_ms:.2f} | {maker.seconds / plain:.2f} |")


if __name__ == "__main__":
    main()
