"""`python -m tests.store_faults` fails every operation of every workload in every way; `... WORKLOAD` those of one;
`... WORKLOAD KIND NUMBER` plays one again and says what happened.
"""

import sys
import time
from collections import Counter

from tests.store_faults.disk import KINDS, Fault
from tests.store_faults.playing import Played, play
from tests.store_faults.workloads import SCRIPTS


def faults_of(played: Played) -> list[Fault]:
    """Every fault that a workload can meet, by what it did undisturbed."""
    operations = list(enumerate(played.operations, 1))
    return [Fault(kind, n) for kind, names in KINDS.items() for n, one in operations if one.name in names]


def every(workload: str) -> int:
    """Plays a workload with each fault; returns how many went wrong."""
    began, wrong, seen = time.process_time(), 0, Counter[str]()
    faults = faults_of(play(workload))
    for fault in faults:
        played = play(workload, fault)
        seen[fault.kind] += 1
        if played.wrong or played.struck is None:
            wrong += 1
            said = played.wrong[:2] or "it did not occur"
            print(f"{workload} {fault.kind} {fault.number}: {played.struck}: {said}", flush=True)
    told = ", ".join(f"{kind} {count}" for kind, count in seen.items())
    print(f"{workload}: {len(faults)} faults ({told}), {wrong} went wrong; {time.process_time() - began:.0f} s")
    return wrong


def main(arguments: list[str]) -> int:
    """The program."""
    if len(arguments) == 3:
        workload, kind, number = arguments
        played = play(workload, Fault(kind, int(number)))
        print(f"failed at {played.struck}, {played.lives} processes", *played.said, *played.wrong, sep="\n")
        return len(played.wrong)
    return sum([every(workload) for workload in arguments or SCRIPTS])


if __name__ == "__main__":
    sys.exit(min(main(sys.argv[1:]), 1))
