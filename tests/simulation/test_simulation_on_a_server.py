"""The simulated nodes on a real PostgreSQL: the same workloads and troubles, and an auditor that sees the same.

`python -m tests.simulation server SEED` plays one seed; `make nightly` plays many.
"""

from collections import Counter

import pytest

from tests.simulation.cases import make_case
from tests.simulation.planted import PLANTED
from tests.simulation.server import play_on_server
from tests.simulation.simulating import Played

SEEDS = range(30_000, 30_003)
SOMETIMES = ["node.died", "entry.claimed", "store.after", "run.completed.none"]


def explained(played: Played) -> str:
    """What is wrong, and how to see it again."""
    lines = "\n  ".join(played.wrong[:5])
    return f"seed {played.case.seed}: python -m tests.simulation server {played.case.seed}\n  {lines}"


def test_invariants_hold_on_a_real_server(on_postgres: None):
    seen: Counter[str] = Counter()
    for seed in SEEDS:
        played = play_on_server(make_case(seed))
        assert not played.wrong, explained(played)
        seen.update(played.chance.seen)
    assert not [what for what in SOMETIMES if not seen[what]]


def test_planted_bug_is_found_on_a_real_server(on_postgres: None, monkeypatch: pytest.MonkeyPatch):
    PLANTED["anchors_without_the_key"](monkeypatch)
    assert play_on_server(make_case(SEEDS[0])).wrong
