"""leases: one process gets a shard, dead and silent ones lose theirs, no clocks are compared."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from builder.build.leases import Leases, Owner

SHARD = "train-00000-of-00001"


class Clock:
    """A clock that is set by hand."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


def leases(folder: Path, clock: Clock | None = None, **owner: object) -> Leases:
    """A build in `folder` that beats only when told, maybe somewhere else."""
    made = Leases(folder, "f" * 64, 60.0, clock=clock or Clock())
    made.owner = replace(made.owner, **owner)
    for name in ("owners", "claims"):
        (folder / name).mkdir(exist_ok=True)
    made.beat()
    return made


def elsewhere(folder: Path, **owner: object) -> Leases:
    return leases(folder, host="other", machine="another boot pid:[1]", **owner)


def dead_process() -> dict[str, object]:
    """A process of this machine that has ended."""
    program = (
        "import json; from dataclasses import asdict; from builder.build.leases import Owner\n"
        "print(json.dumps(asdict(Owner.here(''))))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, check=True)
    owner = json.loads(done.stdout)
    return {name: owner[name] for name in ("host", "machine", "pid", "started")}


def test_a_claim_names_host_process_and_time(tmp_path: Path) -> None:
    with Leases(tmp_path, "f" * 64) as mine:
        assert mine.take(SHARD)
        claim = json.loads((tmp_path / "claims" / f"{SHARD}.0").read_bytes())
        assert claim == asdict(mine.owner)
        assert claim["pid"] == os.getpid()
        assert claim["host"] == os.uname().nodename
        assert claim["since"].endswith("+00:00")
    assert [p.name for p in tmp_path.rglob("*") if p.is_file()] == []


def test_one_of_many_gets_a_shard(tmp_path: Path) -> None:
    builds = [leases(tmp_path) for _ in range(16)]
    with ThreadPoolExecutor(16) as pool:
        taken = list(pool.map(lambda build: build.take(SHARD), builds))
    assert taken.count(True) == 1
    holder = builds[taken.index(True)]
    assert all(not build.take(SHARD) for build in builds if build is not holder)
    holder.give_back(SHARD)
    assert builds[0].take(SHARD)


def test_one_of_many_takes_over_what_a_dead_build_held(tmp_path: Path) -> None:
    dead = leases(tmp_path, **dead_process())
    assert dead.take(SHARD)
    builds = [leases(tmp_path) for _ in range(16)]
    with ThreadPoolExecutor(16) as pool:
        taken = list(pool.map(lambda build: build.take(SHARD), builds))
    assert taken.count(True) == 1
    names = {p.name for p in (tmp_path / "claims").iterdir()}
    assert names == {f"{SHARD}.0", f"{SHARD}.1"}
    builds[taken.index(True)].give_back(SHARD)
    assert list((tmp_path / "claims").iterdir()) == []


def test_a_process_of_this_machine_is_alive_gone_or_another_of_the_same_number() -> None:
    me = Owner.here("")
    assert not me.is_gone()
    assert replace(me, started="1").is_gone()
    assert replace(me, **dead_process()).is_gone()
    # Nothing is known of processes of another machine, nor of this one before it was started anew.
    assert not replace(me, machine="another", started="1").is_gone()
    assert not replace(me, machine="", started="1").is_gone()


def test_a_zombie_is_gone() -> None:
    process = subprocess.Popen(["sleep", "60"])
    try:
        stat = Path(f"/proc/{process.pid}/stat").read_text()
        owner = replace(Owner.here(""), pid=process.pid, started=stat.split()[21])
        assert not owner.is_gone()
        process.kill()
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)  # ended, not collected
        assert owner.is_gone()
    finally:
        process.kill()
        process.wait()


@pytest.mark.parametrize("beats", [True, False])
def test_a_build_elsewhere_is_given_up_when_it_is_silent_and_only_then(
    tmp_path: Path, beats: bool
) -> None:
    clock = Clock()
    other, mine = elsewhere(tmp_path), leases(tmp_path, clock)
    assert other.take(SHARD)
    for second in range(0, 301, 10):
        clock.now = second
        if beats and second % 50 == 0:
            other.beat()
        assert mine.take(SHARD) is (not beats and second >= 60)
        if second == 60:
            break
    if not beats:
        assert not (tmp_path / "owners" / other.owner.build).exists()
        other.beat()  # it was only asleep: alive again, and its shard is another's
        assert not other.take(SHARD)


def test_no_clock_but_ones_own_is_read(tmp_path: Path) -> None:
    """Clocks of other machines may be a century off, and jump in both directions."""
    clock = Clock()
    mine = leases(tmp_path, clock)
    for year in (1970, 2100):
        other = elsewhere(tmp_path, since=f"{year}-01-01T00:00:00+00:00")
        assert other.take(f"{year}")
        for path in tmp_path.rglob("*"):
            os.utime(path, (year * 31_556_952 - 1970 * 31_556_952, year * 10_000))
        assert [owner.since[:4] for owner in mine.others() if owner] == [f"{year}"]
        assert not mine.take(f"{year}")
        clock.now += 59
        mine.others()
        assert not mine.take(f"{year}")
        clock.now += 1
        mine.others()
        assert mine.take(f"{year}")


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[" * 9999, b'{"pid": 1}', b"\xff\x00", b"x" * 10**6, None]
)
def test_a_claim_that_is_not_whole_is_given_up_after_a_while(
    tmp_path: Path, content: bytes | None
) -> None:
    clock = Clock()
    mine = leases(tmp_path, clock)
    for path in (tmp_path / "claims" / f"{SHARD}.0", tmp_path / "owners" / "unknown"):
        os.mkfifo(path) if content is None else path.write_bytes(content)
    assert mine.others() == [None]
    assert not mine.take(SHARD)
    clock.now = 60
    assert mine.others() == []
    assert mine.take(SHARD)


def test_a_build_that_ends_leaves_what_others_hold(tmp_path: Path) -> None:
    other = elsewhere(tmp_path)
    assert other.take("theirs")
    with Leases(tmp_path, "f" * 64) as mine:
        assert mine.take("ours")
        assert not mine.take("theirs")
    assert {p.name for p in (tmp_path / "claims").iterdir()} == {"theirs.0"}
    assert {p.name for p in (tmp_path / "owners").iterdir()} == {other.owner.build}


def test_a_build_keeps_itself_alive(tmp_path: Path) -> None:
    """In real time: six beats in the time after which it would be given up."""
    with Leases(tmp_path, "f" * 64, expiry_s=0.3) as mine:
        path = tmp_path / "owners" / mine.owner.build
        first = json.loads(path.read_bytes())["beat"]
        while json.loads(path.read_bytes())["beat"] < first + 2:
            os.sched_yield()
