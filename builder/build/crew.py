"""The workers of one build, whatever runs them: what they report, and what their deaths mean."""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Callable

from builder.build.leases import Leases
from builder.build.ledger import Ledger
from builder.build.worker import MAX_DEATHS, Event, Job, died

_log = logging.getLogger(__name__)

_NOT_TRIED = (
    "not tried, because worker processes died before they had made anything; --workers 1 "
    "(num_proc=1) shows why"
)


class Crew:
    """Keeps the books of a build's workers; each is known by the name of its leases.

    Args:
        progress: called with the rows made since the last call, fewer than none where a shard
            under way was lost.
    """

    def __init__(
        self,
        job: Job,
        leases: Leases,
        ledger: Ledger,
        progress: Callable[[int], object],
    ) -> None:
        self.job, self.leases, self.ledger = job, leases, ledger
        self.failed: dict[int, str] = {}
        self.made: list[int] = []
        self._progress, self._in_vain = progress, 0
        self._waited = self._gave_up = False
        self._under_way: dict[str, int] = defaultdict(int)  # rows of the shard a worker is at

    def hear(self, name: str, event: Event) -> None:
        """Note what a worker reports."""
        if event.kind == "rows":
            self._under_way[name] += event.number
            self._progress(event.number)
        elif event.kind == "made":
            self._under_way[name] = self._in_vain = 0
            self.made.append(event.number)
            self.ledger.add(event.number)
        elif event.kind == "failed":
            self.failed.setdefault(event.number, event.text)
        elif event.kind == "waiting" and not self._waited:
            self._waited = True
            _log.info("Waiting for %d shards that %s, or others, make.", event.number, event.text)

    def bury(self, name: str) -> None:
        """Note that a worker has died by itself; what it held is free for others at once."""
        self.leases.bury(name)
        self._progress(-self._under_way.pop(name, 0))
        self._in_vain += 1

    def gives_up(self, workers: int) -> bool:
        """Whether so many have died, and none has made a shard since, that the next would too."""
        self._gave_up = self._in_vain > workers + MAX_DEATHS**2
        return self._gave_up

    def failures(self, missing: list[int]) -> dict[int, str]:
        """Return the shards among some that this build cannot make, each with the reason."""
        causes = {number: self.failed[number] for number in missing if number in self.failed}
        for number in missing if self._gave_up else ():
            lease = self.leases.look(self.ledger.name(number))
            if number not in causes and not lease.held:
                causes[number] = died(lease.deaths) if lease.deaths else _NOT_TRIED
        return causes
