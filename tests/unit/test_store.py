"""Addresses on object stores, and what stores of both kinds do; fsspec's memory is the store."""

from __future__ import annotations

import pickle
from pathlib import Path

import fsspec
import pytest
from click.testing import CliRunner
from fsspec.implementations.memory import MemoryFileSystem

from builder.build.leases import Leases
from builder.cli import main
from builder.errors import FgbgError, OutputError
from builder.remote import local_folder, on_this_machine, place


class Kept(MemoryFileSystem):
    """A store like any other, but in memory."""

    protocol = "kept"
    store: dict = {}  # noqa: RUF012 - as the parent has it
    pseudo_dirs = [""]  # noqa: RUF012


class Overwriting(MemoryFileSystem):
    """A store that takes no notice of a wish not to overwrite, as some do."""

    protocol = "overwriting"
    store: dict = {}  # noqa: RUF012 - as the parent has it
    pseudo_dirs = [""]  # noqa: RUF012

    def pipe_file(self, path, value, mode="overwrite", **kwargs):
        return super().pipe_file(path, value, **kwargs)


@pytest.fixture(params=["kept", "overwriting"])
def folder(request):
    fsspec.register_implementation("kept", Kept, clobber=True)
    fsspec.register_implementation("overwriting", Overwriting, clobber=True)
    path = place(f"{request.param}://bucket/sets")
    yield path
    path.rmtree()


@pytest.mark.parametrize(
    ("address", "parts"),
    [
        ("s3://b/sets/mine", ("s3", "b/sets/mine")),
        ("s3://b/sets/mine//", ("s3", "b/sets/mine")),
        ("hf://buckets/me/sets/x", ("hf", "buckets/me/sets/x")),
        ("hf://datasets/me/set@main/x", ("hf", "datasets/me/set@main/x")),
        ("http://127.0.0.1:80/x", ("http", "127.0.0.1:80/x")),
    ],
)
def test_an_address_is_a_path(address, parts):
    path = place(address)
    assert (path.scheme, path.key) == parts
    assert str(path) == address.rstrip("/")
    assert (path.parent / path.name) == path == pickle.loads(pickle.dumps(path))
    assert [str(above) for above in place("s3://b/c/d.json").parents] == ["s3://b/c", "s3://b"]
    assert place("s3://b/c/d.json").stem == "d"
    assert place("S3://b/c") == place("s3://b/c")


@pytest.mark.parametrize(
    "address",
    [
        "s3://",
        "S3 ://b",
        "s3://key:secret@b/x",
        "s3://key@b",
        "s3://b?token=secret/x",
        "s3://b/x?token=secret",
        "S3://key:secret@b/x",
        "s3://key/sec/secret@b/x",
        "s3://key secret@b/x",
        "s3 ://key:secret@b/x",
        "s3:///key:secret@b/x",
        "s3:/key:secret@b/x",
        " s3:/key/secret@b/x",
        "file://me:secret@server/x",
        "simplecache::s3://b/x",
        "s3://b/../x",
        "s3://b//x",
        "s3://b/a\nb",
    ],
)
def test_what_is_no_address_is_refused_without_telling_secrets(address):
    with pytest.raises(FgbgError) as refused:
        place(address)
    assert "secret" not in str(refused.value)


@pytest.mark.parametrize(
    ("url", "path"),
    [
        ("file:///data/a b", "/data/a b"),
        ("FILE:///data/a%20b%25", "/data/a b%"),
        ("file://localhost/data/x", "/data/x"),
        ("local:///data/x@2/y?z", "/data/x@2/y?z"),
    ],
)
def test_a_file_url_is_a_path(url, path):
    assert place(url) == Path(path)


@pytest.mark.parametrize("url", ["file://server/x", "file://x", "memory://b/x", "Memory://b/x"])
def test_what_leads_nowhere_is_refused_with_the_true_reason(url):
    with pytest.raises(FgbgError, match=r"another machine|is gone when this process ends"):
        place(url)


def test_a_store_that_cannot_be_reached_is_not_empty(tmp_path, monkeypatch):
    from s3fs import S3FileSystem

    chosen = {"AWS_ACCESS_KEY_ID": "a-key", "AWS_SECRET_ACCESS_KEY": "a-secret"}
    chosen |= {"AWS_ENDPOINT_URL": "http://127.0.0.1:9", "AWS_EC2_METADATA_DISABLED": "true"}
    for name, value in {**chosen, "AWS_MAX_ATTEMPTS": "1"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(S3FileSystem, "retries", 1)
    S3FileSystem.clear_instance_cache()
    for ask in ("exists", "is_file", "is_dir"):
        with pytest.raises(OSError, match="the store cannot be used"):
            getattr(place("s3://b/x"), ask)()
    done = CliRunner().invoke(main, ["status", "s3://b/x"])
    assert done.exit_code == 1
    assert "s3://b/x" in done.stderr and "the store cannot be used" in done.stderr
    assert "a-secret" not in done.output
    S3FileSystem.clear_instance_cache()


def test_paths_stay_paths(tmp_path):
    assert place("out/mine") == Path("out/mine")
    assert place(tmp_path) == on_this_machine(tmp_path) == local_folder(tmp_path) == tmp_path
    with pytest.raises(FgbgError, match="s3://b/x lies on a store, and this needs a folder"):
        on_this_machine("s3://b/x")
    with pytest.raises(FgbgError, match="is a whole bucket; name a folder in it: s3://b/NAME"):
        _ = place("s3://b").parent
    with pytest.raises(OutputError, match="nothing://b/x cannot be used: fsspec knows no nothing"):
        place("nothing://b/x").exists()


def test_a_store_is_asked_whether_it_overwrites(folder):
    assert folder.probe() is (folder.scheme == "kept")
    assert not list(folder.parent.iterdir())  # nothing of it stays


def test_objects_are_created_once_read_listed_and_deleted(folder, tmp_path):
    path = folder / "a.json"
    assert path.create(b"one") and not path.create(b"two")
    assert path.read_bytes() == b"one" and path.stat().st_size == 3
    assert path.exists() and path.is_file() and folder.is_dir() and not folder.is_file()
    (tmp_path / "file").write_bytes(bytes(range(100)))
    other = folder / "sub" / "b.bin"
    other.upload(tmp_path / "file")
    with other.open() as file:
        file.seek(98)
        assert file.read() == b"bc"
    assert [p.name for p in folder.iterdir()] == ["a.json", "sub"]
    assert list(folder.glob("*.json")) == [path]
    assert sorted(folder.files()) == ["a.json", "sub/b.bin"]
    other.copy(folder / "c.bin")
    (folder / "c.bin").download(tmp_path / "again")
    assert (tmp_path / "again").read_bytes() == bytes(range(100))
    path.unlink()
    path.unlink(missing_ok=True)
    with pytest.raises(FileNotFoundError):
        path.unlink()
    with pytest.raises(FileNotFoundError):
        path.read_bytes()
    folder.rmtree()
    assert not folder.exists() and list(folder.iterdir()) == []


def test_builds_share_work_on_a_store(folder):
    with Leases(folder, "f") as one, Leases(folder, "f") as two:
        assert one.take("shard") and not two.take("shard")
        assert [owner.build for owner in two.others()] == [one.owner.build]
        one.give_back("shard")
        assert two.take("shard")
    assert not folder.files()
