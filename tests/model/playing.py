"""Plays the model on a door: the same for the same seed."""

from collections import Counter

from hypothesis import HealthCheck, Phase, seed, settings
from hypothesis.stateful import run_state_machine_as_test

from tests import doors
from tests.model.machine import Trips

LEASE = 15.0  # seconds, on PostgreSQL: nobody is killed here, and a busy machine must not look like that


def play(door: doors.Door, number: int, examples: int, *, steps: int = 50, shrink: bool = False) -> Counter[str]:
    """Plays so many examples; what has occurred, and how often. Raises AssertionError with the steps that differ.

    number: the seed. shrink: whether an example that fails is made smaller first.
    """
    machine = type("Through", (Trips,), {"door": door, "seen": Counter[str]()})
    chosen = settings(
        max_examples=examples,
        stateful_step_count=steps,
        deadline=None,
        database=None,
        phases=[Phase.generate, Phase.shrink] if shrink else [Phase.generate],
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much],
        print_blob=False,
        report_multiple_bugs=False,
    )
    run_state_machine_as_test(seed(number)(machine), settings=chosen)
    return machine.seen
