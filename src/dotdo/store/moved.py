"""What a store's file says once the store has moved to a server; see moving.py."""

import time

import msgspec

READ_MARK = "select id, target, at, sure from moved"


class Mark(msgspec.Struct, frozen=True):
    """Where a store has moved, and when. sure: 1 once the other side is known to have all."""

    id: str
    target: str
    at: int
    sure: int

    def told(self, where: str) -> str:
        """What whoever opens the file is told."""
        when = time.strftime("%Y-%m-%d %H:%M:%S %Z", time.localtime(self.at / 1000))
        if self.sure:
            return (
                f"The store {where} has moved to {self.target} ({when}): open that instead. The file is as it was "
                "then, and is not used any more."
            )
        return (
            f"A move of the store {where} to {self.target} ({when}) was cut short in its last moment, so the store is "
            f"either here or there. `dotdo db promote {where} URL`, with the URL of the same target, finds out which, "
            "and completes it."
        )
