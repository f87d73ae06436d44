"""A million forged access tokens, none of which may be accepted.

    python -m benchmarks.forgery [1000000] [--processes 2] [--seed 1]

The tokens are those of ``tests/forgeries.py``. "Accepted" are forged ones that got in; "foreign"
are exceptions other than this package's own. Times are CPU times of the checking thread, as a
ratio to the median of a good token; what took more than a millisecond is timed three times, and
counts with the best, so that Python's garbage collector is not blamed on a token. Good tokens are
among them all the time, and all of them have to be accepted.
"""

import os
import statistics
import time
from array import array
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from multiprocessing import get_context
from typing import Any, NamedTuple

from benchmarks.stage import Table, parser, provider
from bipsync_django.conf import Tenant, get_tenant
from bipsync_django.oauth.keys import LocalBudget, use_budget
from bipsync_django.testing.keys import KeyRing
from tests.forgeries import ACCEPTED, FOREIGN, ISSUER, KINDS, Forger, outcome, valid

# How many of one kind a process makes before it takes the next piece of work, and how many forged
# tokens there are to a good one.
CHUNK = 2000
GOOD = 20
# In nanoseconds: what is timed again.
SLOW = 1_000_000


class Work(NamedTuple):
    kind: str
    seed: str
    tokens: int
    keys: list[dict[str, str]]


@dataclass
class Tally:
    """What became of some tokens, and how many nanoseconds each of them took."""

    tokens: int = 0
    accepted: int = 0
    foreign: list[str] = field(default_factory=list)
    times: Any = field(default_factory=lambda: array("Q"))
    good_tokens: int = 0
    good_accepted: int = 0
    good_times: Any = field(default_factory=lambda: array("Q"))

    def add(self, other: "Tally") -> None:
        for name, value in vars(other).items():
            setattr(self, name, getattr(self, name) + value)


def _timed(raw: str, tenant: Tenant) -> tuple[str, int]:
    best = 0
    for _ in range(3):
        begun = time.thread_time_ns()
        became = outcome(raw, tenant)
        taken = time.thread_time_ns() - begun
        best = min(best or taken, taken)
        if best < SLOW:
            break
    return became, best


def _try_all(work: Work) -> tuple[str, Tally]:
    ring = KeyRing()
    ring.load(work.keys)
    tenant = replace(get_tenant(), issuer=ISSUER)
    forger = Forger(ring.current, work.seed)
    tally = Tally(tokens=work.tokens)
    for number in range(work.tokens):
        raw = KINDS[work.kind].forge(forger)
        became, taken = _timed(raw, tenant)
        tally.times.append(taken)
        tally.accepted += became == ACCEPTED
        if became.startswith(FOREIGN):
            tally.foreign.append(became)
        if number % GOOD == 0:
            became, taken = _timed(valid(forger), tenant)
            tally.good_times.append(taken)
            tally.good_tokens += 1
            tally.good_accepted += became == ACCEPTED
    return work.kind, tally


def _work(tokens: int, seed: int, keys: list[dict[str, str]]) -> Iterator[Work]:
    each, more = divmod(tokens, len(KINDS))
    for place, kind in enumerate(KINDS):
        left = each + (place < more)
        while left > 0:
            count = min(CHUNK, left)
            yield Work(kind, f"{seed}:{kind}:{left}", count, keys)
            left -= count


def _print(tallies: dict[str, Tally]) -> None:
    total = Tally()
    for tally in tallies.values():
        total.add(tally)
    usual = statistics.median(total.good_times)
    table = Table(
        f"forgery: {total.tokens} tokens; the goal is 0, and 0; times in units of "
        f"{usual / 1000:.0f} µs, a good token's median",
        *("kind", "tokens", "accepted", "foreign", "median", "99 %", "99.9 %", "slowest"),
        width=18,
    )

    def row(name: str, tokens: int, accepted: int, foreign: int, times: "array[int]") -> None:
        ordered = sorted(times)
        ranks = [ordered[int((len(ordered) - 1) * part)] / usual for part in (0.5, 0.99, 0.999, 1)]
        table.row(name, tokens, accepted, foreign, *ranks)

    for name, one in tallies.items():
        row(name, one.tokens, one.accepted, len(one.foreign), one.times)
    row("all forged", total.tokens, total.accepted, len(total.foreign), total.times)
    row("good", total.good_tokens, total.good_accepted, 0, total.good_times)
    for error in sorted(set(total.foreign)):
        print(f"    {error}")


def main() -> None:
    command = parser(__doc__)
    command.add_argument("tokens", nargs="?", type=int, default=1_000_000)
    command.add_argument("--processes", type=int, default=os.cpu_count() or 1)
    command.add_argument("--seed", type=int, default=1)
    options = command.parse_args()
    use_budget(LocalBudget())
    tallies = {kind: Tally() for kind in KINDS}
    with provider() as bipsync:
        work = _work(options.tokens, options.seed, bipsync.dump()["keys"])
        with get_context("fork").Pool(options.processes) as pool:
            for kind, tally in pool.imap_unordered(_try_all, work):
                tallies[kind].add(tally)
    _print({kind: tally for kind, tally in tallies.items() if tally.tokens})


if __name__ == "__main__":
    main()
