"""Sets built to, and from, a real S3 server on loopback."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import urllib.request

import pytest
from click.testing import CliRunner, Result

from builder.cli import main
from builder.remote import place
from fgbg_dataset import FgbgDataset, FgbgError, RecordReader
from tests.begun import begin
from tests.e2e.running import OPTIONS, files_of, start, wait_until
from tests.e2e.s3 import BUCKET, KEY, SECRET, serve
from tests.limits import HANG_S

SMALL = (*OPTIONS, "--shard-records", "6", "--depth-model", "none")  # 20 shards
RECIPE = {
    "placements": 3,
    "size": 64,
    "foreground_size": 32,
    "holdout": 0.3,
    "depth_input": 64,
    "shard_records": 6,
    "depth_model": "none",
}


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    import s3fs

    chosen = {
        "AWS_ACCESS_KEY_ID": KEY,
        "AWS_SECRET_ACCESS_KEY": SECRET,
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
        "AWS_CONFIG_FILE": os.devnull,
        "TMPDIR": str(tmp_path_factory.mktemp("tmp")),  # what is killed leaves something there
        "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
    }
    with pytest.MonkeyPatch.context() as patch, serve() as address:
        for name, value in {**chosen, "AWS_ENDPOINT_URL": address}.items():
            patch.setenv(name, value)
        s3fs.S3FileSystem.clear_instance_cache()
        system = s3fs.S3FileSystem(use_listings_cache=False)
        system.mkdir(BUCKET)
        yield system
        s3fs.S3FileSystem.clear_instance_cache()


@pytest.fixture
def store(server):
    """The server's file system, its bucket empty."""
    if server.exists(f"{BUCKET}/a"):
        server.rm(f"{BUCKET}/a", recursive=True)
    return server


@pytest.fixture(scope="module")
def undisturbed(sources, tmp_path_factory):
    out = tmp_path_factory.mktemp("local") / "mine"
    fgbg("build", *sources, out, *SMALL)
    return out


OUT = f"s3://{BUCKET}/a/mine"
WORK = f"{BUCKET}/a/.mine.fgbg"


def fgbg(*arguments: object, code: int = 0) -> Result:
    """Run the command in this process, which has imported all that it needs."""
    done = CliRunner().invoke(main, [*map(str, arguments)], prog_name="fgbg")
    assert done.exit_code == code, done.output
    return done


def stored(store, folder: str = f"{BUCKET}/a/mine") -> dict[str, str]:
    """The sha256 of every object in a folder by its path inside."""
    return {
        name.removeprefix(f"{folder}/"): hashlib.sha256(store.cat_file(name)).hexdigest()
        for name in store.find(folder)
    }


def commits(store) -> set[str]:
    return {name for name in store.find(f"{WORK}/shards") if name.endswith(".json")}


def test_a_build_to_s3_is_a_local_build_and_can_be_checked_and_loaded(
    sources, undisturbed, store, tmp_path
):
    import datasets

    done = fgbg("build", *sources, OUT, *SMALL, "--workers", "2")
    assert f"120 records in {OUT} (" in done.stdout
    load = f'load_dataset("parquet", data_files="{OUT}/data/train-*", split="train")'
    assert load in done.stdout
    assert stored(store) == files_of(undisturbed)
    assert store.ls(f"{BUCKET}/a", detail=False) == [f"{BUCKET}/a/mine"]
    again = json.loads(fgbg("build", *sources, OUT, *SMALL, "--json").stdout)
    assert (again["finished"], again["records"]) == (True, 120)
    state = json.loads(fgbg("status", OUT, "--json").stdout)
    assert (state["finished"], state["records_done"]) == (True, 120)
    assert "All is well." in fgbg("verify", OUT).stdout
    files = f"{OUT}/data/train-*.parquet"
    ours = datasets.load_dataset("parquet", data_files=files, split="train", cache_dir=tmp_path)
    files = f"{undisturbed}/data/train-*.parquet"
    local = datasets.load_dataset("parquet", data_files=files, split="train", cache_dir=tmp_path)
    assert ours["pixel_hash"] == local["pixel_hash"]
    refused = fgbg("build", *sources, OUT, *SMALL, "--size", "96", code=2)
    assert "size is 64, asked for is 96" in refused.stderr
    shard = f"{BUCKET}/a/mine/" + min(name for name in files_of(undisturbed) if name[:5] == "data/")
    content = bytearray(store.cat_file(shard))
    content[len(content) // 2] ^= 1
    store.pipe_file(shard, bytes(content))
    assert "its sha256 is not that of assets/statistics.json" in fgbg("verify", OUT, code=1).stdout


def test_a_kill_and_harm_are_mended_and_no_other_shard_is_made_again(sources, undisturbed, store):
    process = start("build", *sources, OUT, *SMALL)
    assert wait_until(process, lambda: len(commits(store)) >= 5), process.communicate()
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    assert not store.exists(f"{BUCKET}/a/mine")
    held = commits(store)
    state = json.loads(fgbg("status", OUT, "--json").stdout)
    assert sum(split["shards_done"] for split in state["splits"].values()) == len(held) < 20
    before = {name: store.info(name) for name in store.find(f"{WORK}/shards")}
    cut, flipped = sorted(name for name in before if name.endswith(".parquet"))[:2]
    content = {name: store.cat_file(name) for name in (cut, flipped)}
    store.pipe_file(cut, content[cut][:-100])
    store.pipe_file(flipped, content[flipped][:-1] + bytes([content[flipped][-1] ^ 1]))
    begin(FgbgDataset(*sources, **RECIPE), place(OUT), 20)
    assert {name: store.cat_file(name) for name in (cut, flipped)} == content
    after = {name: store.info(name)["LastModified"] for name in before}
    made_again = {name for name in before if after[name] != before[name]["LastModified"]}
    assert {name for name in made_again if name.endswith(".parquet")} <= {cut, flipped}
    fgbg("build", *sources, OUT, *SMALL)
    assert stored(store) == files_of(undisturbed)


def test_two_builds_at_once_make_one_set(sources, undisturbed, store):
    for process in [start("build", *sources, OUT, *SMALL) for _ in range(2)]:
        stdout, stderr = process.communicate(timeout=HANG_S)
        assert process.returncode == 0, stderr
        assert "120 records" in stdout
    assert stored(store) == files_of(undisturbed)
    assert store.ls(f"{BUCKET}/a", detail=False) == [f"{BUCKET}/a/mine"]


def test_the_end_of_a_finish_that_was_killed(sources, undisturbed, store):
    dataset = FgbgDataset(*sources, **RECIPE)
    begin(dataset, place(OUT), 15)
    refused = fgbg("finish", OUT, code=1)
    assert f"{OUT} cannot be finished: 5 shards are missing" in refused.stderr
    assert "repeat the command that began the build" in refused.stderr
    begin(dataset, place(OUT), 5)
    last = start("build", *sources, OUT, *SMALL)
    assert wait_until(last, lambda: store.exists(f"{BUCKET}/a/mine")), last.communicate()
    last.kill()
    last.communicate()
    if not store.exists(f"{BUCKET}/a/mine/recipe.json"):
        assert json.loads(fgbg("status", OUT, "--json").stdout)["finished"] is False
        assert "no recipe.json" in fgbg("verify", OUT, code=2).stderr
    told = json.loads(fgbg("build", "--finish", OUT, "--json").stdout)
    assert (told["finished"], told["records"]) == (True, 120)
    assert stored(store) == files_of(undisturbed)
    assert store.ls(f"{BUCKET}/a", detail=False) == [f"{BUCKET}/a/mine"]


def test_sources_from_s3_give_the_same_set_and_are_fetched_once(
    sources, undisturbed, store, tmp_path, monkeypatch
):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for folder in sources:
        for file in folder.rglob("*"):
            if file.is_file():
                name = file.relative_to(folder.parent).as_posix()
                store.put_file(str(file), f"{BUCKET}/a/{name}")
    for key in ("a/bg/", "a/mine/"):  # what consoles mark a folder by
        store.call_s3("put_object", Bucket=BUCKET, Key=key, Body=b"")
    assert "is not a build of fgbg" in fgbg("status", OUT, code=2).output
    assert list(place(OUT).iterdir()) == []
    remote = [f"s3://{BUCKET}/a/{folder.name}" for folder in sources]
    out = tmp_path / "mine"
    fgbg("build", *remote, out, *SMALL)
    assert files_of(out) == files_of(undisturbed)
    fetched = {p: p.stat().st_mtime_ns for p in (tmp_path / "cache").rglob("*.*g")}
    assert len(fetched) == 9
    shutil.rmtree(out)
    first = min(p for p in fetched if p.parent.name == sources[1].name)
    store.rm_file(f"{BUCKET}/a/{sources[1].name}/{first.name}")
    fgbg("build", *remote, out, *SMALL)
    assert not first.exists()
    assert all(p.stat().st_mtime_ns == then for p, then in fetched.items() if p != first)
    store.pipe_file(f"{BUCKET}/a/{sources[0].name}/sub/../../../escaped.png", b"x")
    refused = fgbg("build", *remote, tmp_path / "other", *SMALL, code=2)
    assert "rename it" in refused.stderr
    assert not list(tmp_path.rglob("escaped.png"))


def test_what_goes_wrong_is_one_sentence_without_secrets(
    sources, undisturbed, store, tmp_path, monkeypatch
):
    def refused(*arguments: object, code: int) -> str:
        stderr = fgbg(*arguments, code=code).stderr
        assert SECRET not in stderr and "Traceback" not in stderr
        return stderr.splitlines()[-1]

    build = ("build", *sources)
    told = refused(*build, "s3://no-such-bucket/mine", *SMALL, code=1)
    assert told == (
        "Error: s3://no-such-bucket/mine cannot be written: there is no s3://no-such-bucket; make "
        "it first, or check its name."
    )
    told = refused(*build, f"s3://{KEY}:{SECRET}@{BUCKET}/mine", *SMALL, code=2)
    assert "names a place and nothing else" in told
    assert "is a whole bucket; name a folder in it" in refused(
        *build, f"s3://{BUCKET}", *SMALL, code=2
    )
    assert "needs a folder of this machine" in refused("push", OUT, "me/mine", code=2)
    assert "needs a folder of this machine" in refused(*build, OUT, "--extend", code=2)
    assert "is not a build of fgbg" in refused("status", OUT, code=2)
    assert "run `pip install gcsfs`" in refused(*build, "gs://bucket/mine", *SMALL, code=1)
    told = refused("build", f"s3://{BUCKET}/none", sources[1], tmp_path / "o", *SMALL, code=2)
    assert f"s3://{BUCKET}/none holds no file" in told
    type(store).clear_instance_cache()
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    told = refused(*build, OUT, *SMALL, code=1)
    assert "the store cannot be used (EndpointConnectionError: Could not connect" in told
    with pytest.raises(FgbgError, match="the store cannot be used") as caught:  # not "no set"
        RecordReader.of(OUT)
    assert type(caught.value) is FgbgError
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    assert "no credentials were found" in refused(*build, OUT, *SMALL, code=1)
    monkeypatch.undo()  # in the same process, which must not remember what failed
    assert "is not a build of fgbg" in refused("status", OUT, code=2)


def test_a_set_on_the_store_is_browsed_as_it_lies_there(undisturbed, store, tmp_path):
    from builder.release.browse import serving

    store.put(str(undisturbed), f"{BUCKET}/a/mine", recursive=True)
    found = []
    for target in (OUT, undisturbed):
        with serving(target, flags=tmp_path / "flags.csv") as url:
            for path in ("columns", "picture/5", "mask/5"):
                with urllib.request.urlopen(url + path) as answer:
                    found.append(answer.read())
    assert found[:3] == found[3:]
