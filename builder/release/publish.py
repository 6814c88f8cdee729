"""Publish a finished build on the Hub: sent file by file, made visible by one commit.

Readers see the set that was there before or the new one, never a mixture. Nothing is remembered
between runs: what is on the Hub already is not sent again, so an interrupted push is simply
repeated. Whether files travel by Xet or by plain LFS is huggingface_hub's business.
"""

from __future__ import annotations

import logging
import os
import random
import re
import shutil
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from tqdm import tqdm

from builder.build import WorkFolder, copy_as_parquet
from builder.errors import (
    FgbgError,
    NotABuildError,
    PublishError,
    PublishFailedError,
    RecipeError,
)
from builder.files import open_regular, read_text, sha256_file, sweep, temporary_name
from builder.hub import is_connection, request_errors, response_of, words
from builder.layout import (
    BACKGROUNDS_FILE,
    CARD_FILE,
    FIFTYONE_FILE,
    FOREGROUNDS_FILE,
    MAX_BYTES,
    PAGE_FILE,
    RECIPE_FILE,
    SHEET_FILE,
    STATISTICS_FILE,
    TABLE_FILE,
    built_format,
    read_recipe,
    read_statistics,
    shard_file,
    with_files,
)
from builder.pinned import PinnedRecipe
from builder.record import Plan
from builder.release.card import card_keys, card_text, records_config
from builder.release.preview import write_preview
from builder.release.verify import verify
from builder.remote import on_this_machine
from builder.sources import conflicts, terms, unclear_weights, uncredited
from builder.untrusted import listed, one_line

if TYPE_CHECKING:
    from huggingface_hub import CommitInfo, CommitOperationAdd, HfApi

T = TypeVar("T")

_REPO_TYPE = "dataset"
_OURS = ("data/", "foregrounds/", "backgrounds/", "preview/")  # whatever lies there is of a set
_MAX_PROBLEMS = 20
_BATCH_FILES, _BATCH_BYTES = 16, 2**30
_MAX_HELD_BYTES = 2**26  # of a file that is held in memory until it is sent

# Statuses that pass. huggingface_hub itself repeats the requests that send files after most of
# them, and the loop below repeats the others.
_PASSING = (408, 409, 412, 429, 500, 502, 503, 504)
_LEFT_TO_US = (409, 412)  # of the requests that send files
_LONGEST_PUSH_S = 7 * 86_400
_TRIES = 8  # of each kind of failure, before a step is given up
_FIRST_WAIT_S, _LONGEST_WAIT_S, _LONGEST_RETRY_AFTER_S = 1.0, 60.0, 900.0

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class PushPlan:
    """What a push will do; sizes in bytes, paths as in the repository.

    `private` is None for a new repository whose visibility the account's default decides.
    """

    repo_id: str
    url: str
    revision: str
    create_pr: bool
    exists: bool
    private: bool | None
    config: str
    license: str | None
    records: int
    files: dict[str, int]
    send: dict[str, int]
    delete: tuple[str, ...]
    warnings: tuple[str, ...]


@dataclass(frozen=True)
class Publication:
    """What a push did, and the commit that holds the set; there is none when nothing was sent."""

    plan: PushPlan
    result: Literal["published", "unchanged", "not sent"]
    oid: str | None = None
    commit_url: str | None = None
    pr_url: str | None = None


def publish(
    out: Path | str,
    repo_id: str,
    *,
    private: bool | None = None,
    revision: str | None = None,
    create_pr: bool = False,
    config: str | None = None,
    license: str | None = None,
    commit_message: str | None = None,
    sample: int | None = 1000,
    dry_run: bool = False,
    token: str | bool | None = None,
    endpoint: str | None = None,
    approve: Callable[[PushPlan], bool] | None = None,
    progress: bool = False,
) -> Publication:
    """Publish a finished build as a dataset repository, in one commit.

    Files of an older version are deleted in the same commit; what a person has written into the
    card on the Hub is kept. Repeated after an interruption, it sends only what is missing; of a
    set that is there already it makes no commit. An Arrow build is published as Parquet.

    Args:
        out: the built folder.
        repo_id: `namespace/name`; made if it is not there.
        private: make a new repository private; None leaves that to the account's default.
        revision: branch, made from `main` if it is not there; None is `main`.
        create_pr: open a pull request instead of changing the branch.
        config: name of the records' config; None keeps what the card says, or is `default`.
        license: Hub license identifier of the set; None keeps what the card says.
        commit_message: first line of the commit, title of the pull request.
        sample: number of records that are made again to verify the build; None: all of them.
        dry_run: make the plan and send nothing.
        token: as everywhere in huggingface_hub.
        endpoint: as everywhere in huggingface_hub.
        approve: called with the plan before anything is sent; sends nothing if it returns False.
        progress: show a bar on stderr.

    Raises:
        NotABuildError: `out` is not a finished build, or a file of it is missing.
        PublishError: the set does not verify, or its license, the name, the repository or the Hub
            forbids it.
        PublishFailedError: the Hub could not be reached or kept refusing. What was sent is kept.
    """
    _check_names(repo_id, config)
    out = on_this_machine(out)
    _verify(out, sample)
    with _staged(out) as (folder, made), _xet_as_it_was():
        hub = _Hub(repo_id, revision, create_pr, token, endpoint)
        push = _Push(folder, made, hub, private, config, license, commit_message)
        plan = push.plan(hub.state())
        if dry_run or (approve is not None and not approve(plan)):
            return Publication(plan, "not sent")
        return push.send(plan, progress)


# What is to be sent


def _check_names(repo_id: str, config: str | None) -> None:
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils._validators import validate_repo_id

    try:
        validate_repo_id(repo_id)
    except HFValidationError as error:
        raise PublishError(f"{repo_id!r} cannot be a repository: {error}") from None
    namespace, _, name = repo_id.partition("/")
    if not name:
        raise PublishError(
            f"{repo_id!r} lacks a namespace; give your name or organisation too, as "
            f"NAMESPACE/{namespace}."
        )
    if name == "fgbg_dataset":
        raise PublishError(
            "a repository named like the module fgbg_dataset.py could not be loaded any more once "
            f"that file lies in it; choose another name, for example {namespace}/fgbg-dataset."
        )
    if config is None:
        return
    if config in ("data", "foregrounds", "backgrounds", "preview"):
        raise PublishError(
            f"the records' config cannot be called {config!r}: that is a folder of the set; "
            "choose another --config."
        )
    if not re.fullmatch(r"\w[\w.-]*", config):
        raise PublishError(
            f"config {config!r} may have letters, digits and . _ - only; choose another --config."
        )


@contextmanager
def _staged(out: Path) -> Iterator[tuple[Path, Path]]:
    """Give the folder to publish and one with its page, sheet and preview made anew.

    Nobody's page goes out under another's name. Of an Arrow build the folder is a copy as Parquet.
    """
    sweep(out.absolute(), _LONGEST_PUSH_S)
    stage = out.absolute().parent / temporary_name(out.absolute().name)
    folder, made = out, stage / "made"
    try:
        made.mkdir(parents=True)
        if built_format(out) != "parquet":
            folder = stage / out.absolute().name
            folder.mkdir()
            copy_as_parquet(out, folder)
        write_preview(folder, made)
        yield folder, made
    finally:
        shutil.rmtree(stage, ignore_errors=True)


@contextmanager
def _xet_as_it_was() -> Iterator[None]:
    """Undo at the end that a Hub without Xet gets plain LFS: another one may have it."""
    from huggingface_hub import constants

    before = constants.HF_HUB_DISABLE_XET
    try:
        yield
    finally:
        constants.HF_HUB_DISABLE_XET = before


def _verify(out: Path, sample: int | None) -> None:
    if not (out / RECIPE_FILE).is_file() and WorkFolder(out.absolute()).held():
        raise NotABuildError(
            f"{out} is not finished; run its build again until it is (fgbg status {out})."
        )
    read_recipe(out)
    report = verify(out, sample=sample)
    if report.ok:
        return
    lines = [f"  {p.check}: {p.where}: {p.what}" for p in report.problems[:_MAX_PROBLEMS]]
    more = len(report.problems) - len(lines)
    raise PublishError(
        "the set is not what its recipe and records say:\n"
        + "\n".join(lines)
        + (f"\n  and {more} more" if more else "")
        + "\nBuild it again; if only the card is wrong, fgbg card writes it again."
    )


@dataclass(frozen=True)
class _File:
    """A file to publish; `content` is its path here, or its bytes."""

    path: str
    content: Path | bytes
    size_bytes: int
    sha256: str

    def is_at(self, remote: _Entry | None) -> bool:
        """Whether the repository has this content there."""
        if remote is None or remote.size_bytes != self.size_bytes:
            return False
        return remote.oid == (self.sha256 if remote.lfs else self._git_oid())

    def _git_oid(self) -> str:
        from huggingface_hub.utils.sha import git_hash

        return git_hash(self._bytes())

    def _bytes(self) -> bytes:
        return self.content if isinstance(self.content, bytes) else self.content.read_bytes()

    def text(self) -> str:
        """Return the content of a text file."""
        return self._bytes().decode()

    def operation(self) -> CommitOperationAdd:
        """Return the operation that commits it."""
        from huggingface_hub import CommitOperationAdd

        add = CommitOperationAdd(self.path, self.content)
        add.upload_info.sha256 = bytes.fromhex(self.sha256)  # or it would be hashed once more
        return add


@dataclass(frozen=True)
class _Entry:
    """A file in the repository; `oid` is its sha256, or git's sha1 when it is not in LFS."""

    oid: str
    size_bytes: int
    lfs: bool


@dataclass(frozen=True)
class _State:
    """A revision as it is now; `head` is None where there is no repository yet.

    `has_branch` is False where the revision is a branch that is still to be made.
    """

    head: str | None = None
    private: bool | None = None
    has_branch: bool = False
    files: dict[str, _Entry] = field(default_factory=dict)
    card: str | None = None
    held: PinnedRecipe | None = None


class _Push:
    """One build on its way to one repository."""

    def __init__(
        self,
        folder: Path,
        made: Path,
        hub: _Hub,
        private: bool | None,
        config: str | None,
        license: str | None,
        commit_message: str | None,
    ) -> None:
        from builder import __version__

        self._folder, self._made, self._hub, self._private = folder, made, hub, private
        self._config, self._license = config, license
        self._pinned = read_recipe(folder)
        self._fixed, self._card = _fixed_files(folder, made, self._pinned), _card_of(folder)
        self._message = commit_message or (
            f"{self._pinned.n_records:,} records by fgbg-dataset {__version__}"
        )
        self._operations: dict[tuple[str, str], CommitOperationAdd] = {}

    def _files(self, state: _State) -> dict[str, _File]:
        """Return every file of the published set; the card depends on the one that is there."""
        card = card_text(
            self._folder,
            old=state.card or self._card,
            license=self._license or _license(state.card) or _license(self._card),
            location=self._hub.repo_id,
            config=self._config,
            table=self._made / TABLE_FILE,
        )
        return {**self._fixed, CARD_FILE: _of_bytes(CARD_FILE, card.encode())}

    def plan(self, state: _State) -> PushPlan:
        """Compare the build with what is there, and refuse what must not be published."""
        self._refuse(state)
        files = self._files(state)
        license = _license(files[CARD_FILE])
        self._check_license(license)
        self._hub.check_card(files[CARD_FILE].text())
        todo, stale = _difference(files, state.files)
        return PushPlan(
            repo_id=self._hub.repo_id,
            url=self._hub.url,
            revision=self._hub.revision,
            create_pr=self._hub.create_pr,
            exists=state.head is not None,
            private=self._private if state.head is None else state.private,
            config=records_config(files[CARD_FILE].text()),
            license=license,
            records=self._pinned.n_records,
            files={path: file.size_bytes for path, file in files.items()},
            send={file.path: file.size_bytes for file in todo},
            delete=tuple(stale),
            warnings=tuple(self._warnings(state, license)),
        )

    def _refuse(self, state: _State) -> None:
        repo_id = self._hub.repo_id
        if state.head is None:
            return
        if self._private and not state.private:
            raise PublishError(
                f"{repo_id} exists and is public; a push does not change that. Make it private in "
                "its settings on the Hub first, or leave --private out."
            )
        misleading = {
            f"{repo_id.rpartition('/')[2]}.py": (
                "and load_dataset refuses a repository with a module of its own name"
            ),
            ".huggingface.yaml": "which load_dataset reads instead of the card",
            "dataset_infos.json": "which load_dataset reads beside the card",
        }
        for name, what in misleading.items():
            if name in state.files:
                raise PublishError(
                    f"{repo_id} holds {name}, {what}. Delete or rename that file there, or choose "
                    "another repository."
                )
        others = [path for path in state.files if path.startswith(_OURS)]
        if others and state.held is None:
            raise PublishError(
                f"{repo_id} holds data that fgbg did not make ({others[0]}), and no {RECIPE_FILE} "
                "that can be read. Choose another repository, or delete that data there first."
            )

    def _check_license(self, license: str | None) -> None:
        found = conflicts(_kinds(self._pinned), license)
        if not found:
            return
        lines = [
            f"  {file} ({reason})" for reason, files in found.items() for file in sorted(files)
        ]
        raise PublishError(
            f"the set may not be published under {license or 'no license'}:\n"
            + "\n".join(lines)
            + "\nChoose a --license that fits, or build the set without these files."
        )

    def _warnings(self, state: _State, license: str | None) -> Iterator[str]:
        for kind, entries in _kinds(self._pinned):
            if missing := uncredited(entries):
                yield f"{len(missing)} of {len(entries)} {kind} are without author or license."
        names = {e.license for _, entries in _kinds(self._pinned) for e in entries if e.license}
        if unclear := sorted(name for name in names if terms(name) is None):
            yield f"What these licenses ask for is not known here: {', '.join(unclear)}."
        if weights := unclear_weights(self._pinned.foregrounds):
            yield (
                "Under which terms these weights, which cut-outs were made by, may be used is not "
                f"known here: {listed(weights)}."
            )
        if license is None:
            yield "The set has no license, so nobody may use it; give one with --license."
        if state.held and state.held.fingerprint != self._pinned.fingerprint:
            if self._pinned.holds(state.held):
                yield f"The set there, of {state.held.n_records:,} records, is extended."
            else:
                there = state.held.fingerprint[:12]
                yield f"Another set is there (fingerprint {there}); it is replaced."

    # Sending

    def send(self, plan: PushPlan, progress: bool) -> Publication:
        """Send what is missing and commit it, until the whole set is there."""
        for _ in range(2):
            info, wrong = self._hub.retrying("commit", lambda: self._attempt(progress))
            if not wrong:
                # By the plan: an answer that was lost makes the last attempt find all done.
                changed = plan.send or plan.delete
                result: Literal["published", "unchanged"] = "published" if changed else "unchanged"
                return Publication(plan, result, info.oid, info.commit_url, info.pr_url)
            self._operations.clear()  # so that these files are sent again
        raise PublishFailedError(
            f"the Hub stores other bytes of {wrong[0].path} than were sent, twice "
            f"({len(wrong)} files in all). Delete them in {self._hub.repo_id} and push again, or "
            "ask those who run the Hub."
        )

    def _attempt(self, progress: bool) -> tuple[CommitInfo, list[_File]]:
        """Bring the repository from its present state to this set.

        Called again when somebody else has committed in between, or when an answer was lost:
        what to do goes by what is there, not by what was tried.

        Returns:
            The commit, and the files of which the Hub has other bytes than were sent.
        """
        state = self._hub.state()
        if self._hub.make(state, self._private):
            state = self._hub.state()
        if state.head is None:
            raise PublishError(f"{self._hub.repo_id} exists, but your token may not read it.")
        self._refuse(state)
        files = self._files(state)
        self._check_license(_license(files[CARD_FILE]))
        todo, stale = _difference(files, state.files)
        if not todo and not stale:
            return self._hub.commit_info(state.head, self._message), []
        if self._hub.create_pr and (pull := self._hub.pull_with(files, self._message)):
            return pull, []
        operations = self._upload(todo, progress)
        info = self._hub.commit(operations, stale, self._message, state.head)
        there = self._hub.files(info.pr_revision or info.oid)
        wrong, _ = _difference(files, there)
        if missing := [file for file in wrong if file.path not in there]:
            raise PublishError(
                f"the Hub left {len(missing)} files out of the commit, for example "
                f"{missing[0].path}; see whether a .gitignore in {self._hub.repo_id} names them."
            )
        return info, wrong

    def _upload(self, files: list[_File], progress: bool) -> list[CommitOperationAdd]:
        """Send files, a few at a time; they stay invisible until a commit names them."""
        total = sum(file.size_bytes for file in files)
        waiting = [file for file in files if (file.path, file.sha256) not in self._operations]
        with tqdm(
            total=total,
            unit="B",
            unit_scale=True,
            desc="sending",
            disable=None if progress else True,
        ) as bar:
            bar.update(total - sum(file.size_bytes for file in waiting))
            for batch in _batches(waiting):
                additions = [file.operation() for file in batch]
                self._hub.upload(additions)
                for file, addition in zip(batch, additions, strict=True):
                    self._operations[file.path, file.sha256] = addition
                bar.update(sum(file.size_bytes for file in batch))
        return [self._operations[file.path, file.sha256] for file in files]


def _fixed_files(folder: Path, made: Path, pinned: PinnedRecipe) -> dict[str, _File]:
    """Return all files of the set but its card.

    What is not a shard is read once: what is sent is what was looked at, whatever happens to the
    folder in between.
    """
    plan = Plan(pinned)
    splits = read_statistics(folder, plan)
    others = {
        RECIPE_FILE: _of_bytes(RECIPE_FILE, pinned.public().to_json().encode()),
        **{name: _of_path(name, folder) for name in (FOREGROUNDS_FILE, BACKGROUNDS_FILE)},
        **{
            name: _of_path(name, made)
            for name in (TABLE_FILE, SHEET_FILE, PAGE_FILE, FIFTYONE_FILE)
        },
    }
    files = {
        name: {"size_bytes": file.size_bytes, "sha256": file.sha256}
        for name, file in others.items()
    }
    text = read_text(folder / STATISTICS_FILE, MAX_BYTES[STATISTICS_FILE], within=folder)
    others[STATISTICS_FILE] = _of_bytes(STATISTICS_FILE, with_files(text, files).encode())
    shards = [
        # By the plan's name, not by that which a file states.
        _of_path(shard_file(split, number, "parquet"), folder, shard.sha256)
        for split in plan.splits.values()
        for number, shard in enumerate(splits[split.name].shards)
    ]
    return {**{shard.path: shard for shard in shards}, **others}


def _of_path(name: str, folder: Path, sha256: str | None = None) -> _File:
    """Return a file of a folder: a small one as its bytes, a large one, hashed, as its path."""
    path = folder / name
    try:
        with open_regular(path, within=folder) as file:
            size_bytes = os.fstat(file.fileno()).st_size
            if sha256 is None and size_bytes <= _MAX_HELD_BYTES:
                return _of_bytes(name, file.read())
            return _File(name, path, size_bytes, sha256 or sha256_file(path))
    except FileNotFoundError:
        raise NotABuildError(f"{path} is missing; build the set again.") from None
    except OSError as error:
        raise PublishError(f"{path} is not sent: {one_line(error)}.") from None


def _card_of(folder: Path) -> str:
    """Return the card that is here, in which a person may have written; see `_fixed_files`."""
    return _of_path(CARD_FILE, folder).text()


def _of_bytes(path: str, content: bytes) -> _File:
    from hashlib import sha256

    return _File(path, content, len(content), sha256(content).hexdigest())


def _difference(files: dict[str, _File], there: dict[str, _Entry]) -> tuple[list[_File], list[str]]:
    """Return what is to be sent, and which files of an older version are to go."""
    todo = [file for path, file in files.items() if not file.is_at(there.get(path))]
    stale = [path for path in there if path.startswith(_OURS) and path not in files]
    return todo, stale


def _batches(files: list[_File]) -> Iterator[list[_File]]:
    batch: list[_File] = []
    for file in files:
        size_bytes = sum(other.size_bytes for other in batch)
        if batch and (len(batch) == _BATCH_FILES or size_bytes + file.size_bytes > _BATCH_BYTES):
            yield batch
            batch = []
        batch.append(file)
    if batch:
        yield batch


def _kinds(pinned: PinnedRecipe) -> tuple[tuple[str, Any], ...]:
    return ("foregrounds", pinned.foregrounds), ("backgrounds", pinned.backgrounds)


def _license(card: _File | str | None) -> str | None:
    text = card.text() if isinstance(card, _File) else card
    value = card_keys(text or "").get("license")
    return None if value is None else str(value)


# The other side


class _Hub:
    """One revision of one repository; every request to it is repeated where that helps."""

    def __init__(
        self,
        repo_id: str,
        revision: str | None,
        create_pr: bool,
        token: str | bool | None,
        endpoint: str | None,
    ) -> None:
        from huggingface_hub import HfApi, constants

        from builder import __version__

        if constants.HF_HUB_OFFLINE:
            raise PublishError("HF_HUB_OFFLINE is set, so nothing can be sent; unset it.")
        self.repo_id, self.revision, self.create_pr = repo_id, revision or "main", create_pr
        self._api: HfApi = HfApi(
            endpoint=endpoint,
            token=token,
            library_name="fgbg-dataset",
            library_version=__version__,
        )
        self.url = f"{self._api.endpoint}/datasets/{repo_id}"

    def state(self) -> _State:
        """Return what is there; of a branch that is not there yet, what it will start from."""
        return self.retrying("read", lambda: self._state(self.revision))

    def _state(self, revision: str) -> _State:
        from huggingface_hub.errors import RepositoryNotFoundError, RevisionNotFoundError

        try:
            info = self._api.repo_info(self.repo_id, repo_type=_REPO_TYPE, revision=revision)
        except RevisionNotFoundError:
            if self.create_pr or revision == "main" or revision.startswith("refs/"):
                raise
            return replace(self._state("main"), has_branch=False)
        except RepositoryNotFoundError:
            return _State()
        files = self._files(info.sha)
        card = self._text(CARD_FILE, info.sha) if CARD_FILE in files else None
        recipe = self._text(RECIPE_FILE, info.sha) if RECIPE_FILE in files else None
        return _State(info.sha, bool(info.private), True, files, card, _held(recipe))

    def files(self, revision: str) -> dict[str, _Entry]:
        """Return the files of a revision."""
        return self.retrying("read", lambda: self._files(revision))

    def _files(self, revision: str | None) -> dict[str, _Entry]:
        from huggingface_hub.hf_api import RepoFile

        entries = self._api.list_repo_tree(
            self.repo_id, recursive=True, revision=revision, repo_type=_REPO_TYPE
        )
        return {
            entry.path: _Entry(
                entry.lfs.sha256 if entry.lfs else entry.blob_id, entry.size, bool(entry.lfs)
            )
            for entry in entries
            if isinstance(entry, RepoFile)
        }

    def _text(self, path: str, revision: str | None) -> str:
        local = self._api.hf_hub_download(
            self.repo_id, path, repo_type=_REPO_TYPE, revision=revision
        )
        try:
            return read_text(Path(local), MAX_BYTES[path])
        except ValueError as error:
            raise PublishError(f"{path} in {self.repo_id} cannot be read: {error}.") from None

    def check_card(self, card: str) -> None:
        """Let the Hub look at the card's metadata now; it would refuse them after all was sent."""
        from huggingface_hub import DatasetCard, constants

        if self._api.endpoint == constants.ENDPOINT:  # the only one that can be asked so
            self.retrying("check", lambda: DatasetCard(card).validate(repo_type=_REPO_TYPE))

    def make(self, state: _State, private: bool | None) -> bool:
        """Make the repository and the branch where they are missing; say whether they were."""
        if state.has_branch or (state.head and self.create_pr):
            return False
        if state.head is None:
            self.retrying(
                "create",
                lambda: self._api.create_repo(
                    self.repo_id, repo_type=_REPO_TYPE, private=private, exist_ok=True
                ),
            )
        if self.revision != "main" and not self.create_pr:
            self.retrying(
                "branch",
                lambda: self._api.create_branch(
                    self.repo_id, branch=self.revision, repo_type=_REPO_TYPE, exist_ok=True
                ),
            )
        return True

    def upload(self, additions: list[CommitOperationAdd]) -> None:
        """Send a few files: by Xet where the Hub has it, else by plain LFS."""
        self.retrying("send", lambda: self._upload(additions))

    def _upload(self, additions: list[CommitOperationAdd]) -> None:
        from huggingface_hub import constants

        try:
            self._api.preupload_lfs_files(
                self.repo_id,
                additions,
                repo_type=_REPO_TYPE,
                revision=self.revision,
                create_pr=self.create_pr,
                free_memory=False,
            )
        except ConnectionError as error:
            # What Xet says where the Hub has none; huggingface_hub itself does not go on by LFS.
            if constants.HF_HUB_DISABLE_XET or "404 Not Found" not in str(error):
                raise
            _log.warning(
                "%s has no Xet, so files are sent by LFS; HF_HUB_DISABLE_XET=1 does so at once.",
                self._api.endpoint,
            )
            constants.HF_HUB_DISABLE_XET = True
            self._upload(additions)

    def commit(
        self,
        additions: list[CommitOperationAdd],
        deletions: list[str],
        message: str,
        parent: str | None,
    ) -> CommitInfo:
        """Commit, if nobody has since the parent; not repeated here, for a commit may be done."""
        from huggingface_hub import CommitOperationDelete

        return self._api.create_commit(
            self.repo_id,
            [*additions, *(CommitOperationDelete(path, is_folder=False) for path in deletions)],
            commit_message=message,
            repo_type=_REPO_TYPE,
            revision=self.revision,
            create_pr=self.create_pr,
            parent_commit=parent,
        )

    def pull_with(self, files: dict[str, _File], title: str) -> CommitInfo | None:
        """Return an open pull request of that title with just these files: it was made before."""
        pulls = self._api.get_repo_discussions(
            self.repo_id,
            repo_type=_REPO_TYPE,
            discussion_type="pull_request",
            discussion_status="open",
        )
        for pull in pulls:
            if pull.title != title:
                continue
            if not any(_difference(files, self._files(revision := f"refs/pr/{pull.num}"))):
                head = self._api.repo_info(self.repo_id, repo_type=_REPO_TYPE, revision=revision)
                return self.commit_info(head.sha, title, pull.url)
        return None

    def commit_info(self, oid: str | None, message: str, pr_url: str | None = None) -> CommitInfo:
        """Return what is known of a commit made before."""
        from huggingface_hub import CommitInfo

        url = f"{self.url}/commit/{oid}"
        return CommitInfo(url, message, "", str(oid), pr_url=pr_url)

    def retrying(self, step: str, call: Callable[[], T]) -> T:
        """Do something until it works or one kind of failure has come too often.

        Raises:
            PublishError: the Hub says why it will never work.
            PublishFailedError: it has been tried often enough.
        """
        failures: Counter[int | None] = Counter()
        known: tuple[type[Exception], ...] = (
            *request_errors(),
            *(OSError, RuntimeError, ValueError, AttributeError),
        )
        while True:
            try:
                return call()
            except known as error:
                response = response_of(error)
                status = response.status_code if response is not None else None
                if status is None and not is_connection(error):
                    if isinstance(error, ValueError):
                        raise PublishError(f"no push to {self.repo_id}: {error}") from error
                    raise
                if status is not None and status not in _PASSING:
                    raise self._refusal(status, error) from error
                failures[status] += 1
                asked_s = _retry_after_s(response)
                repeated = step != "send" or status is None or status in _LEFT_TO_US
                if (
                    not repeated
                    or failures[status] > _TRIES
                    or (asked_s or 0) > _LONGEST_RETRY_AFTER_S
                ):
                    raise self._given_up(step, error, failures[status], asked_s) from error
            wait_s = min(_LONGEST_WAIT_S, _FIRST_WAIT_S * 2 ** (failures[status] - 1))
            wait_s *= random.uniform(0.5, 1)  # noqa: S311 - two publishers must not keep step
            time.sleep(wait_s if asked_s is None else asked_s)

    def _refusal(self, status: int, error: BaseException) -> FgbgError:
        said = words(error)
        if status == 401:
            return PublishError(
                f"the Hub does not know you ({said}); run `hf auth login`, or set HF_TOKEN, and "
                "try again."
            )
        if status == 403 and "create_pr" in said:
            said += "; --create-pr opens a pull request, which needs no right to write"
        if status in (400, 403):
            return PublishError(f"the Hub refuses the push to {self.repo_id}: {said}.")
        if status == 404:
            return PublishError(
                f"{self.repo_id} has no revision {self.revision!r}, or your token may not see it "
                f"({said})."
            )
        return PublishFailedError(f"the Hub answers {status} to {self.repo_id}: {said}.")

    def _given_up(
        self, step: str, error: BaseException, times: int, asked_s: float | None
    ) -> PublishFailedError:
        response = response_of(error)
        why = f"no connection to {self._api.endpoint} ({one_line(error)})"
        if response is not None:
            why = f"the Hub answered {response.status_code} ({words(error)})"
        if (asked_s or 0) > _LONGEST_RETRY_AFTER_S:
            why += f", and asks to wait {(asked_s or 0) / 60:.0f} minutes"
        elif times > 1:
            why += f", {times} times"
        return PublishFailedError(
            f"{_STEPS[step].format(repo=self.repo_id)}: {why}. Nothing visible has changed and "
            "what was sent is kept; run the same command again later."
        )


_STEPS = {
    "read": "{repo} could not be read",
    "check": "the card of {repo} could not be checked",
    "create": "{repo} could not be made",
    "branch": "the branch of {repo} could not be made",
    "send": "files could not be sent to {repo}",
    "commit": "the commit to {repo} could not be made",
}


def _retry_after_s(response: Any) -> float | None:
    """Return the seconds an answer asks to wait."""
    value = "" if response is None else response.headers.get("Retry-After", "").strip()
    return float(value) if value.isdigit() else None


def _held(recipe: str | None) -> PinnedRecipe | None:
    """Return the set that a repository's recipe.json speaks of; None where fgbg made none."""
    try:
        return PinnedRecipe.from_json(recipe or "")
    except RecipeError:
        return None
