"""A Ray cluster makes the bytes of a local build, whatever dies on the way.

The cluster has three raylets on this machine, in a network namespace that has only loopback:
outside one Ray turns 127.0.0.1 into the machine's own address.
"""

from __future__ import annotations

import json
import os
import select
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.running import COMMAND, OPTIONS, fgbg, files_of
from tests.e2e.test_resume import commits, wait_until

# 4 foregrounds x 5 backgrounds x 2 flips x 8 places = 320 records of 64 px in 83 shards
RAY = (*OPTIONS, "--placements", "8", "--shard-records", "4")
ENVIRONMENT = {
    **os.environ,
    "RAY_AUTH_MODE": "disabled",  # else Ray writes a token into the home folder
    "RAY_USAGE_STATS_ENABLED": "0",
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

    def start(self, *command: object, code: tuple[str, ...] = ()) -> subprocess.Popen[str]:
        return subprocess.Popen(
            ["nsenter", f"--net={self._link}", *code, *map(str, command)],
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


def gone(pids: list[int]) -> bool:
    """Wait until processes have ended by themselves."""
    for pid in pids:
        try:
            descriptor = os.pidfd_open(pid)
        except ProcessLookupError:
            continue
        ended = select.select([descriptor], [], [], 60)[0]
        os.close(descriptor)
        if not ended:
            return False
    return True


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

    def ask(self, command: object) -> int:
        self._process.stdin.write(f"{command}\n")
        self._process.stdin.flush()
        return int(self._process.stdout.readline())

    def build(self, *arguments: object) -> subprocess.Popen[str]:
        """Start a build on the cluster; a later `--workers` in the arguments wins."""
        engine = ("--workers", 3, "--engine", "ray", "--address", self.address)
        return self.namespace.start(*COMMAND, "build", *arguments, *engine)

    def makers(self) -> list[int]:
        """The processes of the actors."""
        return self.namespace.living(b"ray::_Maker")

    def close(self) -> None:
        raylets = self.namespace.living()
        self._process.communicate(timeout=60)
        assert gone(raylets)


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
    assert wait_until(process, lambda: len(commits(out)) >= 5), process.communicate()[1]
    assert len(cluster.makers()) == 3
    assert cluster.ask(0) == 2
    assert len(commits(out)) < len(list((undisturbed / "data").iterdir())), "killed too late"
    _, stderr = process.communicate(timeout=120)
    assert process.returncode == 0, stderr
    assert files_of(out) == files_of(undisturbed)
    assert [p.name for p in tmp_path.iterdir()] == ["set"]
    assert gone(cluster.makers())
    assert cluster.ask("+") == 3


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
    assert len(makers) == 3
    assert gone(makers)
    fgbg("build", *arguments)
    assert files_of(out) == files_of(undisturbed)


def test_a_shard_that_fails_is_told_and_the_others_are_made(cluster, sources, tmp_path):
    out = tmp_path / "set"
    arguments = (*sources, out, *OPTIONS, "--shard-records", "20", "--depth-model", "none")
    in_the_way = tmp_path / ".set.fgbg" / "shards" / "unseen_both-00000-of-00001.parquet"
    in_the_way.mkdir(parents=True)
    process = cluster.build(*arguments)
    _, stderr = process.communicate(timeout=120)
    assert process.returncode == 1, stderr
    assert "1 shard failed, 6 finished and kept:\n  unseen_both-00000-of-00001: Is" in stderr
    assert "To resume: fgbg build " in stderr
    assert f"--engine ray --address {cluster.address}" in stderr
    in_the_way.rmdir()
    fgbg("build", *arguments)
    assert json.loads(fgbg("status", out, "--json").stdout)["finished"] is True
