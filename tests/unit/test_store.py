"""Addresses on object stores, and what stores of both kinds do; fsspec's memory is the store."""

from __future__ import annotations

import pickle
from pathlib import Path

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from builder.build.leases import Presence
from builder.errors import FgbgError, OutputError
from builder.remote import local_folder, on_this_machine, place


class Overwriting(MemoryFileSystem):
    """A store that takes no notice of a wish not to overwrite, as some do."""

    protocol = "overwriting"
    store: dict = {}  # noqa: RUF012 - as the parent has it
    pseudo_dirs = [""]  # noqa: RUF012

    def pipe_file(self, path, value, mode="overwrite", **kwargs):
        return super().pipe_file(path, value, **kwargs)


@pytest.fixture(params=["memory", "overwriting"])
def folder(request):
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


@pytest.mark.parametrize(
    "address",
    [
        "s3://",
        "S3 ://b",
        "s3://key:secret@b/x",
        "s3://key@b",
        "s3://b?token=secret/x",
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
    assert folder.probe() is (folder.scheme == "memory")
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
    with Presence(folder, "f") as one, Presence(folder, "f") as two:
        assert one.take("shard") and not two.take("shard")
        assert [owner.build for owner in two.look()] == [one.owner.build]
        one.release("shard")
        assert two.take("shard")
    assert not folder.files()
