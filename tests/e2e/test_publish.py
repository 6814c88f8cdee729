"""A push shows the whole set or nothing, sends a file once, and never what it may not send."""

from __future__ import annotations

import hashlib
import importlib
import io
import json
import os
import pty
import shutil
import subprocess
import sys
import types
from pathlib import Path
from typing import Any

import datasets
import huggingface_hub.utils._http
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import load_dataset
from PIL import Image

from builder.build.options import BuildOptions
from builder.layout import read_recipe, state_files
from builder.release.preview import DepthScale
from builder.release.publish import publish
from builder.release.verify import verify
from fgbg_dataset import (
    CardError,
    FgbgDataset,
    NotABuildError,
    PublishError,
    PublishFailedError,
)
from tests.e2e.hub import READ_TOKEN, TOKEN, Hub
from tests.e2e.running import COMMAND, SPLITS, fgbg, files_of
from tests.limits import HANG_S

pytestmark = pytest.mark.filterwarnings(  # huggingface_hub's own
    "ignore:Use 'content=:DeprecationWarning"
)

REPO = "ann/blobs"
QUIET = BuildOptions(progress=False)
SMALL = {"placements": 1, "size": 32, "foreground_size": 16, "depth_model": "none", "holdout": 0.3}
# Made anew for the Hub: the card speaks of the repository, the recipe of no folder here, and the
# statistics state the two and not dataset_info.json.
REWRITTEN = {"README.md", "recipe.json", "assets/statistics.json"}


@pytest.fixture(autouse=True)
def _no_viewer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "USE_PARQUET_EXPORT", False)


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The pauses between attempts, huggingface_hub's and ours, for which nobody sleeps here."""
    slept: list[float] = []
    clock = types.SimpleNamespace(sleep=slept.append, time=lambda: 0.0)
    monkeypatch.setattr(huggingface_hub.utils._http, "time", clock)
    monkeypatch.setattr(importlib.import_module("builder.release.publish"), "time", clock)
    return slept


@pytest.fixture(scope="module")
def small(sources: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """40 records of 32 px without depth in 7 shards; not to be changed."""
    return make(sources, tmp_path_factory.mktemp("small") / "small", shard_records=6)


@pytest.fixture(scope="module")
def other(sources: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Another set: 80 records in one shard a split; not to be changed."""
    return make(sources, tmp_path_factory.mktemp("other") / "other", placements=2)


def make(sources: tuple[Path, Path], out: Path, form: str = "parquet", **recipe: Any) -> Path:
    builder = FgbgDataset(*sources, **{**SMALL, **recipe}, cache_dir=str(out.parent / "cache"))
    builder.download_and_prepare(out, file_format=form, num_proc=1, options=QUIET)
    return out


def push(out: Path, hub: Hub, repo_id: str = REPO, **options: Any) -> Any:
    """Push in this process."""
    return publish(out, repo_id, endpoint=hub.endpoint, **options)


def start(out: Path, *options: str) -> subprocess.Popen[str]:
    command = [*COMMAND, "push", str(out), REPO, *options]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=pipe, stderr=pipe, text=True)


def kept(files: dict[str, str]) -> dict[str, str]:
    return {path: digest for path, digest in files.items() if path not in REWRITTEN}


def sent_set(out: Path) -> dict[str, str]:
    """The files that a push sends as they are, by path."""
    return {k: v for k, v in kept(files_of(out)).items() if k != "dataset_info.json"}


def same_row(one: dict[str, Any], other: dict[str, Any]) -> bool:
    return one.keys() == other.keys() and all(
        np.array_equal(value, other[name]) if isinstance(value, Image.Image) else
        value == other[name]
        for name, value in one.items()
    )  # fmt: skip


def test_every_byte_and_pixel_arrives_and_loads_plain_and_streaming(built, hub):
    done = push(built, hub, private=True, license="cc-by-4.0")
    assert done.result == "published"
    assert done.oid == hub.repo(REPO).refs["main"]
    assert hub.repo(REPO).private
    assert kept(hub.files(REPO)) == sent_set(built)
    assert set(hub.files(REPO)) == {*sent_set(built), *REWRITTEN}
    assert len(hub.repo(REPO).commits) == 2  # that of the repository, and ours
    assert len(hub.sent) == len(set(hub.sent)) == 9  # 5 shards, 2 sources, preview, sheet
    report = verify(REPO, sample=None)
    assert report.problems == ()
    assert report.records_checked == 120
    local = load_dataset(str(built))
    plain = load_dataset(REPO)
    assert {name: split.num_rows for name, split in plain.items()} == SPLITS
    for name in SPLITS:
        streamed = load_dataset(REPO, split=name, streaming=True)
        for here, there, stream in zip(local[name], plain[name], streamed, strict=True):
            assert same_row(here, there)
            assert same_row(here, stream)
    for config in ("foregrounds", "backgrounds", "preview"):
        here = load_dataset(str(built), config, split="train")
        stream = load_dataset(REPO, config, split="train", streaming=True)
        assert all(same_row(one, other) for one, other in zip(here, stream, strict=True))
    recipe = json.loads(hub.read(REPO, "recipe.json"))
    assert recipe["fingerprint"] == json.loads((built / "recipe.json").read_text())["fingerprint"]
    card = hub.read(REPO, "README.md").decode()
    assert 'load_dataset("ann/blobs", "foregrounds")' in card
    assert "\nlicense: cc-by-4.0\n" in card


def test_the_preview_holds_records_of_all_splits_with_coloured_depth(built):
    rows = load_dataset(str(built), "preview", split="train")
    shown = rows["record_split"][:]
    assert {name: shown.count(name) for name in SPLITS} == SPLITS  # a small set whole
    records = {
        row["record_id"]: row for split in load_dataset(str(built)).values() for row in split
    }
    depths = [np.asarray(row["depth"]) / np.float32(1000) for row in rows]
    known = np.concatenate([depth[::2, ::2].ravel() for depth in depths])
    scale = DepthScale(*np.percentile(known, (1, 99)).tolist(), True, "m")
    from builder.release.preview import LUT

    for row, depth in zip(rows, depths, strict=True):
        colour = np.asarray(row.pop("depth_colour")).astype(int)
        row.pop("record_split")
        assert same_row(row, records[row["record_id"]])
        assert np.abs(colour - LUT[scale.codes(depth)]).mean() < 3  # JPEG


@pytest.mark.slow
def test_a_set_of_many_files_goes_up_in_one_commit(sources, hub, tmp_path):
    """More files than huggingface_hub and `datasets` take into one request or commit."""
    out = make(sources, tmp_path / "many", placements=15, shard_records=1)
    done = push(out, hub)
    assert len(done.plan.files) == 600 + 9
    assert len(hub.sent) == len(set(hub.sent))
    assert len(hub.repo(REPO).commits) == 2
    assert kept(hub.files(REPO)) == sent_set(out)
    assert sum(path.endswith("/preupload/main") for path in hub.paths) < 60
    assert push(out, hub).result == "unchanged"


def test_a_second_push_sends_nothing_and_makes_no_commit(built, hub):
    first = push(built, hub)
    commits, sent = dict(hub.repo(REPO).commits), len(hub.sent)
    again = push(built, hub)
    assert again.result == "unchanged"
    assert (again.oid, again.plan.send, again.plan.delete) == (first.oid, {}, ())
    assert hub.repo(REPO).commits == commits
    assert len(hub.sent) == sent


def test_nothing_of_this_machine_is_sent(built, tiny_model, hub):
    assert str(tiny_model) in (built / "recipe.json").read_text()  # to repeat the build here
    push(built, hub)
    secrets = (str(tiny_model.parent), str(built.parent), str(Path.home()) + "/", "pytest-")
    for path in hub.files(REPO):
        content = hub.read(REPO, path)
        texts = [content.decode("latin-1")]
        if path.endswith(".parquet"):
            metadata = pq.read_schema(io.BytesIO(content)).metadata
            texts += [value.decode() for value in metadata.values()]
        for text in texts:
            assert not [secret for secret in secrets if secret in text], path
    assert json.loads(hub.read(REPO, "recipe.json"))["recipe"]["depth_model"] == "./tiny"


def test_what_people_write_into_the_card_stays(small, other, hub):
    push(small, hub, license="cc-by-4.0")
    card = hub.read(REPO, "README.md").decode()
    numbers = card.split("<!-- fgbg:statistics begin -->")[1]
    edited = (
        card.replace("\n# small\n", "\n# Our blobs\n\nBy the blob group.\n")
        .replace("license: cc-by-4.0\n", "license: cc-by-sa-4.0\nlanguage: la\n")
        .replace("configs:\n", "configs:\n- config_name: extra\n  data_files: extra/*.parquet\n")
        .replace("| mask |", "| msak |")
        .replace("## Limits", "## Limits\n\n- Blobs are not round.")
    )
    hub.write(REPO, "README.md", edited.encode())
    table = io.BytesIO()
    pq.write_table(pa.table({"a": [1]}), table)
    hub.write(REPO, "extra/a.parquet", table.getvalue())
    hub.write(REPO, "assets/logo.svg", b"<svg/>")
    done = push(other, hub)
    new = hub.read(REPO, "README.md").decode()
    ours = ("\n# Our blobs\n\nBy the blob group.\n", "- Blobs are not round.", "language: la\n")
    for text in (*ours, "license: cc-by-sa-4.0\n", "- config_name: extra\n"):
        assert text in new
    assert "msak" not in new
    assert new.split("<!-- fgbg:statistics begin -->")[1] != numbers
    assert "80 images of 32x32" in new
    assert {"extra/a.parquet", "assets/logo.svg"} <= set(hub.files(REPO))
    assert set(hub.files(REPO)) - {"extra/a.parquet", "assets/logo.svg"} == {
        *sent_set(other),
        *REWRITTEN,
    }
    old = {path for path in sent_set(small) if path.startswith("data/")}
    assert set(done.plan.delete) == old - set(sent_set(other))
    assert len(done.plan.delete) >= 5
    assert load_dataset(REPO, "extra", split="train")["a"][:] == [1]
    assert sum(split.num_rows for split in load_dataset(REPO).values()) == 80
    assert push(other, hub).result == "unchanged"


def test_a_card_that_others_wrote_is_kept_above_ours(small, hub):
    hub.create(REPO)
    hub.write(REPO, "README.md", b"---\nlicense: mit\n---\n# Mine\n\nMy words.\n")
    push(small, hub)
    card = hub.read(REPO, "README.md").decode()
    assert card.index("license: mit") < card.index("My words.") < card.index("## Use")
    assert card.count("\n# ") == 1
    assert push(small, hub).result == "unchanged"


STAGES = {
    "create": ("POST", "/api/repos/create", "hang", 0),
    "made": ("POST", "/api/repos/create", "late", 0),
    "preupload": ("POST", "/preupload/", "hang", 0),
    "batch": ("POST", "/objects/batch", "hang", 0),
    "first file": ("PUT", "/_lfs/", "hang", 0),
    "fifth file": ("PUT", "/_lfs/", "late", 4),
    "verify": ("POST", "/_lfs/verify", "hang", 2),
    "commit": ("POST", "/commit/", "hang", 0),
    "committed": ("POST", "/commit/", "late", 0),
}
FEW = ("made", "fifth file", "commit", "committed")


def slow_unless(default: bool, *values: Any) -> Any:
    return pytest.param(*values, marks=() if default else pytest.mark.slow)


@pytest.mark.parametrize("stage", [slow_unless(stage in FEW, stage) for stage in STAGES])
def test_a_push_killed_at_any_stage_resumes_and_sends_only_what_is_missing(small, hub, stage):
    method, pattern, what, after = STAGES[stage]
    fault = hub.fail(method, pattern, what, after=after)
    process = start(small, "--yes")
    assert fault.reached.wait(60), process.communicate()
    process.kill()
    process.communicate()
    done = {path.name for path in hub.blobs.iterdir()}
    repo = hub.repos.get(("datasets", REPO))
    if repo and stage != "committed":  # nothing is visible
        assert set(hub.files(REPO)) == set()
    before = len(hub.sent)
    assert push(small, hub).result == ("unchanged" if stage == "committed" else "published")
    assert not done & set(hub.sent[before:])  # what was there is not sent again
    assert kept(hub.files(REPO)) == sent_set(small)
    assert len(hub.repo(REPO).commits) == 2


def test_two_publishers_of_different_sets_leave_one_of_them_whole(small, other, hub, waits):
    """The second commits wholly while the first one's commit is on its way."""
    hub.fail("POST", "/commit/", lambda: push(other, hub))
    assert push(small, hub).result == "published"
    assert len(waits) == 1  # refused once with 412
    assert kept(hub.files(REPO)) == sent_set(small)
    assert len(hub.repo(REPO).commits) == 3
    for files in hub.repo(REPO).commits.values():  # never a mixture
        shards = {path for path in files if path.startswith("data/")}
        assert shards in (set(), *({p for p in sent_set(o) if p[:5] == "data/"} for o in
                                   (small, other)))  # fmt: skip


def test_two_publishers_of_one_set_make_one_commit(small, hub):
    hub.fail("POST", "/commit/", lambda: push(small, hub))
    push(small, hub)
    assert len(hub.repo(REPO).commits) == 2


def test_two_processes_that_push_at_once_both_end_well(small, other, hub):
    one, two = start(small, "--yes"), start(other, "--yes")
    for process in (one, two):
        _, stderr = process.communicate(timeout=HANG_S)
        assert process.returncode == 0, stderr
    assert kept(hub.files(REPO)) in (sent_set(small), sent_set(other))


def test_somebody_who_edits_the_card_meanwhile_is_not_overwritten(small, hub):
    push(small, hub)

    def edit() -> None:
        card = hub.read(REPO, "README.md")
        hub.write(REPO, "README.md", card + b"\nJust now.\n")

    hub.fail("POST", "/commit/", edit)
    push(small, hub, license="mit")
    card = hub.read(REPO, "README.md").decode()
    assert "Just now." in card
    assert "license: mit" in card


_STORAGE = """
import sys, time
from pathlib import Path
from tests.e2e.hub import serve

with serve(Path(sys.argv[1]), int(sys.argv[2])):
    print("ready", flush=True)
    time.sleep(10**6)
"""


def start_storage(folder: Path, port: int) -> subprocess.Popen[str]:
    """Serve LFS files in a process of its own, into the same folder as a Hub."""
    command = [sys.executable, "-c", _STORAGE, str(folder), str(port)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


# After a lost connection huggingface_hub closes the client that its threads share, at times while
# another of them opens a connection of it, which nobody closes then.
@pytest.mark.filterwarnings("ignore:unclosed <socket:ResourceWarning")
@pytest.mark.filterwarnings("ignore:Exception ignored in. <socket")
@pytest.mark.parametrize("comes_back", [True, False])
def test_a_storage_that_is_killed_amid_the_upload(small, hub, monkeypatch, unused_port, comes_back):
    """The Hub's own LFS storage is another server; of several uploads at once all lose it."""
    storage = start_storage(hub.folder, unused_port)
    hub.storage = f"http://127.0.0.1:{unused_port}"
    running = [storage]

    def kill() -> None:
        storage.kill()
        storage.wait()

    slept: list[float] = []

    def sleep(seconds: float) -> None:
        slept.append(seconds)
        if comes_back and len(slept) == 30 and len(running) == 1:
            running.append(start_storage(hub.folder, unused_port))

    clock = types.SimpleNamespace(sleep=sleep, time=lambda: 0.0)
    monkeypatch.setattr(huggingface_hub.utils._http, "time", clock)
    monkeypatch.setattr(importlib.import_module("builder.release.publish"), "time", clock)
    hub.fail("POST", "/_lfs/verify", kill)
    try:
        if comes_back:
            assert push(small, hub).result == "published"
            assert kept(hub.files(REPO)) == sent_set(small)
        else:
            with pytest.raises(PublishFailedError, match="files could not be sent to ann/blobs: "):
                push(small, hub)
            assert hub.files(REPO) == {}
    finally:
        for process in running:
            process.kill()
            process.communicate()


def test_a_hub_without_xet_gets_plain_lfs(small, hub, monkeypatch, caplog):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_DISABLE_XET", False)
    assert push(small, hub).result == "published"
    assert kept(hub.files(REPO)) == sent_set(small)
    assert "HF_HUB_DISABLE_XET=1" in caplog.text


STATUSES = (408, 409, 412, 429, 500, 502, 503, 504)
PLACES = (
    *(("GET", "/revision/"), ("GET", "/tree/"), ("POST", "/repos/create"), ("POST", "/commit/")),
    *(("POST", "/preupload/"), ("POST", "/objects/batch"), ("PUT", "/_lfs/")),
)


@pytest.mark.parametrize(
    ("status", "where"),
    [
        slow_unless(where[1] == "/commit/" or status in (408, 503), status, where)
        for where in PLACES
        for status in STATUSES
        if (status, where[1]) != (409, "/repos/create")  # means that it is there
    ],
)
def test_what_passes_is_tried_again(small, hub, waits, status, where):
    hub.fail(*where, status, times=2)
    assert push(small, hub).result == "published"
    # By us, or by huggingface_hub itself. Files go up side by side, so both may fail at once.
    assert len(waits) in ((1, 2) if where[0] == "PUT" else (2,))
    assert all(0.5 <= wait <= 2 for wait in waits)
    assert kept(hub.files(REPO)) == sent_set(small)


def test_retry_after_is_honoured(small, hub, waits):
    for seconds in ("7", "0"):
        hub.fail("POST", "/commit/", 429, headers={"Retry-After": seconds})
    push(small, hub)
    assert waits == [7, 0]


@pytest.mark.parametrize(
    ("method", "pattern", "what"),
    [("PUT", "/_lfs/", "cut"), ("POST", "/commit/", "cut"), ("POST", "/commit/", "lost"),
     ("POST", "/repos/create", "lost"), ("GET", "/resolve/", "cut"), ("GET", "/tree/", "lost"),
     ("POST", "/_lfs/verify", "lost"), ("GET", "/resolve/", "slow")],
)  # fmt: skip
def test_connections_that_break_or_crawl_do_no_harm(small, hub, waits, method, pattern, what):
    hub.create(REPO)
    hub.write(REPO, "README.md", b"# Mine\n" + b"words " * 20_000)
    if pattern == "/repos/create":
        hub.repos.clear()
    hub.fail(method, pattern, what)
    assert push(small, hub).result == "published"
    assert kept(hub.files(REPO)) == sent_set(small)
    assert sum("fgbg-dataset" in text for text in hub.repo(REPO).messages.values()) == 1


def test_it_gives_up_with_one_sentence_and_the_next_run_ends_it(small, hub, waits):
    fault = hub.fail("POST", "/commit/", 503, times=100, headers={"X-Error-Message": "In repair"})
    with pytest.raises(PublishFailedError) as raised:
        push(small, hub)
    assert str(raised.value) == (
        "the commit to ann/blobs could not be made: the Hub answered 503 (In repair), 9 times. "
        "Nothing visible has changed and what was sent is kept; run the same command again later."
    )
    assert len(waits) == 8
    assert sorted(waits[:6]) == waits[:6]  # each twice the one before, shortened by up to half
    assert 20 < sum(waits) <= 1 + 2 + 4 + 8 + 16 + 32 + 60 + 60
    fault.times = 0
    sent = len(hub.sent)
    assert push(small, hub).result == "published"
    assert len(hub.sent) == sent


def test_what_huggingface_hub_repeats_is_not_repeated_again(small, hub, waits):
    hub.fail("POST", "/objects/batch", 503, times=100)
    with pytest.raises(PublishFailedError, match=r"files could not be sent to ann/blobs: .* 503"):
        push(small, hub)
    assert len(waits) == 5  # its own


def test_each_status_has_its_own_bound(small, hub, waits):
    """Four of each are more than any one bound, but none is passed."""
    for status in (408, 500, 502, 503, 504):
        hub.fail("POST", "/commit/", status, times=4)
    assert push(small, hub).result == "published"


def test_a_wait_that_is_too_long_is_told(small, hub):
    hub.fail("POST", "/commit/", 429, headers={"Retry-After": "3600"})
    with pytest.raises(PublishFailedError, match=r"answered 429 .*, and asks to wait 60 minutes"):
        push(small, hub)


def test_giving_up_is_exit_code_1(small, hub):
    hub.fail("GET", "/revision/", 503, times=100, headers={"Retry-After": "0"})
    process = start(small, "--yes")
    stdout, stderr = process.communicate(timeout=HANG_S)
    assert process.returncode == 1
    assert stdout == ""
    assert "Error: ann/blobs could not be read: the Hub answered 503 (" in stderr
    assert ", 9 times. Nothing visible has changed" in stderr
    assert "Traceback" not in stderr


def test_a_hub_that_is_not_there_is_told(small, waits, unused_port: int):
    with pytest.raises(PublishFailedError, match="could not be read: no connection to http://127"):
        publish(small, REPO, endpoint=f"http://127.0.0.1:{unused_port}", token=TOKEN)
    assert len(waits) == 8


@pytest.fixture
def unused_port() -> int:
    import socket

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def test_offline_is_told_at_once(small, hub, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(PublishError, match="HF_HUB_OFFLINE is set"):
        push(small, hub)


def test_a_dry_run_sends_nothing(small, hub):
    done = push(small, hub, dry_run=True)
    assert done.result == "not sent"
    assert set(done.plan.send) == {*sent_set(small), *REWRITTEN}
    assert done.plan.send["assets/samples.png"] == (small / "assets/samples.png").stat().st_size
    assert {method for method, path in hub.requests if path != "/api/validate-yaml"} == {"GET"}


def test_a_pull_request_leaves_main_alone_and_is_made_once(small, hub):
    hub.create(REPO)
    done = push(small, hub, create_pr=True, commit_message="Blobs", token=READ_TOKEN)
    assert done.pr_url == f"{hub.endpoint}/datasets/ann/blobs/discussions/1"
    assert hub.files(REPO) == {}
    assert kept(hub.files(REPO, "refs/pr/1")) == sent_set(small)
    again = push(small, hub, create_pr=True, commit_message="Blobs", token=READ_TOKEN)
    assert (again.pr_url, again.oid) == (done.pr_url, done.oid)
    assert len(hub.repo(REPO).pulls) == 1


def test_a_pull_request_whose_answer_is_lost_is_not_made_twice(small, hub):
    hub.create(REPO)
    hub.fail("POST", "/commit/", "lost")
    assert push(small, hub, create_pr=True).pr_url.endswith("/discussions/1")
    assert len(hub.repo(REPO).pulls) == 1


def test_a_branch_is_made_and_main_stays(small, hub):
    hub.create(REPO)
    push(small, hub, revision="v2", config="tiny")
    assert hub.files(REPO) == {}
    assert kept(hub.files(REPO, "v2")) == sent_set(small)
    assert load_dataset(REPO, "tiny", revision="v2", split="train").num_rows == 18
    assert push(small, hub, revision="v2").plan.config == "tiny"
    with pytest.raises(PublishError, match="has no revision 'v3'"):
        push(small, hub, revision="v3", create_pr=True)


def refused(out: Path, hub: Hub, repo_id: str = REPO, **options: Any) -> str:
    before = {key: dict(repo.commits) for key, repo in hub.repos.items()}
    with pytest.raises((PublishError, NotABuildError)) as raised:
        push(out, hub, repo_id, **options)
    assert {key: repo.commits for key, repo in hub.repos.items()} == before
    assert hub.sent == []
    return str(raised.value)


@pytest.mark.parametrize(
    ("repo_id", "config", "sentence"),
    [
        ("blobs", None, "lacks a namespace"),
        ("ann/fgbg_dataset", None, "named like the module fgbg_dataset.py"),
        ("ann/blobs.git", None, "cannot be a repository"),
        ("ann/my blobs", None, "cannot be a repository"),
        ("ann/a/b", None, "cannot be a repository"),
        ("../blobs", None, "cannot be a repository"),
        (REPO, "data", "cannot be called 'data'"),
        (REPO, "foregrounds", "cannot be called 'foregrounds'"),
        (REPO, "a/b", "may have letters, digits and . _ - only"),
        (REPO, "", "may have letters, digits and . _ - only"),
    ],
)
def test_names_that_could_not_be_loaded_are_refused(small, hub, repo_id, config, sentence):
    assert sentence in refused(small, hub, repo_id, config=config)
    assert hub.requests == []


def test_repositories_that_a_set_would_spoil_are_refused(small, hub):
    hub.create(REPO)
    hub.write(REPO, "blobs.py", b"")
    assert "ann/blobs holds blobs.py, and load_dataset refuses" in refused(small, hub)
    hub.create("ann/open")
    text = refused(small, hub, "ann/open", private=True)
    assert "ann/open exists and is public; a push does not change that" in text
    hub.create("ann/other")
    hub.write("ann/other", "data/train-00000-of-00001.parquet", b"x")
    text = refused(small, hub, "ann/other")
    assert "holds data that fgbg did not make (data/train-00000-of-00001.parquet)" in text
    hub.create("ann/broken")
    hub.write("ann/broken", "README.md", b"---\na: [\n---\n")
    with pytest.raises(Exception, match=r"the metadata at the top of README.md is not YAML"):
        push(small, hub, "ann/broken")


@pytest.mark.parametrize("recipe", [b'{"fingerprint": "00"}', b"[" * 99999, b"\xff", b"{}"])
def test_a_repository_is_ours_only_by_a_recipe_that_can_be_read(small, hub, recipe):
    hub.create(REPO)
    hub.write(REPO, "data/precious.csv", b"x")
    hub.write(REPO, "recipe.json", recipe)
    text = refused(small, hub)
    assert "data that fgbg did not make (data/precious.csv)" in text or "cannot be read" in text
    assert "data/precious.csv" in hub.files(REPO)


@pytest.mark.parametrize("name", ["assets/preview.html", "recipe.json", "README.md", "preview"])
def test_links_are_not_followed(small, hub, tmp_path, name):
    """A set of somebody else may link to a private key of the one who publishes it."""
    out = Path(shutil.copytree(small, tmp_path / "small"))
    secret = tmp_path / "id_rsa"
    shutil.move(out / name, secret)
    (out / name).symlink_to(secret)
    assert name in refused(out, hub)


def test_what_is_sent_is_what_was_looked_at(small, hub, tmp_path):
    out = Path(shutil.copytree(small, tmp_path / "small"))
    (secret := tmp_path / "id_rsa").write_text("a private key")

    def exchange(_plan: Any) -> bool:
        (out / "assets/preview.html").write_text("<script>evil()</script>")
        (out / "assets/samples.png").unlink()
        (out / "README.md").unlink()
        (out / "README.md").symlink_to(secret)
        return True

    assert push(out, hub, approve=exchange).result == "published"
    assert kept(hub.files(REPO)) == sent_set(small)
    assert b"private key" not in hub.read(REPO, "README.md")
    assert verify(REPO).ok


def test_what_a_killed_push_left_beside_the_set_is_swept(small, hub, tmp_path):
    """Of an Arrow set, a copy of all records."""
    out = Path(shutil.copytree(small, tmp_path / "small"))
    old, young = (tmp_path / f".small.{digit * 16}.tmp" for digit in "ab")
    for folder in (old, young):
        (folder / "made").mkdir(parents=True)
    os.utime(old, (0, 0))
    push(out, hub, dry_run=True)
    assert not old.exists()
    assert young.exists()
    assert {path.name for path in tmp_path.glob(".small*")} == {young.name}


def test_a_page_of_another_hand_is_refused(small, hub, tmp_path):
    """Even where its sha256 is stated, so that nothing is wrong by what the set says."""
    out = Path(shutil.copytree(small, tmp_path / "small"))
    (out / "assets/preview.html").write_text("<script>evil()</script>")
    state_files(out)
    assert "assets/preview.html: is not the page of this set" in refused(out, hub)


def test_a_card_too_large_to_be_read_again_is_not_sent(small, hub):
    push(small, hub)
    hub.write(REPO, "README.md", hub.read(REPO, "README.md").ljust(2**20, b"w"))
    with pytest.raises(CardError, match="at most 1,048,576 are read"):
        push(small, hub, license="mit")


def test_a_repository_that_loads_otherwise_is_refused(small, hub):
    hub.create(REPO)
    hub.write(REPO, ".huggingface.yaml", b"configs: []")
    assert "holds .huggingface.yaml, which load_dataset reads instead" in refused(small, hub)


def test_an_extended_set_is_called_so(sources, hub, tmp_path):
    folders = [Path(shutil.copytree(folder, tmp_path / folder.name)) for folder in sources]
    (folders[0] / "blob3.png").unlink()
    out = make((folders[0], folders[1]), tmp_path / "out")
    push(out, hub)
    shutil.copy(sources[0] / "blob3.png", folders[0])
    fgbg("extend", *folders, out, "--workers", "1")
    warnings = push(out, hub, dry_run=True).plan.warnings
    assert any("is extended" in text for text in warnings)
    assert not any("is replaced" in text for text in warnings)


def test_files_that_a_gitignore_swallows_are_told(small, hub):
    hub.create(REPO)
    hub.write(REPO, ".gitignore", b"data/")
    with pytest.raises(PublishError, match=r"left 7 files out of the commit, for example data/tr"):
        push(small, hub)


def test_a_license_that_the_hub_does_not_know_is_told(small, hub):
    with pytest.raises(PublishError, match=r"refuses the push to ann/blobs: .*license.* must be"):
        push(small, hub, license="bogus")
    assert hub.sent == []
    assert hub.repos == {}


def test_a_refusal_says_what_the_hub_says_and_advises_where_the_cause_is_known(small, hub):
    assert "`hf auth login`" in refused(small, hub, token=False)
    hub.create(REPO)
    text = refused(small, hub, token=READ_TOKEN)
    assert "the Hub refuses the push to ann/blobs: pass `create_pr=1`" in text
    assert "--create-pr opens a pull request" in text
    text = refused(small, hub, "bob/blobs")  # no repository that a pull request could be made to
    assert "the Hub refuses the push to bob/blobs: " in text
    assert "--create-pr" not in text
    limit = "Private repository storage limit reached, please upgrade your plan"
    hub.fail("POST", "/preupload/", 403, headers={"X-Error-Message": limit})
    assert refused(small, hub) == f"the Hub refuses the push to ann/blobs: {limit}."


def test_a_branch_is_asked_for_once(small, hub):
    hub.create(REPO)
    push(small, hub, revision="v2")
    made = [path for path in hub.paths if "/branch/" in path]
    push(small, hub, revision="v2")
    assert [path for path in hub.paths if "/branch/" in path] == made == [made[0]]


def test_bytes_that_the_hub_stores_otherwise_are_sent_again_and_then_told(small, hub):
    path = "data/train-00000-of-00003.parquet"
    sha256 = hashlib.sha256((small / path).read_bytes()).hexdigest()

    def damage() -> None:
        (hub.blobs / sha256).write_bytes(b"other")

    hub.fail("POST", "/commit/", damage)
    assert push(small, hub).result == "published"  # sent anew, for the Hub then lacked it
    hub.repos.clear()
    hub.fail("POST", "/commit/", damage, times=9)
    with pytest.raises(PublishFailedError, match=f"stores other bytes of {path} than were sent"):
        push(small, hub)


def test_what_is_unfinished_or_harmed_is_refused(small, hub, tmp_path):
    assert "is not a finished build" in refused(tmp_path / "nothing", hub)
    from builder.build.work import WorkFolder

    begun = tmp_path / "begun"
    shutil.copytree(small, WorkFolder(begun).path)
    assert f"{begun} is not finished; run its build again" in refused(begun, hub)
    harmed = tmp_path / "harmed"
    shutil.copytree(small, harmed)
    shard = harmed / "data" / "train-00000-of-00003.parquet"
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 1
    shard.write_bytes(content)
    text = refused(harmed, hub)
    assert text.startswith("the set is not what its recipe and records say:\n")
    assert "train-00000-of-00003" in text
    assert hub.requests == []


@pytest.mark.parametrize(
    ("chosen", "licenses", "sentences"),
    [
        ("cc-by-4.0", ["CC BY-SA 4.0", "CC0-1.0", "CC BY-NC 4.0", "cc-by-nd-4.0"],
         ["foregrounds/blob0.png (CC BY-SA 4.0, share-alike: the set must be under cc-by-sa too)",
          "foregrounds/blob2.png (CC BY-NC 4.0, non-commercial",
          "foregrounds/blob3.png (cc-by-nd-4.0, no derivatives"]),
        ("cc0-1.0", ["CC BY 4.0", "", "", ""], ["blob0.png (CC BY 4.0, asks for credit"]),
        (None, ["All rights reserved", "", "", ""], ["under no license", "without permission"]),
        ("cc-by-nc-sa-4.0", ["CC BY-NC-SA 4.0", "CC BY-NC 4.0", "Our own terms", ""], []),
    ],
)  # fmt: skip
def test_licenses_that_forbid_it_are_listed_by_file(
    sources, hub, tmp_path, chosen, licenses, sentences
):
    foregrounds = tmp_path / "fg"
    shutil.copytree(sources[0], foregrounds)
    lines = [f"blob{i}.png,Bob,{name}," for i, name in enumerate(licenses) if name]
    (foregrounds / "credits.csv").write_text("\n".join(["file,author,license,url", *lines]))
    out = make((foregrounds, sources[1]), tmp_path / "out")
    if sentences:
        text = refused(out, hub, license=chosen)
        for sentence in sentences:
            assert sentence in text
        assert "CC0-1.0" not in text
    else:
        done = push(out, hub, license=chosen)
        assert done.plan.license == chosen
        assert "1 of 4 foregrounds are without author or license." in done.plan.warnings
        assert any("not known here: Our own terms" in text for text in done.plan.warnings)


def test_weights_that_forbid_a_license_are_named_with_their_cut_outs(sources, hub, tmp_path):
    foregrounds, columns = tmp_path / "fg", "file,author,license,url,tool,weights,weights_license\n"
    shutil.copytree(sources[0], foregrounds)
    plain = make((foregrounds, sources[1]), tmp_path / "plain")
    made = {
        "blob0": ("fgbg-dataset 1 key", "", ""),
        "blob1": ("rembg bria-rmbg", "briaai/RMBG-2.0@ab12", "bria-rmbg-2.0"),
        "blob2": ("fgbg-dataset 1 m", "ann/cutter@cd34", "our | terms"),
        "blob3": ("fgbg-dataset 1 n", "ann/shared@ef56", "cc-by-nd-4.0"),
    }
    lines = [f"{name}.png,Bob,CC0-1.0,,{','.join(values)}\n" for name, values in made.items()]
    (foregrounds / "credits.csv").write_text(columns + "".join(lines))
    backgrounds = tmp_path / "bg"
    shutil.copytree(sources[1], backgrounds)
    (backgrounds / "credits.csv").write_text(columns + "scene0.jpg,Bob,CC0-1.0,,x,y,cc-by-nc-4.0\n")
    out = make((foregrounds, backgrounds), tmp_path / "out")
    assert read_recipe(out).fingerprint == read_recipe(plain).fingerprint
    rows = load_dataset(str(out), "foregrounds", split="train")
    for row, entry in zip(rows, read_recipe(out).foregrounds, strict=True):
        values = (entry.tool, entry.weights, entry.weights_license)
        assert made[entry.id] == values == (row["tool"], row["weights"], row["weights_license"])
    assert verify(out).ok
    card = (out / "README.md").read_text()
    assert "\n- fgbg-dataset 1 key (1)\n" in card
    assert "license of the weights: our \\| terms (1)\n" in card
    assert "cut out of photographs by" not in (plain / "README.md").read_text()
    text = refused(out, hub, license="cc-by-4.0", dry_run=True)
    assert text == refused(out, hub, license="cc-by-4.0")
    assert "/blob1.png (cut out by briaai/RMBG-2.0@ab12 under bria-rmbg-2.0, non-com" in text
    assert "blob0" not in text and "blob2" not in text and "blob3" not in text
    assert "scene0" not in text  # a background is not cut out
    (warning,) = [w for w in push(out, hub, license="cc-by-nc-4.0").plan.warnings if "weights" in w]
    assert "ann/cutter@cd34 (our | terms)" in warning
    assert "briaai" not in warning and "shared" not in warning


def test_the_license_the_card_says_counts_too(sources, hub, tmp_path):
    foregrounds = tmp_path / "fg"
    shutil.copytree(sources[0], foregrounds)
    (foregrounds / "credits.csv").write_text("file,author,license,url\nblob0.png,B,CC BY-SA 4.0,")
    out = make((foregrounds, sources[1]), tmp_path / "out")
    assert "under no license" in refused(out, hub)
    push(out, hub, license="cc-by-sa-4.0")
    card = hub.read(REPO, "README.md")
    hub.write(REPO, "README.md", card.replace(b"license: cc-by-sa-4.0", b"license: mit"))
    with pytest.raises(PublishError, match="may not be published under mit"):
        push(out, hub)


@pytest.mark.parametrize("form", ["parquet", "arrow"])
def test_as_dataset_push_to_hub_publishes_the_same_set(sources, tiny_model, hub, tmp_path, form,
                                                       monkeypatch):  # fmt: skip
    """Arrow or Parquet, from Python or by the command: the same bytes."""
    recipe = {**SMALL, "depth_model": str(tiny_model), "depth_input": 64, "shard_records": 7}
    builder = FgbgDataset(*sources, **recipe, cache_dir=str(tmp_path / "cache"))
    builder.download_and_prepare(tmp_path / "a" / "set", file_format=form, num_proc=1,
                                 options=QUIET)  # fmt: skip
    done = builder.as_dataset().push_to_hub("ann/python", private=True, commit_message="Mine")
    assert done.oid == hub.repo("ann/python").refs["main"]
    assert hub.repo("ann/python").messages[done.oid] == "Mine"
    assert hub.repo("ann/python").private
    assert sorted(p.name for p in (tmp_path / "a").iterdir()) == ["set"]  # no copy left behind
    FgbgDataset(*sources, **recipe, cache_dir=str(tmp_path / "cache")).download_and_prepare(
        tmp_path / "b" / "set", file_format="parquet", num_proc=1, options=QUIET
    )
    push(tmp_path / "b" / "set", hub, "ann/pushed")
    one, other = hub.files("ann/python"), hub.files("ann/pushed")
    assert (
        {**kept(one), **kept(other)} == kept(one) == kept(other) == sent_set(tmp_path / "b" / "set")
    )
    assert [one[name] for name in REWRITTEN - {"README.md"}] == [
        other[name] for name in REWRITTEN - {"README.md"}
    ]
    cards = [hub.read(name, "README.md").decode() for name in ("ann/python", "ann/pushed")]
    assert cards[0].replace("ann/python", "ann/pushed") == cards[1]
    rows = load_dataset("ann/python", split="train")
    assert rows["pixel_hash"][:] == builder.as_dataset("train")["pixel_hash"][:]


def test_changed_splits_are_left_to_datasets(sources, hub, tmp_path):
    builder = FgbgDataset(*sources, **SMALL, cache_dir=str(tmp_path / "cache"))
    builder.download_and_prepare(num_proc=1, options=QUIET)
    whole = builder.as_dataset()
    with pytest.raises(PublishError, match="max_shard_size is not used here"):
        whole.push_to_hub(REPO, max_shard_size="1MB")
    whole["train"] = whole["train"].select(range(5))
    whole.push_to_hub(REPO, max_shard_size="1MB")
    assert load_dataset(REPO, split="train").num_rows == 5
    assert "recipe.json" not in hub.files(REPO)


def test_the_command_prints_the_plan_asks_and_tells_as_json(small, hub):
    process = start(small)
    stdout, stderr = process.communicate(timeout=HANG_S)
    assert process.returncode == 2
    assert "nobody is here to confirm this; look at the plan above and add --yes" in stderr
    assert "40 records of " in stderr
    assert f"  to        {hub.endpoint}/datasets/ann/blobs (main)\n" in stderr
    assert "  visible   new, as your account makes new ones\n" in stderr
    assert "  license   none\n" in stderr
    assert "  note      5 of 5 backgrounds are without author or license.\n" in stderr
    assert hub.repos == {}
    process = start(small, "--yes", "--json", "--private", "--license", "cc-by-4.0")
    stdout, stderr = process.communicate(timeout=HANG_S)
    result = json.loads(stdout)
    assert result["result"] == "published"
    assert result["oid"] == hub.repo(REPO).refs["main"]
    assert result["plan"]["license"] == "cc-by-4.0"
    assert hub.repo(REPO).private


@pytest.mark.parametrize(("answer", "repos"), [(b"y\n", 1), (b"n\n", 0)])
def test_a_person_is_asked(small, hub, answer, repos):
    ours, theirs = pty.openpty()
    os.write(ours, answer)
    done = subprocess.run([*COMMAND, "push", str(small), REPO], stdin=theirs, capture_output=True,
                          text=True, timeout=HANG_S)  # fmt: skip
    os.close(ours)
    os.close(theirs)
    assert "Send it? [y/N]" in done.stderr
    assert done.returncode == 0
    assert len(hub.repos) == repos
    assert ("Published: " in done.stdout) == bool(repos)


def test_the_server_of_these_tests_refuses_a_stale_parent(hub: Hub) -> None:
    api = huggingface_hub.HfApi(endpoint=hub.endpoint, token=TOKEN)
    hub.create(REPO)
    head = hub.repo(REPO).refs["main"]
    add = [huggingface_hub.CommitOperationAdd("a.txt", b"a")]
    api.create_commit(REPO, add, commit_message="a", repo_type="dataset", parent_commit=head)
    with pytest.raises(huggingface_hub.errors.HfHubHTTPError) as raised:
        api.create_commit(
            REPO,
            [huggingface_hub.CommitOperationAdd("b.txt", b"b")],
            commit_message="b",
            repo_type="dataset",
            parent_commit=head,
        )
    assert raised.value.response.status_code == 412
