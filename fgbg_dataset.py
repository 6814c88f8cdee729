"""The dataset builder: recipe -> plan -> records.

    builder = FgbgDataset("foregrounds", "backgrounds", placements=5)
    builder.download_and_prepare("out", file_format="parquet")
    builder.as_dataset("train")              # or load_dataset("out", split="train")
    builder.as_streaming_dataset("train")    # made on the fly, nothing stored
    builder.as_array_stream("train")         # the same, never encoded: many times as fast

`datasets` gives up all finished work when a build is interrupted; here shards are made and
committed in a hidden folder beside the output first, so that the same call resumes.
"""

from __future__ import annotations

import glob
import inspect
import os
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, get_args

import datasets

from builder.batches import RecordReader
from builder.build import (
    FINISH,
    BuildOptions,
    FinishedSplit,
    Ledger,
    Project,
    WorkFolder,
    already_built,
    begun_project,
    build_shards,
    write_metadata,
)
from builder.cutout import CutoutReport, cutout
from builder.errors import (
    BadSourcesError,
    BuildFailedError,
    CardError,
    CutoutError,
    CutoutModelError,
    DepthModelError,
    FgbgError,
    NewerVersionError,
    NotABuildError,
    OutputError,
    PublishError,
    PublishFailedError,
    RecipeError,
    RecipeMismatchError,
    TrainingError,
    UnfinishedError,
)
from builder.exports import Export, export
from builder.files import read_text
from builder.layout import (
    RECIPE_FILE,
    built_format,
    content_digest,
    data_glob,
    read_recipe,
    state_files,
)
from builder.pinned import PinnedRecipe
from builder.recipe import Recipe
from builder.record import TRAIN, DepthCodec, Plan, Tally
from builder.release import (
    TABLE_RECORDS,
    Publication,
    VerifyReport,
    browse,
    publish,
    verify,
    write_card,
    write_preview,
)
from builder.remote import Place, StorePath, local_folder, place
from builder.schema import features, record_columns
from builder.sources import scan
from builder.streaming import (
    RecordMaker,
    RecordStream,
    Rows,
    Unit,
    array_features,
    encoded_features,
    units_of,
)
from builder.tables import FileFormat
from builder.untrusted import parse_json, printable

__all__ = [
    "BadSourcesError",
    "BuildFailedError",
    "BuildOptions",
    "CardError",
    "CutoutError",
    "CutoutModelError",
    "CutoutReport",
    "DepthCodec",
    "DepthModelError",
    "Export",
    "FgbgDataset",
    "FgbgDatasetDict",
    "FgbgError",
    "NewerVersionError",
    "NotABuildError",
    "OutputError",
    "PinnedRecipe",
    "Publication",
    "PublishError",
    "PublishFailedError",
    "Recipe",
    "RecipeError",
    "RecipeMismatchError",
    "RecordReader",
    "TrainingError",
    "UnfinishedError",
    "VerifyReport",
    "browse",
    "cutout",
    "earlier_set",
    "export",
    "extend_build",
    "finish_build",
    "publish",
    "verify",
]

# Composites that stand for a set not yet built, when a reader needs its mean and std.
_SAMPLED_RECORDS = 2048
_DESCRIPTION = (
    "Composites of foreground cut-outs on backgrounds, with exact masks and, where a depth model "
    "was used, its depth. recipe.json makes every record again."
)
_HOMEPAGE = "https://pypi.org/project/fgbg-dataset/"
_TRANSFERS = 8  # files of a set that are put in their places at once
_MAX_INFO_BYTES = 2**26
_POLL_S = 0.2
# A cache that `datasets` takes for one on a store, and so does not try to make.
_NOWHERE = "memory://fgbg-without-a-cache"


@dataclass
class FgbgConfig(datasets.BuilderConfig):
    """The two source folders and the recipe."""

    foreground_dir: str = ""
    background_dir: str = ""
    recipe: Recipe = Recipe()
    skip_bad: bool = False
    earlier: PinnedRecipe | None = None
    repeats: PinnedRecipe | None = None

    def create_config_id(
        self, config_kwargs: dict[str, Any], custom_features: datasets.Features | None = None
    ) -> str:
        """Name the cache folder, so that changed sources are never mistaken for old ones."""
        folders = (self.foreground_dir, self.background_dir)
        like = self.earlier or self.repeats
        held = like.fingerprint if like else None
        content = [_stamps(Path(folder)) for folder in folders]
        chosen = [self.recipe.to_dict(), self.skip_bad, held, content]
        digest = datasets.fingerprint.Hasher.hash(chosen)
        return f"{self.name}-{digest}"


def _stamps(folder: Path) -> list[tuple[str, int, int]]:
    """Return path, size and time of every file of a folder.

    These name the cache folder and nothing else: every file is read and hashed once, when the
    sources are prepared, and for a set of 30 GB doing so here as well took minutes.

    Raises:
        FgbgError: the folder is missing or holds no file.
    """
    found = []
    for where, _, names in os.walk(folder):
        for name in names:
            with suppress(OSError):  # a link that leads nowhere; reported with the bad sources
                status = Path(where, name).stat()
                path = Path(where, name).relative_to(folder).as_posix()
                found.append((path, status.st_size, status.st_mtime_ns))
    return sorted(found) if found else [(file.file, 0, 0) for file in scan(folder).files]


class FgbgDatasetDict(datasets.DatasetDict):
    """All splits of a built set; `push_to_hub` publishes the whole set, see `publish`."""

    def __init__(self, splits: Mapping[str, datasets.Dataset], out: str) -> None:
        super().__init__(splits)
        self._out, self._built = out, self._fingerprints()

    def _fingerprints(self) -> dict[str, str]:
        return {name: split._fingerprint for name, split in self.items()}

    def push_to_hub(
        self,
        repo_id: str,
        config_name: str | None = None,
        *,
        commit_message: str | None = None,
        private: bool | None = None,
        token: str | bool | None = None,
        revision: str | None = None,
        create_pr: bool = False,
        **kwargs: Any,
    ) -> Any:
        """Publish the set with its card, recipe, sources and statistics, in one commit.

        Splits that have been changed are no longer those that recipe and statistics describe;
        they are pushed as `datasets` pushes any others.

        Args:
            config_name: name of the records' config; `default` unless the card says another.
            **kwargs: further arguments of `DatasetDict.push_to_hub`, for changed splits alone.

        Returns:
            A `Publication`, with `oid`, `commit_url` and `pr_url`.

        Raises:
            PublishError: the license, the name or the repository forbids it.
            PublishFailedError: the Hub could not be reached or kept refusing.
        """
        options: dict[str, Any] = {
            "commit_message": commit_message,
            "private": private,
            "token": token,
            "revision": revision,
            "create_pr": create_pr,
        }
        if self._fingerprints() != self._built:
            name = config_name or "default"
            return super().push_to_hub(repo_id, name, **options, **kwargs)
        if kwargs:
            raise PublishError(
                f"{', '.join(kwargs)} is not used here: the files of the set are sent as they are."
            )
        return publish(self._out, repo_id, config=config_name, **options)


class FgbgDataset(datasets.GeneratorBasedBuilder):
    """Builds a dataset of (fg_bg, mask, depth) records from two folders of images.

    Args:
        foreground_dir: cut-outs with an alpha channel; PNG, WebP or TIFF.
        background_dir: photographs; JPEG, PNG, WebP, TIFF or BMP. Either may be an address, such
            as s3://bucket/photographs; its files are fetched to the cache.
        recipe: a whole recipe; or give its fields as keyword arguments (`placements=5`).
        skip_bad: go on without files that cannot be used.
        earlier: a set whose sources keep their places, splits and record ids; new files make
            records that follow. Its recipe is the default.
        repeats: a set that is made again from its recipe. Its sources keep their ids and pixels,
            whatever they are called now, and depth the meaning it has there.
        cache_dir: as for every `datasets` builder; `options` may hold its other arguments too.

    Raises:
        RecipeError: a field of the recipe makes no sense.
        FgbgError: a folder is missing or empty.
    """

    BUILDER_CONFIG_CLASS = FgbgConfig
    VERSION = datasets.Version("1.0.0")
    config: FgbgConfig

    def __init__(
        self,
        foreground_dir: str | os.PathLike[str] | StorePath,
        background_dir: str | os.PathLike[str] | StorePath,
        *,
        recipe: Recipe | None = None,
        skip_bad: bool = False,
        earlier: PinnedRecipe | None = None,
        repeats: PinnedRecipe | None = None,
        cache_dir: str | None = None,
        **options: Any,
    ) -> None:
        base = inspect.signature(datasets.GeneratorBasedBuilder.__init__).parameters
        chosen = {name: options.pop(name) for name in set(options) - set(base)}
        if recipe is not None and chosen:
            raise RecipeError(f"give either recipe or {', '.join(sorted(chosen))}, not both.")
        default = earlier.recipe.to_dict() if earlier else {}
        self._project: Project | None = None
        given = {
            "foreground_dir": os.fspath(local_folder(foreground_dir)),
            "background_dir": os.fspath(local_folder(background_dir)),
            "recipe": recipe or Recipe.from_dict({**default, **chosen}),
            "skip_bad": skip_bad,
            "earlier": earlier,
            "repeats": repeats,
            **options,
        }
        try:
            if cache_dir is None and str(datasets.config.HF_DATASETS_CACHE).startswith("~"):
                cache_dir = _NOWHERE  # of a user without a home
            super().__init__(cache_dir=cache_dir, **given)
        except OSError as error:
            if cache_dir is not None:
                raise OutputError.of(error, Path(cache_dir)) from None
            # `datasets` makes its cache here already, and a build to OUT needs none. Where it is
            # needed, `download_and_prepare` says what to do.
            super().__init__(cache_dir=_NOWHERE, **given)

    def __repr__(self) -> str:
        folders = f"{self.config.foreground_dir!r}, {self.config.background_dir!r}"
        recipe = repr(self.config.recipe).removeprefix("Recipe(").removesuffix(")")
        return f"FgbgDataset({', '.join(filter(None, (folders, recipe)))})"

    def _info(self) -> datasets.DatasetInfo:
        return datasets.DatasetInfo(
            description=_DESCRIPTION,
            homepage=_HOMEPAGE,
            # The classes of scenes are known once the sources are, see `prepare`.
            features=features(record_columns(self.config.recipe)),
        )

    @property
    def project(self) -> Project:
        """The sources, prepared, with the recipe pinned to them and to the depth weights.

        Raises:
            BadSourcesError: files that cannot be used.
            DepthModelError: the depth model cannot be found.
        """
        return self.prepare(None)

    @property
    def plan(self) -> Plan:
        """Which record lies where."""
        return Plan(self.project.pinned)

    def prepare(
        self,
        output_dir: str | os.PathLike[str] | StorePath | None,
        progress: Callable[[int], object] | None = None,
    ) -> Project:
        """Check and prepare the sources once; see `project`.

        Args:
            output_dir: of an interrupted build, whose prepared sources are used again.
            progress: called with 1 after each source file.

        Raises:
            OutputError: output_dir cannot be written; found out before any work.
        """
        if self._project is None:
            config = self.config
            work = WorkFolder(place(output_dir).absolute()) if output_dir is not None else None
            if work:
                work.restore()
                if work.is_free():
                    work.check_writable()
            self._project = Project.prepare(
                Path(config.foreground_dir),
                Path(config.background_dir),
                config.recipe,
                skip_bad=config.skip_bad,
                work=work,
                earlier=config.earlier,
                repeats=config.repeats,
                progress=progress,
            )
            self.info.features = encoded_features(self._project.pinned)
        return self._project

    def download_and_prepare(
        self,
        output_dir: str | os.PathLike[str] | StorePath | None = None,
        *,
        file_format: FileFormat = "arrow",
        num_proc: int | None = None,
        options: BuildOptions | None = None,
        **unused: Any,
    ) -> None:
        """Build the set, or go on with an interrupted build of it.

        Args:
            output_dir: where it will be, whole or not at all; the `datasets` cache by default. May
                be an address, such as s3://bucket/sets/mine.
            file_format: `parquet` is what gets published, `arrow` what `as_dataset` maps fastest.
            num_proc: worker processes; by default one a core, or one for a GPU; on Ray as many
                as the cluster has room for.
            options: how it runs (device, batch size, progress); changes no record.

        Raises:
            TypeError: further arguments of `DatasetBuilder.download_and_prepare`, none of which
                has a meaning here.
            ValueError: another file format.
            BadSourcesError: files that cannot be used, before any work.
            RecipeMismatchError: output_dir holds another set.
            BuildFailedError: some shards failed; the same call resumes.
            OutputError: output_dir cannot be written.
        """
        if unused:
            raise TypeError(
                f"download_and_prepare does not use {', '.join(sorted(unused))}: nothing is "
                "downloaded, and the recipe decides how large a file is (shard_records)."
            )
        if file_format not in get_args(FileFormat):
            raise ValueError(f"file_format is {file_format!r}; it must be 'arrow' or 'parquet'.")
        if output_dir is None and self._cache_dir_root == _NOWHERE:
            raise OutputError(
                f"the cache of datasets ({datasets.config.HF_DATASETS_CACHE}) cannot be written; "
                "pass output_dir or cache_dir, or set HF_HOME."
            )
        out = place(output_dir if output_dir is not None else self._cache_dir).absolute()
        if isinstance(out, StorePath) and file_format != "parquet":
            raise OutputError(
                f"{out} lies on a store, where Arrow files cannot be mapped into memory; pass "
                'file_format="parquet".'
            )
        self._output_dir = str(out)  # what `as_dataset` speaks of if this build fails
        self.prepare(out)
        self._complete(out, file_format, options or BuildOptions(), num_proc)

    def _complete(
        self,
        out: Place,
        file_format: FileFormat,
        options: BuildOptions,
        workers: int | None,
        make: bool = True,
    ) -> None:
        pinned = self.project.pinned
        try:
            if not already_built(out, pinned, file_format):
                self._build(WorkFolder(out), file_format, options, workers, make)
        except (FgbgError, OSError) as error:
            # Another build may have completed the set, and taken the work folder away.
            if not already_built(out, pinned, file_format):
                if isinstance(error, OSError):
                    raise OutputError.of(error, out) from error
                raise
        if already_built(out, pinned, file_format):
            WorkFolder(out).drop_if_complete()  # its build may have been killed just before this
            self._output_dir, self._file_format = str(out), file_format
            self.info = _read_info(out)

    def _build(
        self,
        work: WorkFolder,
        file_format: FileFormat,
        options: BuildOptions,
        workers: int | None,
        make: bool,
    ) -> None:
        """Make shards until all are there, then put the set together, if no other build does."""
        pinned = self.project.pinned
        ledger = Ledger(work, pinned, file_format)
        with work.entered(pinned.fingerprint, options.claim_expiry_s) as leases:
            work.begin(self.project, leases)
            while not already_built(work.out, pinned, file_format):
                if make:
                    build_shards(self.project, work, leases, ledger, workers, options)
                if not leases.take(FINISH):
                    time.sleep(_POLL_S)  # another is putting it together
                    continue
                work.restore()  # or was, until it died
                if already_built(work.out, pinned, file_format):
                    break
                if missing := ledger.missing(range(ledger.plan.n_shards)):
                    if not make:
                        names = [ledger.name(number) for number in missing]
                        raise UnfinishedError(work.out, names, work.command())
                    leases.give_back(FINISH)
                    continue
                with work.new_folder() as built:
                    super().download_and_prepare(
                        str(built),
                        file_format=file_format,
                        work=work,
                        ledger=ledger,
                        options=options,
                    )
                    state_files(built)
                    work.publish(built)

    def _download_and_prepare(
        self,
        dl_manager: datasets.DownloadManager,
        verification_mode: datasets.VerificationMode,
        *,
        file_format: FileFormat,
        work: WorkFolder,
        ledger: Ledger,
        options: BuildOptions,
    ) -> None:
        finished = ledger.finished()
        super()._download_and_prepare(
            dl_manager, verification_mode, file_format=file_format, work=work, finished=finished
        )
        self.info.license = options.license or ""
        folder = Path(self._output_dir)
        write_metadata(folder, work, self.project.pinned, finished)
        write_preview(folder)
        write_card(folder, license=options.license, name=work.out.name)

    def _prepare_split(
        self,
        split_generator: datasets.SplitGenerator,
        *,
        work: WorkFolder,
        finished: dict[str, FinishedSplit],
        **kwargs: Any,
    ) -> None:
        """Place the finished shards of a split, as links, where `datasets` looks for them."""
        split, info = finished[split_generator.name], split_generator.split_info
        built, start, files = Path(self._output_dir), 0, []
        for name, shard in zip(split.stored, split.figures.shards, strict=True):
            files.append((name, built, shard.file, start < TABLE_RECORDS))
            start += shard.rows
        with ThreadPoolExecutor(_TRANSFERS) as pool:
            list(pool.map(lambda one: work.put_shard(*one), files))
        info.num_examples, info.num_bytes = split.figures.rows, split.figures.size_bytes
        if len(split.figures.shards) > 1:
            info.shard_lengths = [shard.rows for shard in split.figures.shards]

    def as_dataset(self, split: Any = None, in_memory: bool = False) -> Any:
        """Return the built set as `FgbgDatasetDict`, or a split or part of one as `Dataset`.

        Raises:
            NotABuildError: the set has not been built yet, or its build has failed.
        """
        out = place(self._output_dir)
        if not (out / RECIPE_FILE).is_file():
            raise NotABuildError(
                f"{out} holds no finished set yet; call download_and_prepare first. After a build "
                "that failed, the same call goes on with it."
            )
        self._file_format = built_format(out)  # by an earlier builder, maybe
        found = self._as_dataset_or_dict(split, in_memory)
        if isinstance(found, datasets.DatasetDict):
            return FgbgDatasetDict(found, self._output_dir)
        return found

    def _as_dataset_or_dict(self, split: Any, in_memory: bool) -> Any:
        if self._file_format != "parquet":
            return super().as_dataset(split, in_memory=in_memory)
        # A folder may be called `cut-outs [final]`; only the names of files are a pattern.
        out = glob.escape(self._output_dir)
        files = {name: f"{out}/{data_glob(name, 'parquet')}" for name in self.info.splits}
        # The cache of `datasets` knows files by their paths and times alone. Where all times are
        # one, as in a container's image, it would give the set that lay at the same path before.
        return datasets.load_dataset(
            "parquet",
            name=content_digest(place(self._output_dir))[:16],
            data_files=files,
            split=split,
            keep_in_memory=in_memory,
        )

    def as_streaming_dataset(
        self, split: str | None = None, base_path: str | None = None, *, with_depth: bool = True
    ) -> Any:
        """Return a split, or a dict of all, whose records are made when they are read.

        Nothing is stored. In epoch 0 the rows are those of the stored set, to the byte and in its
        order; after `set_epoch(e)` every foreground is placed anew, and the order is another, both
        decided by seed and e alone. `load_state_dict` resumes at the next record, in the epoch of
        the state, and makes no record again.

        Args:
            split: name of a split, several as `"train+unseen_both"`, or `"all"`.
            base_path: not used; as for every `datasets` builder.
            with_depth: False leaves out the column `depth`, and runs no depth model. For arrays
                that were never encoded call `as_array_stream`.

        Raises:
            ValueError: there is no such split.
            BadSourcesError: files that cannot be used.
        """
        make = self._maker.encoded if with_depth else self._maker.encoded_without_depth
        return self._streams(split, make, encoded_features(self.project.pinned, with_depth))

    def as_array_stream(self, split: str | None = None) -> Any:
        """Return a split, or a dict of all, as arrays that are composed when they are read.

        Nothing is encoded, so this is many times as fast as `as_streaming_dataset`, and there is
        no depth. A row holds `record_id`, `fg_bg` (H, W, 3) uint8, `mask` (H, W) uint8 of 0 and
        255, `background_id`, `foreground_id`, `flipped`, `bbox` and `coverage`. Epochs and
        resuming are those of `as_streaming_dataset`; `with_format("torch")` gives uint8 tensors.

        Args:
            split: name of a split, several as `"train+unseen_both"`, or `"all"`.

        Raises:
            ValueError: there is no such split.
            BadSourcesError: files that cannot be used.
        """
        columns = array_features(self.project.pinned)
        return self._streams(split, self._maker.arrays, columns, decoded=True)

    def _streams(
        self,
        split: str | None,
        generate: Callable[..., Rows],
        columns: datasets.Features,
        decoded: bool = False,
    ) -> Any:
        info = self.info.copy()
        info.features = columns
        made = columns if decoded else None
        splits = list(self.plan.splits)
        names = splits if split in (None, "all") else [s.strip() for s in str(split).split("+")]
        if unknown := [name for name in names if name not in splits]:
            raise ValueError(f"there is no split {unknown[0]!r}; there are {', '.join(splits)}.")
        streams = {name: RecordStream.make(generate, self.plan, name, info, made) for name in names}
        if split is None:
            return datasets.IterableDatasetDict(streams)
        if len(streams) == 1:
            return streams[names[0]]
        return RecordStream.of(
            datasets.concatenate_datasets([*streams.values()], info=info, split=split)
        )

    @cached_property
    def _maker(self) -> RecordMaker:
        return RecordMaker(self.project)

    def reader(self) -> RecordReader:
        """Return what makes training batches of this set's records, stored or streamed.

        Its mean and std are exact where the set is built; else they are those of 2048 composites
        of the train split, before encoding.
        """
        folder = place(self._output_dir)
        if (folder / RECIPE_FILE).is_file():
            return RecordReader.of(folder)
        tally = Tally(256, 3)
        n_sampled = min(self.plan.splits[TRAIN].n_records, _SAMPLED_RECORDS)
        for record in self._maker.renderer(with_depth=False).composites(TRAIN, 0, n_sampled):
            tally.add(record.fg_bg)
        return RecordReader.counted(self.plan.pinned, tally)

    def _split_generators(
        self, dl_manager: datasets.DownloadManager | None = None
    ) -> list[datasets.SplitGenerator]:
        generators = []
        for split in self.plan.splits.values():
            kwargs = {"split": split.name, "units": units_of(split.n_records)}
            generators.append(datasets.SplitGenerator(name=split.name, gen_kwargs=kwargs))
        return generators

    def _generate_examples(self, split: str, units: list[Unit]) -> Rows:
        """Make rows as `datasets` asks of every builder; its streams call `RecordMaker`."""
        return self._maker.encoded(split, units)


def earlier_set(output_dir: str | os.PathLike[str] | StorePath) -> PinnedRecipe:
    """Return a finished set as what `FgbgDataset(..., earlier=...)` extends.

    Raises:
        NotABuildError: no finished set is there.
    """
    out = place(output_dir).absolute()
    WorkFolder(out).restore()
    return read_recipe(out)


def finish_build(
    output_dir: str | os.PathLike[str] | StorePath,
    *,
    file_format: FileFormat = "parquet",
    options: BuildOptions | None = None,
) -> FgbgDataset:
    """Put a set together whose shards have all been made; needs no sources and no depth model.

    Raises:
        UnfinishedError: shards are missing or damaged; names them.
        NotABuildError: no build was begun there.
    """
    out = place(output_dir).absolute()
    WorkFolder(out).restore()
    project, folder = begun_project(out)
    builder = FgbgDataset(
        folder / "foregrounds", folder / "backgrounds", recipe=project.pinned.recipe
    )
    builder._project = project
    builder._complete(out, file_format, options or BuildOptions(), None, make=False)
    return builder


def extend_build(
    foreground_dir: str | os.PathLike[str] | StorePath,
    background_dir: str | os.PathLike[str] | StorePath,
    output_dir: str | os.PathLike[str],
    *,
    num_proc: int | None = None,
    options: BuildOptions | None = None,
    skip_bad: bool = False,
) -> FgbgDataset:
    """Add the records of new images to a finished set; what is there stays as it is.

    Args:
        foreground_dir: with the new cut-outs; those of the set may be there as well, or not.
        background_dir: likewise.
        output_dir: the set, as Parquet, on this machine.
        num_proc: as for `FgbgDataset.download_and_prepare`, and so are the others.

    Raises:
        NotABuildError: there is no finished set.
        RecipeMismatchError: a source of the set has changed.
    """
    builder = FgbgDataset(
        foreground_dir, background_dir, skip_bad=skip_bad, earlier=earlier_set(output_dir)
    )
    builder.download_and_prepare(
        output_dir, file_format="parquet", num_proc=num_proc, options=options
    )
    return builder


def _read_info(out: Place) -> datasets.DatasetInfo:
    """Read what `datasets` wrote of a finished set.

    Raises:
        NotABuildError: it is damaged.
    """
    path = out / "dataset_info.json"
    try:
        return datasets.DatasetInfo.from_dict(parse_json(read_text(path, _MAX_INFO_BYTES)))
    except (OSError, ValueError, TypeError, LookupError, AttributeError) as error:
        why = printable(f"{type(error).__name__}: {error}")[:300]
        raise NotABuildError(
            f"{path} cannot be read ({why}). Everything else of the set is there: copy the file "
            "from where the set was published, or build the set again in another folder."
        ) from None
