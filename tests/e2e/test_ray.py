"""A Ray cluster makes the bytes of a local build, whatever dies on the way.

The cluster has three raylets on this machine, in a network namespace that has only loopback:
outside one Ray turns 127.0.0.1 into the machine's own address.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.running import (
    COMMAND,
    OPTIONS,
    commits,
    ended,
    fgbg,
    files_of,
    linger,
    stat_of,
    wait_until,
)
from tests.limits import HANG_S

# 4 foregrounds x 5 backgrounds x 2 flips x 5 places = 200 records of 64 px in 53 shards
RAY = (*OPTIONS[:-2], "--placements", "5", "--shard-records", "4")
ENVIRONMENT = {
    **os.environ,
    "RAY_AUTH_MODE": "disabled",  # else Ray writes a token into the home folder
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_worker_niceness": "0",  # at Ray's own 15, other work on the machine starves the workers
}


class Namespace:
    """A network namespace that has only loopback; runs commands and counts what lives in it."""

    def __init__(self) -> None:
        self._holder = subprocess.Popen(
            ["unshare", "-n", "sh", "-c", "ip link set lo up && echo up && exec cat"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.up = self._holder.stdout.readline() == "up\n"
        self._link = f"/proc/{self._holder.pid}/ns/net"

    def start(self, *command: object) -> subprocess.Popen[str]:
        return subprocess.Popen(
            ["nsenter", f"--net={self._link}", *map(str, command)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=ENVIRONMENT,
        )

    def living(self, name: bytes = b"") -> list[int]:
        """The processes in it, but for the holder, whose command line contains a name."""
        found = []
        for entry in Path("/proc").iterdir():
            try:
                inside = (entry / "ns" / "net").samefile(self._link)
                if inside and name in (entry / "cmdline").read_bytes():
                    found.append(int(entry.name))
            except (OSError, ValueError):
                continue
        return [pid for pid in found if pid != self._holder.pid]

    def close(self) -> None:
        self._holder.communicate()


@pytest.fixture(scope="module")
def namespace() -> Iterator[Namespace]:
    # CI has to be able to
    refuse = pytest.fail if os.environ.get("CI") else pytest.skip
    if sys.platform != "linux" or os.geteuid() != 0:
        refuse("a network namespace of its own needs root on Linux")
    if not (shutil.which("unshare") and shutil.which("nsenter") and shutil.which("ip")):
        refuse("a network namespace of its own needs util-linux and iproute2")
    namespace = Namespace()
    if not namespace.up:
        refuse("this machine allows no network namespace")
    yield namespace
    left = namespace.living()
    for pid in left:
        os.kill(pid, signal.SIGKILL)
    namespace.close()
    assert not left


class ThreeRaylets:
    def __init__(self, namespace: Namespace) -> None:
        self._process = namespace.start(sys.executable, "-m", "tests.e2e.ray_cluster")
        self.namespace, self.address = namespace, self._process.stdout.readline().strip()
        assert self.address, self._process.communicate()[1]

    def ask(self, command: str = "") -> list[int]:
        """Change the cluster as `ray_cluster` says; return its raylets without the head's."""
        self._process.stdin.write(f"{command}\n")
        self._process.stdin.flush()
        return [int(pid) for pid in self._process.stdout.readline().split()]

    def busy(self) -> list[int]:
        """Those of these raylets that run an actor."""
        parents = {int(stat_of(pid)[1]) for pid in self.makers()}
        return [pid for pid in self.ask() if pid in parents]

    def build(self, *arguments: object) -> subprocess.Popen[str]:
        """Start a build on the cluster; a later `--workers` in the arguments wins."""
        engine = ("--workers", 3, "--engine", "ray", "--address", self.address)
        return self.namespace.start(*COMMAND, "build", *engine, *arguments)

    def makers(self) -> list[int]:
        """The processes of the actors."""
        return self.namespace.living(b"ray::_Maker")

    def close(self) -> None:
        raylets = self.namespace.living()
        self._process.communicate(timeout=HANG_S)
        assert ended(raylets)


@pytest.fixture(scope="module")
def cluster(namespace: Namespace) -> Iterator[ThreeRaylets]:
    cluster = ThreeRaylets(namespace)
    yield cluster
    cluster.close()


@pytest.fixture(scope="module")
def undisturbed(sources, tiny_model, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("local") / "set"
    fgbg("build", *sources, out, *RAY, "--depth-model", tiny_model)
    return out


def test_a_killed_raylet_changes_no_byte(cluster, sources, tiny_model, undisturbed, tmp_path):
    out = tmp_path / "set"
    process = cluster.build(*sources, out, *RAY, "--depth-model", tiny_model)
    busy: list[int] = []

    def far_enough() -> bool:
        busy[:] = cluster.busy() if len(commits(out)) >= 5 else []
        return bool(busy)

    assert wait_until(process, far_enough), process.communicate()[1]
    assert len(cluster.ask(f"-{busy[0]}")) == 1
    assert len(commits(out)) < len(list((undisturbed / "data").iterdir())), "killed too late"
    _, stderr = process.communicate(timeout=HANG_S)
    assert process.returncode == 0, stderr
    assert files_of(out) == files_of(undisturbed)
    assert [p.name for p in tmp_path.iterdir()] == ["set"]
    assert ended(cluster.makers())
    assert len(cluster.ask("+")) == 2


def test_scenes_are_the_same_bytes(cluster, tmp_path):
    arguments = ("--demo", "--layout", "scenes", "--records", 60, "--size", 96)
    arguments += ("--shard-records", 10)
    process = cluster.build(tmp_path / "ray" / "set", *arguments)
    _, stderr = process.communicate(timeout=HANG_S)
    assert process.returncode == 0, stderr
    fgbg("build", tmp_path / "local" / "set", *arguments, "--workers", 1)
    assert files_of(tmp_path / "ray" / "set") == files_of(tmp_path / "local" / "set")


def test_the_driver_is_killed_and_a_local_build_goes_on(
    cluster, sources, tiny_model, undisturbed, tmp_path
):
    out = tmp_path / "set"
    arguments = (*sources, out, *RAY, "--depth-model", tiny_model)
    process = cluster.build(*arguments)
    assert wait_until(process, lambda: len(commits(out)) >= 5), process.communicate()[1]
    makers = cluster.makers()
    process.kill()
    process.communicate()
    assert makers
    assert ended(makers)
    fgbg("build", *arguments)
    assert files_of(out) == files_of(undisturbed)


def test_a_shard_that_fails_is_told_and_the_others_are_made(cluster, sources, tmp_path):
    out = tmp_path / "set"
    arguments = (*sources, out, *OPTIONS, "--shard-records", "20", "--depth-model", "none")
    in_the_way = tmp_path / ".set.fgbg" / "shards" / "unseen_both-00000-of-00001.json"
    in_the_way.mkdir(parents=True)
    process = cluster.build(*arguments)
    _, stderr = process.communicate(timeout=HANG_S)
    assert process.returncode == 1, stderr
    assert "1 shard failed, 6 finished and kept:\n  unseen_both-00000-of-00001: Is" in stderr
    assert "To resume: fgbg build " in stderr
    assert f"--engine ray --address {cluster.address} " in stderr
    assert not out.exists()


@pytest.mark.slow
def test_a_node_that_does_not_see_out_is_named(cluster, sources, tiny_model, tmp_path):
    """A raylet on which another file system lies over the folder of OUT."""
    join = f"exec ray start --address {cluster.address} --num-cpus 1 --block"
    apart = cluster.namespace.start(
        *("unshare", "-m", "sh", "-c", f"mount -t tmpfs none {tmp_path} && {join}")
    )
    try:
        while "Ray runtime started" not in (line := apart.stdout.readline()):
            assert line, apart.communicate()[1]
        # long enough for every actor to be loaded before the others have made all shards
        arguments = (*sources, tmp_path / "set", *RAY, "--placements", 100, "--workers", 4)
        process = cluster.build(*arguments, "--depth-model", tiny_model)
        _, stderr = process.communicate(timeout=HANG_S)
    finally:
        apart.terminate()
        apart.communicate(timeout=HANG_S)
    assert process.returncode == 2, stderr
    assert stderr.splitlines()[-1] == (
        "Error: Ray node 127.0.0.1 cannot take part: it sees nothing in "
        f"{tmp_path}/.set.fgbg; OUT must be on storage that all nodes share."
    )
    assert ended(cluster.makers())


@pytest.mark.parametrize(
    "number", [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.slow)]
)
def test_a_stopped_build_ends_the_ray_it_started(namespace, sources, tiny_model, tmp_path, number):
    out = tmp_path / "set"
    arguments = (*sources, out, *RAY, "--depth-model", tiny_model, "--workers", 2)
    before = set(namespace.living())
    process = namespace.start(*COMMAND, "build", *arguments, "--engine", "ray")
    assert wait_until(process, lambda: len(commits(out)) >= 3), process.communicate()[1]
    started = set(namespace.living()) - before
    assert namespace.living(b"ray::_Maker")
    process.send_signal(number)
    _, stderr = process.communicate(timeout=HANG_S)
    if number == signal.SIGINT:
        assert process.returncode == 130
        assert "Finished shards are kept; the same command resumes." in stderr
    assert ended(list(started))
    assert not out.exists()


def test_without_ray_one_sentence_says_what_to_install(sources, tmp_path):
    program = "import sys; sys.modules['ray'] = None; " + COMMAND[-1]
    arguments = (*sources, tmp_path / "set", *OPTIONS, "--depth-model", "none", "--engine", "ray")
    done = subprocess.run(
        [sys.executable, "-c", program, "build", *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=HANG_S,
    )
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1] == (
        "Error: engine 'ray' needs Ray; run `pip install fgbg-dataset[ray]`, or build without "
        "--engine ray."
    )


def test_options_of_ray_are_not_taken_by_the_local_engine(sources, tmp_path):
    done = fgbg("build", *sources, tmp_path / "set", "--address", "auto", code=2)
    assert "--address and --num-gpus-per-worker are for --engine ray." in done.stderr


@pytest.mark.slow
def test_a_shard_on_which_three_processes_died_is_told(cluster, sources, tiny_model, tmp_path):
    options = (*OPTIONS, "--placements", 400, "--holdout", 0, "--shard-records", 16000)
    process = cluster.build(*sources, tmp_path / "set", *options, "--depth-model", tiny_model)
    shards, seen = tmp_path / ".set.fgbg" / "shards", set()

    def written_anew() -> set[str]:
        return {path.name for path in shards.glob(".train*.tmp")} - seen

    for _ in range(3):
        assert wait_until(process, written_anew), process.communicate()[1]
        seen |= written_anew()
        (pid,) = cluster.makers()  # one shard, one actor
        os.kill(pid, signal.SIGKILL)
    _, stderr = process.communicate(timeout=HANG_S)
    assert process.returncode == 1
    told = "train-00000-of-00001: its process died 3 times (killed, or out of memory)\n"
    assert told in stderr


@pytest.mark.slow
def test_a_full_disk_ends_the_build_at_once(cluster, sources, tmp_path):
    options = (*OPTIONS, "--placements", 50, "--shard-records", 50, "--depth-model", "none")
    size = "size={}k"
    subprocess.run(["mount", "-t", "tmpfs", "-o", size.format(1500), "none", tmp_path], check=True)
    try:
        process = cluster.build(*sources, tmp_path / "set", *options)
        _, stderr = process.communicate(timeout=HANG_S)
        assert process.returncode == 1
        assert stderr.splitlines()[-1].startswith(f"Error: {tmp_path}/set cannot be written: No ")
        assert ended(cluster.makers())
        remount = f"remount,{size.format(90000)}"
        subprocess.run(["mount", "-o", remount, tmp_path], check=True)
        process = cluster.build(*sources, tmp_path / "set", *options)
        assert process.communicate(timeout=HANG_S) and process.returncode == 0
    finally:
        subprocess.run(["umount", tmp_path], check=True)


@pytest.mark.slow
def test_a_cluster_that_is_not_there_is_told(namespace, sources, tmp_path):
    process = namespace.start(
        *(*COMMAND, "build", *sources, tmp_path / "set", *OPTIONS, "--depth-model", "none"),
        *("--engine", "ray", "--address", "127.0.0.1:9"),
    )
    _, stderr = process.communicate(timeout=HANG_S)
    assert process.returncode == 2
    assert "no Ray cluster can be used at 127.0.0.1:9: " in stderr


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_kills_at_random_points_change_no_byte(cluster, sources, tiny_model, undisturbed, tmp_path):
    """SIGKILL of drivers, actors and raylets: four of each while a build runs."""
    rng, out = random.Random(11), tmp_path / "set"
    arguments = (*sources, out, *RAY, "--depth-model", tiny_model)
    left = ["driver", "actor", "raylet"] * 4
    rng.shuffle(left)
    while left:
        held = commits(out)
        process = cluster.build(*arguments)
        goal = len(held) + rng.randint(1, 8)
        wait_until(process, lambda goal=goal: len(commits(out)) >= goal)
        linger(process, 0.2 * rng.random())
        makers = cluster.makers()
        if process.poll() is None and makers:
            kind = left.pop()
            if kind == "actor":
                os.kill(rng.choice(makers), signal.SIGKILL)
            elif kind == "raylet":
                cluster.ask("-")
            linger(process, 0 if kind == "driver" else 2 * rng.random())
            process.kill()
            if kind == "raylet":
                assert len(cluster.ask("+")) == 2
        process.communicate()
        assert ended(cluster.makers())
        if out.exists():  # it was finished all the same: begin again
            assert files_of(out) == files_of(undisturbed)
            shutil.rmtree(out)
        else:
            assert held <= commits(out)
    fgbg("build", *arguments)
    assert files_of(out) == files_of(undisturbed)
