"""The command `fgbg cutout`."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Any

import click
import cloup

from builder.console import RESUME, Command, bar, say, show
from builder.cutout.cutter import Settings
from builder.cutout.depth import FOV_DEG
from builder.cutout.folder import CutoutReport, cut_folder
from builder.depth import DEVICES
from builder.errors import CutoutError
from builder.sources import REPORT_FILE


@cloup.command("cutout", cls=Command)
@cloup.argument("photos", type=click.Path(path_type=Path))
@cloup.argument("out", type=click.Path(path_type=Path))
@cloup.option_group(
    "How to cut out",
    cloup.option(
        "--how",
        metavar="auto|key|MODEL|FOLDER|rembg:NAME",
        default="auto",
        show_default=True,
        help="key: by the background's colour; auto: only where the border is one smooth colour; "
        "or by a network: a Hub id, a Transformers folder, or one of rembg",
    ),
    cloup.option(
        "--instances", is_flag=True, help="where there are several objects, cut out each of them"
    ),
    cloup.option("--text", default="", help="what to cut out, for CLIPSeg and SAM 3"),
    cloup.option("--label", default="", help="the class to cut out, for networks with classes"),
    cloup.option(
        "--matting",
        metavar="MODEL|FOLDER",
        default="",
        help="a ViTMatte, which settles the edge that a network leaves",
    ),
    cloup.option("--revision", help="branch, tag or commit of MODEL on the Hub"),
    cloup.option(
        "--weights-license", help="the license of the network's weights, instead of its card's"
    ),
    cloup.option(
        "--device",
        type=click.Choice(DEVICES),
        default="auto",
        show_default=True,
        help="where networks run",
    ),
)
@cloup.option_group(
    "Files",
    cloup.option("--overwrite", is_flag=True, help="replace cut-outs that are there already"),
    cloup.option("--skip-bad", is_flag=True, help="exit with 0 where photographs are refused"),
    cloup.option("--dry-run", is_flag=True, help="print what would be cut out; write nothing"),
)
@cloup.option_group(
    "Depth",
    cloup.option(
        "--depth-model",
        metavar="MODEL|FOLDER|demo",
        help="a metric depth model that looks at each photograph; NAME.depth.png is its part",
    ),
    cloup.option(
        "--fov-deg",
        "--fov",
        type=float,
        default=FOV_DEG,
        show_default=True,
        help="field of view over the longer side, where EXIF says no focal length",
    ),
)
@cloup.option_group(
    "How it runs",
    cloup.option(
        "--workers",
        type=click.IntRange(1),
        show_default="cores, at most 4",
        help="photographs at once",
    ),
    cloup.option("--json", "as_json", is_flag=True, help="print the result as JSON"),
    cloup.option("-q", "--quiet", is_flag=True, help="print nothing but errors"),
)
@click.pass_context
def cutout_command(
    ctx: click.Context,
    /,
    photos: Path,
    out: Path,
    skip_bad: bool,
    as_json: bool,
    quiet: bool,
    **values: Any,
) -> None:
    """Cut objects out of photographs.

    PHOTOS holds photographs of one object each: before a background of one colour, as in a studio,
    or, with a network, anywhere. The folder OUT gets a cut-out of each, their credits and a report
    to look at. Interrupted and repeated, it makes only what is missing.
    """
    ctx.meta[RESUME] = "Finished cut-outs are kept; the same command resumes."
    with bar("photographs", "cutout", quiet) as progress:

        def began(n_photographs: int) -> None:
            progress.reset(n_photographs)

        settings = Settings(**{field.name: values.pop(field.name) for field in fields(Settings)})
        report = cut_folder(photos, out, settings, progress=progress.update, began=began, **values)
    if as_json or not quiet:
        show(report.to_json(), _lines(report), as_json)
    if report.refused:
        error = CutoutError(report.refused, report.out, len(report.cut) + len(report.kept))
        if not skip_bad:
            raise error
        if not quiet:
            say(str(error))


def _lines(report: CutoutReport) -> list[str]:
    made = f"{len(report.cut):,} {'would be cut out' if report.dry_run else 'cut out'}"
    kept = f", {len(report.kept):,} were there before" if report.kept else ""
    refused = f", {len(report.refused):,} refused" if report.refused else ""
    lines = [f"{made}{kept}{refused}."]
    if not report.dry_run:
        lines.append(f"Look at {Path(report.out) / REPORT_FILE}")
    return lines
