"""Settings of the interpreter that an engine makes for its process, each only where the default still stands."""

import gc
import sys

# SQLite gives up Python's global lock at each statement and asks for it again after. Beside a busy thread each such
# hand-over takes one switch interval: 5 ms by default, which would make commits 10 times as slow.
SWITCH_INTERVAL = 0.0005
# Runs leave no cycles behind, but thousands in flight make each collection long: at Python's default thresholds the
# collector takes a fifth of all time.
COLLECT_AFTER = (100_000, 10, 20)


def tune_interpreter() -> None:
    """Shortens the switch interval and collects less often, unless the application has chosen otherwise."""
    if sys.getswitchinterval() > SWITCH_INTERVAL:
        sys.setswitchinterval(SWITCH_INTERVAL)
    if 0 < gc.get_threshold()[0] < COLLECT_AFTER[0]:
        gc.set_threshold(*COLLECT_AFTER)
