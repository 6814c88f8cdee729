"""The command `fgbg`: parses, calls one function, prints."""

from __future__ import annotations

import glob
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import click
import cloup
from click.core import ParameterSource

from builder import __version__
from builder.console import (
    RESUME,
    Command,
    Group,
    Say,
    bar,
    command_line,
    duration,
    python_text,
    say,
    show,
    silent,
    size,
    table,
)
from builder.cutout import cutout_command
from builder.depth import BACKENDS, DEVICES
from builder.errors import FgbgError, RecipeMismatchError, summarized
from builder.exports import FORMATS
from builder.finetune import finetune_command
from builder.layout import loads_by_path
from builder.pinned import PinnedRecipe, load_recipe
from builder.recipe import DEMO_DEPTH_MODEL, LOOK_FIELDS, Recipe, layout_default, meaning
from builder.record import Plan
from builder.remote import Place, StorePath, local_folder, on_this_machine, place
from builder.sources import demo_folders
from builder.typed import Field, checked_fields

Decorator = Callable[[Any], Any]

_MOST_LINES = 20  # of one kind of problem; --json has the others
_RECIPE_FIELDS = [field.name for field in checked_fields(Recipe)]
_SCENE_FIELDS = (
    *("objects", "placement", "scale_jitter", "truncation", "max_overlap", "min_visible"),
    "rotation",
    *("occlude", "balance", "fov_deg", "relief"),
)
_RUN_FIELDS = ("device", "backend", "batch_size")
_ENGINE_FIELDS = ("engine", "address", "num_gpus_per_worker")

_MAKE = cloup.Section("Make a set")
_SHARE = cloup.Section("Check and publish it")
_MODELS = cloup.Section("Depth models")


@cloup.group(
    cls=Group,
    context_settings=cloup.Context.settings(
        help_option_names=["-h", "--help"],
        align_sections=True,
        align_option_groups=False,
        formatter_settings={"col1_max_width": 28},
    ),
)
@cloup.version_option(__version__, prog_name="fgbg")
def main() -> None:
    """Make a Hugging Face dataset of composites, exact masks and depth from two folders."""


def _command(section: cloup.Section, **settings: Any) -> Decorator:
    """Make a function a command of `fgbg`, listed after the ones above it."""
    return main.command(cls=Command, section=section, **settings)


_json = cloup.option("--json", "as_json", is_flag=True, help="print the result as JSON")
_quiet = cloup.option("-q", "--quiet", is_flag=True, help="print nothing but errors")
_license = cloup.option(
    "--license", "license_", help="license of the set for its card, such as cc-by-4.0"
)
_revision = cloup.option("--revision", help="branch, tag or commit of REPO_ID")


def _recipe_option(field: Field) -> Decorator:
    """Return the option of a field of the recipe."""
    flag = f"--{field.name.replace('_', '-')}"
    if bool in field.types:
        flag += f"/--no-{field.name.replace('_', '-')}"
    kind: Any = click.Choice(field.choices) if field.choices else field.types[0]
    if len(field.types) > 1 and str in field.types and float in field.types:
        kind = _SizeOrShare()
    # The default of depth_input depends on depth_model; its meaning says how.
    default = None if field.name == "depth_input" else getattr(Recipe(), field.name)
    shown: Any = True
    if (in_scenes := layout_default(field.name, "scenes")) != default and default is not None:
        shown = f"{_as_shown(field, default)}; scenes: {_as_shown(field, in_scenes)}"
    return cloup.option(
        flag, field.name, type=kind, default=default, show_default=shown, help=meaning(field.name)
    )


def _as_shown(field: Field, value: Any) -> Any:
    """Return how help texts write a value: a switch by its name."""
    name = field.name.replace("_", "-")
    return {True: name, False: f"no-{name}"}[value] if isinstance(value, bool) else value


class _SizeOrShare(click.ParamType):  # type: ignore[type-arg]
    """Whole px, a share, or a range of shares, as the recipe takes them."""

    name = "px|share|range"

    def convert(self, value: Any, _param: Any, _ctx: Any) -> Any:
        """Return a number where the text is one; the recipe checks it."""
        for kind in (int, float):
            try:
                return kind(value)
            except ValueError:
                continue
        return value


def _recipe_group(name: str) -> str:
    """Return the heading that an option of the recipe stands under."""
    if name in _SCENE_FIELDS:
        return "Scenes (and pairs, where one object suffices)"
    if name in LOOK_FIELDS:
        return "Appearance (masks stay exact)"
    if name in ("shard_records", "depth_precision") or name.endswith(("_format", "_quality")):
        return "Files"
    return "Depth" if name == "precision" or name.startswith("depth_") else "Records"


def _recipe_options(command: Any) -> Any:
    """Add one option for every field of the recipe, under three headings."""
    for title in ("Files", "Depth", *map(_recipe_group, ("blend", "objects")), "Records"):
        found = (field for field in checked_fields(Recipe) if _recipe_group(field.name) == title)
        command = cloup.option_group(title, *map(_recipe_option, found))(command)
    return command


_recipe_file = cloup.option(
    "--recipe",
    "recipe_file",
    type=click.Path(path_type=Path),
    help="repeat a recipe.json; options given beside it win over it",
)
_demo = cloup.option("--demo", is_flag=True, help="use the bundled sources; give no source folders")
_skip_bad = cloup.option("--skip-bad", is_flag=True, help="go on without files that cannot be used")
_source_options = cloup.option_group("Sources", _demo, _skip_bad, _recipe_file)
_run_options = cloup.option_group(
    "How it runs (changes no record)",
    cloup.option(
        "--workers", type=click.IntRange(1), show_default="cores, or 1 with a GPU", help="processes"
    ),
    cloup.option(
        "--device",
        type=click.Choice(DEVICES),
        default="auto",
        show_default=True,
        help="where the depth model runs",
    ),
    cloup.option(
        "--backend",
        type=click.Choice(BACKENDS),
        default="auto",
        show_default=True,
        help="what runs the depth model",
    ),
    cloup.option(
        "--batch-size",
        type=click.IntRange(1),
        show_default="2, or 32 on a GPU",
        help="composites per call of the depth model",
    ),
)
_engine_options = cloup.option_group(
    "Ray",
    cloup.option(
        "--engine",
        type=click.Choice(["local", "ray"]),
        default="local",
        show_default=True,
        help="what runs the workers: this machine, or a Ray cluster",
    ),
    cloup.option(
        "--address",
        show_default="RAY_ADDRESS, or one of this machine",
        help="Ray cluster: auto or HOST:PORT",
    ),
    cloup.option(
        "--num-gpus-per-worker",
        type=click.FloatRange(0),
        show_default="1 where there are GPUs",
        help="GPUs of a Ray worker; may be a fraction",
    ),
)
_output_options = cloup.option_group("Output", _license, _json, _quiet)


def _given(ctx: click.Context) -> dict[str, Any]:
    """Return the fields of the recipe given on the command line."""
    return {
        name: ctx.params[name]
        for name in _RECIPE_FIELDS
        if ctx.get_parameter_source(name) is ParameterSource.COMMANDLINE
    }


def _chosen_recipe(ctx: click.Context) -> tuple[Recipe, PinnedRecipe | None]:
    """Make the recipe from a file and the options given on the command line."""
    recipe_file: Path | None = ctx.params["recipe_file"]
    if recipe_file is None:
        return Recipe(**_given(ctx)), None
    recipe, pinned = load_recipe(recipe_file)
    return replace(recipe, **_given(ctx)), pinned


def _folders(
    paths: tuple[str, ...], demo: bool, with_out: bool
) -> tuple[Place, Place, Place | None]:
    """Split the positional paths into the two source folders and OUT."""
    wanted = [] if demo else ["FOREGROUNDS", "BACKGROUNDS"]
    names = [*wanted, "OUT"]
    allowed = (len(names),) if with_out else (len(wanted), len(names))
    if len(paths) not in allowed:
        raise click.UsageError(
            f"expected {' '.join(names if with_out else wanted) or 'no folder'}"
            f"{' with --demo' if demo else ''}, got {len(paths)} "
            f"{'path' if len(paths) == 1 else 'paths'}."
        )
    folders = [place(path) for path in paths]
    foregrounds: Place
    backgrounds: Place
    foregrounds, backgrounds = demo_folders() if demo else (folders[0], folders[1])
    return foregrounds, backgrounds, folders[-1] if len(paths) == len(names) else None


def _build_options(ctx: click.Context, values: dict[str, Any]) -> Any:
    from builder.build import BuildOptions

    if values["engine"] == "local" and (
        values["address"] is not None or values["num_gpus_per_worker"] is not None
    ):
        raise click.UsageError("--address and --num-gpus-per-worker are for --engine ray.")
    ctx.meta[RESUME] = "Finished shards are kept; the same command resumes."
    return BuildOptions(
        **{name: values[name] for name in (*_RUN_FIELDS, *_ENGINE_FIELDS)},
        progress=not values["quiet"],
        license=values["license_"],
        resume=command_line(["fgbg", *sys.argv[1:]]),
    )


main.add_command(cutout_command, section=_MAKE)


@_command(_MAKE, aliases=["plan"])
@cloup.argument("paths", nargs=-1, metavar="FOREGROUNDS BACKGROUNDS")
@_source_options
@_recipe_options
@_run_options
@cloup.option_group("Output", _json)
@click.pass_context
def estimate(ctx: click.Context, /, paths: tuple[str, ...], **values: Any) -> None:
    """Estimate the records, files, bytes and time of a build.

    Takes the arguments of build; OUT may be left out, and nothing is written.
    """
    from builder.build import BuildOptions, forecast

    foregrounds, backgrounds, _ = _folders(paths, values["demo"], with_out=False)
    recipe, pinned = _chosen_recipe(ctx)
    dataset = _dataset(foregrounds, backgrounds, recipe, values["skip_bad"], repeats=pinned)
    options = BuildOptions(**{name: values[name] for name in _RUN_FIELDS})
    found = forecast(dataset.project, workers=values["workers"], options=options)
    splits: list[tuple[object, ...]] = [("split", "records", "files")]
    splits += [(name, f"{n:,}", f"{found.shards[name]:,}") for name, n in found.splits.items()]
    splits.append(("total", f"{found.records:,}", f"{sum(found.shards.values()):,}"))
    columns: list[tuple[object, ...]] = [("column", "size", "a record")]
    columns += [(name, size(n), size(n / found.records)) for name, n in found.column_bytes.items()]
    columns.append(("total", size(sum(found.column_bytes.values())), ""))
    workers = "1 process" if found.workers == 1 else f"{found.workers} processes"
    time_line = (
        f"about {duration(found.seconds)} with {workers} "
        f"({found.records / found.seconds:,.3g} records/s) and "
        f"{size(found.memory_bytes)} of memory"
    )
    lines = [*table(splits), "", *table(columns), "", time_line, *_of_the_whole(dataset.plan)]
    show(asdict(found), lines, values["as_json"])


def _of_the_whole(plan: Any) -> Iterator[str]:
    """Say how many records there could be, and how many of a set are copies of others."""
    held, possible, copies = plan.n_records, plan.pinned.n_possible, plan.n_copies
    if held < possible:
        yield f"These are {held:,} of the {possible:,} records that the pictures give."
    if copies * 100 >= held:
        yield (
            f"About {copies:,} of the records are copies of others, for foregrounds nearly as "
            "large as the record have few places; lower --foreground-size or --placements."
        )


@_command(_MAKE)
@cloup.argument("paths", nargs=-1, metavar="FOREGROUNDS BACKGROUNDS OUT")
@_source_options
@_recipe_options
@_run_options
@_engine_options
@_output_options
@cloup.option("--extend", "extend_", is_flag=True, hidden=True, help="see fgbg extend")
@cloup.option("--finish", "finish_", is_flag=True, hidden=True, help="see fgbg finish")
@click.pass_context
def build(ctx: click.Context, /, paths: tuple[str, ...], **values: Any) -> None:
    """Build a set from two folders of pictures.

    FOREGROUNDS holds cut-outs with an alpha channel, BACKGROUNDS photographs; the set is written
    to the folder OUT. With --demo give OUT alone. An interrupted build is resumed by the same
    command; several builds of the same OUT share the work.
    """
    extend_, finish_ = values["extend_"], values["finish_"]
    if extend_ and (finish_ or values["recipe_file"] is not None):
        raise click.UsageError(
            "--extend takes the recipe of OUT; give neither --recipe nor --finish."
        )
    if finish_:
        _only_finish(ctx)
        _finish(place(paths[0]), values)
        return
    foregrounds, backgrounds, out = _folders(paths, values["demo"], with_out=True)
    assert out is not None
    if extend_:
        _extend(ctx, foregrounds, backgrounds, on_this_machine(out), values)
        return
    options = _build_options(ctx, values)
    recipe, pinned = _chosen_recipe(ctx)
    earlier = pinned if pinned and pinned.stages else None
    dataset = _dataset(foregrounds, backgrounds, recipe, values["skip_bad"], earlier, pinned)
    _make(dataset, out, values, options)


def _only_finish(ctx: click.Context) -> None:
    """Refuse options that decide what --finish only puts together."""
    given = [
        parameter.opts[0]
        for parameter in ctx.command.params
        if parameter.name not in ("paths", "finish_", "license_", "as_json", "quiet")
        and ctx.get_parameter_source(str(parameter.name)) is ParameterSource.COMMANDLINE
    ]
    if given or len(ctx.params["paths"]) != 1:
        raise click.UsageError(
            f"--finish takes OUT alone{', without ' if given else ''}{', '.join(given)}."
        )


@_command(_MAKE)
@cloup.argument("paths", nargs=-1, metavar="FOREGROUNDS BACKGROUNDS OUT")
@cloup.option_group("Sources", _demo, _skip_bad)
@_run_options
@_engine_options
@_output_options
@click.pass_context
def extend(ctx: click.Context, /, paths: tuple[str, ...], **values: Any) -> None:
    """Add the records of new pictures to a finished set.

    The recipe is that of OUT. Files, record ids and splits that are there stay as they are, to
    the byte. The folders may hold all pictures or only the new ones.
    """
    foregrounds, backgrounds, out = _folders(paths, values["demo"], with_out=True)
    assert out is not None
    _extend(ctx, foregrounds, backgrounds, on_this_machine(out), values)


def _extend(
    ctx: click.Context, foregrounds: Place, backgrounds: Place, out: Path, values: dict[str, Any]
) -> None:
    from fgbg_dataset import earlier_set

    options = _build_options(ctx, values)
    earlier = earlier_set(out)
    given = _given(ctx) if ctx.command is build else {}
    recipe = replace(earlier.recipe, **given)
    dataset = _dataset(foregrounds, backgrounds, recipe, values["skip_bad"], earlier)
    _make(dataset, out, values, options)


def _make(dataset: Any, out: Place, values: dict[str, Any], options: Any) -> None:
    """Build a set and report it."""
    began = time.perf_counter()
    report = silent if values["quiet"] else say
    _warn_of_store(out, report)
    report("Checking and preparing the pictures ...")
    with bar("images", "sources", values["quiet"]) as progress:
        project = dataset.prepare(out, progress.update)
    if recipe_file := values.get("recipe_file"):
        held = load_recipe(recipe_file)[1]
        if lines := _input_differences(held, project.pinned):
            raise RecipeMismatchError(str(recipe_file), lines)
    _report_sources(project, report)
    dataset.download_and_prepare(
        out, file_format="parquet", num_proc=values["workers"], options=options
    )
    _report_build(out, dataset, began, values)


@_command(_MAKE)
@cloup.argument("out", type=place)
@_output_options
def finish(out: Place, **values: Any) -> None:
    """Put a set together whose shards are all made.

    Needs neither the pictures nor the depth model. A build does this by itself; this is for
    builds on several machines, of which none saw the last shards of the others.
    """
    _finish(out, values)


def _finish(out: Place, values: dict[str, Any]) -> None:
    from builder.build import BuildOptions
    from fgbg_dataset import finish_build

    began = time.perf_counter()
    _warn_of_store(out, silent if values["quiet"] else say)
    options = BuildOptions(progress=not values["quiet"], license=values["license_"])
    _report_build(out, finish_build(out, options=options), began, values)


def _warn_of_store(out: Place, report: Say) -> None:
    """Say where two builds of one set could disturb each other."""
    if isinstance(out, StorePath) and not out.probe():
        report(
            f"{out.scheme}:// cannot create an object unless it exists: run one build of {out} at "
            "a time."
        )


def _dataset(
    foregrounds: Place,
    backgrounds: Place,
    recipe: Recipe,
    skip_bad: bool,
    earlier: PinnedRecipe | None = None,
    repeats: PinnedRecipe | None = None,
) -> Any:
    from fgbg_dataset import FgbgDataset

    return FgbgDataset(
        foregrounds,
        backgrounds,
        recipe=recipe,
        skip_bad=skip_bad,
        earlier=earlier,
        repeats=repeats,
    )


def _input_differences(held: PinnedRecipe | None, asked: PinnedRecipe) -> list[str]:
    """Return how the sources, or the weights, differ from those a repeated recipe names."""
    if held is None:
        return []
    if asked.recipe.depth_model != held.recipe.depth_model:  # chosen on the command line
        asked = replace(asked, depth=held.depth)
    return held.input_differences(asked)


def _report_sources(project: Any, report: Say) -> None:
    pinned = project.pinned
    report(f"{len(pinned.foregrounds)} foregrounds, {len(pinned.backgrounds)} backgrounds.")
    for name, reason in summarized(pinned.skipped):
        report(f"Left out: {name}: {reason}")
    for group in project.duplicates[:_MOST_LINES]:
        report(f"Same content: {', '.join(group)}. They stay in one split.")
    if (more := len(project.duplicates) - _MOST_LINES) > 0:
        report(f"Same content: {more} more groups.")
    for line in _of_the_whole(Plan(pinned)):
        report(line)
    if pinned.recipe.depth_model == DEMO_DEPTH_MODEL:
        report(
            "Depth comes from the small demo model of this package: near and far, hardly metres. "
            "For data to train on name another, for example --depth-model "
            "depth-anything/Depth-Anything-V2-Metric-Indoor-Small-hf (Apache-2.0, metres)."
        )


def _report_build(out: Place, dataset: Any, began: float, values: dict[str, Any]) -> None:
    from builder.build import build_status
    from builder.layout import read_statistics
    from builder.record import unknown_depth

    project, state = dataset.project, build_status(out)
    result = {
        "out": str(out),
        "finished": state["finished"],
        "records": dataset.plan.n_records,
        "splits": {name: split.n_records for name, split in dataset.plan.splits.items()},
        "size_bytes": dataset.info.dataset_size,
        "fingerprint": project.pinned.fingerprint,
        "skipped": [list(pair) for pair in project.pinned.skipped],
        "duplicates": [list(group) for group in project.duplicates],
        "seconds": round(time.perf_counter() - began, 3),
    }
    lines = _result_lines(out, result)
    if project.pinned.depth:
        splits = read_statistics(out, dataset.plan)
        unknown = unknown_depth({name: s.statistics for name, s in splits.items()})
        lines += [unknown] if unknown else []
    if values["as_json"] or not values["quiet"]:
        show(result, lines, values["as_json"])


def _result_lines(out: Place, result: dict[str, Any]) -> list[str]:
    splits = ", ".join(f"{name} {records}" for name, records in result["splits"].items())
    return [
        f"{result['records']} records in {out} ({splits}), {size(result['size_bytes'])}.",
        f"  card     {out}/README.md",
        f"  samples  {out}/assets/samples.png, {out}/assets/preview.html",
        f"  use      {_load_line(out)}",
    ]


def _load_line(out: Place) -> str:
    """Return the Python that loads a set, to be pasted.

    A folder on a store, or of a name that `load_dataset` does not take, is loaded by its files.
    """
    text = str(out)
    if isinstance(out, StorePath) or not loads_by_path(text):
        pattern = text if isinstance(out, StorePath) else glob.escape(text)
        return (
            f'load_dataset("parquet", data_files={python_text(f"{pattern}/data/train-*")}, '
            'split="train")'
        )
    return f'load_dataset({python_text(text)}, split="train")'


@_command(_MAKE)
@cloup.argument("backgrounds", type=place)
@cloup.option(
    "--out",
    type=click.Path(path_type=Path),
    default="ground.png",
    show_default=True,
    help="picture to write",
)
@_recipe_option(next(f for f in checked_fields(Recipe) if f.name == "depth_model"))
@_recipe_option(next(f for f in checked_fields(Recipe) if f.name == "depth_revision"))
@cloup.option("--size", type=int, default=512, show_default=True, help="side of a record in px")
def ground(
    backgrounds: Place, out: Path, depth_model: str, depth_revision: str | None, size: int
) -> None:
    """Draw where objects would stand on backgrounds.

    It shows what a build of scenes would find: the ground is tinted green, its horizon red; under a
    background without a ground stands why.
    """
    from builder.build import find_grounds
    from builder.release import ground_sheet

    recipe = Recipe(
        layout="scenes", size=size, depth_model=depth_model, depth_revision=depth_revision
    )
    found = find_grounds(local_folder(backgrounds), recipe)
    ground_sheet(found).save(out, "PNG")
    n_ground = sum(s.backdrop is not None and s.backdrop.region is not None for s in found)
    show(str(out), f"{out}: {n_ground} of {len(found)} backgrounds have a ground.", as_json=False)


@_command(_MAKE)
@cloup.argument("out", type=place)
@_json
def status(out: Place, as_json: bool) -> None:
    """Report how far the build of OUT is."""
    from builder.build import build_status

    result = build_status(out)
    rows: list[tuple[object, ...]] = [("split", "records", "files")]
    for name, split in result["splits"].items():
        records = f"{split['records_done']:,} of {split['records']:,}"
        rows.append((name, records, f"{split['shards_done']:,} of {split['shards']:,}"))
    share = result["records_done"] / result["records"]
    state = "finished" if result["finished"] else f"{share:.1%} done; run the build again to go on"
    show(result, [*table(rows), f"{out}: {state}"], as_json)


@_command(_SHARE, name="verify")
@cloup.argument("target", metavar="OUT|REPO_ID")
@cloup.option("--all", "everything", is_flag=True, help="check every record")
@cloup.option(
    "--sample",
    type=click.IntRange(1),
    default=1000,
    show_default=True,
    help="number of records to check",
)
@_revision
@_json
@_quiet
@click.pass_context
def verify_(
    ctx: click.Context,
    target: str,
    everything: bool,
    sample: int,
    revision: str | None,
    as_json: bool,
    quiet: bool,
) -> None:
    """Check a finished set against its own recipe.

    OUT is a folder, REPO_ID a set on the Hub. Files, sources, statistics and card are checked
    whole, records by composing them again. The exit code is 1 if anything is wrong.
    """
    from builder.release import verify

    if everything and ctx.get_parameter_source("sample") is ParameterSource.COMMANDLINE:
        raise click.UsageError("give either --all or --sample.")
    with bar("records", "verify", quiet) as progress:
        report = verify(
            target,
            sample=None if everything else sample,
            revision=revision,
            progress=progress.update,
        )
    if as_json or not quiet:
        show(report.to_json(), report.lines(_MOST_LINES), as_json)
    ctx.exit(0 if report.ok else 1)


@_command(_SHARE)
@cloup.argument("out", type=on_this_machine)
@_license
@cloup.option("--title", help="heading of the card")
def card(out: Path, license_: str | None, title: str | None) -> None:
    """Write the card (README.md) of a finished set again."""
    from builder.release import write_card

    path = str(write_card(out, license=license_, title=title))
    show(path, path, as_json=False)


@_command(_SHARE)
@cloup.argument("out", type=on_this_machine)
def preview(out: Path) -> None:
    """Make the sample sheet and preview page again."""
    from builder.release import write_preview

    paths = [str(path) for path in write_preview(out)]
    show(paths, paths, as_json=False)


@_command(_SHARE, name="browse")
@cloup.argument("target", metavar="OUT|REPO_ID")
@cloup.option("--no-open", is_flag=True, help="print the address only; open no browser")
@cloup.option(
    "--port",
    type=click.IntRange(0, 65535),
    default=0,
    show_default="a free one",
    help="port on 127.0.0.1",
)
@cloup.option(
    "--flags",
    type=click.Path(dir_okay=False, path_type=Path),
    default=Path("flags.csv"),
    show_default=True,
    help="file that flags of records are kept in",
)
@_revision
def browse_(target: str, no_open: bool, port: int, flags: Path, revision: str | None) -> None:
    """Look through all records of a finished set in the browser.

    OUT is a folder, here or on a store, REPO_ID a set on the Hub. The page is served to this
    machine alone, until Ctrl-C.
    """
    from builder.release import browse

    def report(url: str) -> None:
        show(url, url, as_json=False)
        say("Ctrl-C ends it.")

    browse(
        target,
        port=port,
        open_browser=not no_open,
        flags=flags,
        revision=revision,
        report=report,
    )


@_command(_SHARE)
@cloup.argument("out", type=on_this_machine)
@cloup.argument("repo_id")
@cloup.option_group(
    "Where to",
    cloup.option("--private", is_flag=True, help="make a new repository private"),
    cloup.option(
        "--revision", show_default="main", help="branch to push to, made if it is missing"
    ),
    cloup.option(
        "--create-pr", is_flag=True, help="open a pull request instead of changing the branch"
    ),
)
@cloup.option_group(
    "What",
    cloup.option("--config", show_default="what the card says", help="name of the records' config"),
    _license,
    cloup.option("--commit-message", help="first line of the commit"),
)
@cloup.option_group(
    "How",
    cloup.option("--dry-run", is_flag=True, help="print what would be sent, and send nothing"),
    cloup.option("--yes", "-y", is_flag=True, help="send without asking"),
    _json,
    _quiet,
)
@click.pass_context
def push(
    ctx: click.Context,
    /,
    out: Path,
    repo_id: str,
    license_: str | None,
    dry_run: bool,
    yes: bool,
    as_json: bool,
    quiet: bool,
    private: bool,
    **where: Any,
) -> None:
    """Publish a finished set on the Hub as REPO_ID.

    REPO_ID is NAMESPACE/NAME. One commit makes everything visible. Interrupted and repeated, it
    sends only what is missing.
    """
    from huggingface_hub.utils.tqdm import disable_progress_bars

    from builder.release import PushPlan, publish

    report = silent if quiet else say
    ctx.meta[RESUME] = "What was sent is kept; the same command goes on."

    def approve(plan: PushPlan) -> bool:
        if not quiet or not yes:  # nobody agrees to what is not shown
            _show_plan(out, plan)
        return not dry_run and (yes or not (plan.send or plan.delete) or _confirmed())

    disable_progress_bars()  # one of ours, over all files, instead of one a file
    report(f"Verifying {out} ...")
    done = publish(
        out,
        repo_id,
        private=private or None,
        license=license_,
        approve=approve,
        progress=not quiet,
        **where,
    )
    text = {
        "published": f"Published: {done.pr_url or done.commit_url}",
        "unchanged": f"Nothing to do: the set is at {done.commit_url} as it is here.",
    }.get(done.result, "Nothing was sent.")
    if as_json or not quiet:
        show(asdict(done), text, as_json)


def _show_plan(out: Path, plan: Any) -> None:
    visible = {True: "private", False: "public", None: "as your account makes new ones"}
    state = "" if plan.exists else "new, "
    goal = f"a pull request to {plan.revision}" if plan.create_pr else plan.revision
    say(f"{plan.records:,} records of {out}")
    say(f"  to        {plan.url} ({goal})")
    say(f"  visible   {state}{visible[plan.private]}")
    say(f"  license   {plan.license or 'none'}")
    say(f"  config    {plan.config}")
    say(f"  set       {len(plan.files)} files, {size(sum(plan.files.values()))}")
    say(f"  send      {len(plan.send)} files, {size(sum(plan.send.values()))}")
    for path in plan.delete[:10]:
        say(f"  delete    {path}")
    if len(plan.delete) > 10:
        say(f"  delete    ... {len(plan.delete)} files of the earlier set in all")
    for warning in plan.warnings:
        say(f"  note      {warning}")


def _confirmed(do: str = "send it", question: str = "Send it?") -> bool:
    if not sys.stdin.isatty():
        raise FgbgError(
            f"nobody is here to confirm this; look at the plan above and add --yes to {do}."
        )
    return click.confirm(question, err=True)


@_command(_SHARE, name="export")
@cloup.argument("target", metavar="OUT|REPO_ID")
@cloup.argument("dest")
@cloup.option_group(
    "What",
    cloup.option(
        "--to", "to", type=click.Choice(FORMATS), required=True, help="format to write it in"
    ),
    cloup.option(
        "--split", "splits", multiple=True, help="split to write, may be repeated; else all"
    ),
    cloup.option(
        "--category-from",
        type=click.Choice(["foreground", "single"]),
        default="foreground",
        show_default=True,
        help="class objects as their foregrounds are, or all as one",
    ),
    _revision,
)
@cloup.option_group(
    "How",
    cloup.option("--dry-run", is_flag=True, help="print what would be written, and write nothing"),
    cloup.option("--yes", "-y", is_flag=True, help="write without asking"),
    _json,
    _quiet,
)
@click.pass_context
def export_(
    ctx: click.Context,
    target: str,
    dest: str,
    to: str,
    splits: tuple[str, ...],
    category_from: str,
    revision: str | None,
    dry_run: bool,
    yes: bool,
    as_json: bool,
    quiet: bool,
) -> None:
    """Write a finished set in another format.

    OUT is a folder, REPO_ID a set on the Hub; DEST is a new folder. Pictures are copied as they are
    stored. Interrupted and repeated, it goes on where it stopped.
    """
    from builder.exports import export

    ctx.meta[RESUME] = "Finished shards are kept; the same command resumes."

    def approve(plan: Any) -> bool:
        if not quiet or not yes:
            _show_export(plan)
        return not dry_run and (yes or _confirmed("write it", "Write it?"))

    done = export(
        target,
        dest,
        to,
        splits=splits or None,
        category_from=category_from,
        revision=revision,
        approve=approve,
        progress=not quiet,
    )
    if as_json or not quiet:
        held = f"{done.records:,} records with {done.objects:,} objects in {dest}"
        summary = f"{held}: {done.files:,} files, {size(done.size_bytes)}."
        lines = [summary, *done.lost] if done.written else ["Nothing was written."]
        show({**asdict(done), "records": done.records}, lines, as_json)


def _show_export(plan: Any) -> None:
    say(f"{plan.records:,} records of {plan.source}")
    say(f"  to        {plan.dest}, as {plan.format}")
    for name, n in plan.splits.items():
        say(f"  split     {name}, {n:,} records")
    say(f"  read      {plan.shards:,} files, {size(plan.reads_bytes)}")
    if plan.shards_kept:
        say(f"  kept      {plan.shards_kept:,} files of an interrupted export")


@_command(_MODELS, name="convert-depth")
@cloup.argument("checkpoint", type=click.Path(path_type=Path))
@cloup.argument("out", metavar="OUT_DIR", type=click.Path(path_type=Path))
@cloup.option(
    "--aligned/--half-pixel",
    default=True,
    show_default=True,
    help="how bilinear upsampling places pixels; no file says it",
)
@cloup.option(
    "--max-depth",
    default=10.0,
    show_default=True,
    help="farthest depth in m; 80 for KITTI",
)
@cloup.option(
    "--leaky-between/--no-leaky-between",
    default=None,
    show_default="what the file says",
    help="LeakyReLU between the convolutions of an up-step",
)
@cloup.option(
    "--dtype",
    type=click.Choice(["float32", "bfloat16", "float16"]),
    default="float32",
    show_default=True,
    help="of the weights written",
)
@_json
def convert_depth(
    checkpoint: Path,
    out: Path,
    aligned: bool,
    max_depth: float,
    leaky_between: bool | None,
    dtype: Any,
    as_json: bool,
) -> None:
    """Convert a DenseDepth checkpoint to Transformers.

    CHECKPOINT is a Keras .h5 or PyTorch file; the model is written to the folder OUT_DIR.
    """
    from builder.depth.densedepth.convert_densedepth import convert

    done = convert(
        checkpoint,
        out,
        align_corners=aligned,
        max_depth=max_depth,
        leaky_between_convs=leaky_between,
        dtype=dtype,
    )
    if done.leaky_assumed:
        say(
            "The file does not say whether there is a LeakyReLU between the convolutions of an "
            "up-step; none is assumed, as before 2019-03-11. See --leaky-between."
        )
    result = {
        "out": str(done.folder),
        "source_sha256": done.source_sha256,
        "encoder": done.encoder,
        "decoder_channels": done.config.decoder_widths[0],
        "leaky_between_convs": done.config.leaky_between_convs,
        "leaky_from": done.leaky_from,
        "align_corners": done.config.align_corners,
        "max_depth": done.config.max_depth,
        "dtype": done.dtype,
    }
    show(result, [f"{name:<22}{value}" for name, value in result.items()], as_json)


main.add_command(finetune_command, section=_MODELS)
