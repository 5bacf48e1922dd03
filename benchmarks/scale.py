"""How much is measured: everything, or with `--quick` a tenth of it once, to see that the benchmarks work."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Scale:
    """repetitions: of each measurement. share: of the full number of runs."""

    repetitions: int = 3
    share: float = 1.0

    def of(self, runs: int) -> int:
        """That many runs, at this scale."""
        return max(20, int(runs * self.share))


FULL = Scale()
QUICK = Scale(repetitions=1, share=0.1)
