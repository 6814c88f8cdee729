"""The command `fgbg`: parses, calls one function, prints."""

from __future__ import annotations

import json
import os
import shlex
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource
from tqdm import tqdm

from builder import __version__
from builder.depth import BACKENDS, DEVICES, Backend, Device
from builder.errors import FgbgError, PublishError, RecipeMismatchError
from builder.finetune import finetune_command
from builder.pinned import PinnedRecipe, load_recipe
from builder.recipe import DEMO_DEPTH_MODEL, Recipe, meaning
from builder.remote import Place, StorePath, on_this_machine, place
from builder.sources import demo_folders
from builder.typed import checked_fields
from builder.untrusted import printable

Command = Callable[..., Any]

_RESUME = "Finished shards are kept; the same command resumes."
_MOST_LINES = 20  # of one kind of problem; --json has the others
_RECIPE_FIELDS = [field.name for field in fields(Recipe)]


class _Terminated(BaseException):
    """SIGTERM."""


def _terminate(_number: int, _frame: Any) -> None:
    raise _Terminated


class _Group(click.Group):
    """Turns our errors into one clear text on stderr and their exit code, in this one place."""

    def invoke(self, ctx: click.Context) -> Any:
        # As an exception, so that worker processes are ended and claims given back.
        before = signal.signal(signal.SIGTERM, _terminate)
        try:
            return super().invoke(ctx)
        except FgbgError as error:
            message, code = str(error), error.exit_code
        except OSError as error:
            message, code = f"{error.filename or 'output'}: {error.strerror or error}", 1
        except KeyboardInterrupt:
            message, code = f"interrupted. {ctx.meta.get('resume', _RESUME)}", 130
        except _Terminated:
            message, code = f"terminated. {ctx.meta.get('resume', _RESUME)}", 143
        finally:
            signal.signal(signal.SIGTERM, before)
        click.secho("Error: ", fg="red", nl=False, err=True)
        click.echo(_printable(message), err=True)
        return ctx.exit(code)


def _recipe_options(command: Command) -> Command:
    """Add one option for every field of the recipe."""
    defaults = Recipe()
    for field in reversed(checked_fields(Recipe)):
        name = field.name
        flag = f"--{name.replace('_', '-')}"
        default = getattr(defaults, name)
        if bool in field.types:
            flag += f"/--no-{name.replace('_', '-')}"
        kind = click.Choice(field.choices) if field.choices else field.types[0]
        text = meaning(name)
        if name not in ("depth_input", "depth_revision"):
            text += f"  [default: {default}]"
        command = click.option(flag, name, type=kind, default=None, help=f"{text}")(command)
    return click.option(
        "--recipe",
        "recipe_file",
        type=click.Path(path_type=Path),
        help="repeat a recipe.json; options given beside it win over it",
    )(command)


def _run_options(command: Command) -> Command:
    """Add the options that say how a build runs; none of them changes a record."""
    for option in (
        click.option("--json", "as_json", is_flag=True, help="print the result as JSON"),
        click.option("--batch-size", type=click.IntRange(1), help="composites per model call"),
        click.option(
            "--backend", type=click.Choice(BACKENDS), default="auto", help="what runs the model"
        ),
        click.option(
            "--device", type=click.Choice(DEVICES), default="auto", help="where the model runs"
        ),
        click.option(
            "--workers", type=click.IntRange(1), help="processes  [default: cores, or 1 with a GPU]"
        ),
        click.option("--skip-bad", is_flag=True, help="go on without files that cannot be used"),
        click.option("--demo", is_flag=True, help="use the bundled sources"),
    ):
        command = option(command)
    return command


def _engine_options(command: Command) -> Command:
    """Add the options that say where workers run; none of them changes a record."""
    for option in (
        click.option(
            "--num-gpus-per-worker",
            type=click.FloatRange(0),
            help="GPUs of a Ray worker, may be a fraction  [default: 1 where there are GPUs]",
        ),
        click.option(
            "--address",
            help="Ray cluster, auto or HOST:PORT  [default: RAY_ADDRESS, or one of this machine]",
        ),
        click.option(
            "--engine",
            type=click.Choice(["local", "ray"]),
            default="local",
            help="what runs the workers: this machine, or a Ray cluster  [default: local]",
        ),
    ):
        command = option(command)
    return command


def _given(ctx: click.Context, values: dict[str, Any]) -> dict[str, Any]:
    """Return the fields of the recipe given on the command line."""
    return {
        name: values[name]
        for name in _RECIPE_FIELDS
        if ctx.get_parameter_source(name) is ParameterSource.COMMANDLINE
    }


def _chosen_recipe(
    ctx: click.Context, recipe_file: Path | None, values: dict[str, Any]
) -> tuple[Recipe, Any]:
    """Make the recipe from a file and the options given on the command line."""
    given = _given(ctx, values)
    if recipe_file is None:
        return Recipe(**given), None
    recipe, pinned = load_recipe(recipe_file)
    return replace(recipe, **given), pinned


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


@click.group(cls=_Group, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="fgbg")
def main() -> None:
    """Make a Hugging Face dataset of composites, exact masks and depth from two folders."""


@main.command()
@click.argument("paths", nargs=-1, metavar="FOREGROUNDS BACKGROUNDS OUT")
@_recipe_options
@_run_options
@_engine_options
@click.option("--license", "license_", help="license of the set for its card, such as cc-by-4.0")
@click.option(
    "--shard-range",
    metavar="I/N",
    help="make part I of N of the shards, beside other builds  [default: this SLURM array task's]",
)
@click.option("--extend", is_flag=True, help="add the records of new images to the finished OUT")
@click.option("--finish", is_flag=True, help="put OUT together from shards made; needs OUT alone")
@click.option("-q", "--quiet", is_flag=True, help="print nothing but errors")
@click.pass_context
def build(
    ctx: click.Context,
    /,
    paths: tuple[str, ...],
    recipe_file: Path | None,
    demo: bool,
    skip_bad: bool,
    workers: int | None,
    device: Device,
    backend: Backend,
    batch_size: int | None,
    as_json: bool,
    license_: str | None,
    shard_range: str | None,
    extend: bool,
    finish: bool,
    quiet: bool,
    engine: Any,
    address: str | None,
    num_gpus_per_worker: float | None,
    **values: Any,
) -> None:
    """Build a set from two folders of images into the folder OUT.

    FOREGROUNDS holds cut-outs with an alpha channel, BACKGROUNDS photographs. With --demo give
    OUT alone. An interrupted build is resumed by the same command; several builds of the same
    OUT share the work.
    """
    if extend and (finish or recipe_file is not None):
        raise click.UsageError(
            "--extend takes the recipe of OUT; give neither --recipe nor --finish."
        )
    if finish:
        _only_finish(ctx)
    if engine == "local" and (address is not None or num_gpus_per_worker is not None):
        raise click.UsageError("--address and --num-gpus-per-worker are for --engine ray.")
    from builder.build import BuildOptions

    foregrounds, backgrounds, out = _folders(paths, demo or finish, with_out=True)
    assert out is not None
    began = time.perf_counter()
    say = _silent if quiet else _say
    options = BuildOptions(
        device=device,
        backend=backend,
        batch_size=batch_size,
        progress=not quiet,
        license=license_,
        engine=engine,
        address=address,
        num_gpus_per_worker=num_gpus_per_worker,
        resume=shlex.join(["fgbg", *sys.argv[1:]]),
        shard_range=None if finish else _shard_range(shard_range, say),
    )
    if isinstance(out, StorePath) and not out.probe():
        say(
            f"{out.scheme}:// cannot create an object unless it exists: run one build of {out} at "
            "a time."
        )
    if finish:
        from fgbg_dataset import finish_build

        dataset: Any = finish_build(out, options=options)
        _report_build(out, dataset, began, as_json, quiet)
        return
    recipe, pinned = _chosen_recipe(ctx, recipe_file, values)
    earlier = pinned if pinned and pinned.stages else None
    if extend:
        from fgbg_dataset import earlier_set

        earlier = earlier_set(on_this_machine(out))
        recipe = replace(earlier.recipe, **_given(ctx, values))
    dataset = _dataset(foregrounds, backgrounds, recipe, skip_bad, earlier)
    say(f"Checking and preparing the images of {foregrounds} and {backgrounds} ...")
    with tqdm(unit=" images", desc="sources", disable=True if quiet else None) as bar:
        project = dataset.prepare(out, bar.update)
    if pinned is not None and (lines := _input_differences(pinned, project.pinned)):
        raise RecipeMismatchError(str(recipe_file), lines)
    _report_sources(project, say)
    dataset.download_and_prepare(out, file_format="parquet", num_proc=workers, options=options)
    _report_build(out, dataset, began, as_json, quiet)


def _only_finish(ctx: click.Context) -> None:
    """Refuse options that decide what --finish only puts together."""
    given = [
        parameter.opts[0]
        for parameter in ctx.command.params
        if parameter.name not in ("paths", "finish", "license_", "as_json", "quiet")
        and ctx.get_parameter_source(str(parameter.name)) is ParameterSource.COMMANDLINE
    ]
    if given or len(ctx.params["paths"]) != 1:
        raise click.UsageError(
            f"--finish takes OUT alone{', without ' if given else ''}{', '.join(given)}."
        )


def _shard_range(text: str | None, say: Callable[[str], None]) -> Any:
    """Return the part of the shards to make: as asked, else of this task of a SLURM array."""
    from builder.build import ShardRange

    if text is not None:
        return ShardRange.parse(text)
    part = ShardRange.of_slurm_array(os.environ)
    if part is not None:
        say(f"Task of a SLURM array: makes part {part} of the shards (--shard-range {part}).")
    return part


def _report_build(out: Place, dataset: Any, began: float, as_json: bool, quiet: bool) -> None:
    from builder.build import build_status

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
    if as_json:
        click.echo(json.dumps(result))
    elif not quiet and not state["finished"]:
        shards = state["splits"].values()
        done, all_ = sum(s["shards_done"] for s in shards), sum(s["shards"] for s in shards)
        click.echo(
            f"This part is done; {done} of all {all_} shards are. The last build to end puts {out} "
            f"together; else run: fgbg build --finish {shlex.quote(str(out))}"
        )
    elif not quiet:
        _tell_result(out, result)


def _dataset(
    foregrounds: Place,
    backgrounds: Place,
    recipe: Recipe,
    skip_bad: bool,
    earlier: PinnedRecipe | None = None,
) -> Any:
    from fgbg_dataset import FgbgDataset

    return FgbgDataset(foregrounds, backgrounds, recipe=recipe, skip_bad=skip_bad, earlier=earlier)


def _say(text: str) -> None:
    click.echo(_printable(text), err=True)


def _printable(text: str) -> str:
    """Return lines without what would steer the terminal; names and texts of others hold it."""
    return "\n".join(map(printable, text.split("\n")))


def _silent(_text: str) -> None:
    return


def _input_differences(held: PinnedRecipe, asked: PinnedRecipe) -> list[str]:
    """Return what makes the sources, or the weights, others than a repeated recipe names."""
    if asked.recipe.depth_model != held.recipe.depth_model:  # chosen on the command line
        asked = replace(asked, depth=held.depth)
    return held.input_differences(asked)


def _report_sources(project: Any, say: Callable[[str], None]) -> None:
    pinned = project.pinned
    say(f"{len(pinned.foregrounds)} foregrounds, {len(pinned.backgrounds)} backgrounds.")
    for name, reason in pinned.skipped:
        say(f"Left out: {name}: {reason}")
    for group in project.duplicates:
        say(f"Same content: {', '.join(group)}. They stay in one split.")
    if pinned.recipe.depth_model == DEMO_DEPTH_MODEL:
        say(
            "Depth by the small demo model that comes with this package: near and far, hardly "
            "metres. For data to train on name another, for example --depth-model "
            "depth-anything/Depth-Anything-V2-Metric-Indoor-Small-hf (Apache-2.0, metres)."
        )


def _tell_result(out: Place, result: dict[str, Any]) -> None:
    splits = ", ".join(f"{name} {records}" for name, records in result["splits"].items())
    shown = printable(str(out))
    click.echo(f"{result['records']} records in {shown} ({splits}), {_size(result['size_bytes'])}.")
    click.echo(f"  card     {shown}/README.md")
    click.echo(f"  samples  {shown}/assets/samples.png, {shown}/assets/preview.html")
    if isinstance(out, StorePath):
        click.echo(f'  use      load_dataset("parquet", data_files="{shown}/data/train-*")')
    else:
        click.echo(f'  use      load_dataset("{shown}", split="train")')


def _size(size_bytes: float) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if size_bytes < 1000:
            return f"{size_bytes:.3g} {unit}"
        size_bytes /= 1000
    return f"{size_bytes:.4g} TB"


@main.command()
@click.argument("paths", nargs=-1, metavar="FOREGROUNDS BACKGROUNDS [OUT]")
@_recipe_options
@_run_options
@click.pass_context
def plan(
    ctx: click.Context,
    /,
    paths: tuple[str, ...],
    recipe_file: Path | None,
    demo: bool,
    skip_bad: bool,
    workers: int | None,
    device: Device,
    backend: Backend,
    batch_size: int | None,
    as_json: bool,
    **values: Any,
) -> None:
    """Say what a build would make: records, files, bytes, time. Takes the arguments of build."""
    from builder.build import BuildOptions, forecast

    foregrounds, backgrounds, _ = _folders(paths, demo, with_out=False)
    recipe, _ = _chosen_recipe(ctx, recipe_file, values)
    dataset = _dataset(foregrounds, backgrounds, recipe, skip_bad)
    options = BuildOptions(device=device, backend=backend, batch_size=batch_size)
    estimate = forecast(dataset.project, workers=workers, options=options)
    if as_json:
        click.echo(json.dumps(asdict(estimate)))
        return
    click.echo(f"{'split':<20}{'records':>14}{'files':>8}")
    for name, records in estimate.splits.items():
        click.echo(f"{name:<20}{records:>14}{estimate.shards[name]:>8}")
    click.echo(f"{'total':<20}{estimate.records:>14}{sum(estimate.shards.values()):>8}\n")
    for column, size_bytes in estimate.column_bytes.items():
        per_record = size_bytes / estimate.records
        click.echo(f"{column:<20}{_size(size_bytes):>14}{_size(per_record):>12} a record")
    click.echo(f"{'total':<20}{_size(sum(estimate.column_bytes.values())):>14}\n")
    click.echo(
        f"about {_duration(estimate.seconds)} with {estimate.workers} "
        f"{'process' if estimate.workers == 1 else 'processes'} "
        f"({estimate.records / estimate.seconds:.3g} records/s) and "
        f"{_size(estimate.memory_bytes)} of memory"
    )


def _duration(seconds: float) -> str:
    for unit, length in (("days", 86400), ("hours", 3600), ("minutes", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.1f} {unit}"
    return f"{seconds:.0f} seconds"


@main.command()
@click.argument("out", type=place)
@click.option("--json", "as_json", is_flag=True, help="print the result as JSON")
def status(out: Place, as_json: bool) -> None:
    """Say how far the build of OUT is."""
    from builder.build import build_status

    result = build_status(out)
    if as_json:
        click.echo(json.dumps(result))
        return
    click.echo(f"{'split':<20}{'records':>22}{'files':>16}")
    for name, split in result["splits"].items():
        records = f"{split['records_done']} of {split['records']}"
        shards = f"{split['shards_done']} of {split['shards']}"
        click.echo(f"{name:<20}{records:>22}{shards:>16}")
    share = result["records_done"] / result["records"]
    state = "finished" if result["finished"] else f"{share:.1%} done; run the build again to go on"
    click.echo(_printable(f"{out}: {state}"))


@main.command()
@click.argument("out", type=on_this_machine)
@click.option("--license", "license_", help="license of the set, such as cc-by-4.0")
@click.option("--title", help="heading of the card")
def card(out: Path, license_: str | None, title: str | None) -> None:
    """Write README.md of the finished build OUT again."""
    from builder.release import write_card

    click.echo(_printable(str(write_card(out, license=license_, title=title))))


@main.command()
@click.argument("out", type=on_this_machine)
def preview(out: Path) -> None:
    """Make the sample sheet and the preview page of the finished build OUT again."""
    from builder.release import write_preview

    for path in write_preview(out):
        click.echo(_printable(str(path)))


@main.command("verify")
@click.argument("target", metavar="OUT|REPO_ID")
@click.option("--all", "everything", is_flag=True, help="check every record")
@click.option(
    "--sample", type=click.IntRange(1), help="number of records to check  [default: 1000]"
)
@click.option("--revision", help="branch, tag or commit of REPO_ID")
@click.option("--json", "as_json", is_flag=True, help="print the result as JSON")
@click.pass_context
def verify_(
    ctx: click.Context,
    target: str,
    everything: bool,
    sample: int | None,
    revision: str | None,
    as_json: bool,
) -> None:
    """Check a finished build OUT, or one published as REPO_ID, against its own recipe.

    Files, sources, statistics and card are checked whole, records by composing them again.
    """
    from builder.release import verify

    if everything and sample is not None:
        raise click.UsageError("give either --all or --sample.")
    with tqdm(unit=" records", desc="verify", disable=None) as bar:
        report = verify(
            target,
            sample=None if everything else sample or 1000,
            revision=revision,
            progress=bar.update,
        )
    if as_json:
        click.echo(json.dumps(report.to_json()))
    else:
        click.echo("\n".join(report.lines(_MOST_LINES)))
    ctx.exit(0 if report.ok else 1)


@main.command()
@click.argument("out", type=on_this_machine)
@click.argument("repo_id")
@click.option("--private", is_flag=True, help="make a new repository private")
@click.option("--revision", help="branch to push to, made if it is missing  [default: main]")
@click.option(
    "--create-pr", is_flag=True, help="open a pull request instead of changing the branch"
)
@click.option("--config", help="name of the records' config  [default: what the card says]")
@click.option("--license", "license_", help="license of the set, such as cc-by-4.0")
@click.option("--commit-message", help="first line of the commit")
@click.option("--dry-run", is_flag=True, help="say what would be sent, and send nothing")
@click.option("--yes", is_flag=True, help="send without asking")
@click.option("--json", "as_json", is_flag=True, help="print the result as JSON")
def push(
    out: Path,
    repo_id: str,
    private: bool,
    revision: str | None,
    create_pr: bool,
    config: str | None,
    license_: str | None,
    commit_message: str | None,
    dry_run: bool,
    yes: bool,
    as_json: bool,
) -> None:
    """Publish the finished build OUT as the dataset REPO_ID (NAMESPACE/NAME) on the Hub.

    One commit makes everything visible. Interrupted and repeated, it sends only what is missing.
    """
    from huggingface_hub.utils.tqdm import disable_progress_bars

    from builder.release import PushPlan, publish

    def approve(plan: PushPlan) -> bool:
        _tell_plan(out, plan)
        return not dry_run and (yes or not (plan.send or plan.delete) or _confirmed())

    disable_progress_bars()  # one of ours, over all files, instead of one a file
    _say(f"Verifying {out} ...")
    done = publish(
        out,
        repo_id,
        private=private or None,
        revision=revision,
        create_pr=create_pr,
        config=config,
        license=license_,
        commit_message=commit_message,
        approve=approve,
        progress=True,
    )
    if as_json:
        click.echo(json.dumps(asdict(done)))
    elif done.result == "published":
        click.echo(f"Published: {done.pr_url or done.commit_url}")
    elif done.result == "unchanged":
        click.echo(f"Nothing to do: the set is at {done.commit_url} as it is here.")
    else:
        click.echo("Nothing was sent.")


def _tell_plan(out: Path, plan: Any) -> None:
    visible = {True: "private", False: "public", None: "as your account makes new ones"}
    state = "" if plan.exists else "new, "
    total, left = sum(plan.files.values()), sum(plan.send.values())
    goal = f"a pull request to {plan.revision}" if plan.create_pr else plan.revision
    _say(f"{plan.records:,} records of {out}")
    _say(f"  to        {plan.url} ({goal})")
    _say(f"  visible   {state}{visible[plan.private]}")
    _say(f"  license   {plan.license or 'none'}")
    _say(f"  config    {plan.config}")
    _say(f"  set       {len(plan.files)} files, {_size(total)}")
    _say(f"  send      {len(plan.send)} files, {_size(left)}")
    for path in plan.delete[:10]:
        _say(f"  delete    {path}")
    if len(plan.delete) > 10:
        _say(f"  delete    ... {len(plan.delete)} files of the earlier set in all")
    for warning in plan.warnings:
        _say(f"  note      {warning}")


def _confirmed() -> bool:
    if not sys.stdin.isatty():
        raise PublishError(
            "nobody is here to confirm this; look at the plan above and add --yes to send it."
        )
    return click.confirm("Send it?", err=True)


@main.command("convert-depth")
@click.argument("checkpoint", type=click.Path(path_type=Path))
@click.argument("out_dir", type=click.Path(path_type=Path))
@click.option(
    "--aligned/--half-pixel",
    default=True,
    help="how bilinear upsampling places pixels; no file says it  [default: aligned]",
)
@click.option("--max-depth", default=10.0, help="farthest depth in m; 80 for KITTI  [default: 10]")
@click.option(
    "--leaky-between/--no-leaky-between",
    default=None,
    help="LeakyReLU between the convolutions of an up-step  [default: what the file says]",
)
@click.option(
    "--dtype",
    type=click.Choice(["float32", "bfloat16", "float16"]),
    default="float32",
    help="of the weights written  [default: float32]",
)
@click.option("--json", "as_json", is_flag=True, help="print the result as JSON")
def convert_depth(
    checkpoint: Path,
    out_dir: Path,
    aligned: bool,
    max_depth: float,
    leaky_between: bool | None,
    dtype: Any,
    as_json: bool,
) -> None:
    """Convert a DenseDepth checkpoint (Keras .h5, PyTorch) to a Transformers model in OUT_DIR."""
    from builder.depth.densedepth.convert_densedepth import convert

    done = convert(
        checkpoint,
        out_dir,
        align_corners=aligned,
        max_depth=max_depth,
        leaky_between_convs=leaky_between,
        dtype=dtype,
    )
    if done.leaky_assumed:
        _say(
            "The file does not say whether there is a LeakyReLU between the convolutions of an "
            "up-step; taken is none, as before 2019-03-11. See --leaky-between."
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
    if as_json:
        click.echo(json.dumps(result))
        return
    for name, value in result.items():
        click.echo(f"{name:<22}{value}")


main.add_command(finetune_command)
