"""A hundred thousand forged tokens, and none gets in. ``benchmarks.forgery`` tries a million."""

import dataclasses
from collections.abc import Iterator

import pytest

from bipsync_django.conf import Tenant, get_tenant
from bipsync_django.testing import SimulatedBipsync
from tests.forgeries import ACCEPTED, FOREIGN, ISSUER, KINDS, Forger, outcome, valid

pytestmark = pytest.mark.usefixtures("local_budget")

EACH = 5_300
# One good token among so many forged ones.
GOOD = 25


@pytest.fixture(scope="module")
def bipsync() -> Iterator[SimulatedBipsync]:
    with SimulatedBipsync() as server:
        yield server


@pytest.fixture
def tenant(bipsync: SimulatedBipsync) -> Tenant:
    return dataclasses.replace(get_tenant(), jwks_url=bipsync.jwks_url, issuer=ISSUER)


def test_they_are_a_hundred_thousand() -> None:
    assert EACH * len(KINDS) >= 100_000


@pytest.mark.parametrize("name", KINDS)
def test_no_forged_token_gets_in(name: str, bipsync: SimulatedBipsync, tenant: Tenant) -> None:
    forger = Forger(bipsync.keys.current, name)
    kind = KINDS[name]
    met: dict[str, str] = {}
    tried: set[str] = set()
    for number in range(EACH):
        forged = kind.forge(forger)
        tried.add(forged)
        met.setdefault(outcome(forged, tenant), forged)
        if number % GOOD == 0:
            good = valid(forger)
            assert outcome(good, tenant) == ACCEPTED, good
    assert met.get(ACCEPTED) is None
    assert {words: forged for words, forged in met.items() if words.startswith(FOREIGN)} == {}
    # They are not the same few, and not all refused at the first door.
    assert len(tried) > 0.95 * EACH
    assert [part for part in kind.refusals if not any(part in words for words in met)] == []
    # The tokens name keys by the thousand, and hardly any of them is asked about.
    assert bipsync.calls["jwks"] <= len(KINDS) * 10


def test_the_same_seed_makes_the_same_tokens(bipsync: SimulatedBipsync) -> None:
    first, second = (Forger(bipsync.keys.current, "seed", now=1e9) for _ in range(2))
    kinds = [kind for name, kind in KINDS.items() if name not in {"algorithm", "foreign_key"}]
    assert [kind.forge(first) for kind in kinds] == [kind.forge(second) for kind in kinds]
    assert valid(first) == valid(second)
