"""Who is next where there are priorities: the highest one first, and one turn in ten whoever has waited the longest.

So what is urgent waits for one other thing at most, and nothing waits for ever however much goes before it. Counted in
memory, by each process that hands out turns: a restart begins anew.
"""

ONE_IN = 10
MOST = 10_000  # queues that are remembered


class Shares:
    """How often each queue has gone by priority since its last turn that went by waiting."""

    def __init__(self) -> None:
        self._turns: dict[str, int] = {}

    def is_patient(self, queue: str = "") -> bool:
        """Whether the next turn is for whoever has waited the longest."""
        return self._turns.get(queue, 0) >= ONE_IN - 1

    def count(self, queue: str = "") -> None:
        """A turn was taken while others may have waited."""
        if self.is_patient(queue):
            del self._turns[queue]
            return
        if len(self._turns) >= MOST and queue not in self._turns:
            del self._turns[next(iter(self._turns))]
        self._turns[queue] = self._turns.get(queue, 0) + 1
