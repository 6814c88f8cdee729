"""Files that anybody may have put there: regular ones are read, litter of systems is known."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from builder.files import is_system_file, open_regular, read_text, sha256_file, sweep
from tests.limits import HANG_S


def socket_at(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(path))


SPECIAL = {
    "pipe": os.mkfifo,
    "socket": socket_at,
    "device": lambda path: path.symlink_to("/dev/zero"),
    "terminal": lambda path: path.symlink_to("/dev/tty"),
    "folder": Path.mkdir,
}


@pytest.mark.parametrize("name", SPECIAL)
def test_what_might_never_end_is_not_opened(tmp_path: Path, name: str) -> None:
    path = tmp_path / "x"
    SPECIAL[name](path)
    for read in (sha256_file, lambda path: read_text(path, 10)):
        with pytest.raises(OSError, match=r"is not a regular file|Is a directory"):
            read(path)


def test_a_pipe_that_takes_the_place_of_a_file_is_not_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "x"
    path.write_text("x")
    status = path.stat()
    path.unlink()
    os.mkfifo(path)
    monkeypatch.setattr(Path, "stat", lambda self: status)  # as it was a moment before
    with pytest.raises(OSError, match="is not a regular file"), open_regular(path):
        pass


def test_links_are_refused_where_a_folder_is_given(tmp_path: Path) -> None:
    out, outside = tmp_path / "out", tmp_path / "outside"
    (out / "sub").mkdir(parents=True)
    outside.mkdir()
    (outside / "key").write_text("secret")
    (out / "sub" / "own").write_text("own")
    (out / "file").symlink_to(outside / "key")
    (out / "folder").symlink_to(outside)
    (tmp_path / "linked").symlink_to(out)
    assert read_text(out / "file", 10) == "secret"
    for where in (out, tmp_path / "linked"):  # the folder itself may be a link
        assert read_text(where / "sub" / "own", 10, within=where) == "own"
        for name in ("file", "folder/key", "sub/../file"):
            with pytest.raises(OSError, match="link; put the file itself there"):
                read_text(where / name, 10, within=where)


def test_text_is_bounded_and_utf_8(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_text("äöü")
    assert read_text(path, 6) == "äöü"
    with pytest.raises(ValueError, match="it has 6 bytes; at most 5 are read"):
        read_text(path, 5)
    path.write_bytes(b"\xe4")
    with pytest.raises(ValueError, match="utf-8"):
        read_text(path, 5)


@pytest.mark.parametrize(
    "name",
    [
        ".DS_Store", "sub/.DS_Store", "._a.png", "__MACOSX/a.png", "__MACOSX/sub/._a.png", "Icon\r",
        "Thumbs.db", "thumbs.db", "ehthumbs.db", "Thumbs.db:encryptable", "Desktop.ini",
        "$RECYCLE.BIN/x.png", "System Volume Information/x", "@eaDir/a.png/SYNOFILE_THUMB_XL.jpg",
        "#recycle/a.png", "#snapshot/x", ".@__thumb/a.png", "@Recycle/a.png", "lost+found/x",
        ".Trash-1000/files/a.png", ".directory", ".nfs000000000000a1b2", ".Spotlight-V100/x",
        ".fseventsd/x", ".ipynb_checkpoints/a-checkpoint.png",
    ],
)  # fmt: skip
def test_what_systems_leave_is_known(name: str) -> None:
    assert is_system_file(name)


@pytest.mark.parametrize(
    "name",
    [
        "a.png", "DS_Store.png", "thumbs.db.png", "eaDir/a.png", "recycle.png", "_.png", "a._b.png",
        "icon.png", "desktop.png", "MACOSX/a.png", ".hidden.png", ".git/x", "",
    ],
)  # fmt: skip
def test_what_people_put_there_is_not_taken_for_it(name: str) -> None:
    assert not is_system_file(name)


_KILLED = """
import os, signal, sys
from pathlib import Path
from builder.files import replacing

with replacing(Path(sys.argv[1])) as temporary:
    temporary.write_text("half")
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_what_a_killed_writer_left_is_swept_a_day_later(tmp_path: Path) -> None:
    path = tmp_path / "[a]*.md"
    others = [tmp_path / ".[a]*.md.txt.tmp", tmp_path / f".ax.md.{'0' * 16}.tmp", path]
    for other in others:
        other.write_text("mine")
        os.utime(other, (0, 0))
    subprocess.run([sys.executable, "-c", _KILLED, str(path)], check=False, timeout=HANG_S)
    (left,) = {*tmp_path.iterdir()} - {*others}
    assert left.read_text() == "half"
    sweep(path)  # it may be of a writer at work
    assert left.exists()
    a_day_ago = time.time() - 86_401
    os.utime(left, (a_day_ago, a_day_ago))
    sweep(path)
    assert {*tmp_path.iterdir()} == {*others}


def test_a_folder_that_was_left_goes_with_all_in_it_and_a_link_alone(tmp_path: Path) -> None:
    kept, folder, link = (
        tmp_path / n for n in ("kept", f".m.{'0' * 16}.tmp", f".m.{'1' * 16}.tmp")
    )
    for each in (kept, folder):
        each.mkdir()
        (each / "x").write_text("x")
    link.symlink_to(kept)
    for each in (folder, link):
        os.utime(each, (0, 0), follow_symlinks=False)
    sweep(tmp_path / "m")
    assert [path.name for path in tmp_path.rglob("*")] == ["kept", "x"]
