"""The server's counters, in the text format of Prometheus (version 0.0.4)."""

import time
from collections import Counter
from collections.abc import Sequence

BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)  # seconds


class Metrics:
    """Counters of one server. Requests are counted by route, so that names of runs make no series."""

    def __init__(self) -> None:
        self.in_flight = 0
        self.requests: Counter[tuple[str, str, int]] = Counter()
        self._seconds: Counter[tuple[str, float]] = Counter()
        self._sums: dict[str, float] = {}
        self._began = time.monotonic()

    def count(self, method: str, route: str, status: int, seconds: float) -> None:
        """One request has been answered."""
        self.requests[method, route, status] += 1
        self._sums[route] = self._sums.get(route, 0.0) + seconds
        for bucket in BUCKETS:
            if seconds <= bucket:
                self._seconds[route, bucket] += 1

    def text(self, runs: dict[str, int], limited: Sequence[tuple[str, str, int]] = ()) -> str:
        """All of it. runs: how many there are, by status. limited: names of actions with limits, for which kind of them
        steps wait ("": they have their slots), and how many."""
        lines = ["# HELP dotdo_http_requests_total Requests answered.", "# TYPE dotdo_http_requests_total counter"]
        for (method, route, status), count in sorted(self.requests.items()):
            lines.append(f'dotdo_http_requests_total{{method="{method}",route="{route}",status="{status}"}} {count}')
        lines += ["# HELP dotdo_http_request_seconds Time to answer.", "# TYPE dotdo_http_request_seconds histogram"]
        totals: Counter[str] = Counter()
        for (_, route, _), count in self.requests.items():
            totals[route] += count
        for route, total in sorted(totals.items()):
            for bucket in BUCKETS:
                count = self._seconds[route, bucket]
                lines.append(f'dotdo_http_request_seconds_bucket{{route="{route}",le="{bucket:g}"}} {count}')
            lines.append(f'dotdo_http_request_seconds_bucket{{route="{route}",le="+Inf"}} {total}')
            lines.append(f'dotdo_http_request_seconds_sum{{route="{route}"}} {self._sums[route]:.6f}')
            lines.append(f'dotdo_http_request_seconds_count{{route="{route}"}} {total}')
        lines += [
            "# HELP dotdo_http_requests_in_flight Requests being answered.",
            "# TYPE dotdo_http_requests_in_flight gauge",
        ]
        lines.append(f"dotdo_http_requests_in_flight {self.in_flight}")
        lines += ["# HELP dotdo_runs Runs in the store, by status.", "# TYPE dotdo_runs gauge"]
        lines += [f'dotdo_runs{{status="{status}"}} {count}' for status, count in sorted(runs.items())]
        lines += ["# HELP dotdo_limit_slots Attempts that hold their slots.", "# TYPE dotdo_limit_slots gauge"]
        lines += [
            f'dotdo_limit_slots{{action="{_escaped(name)}"}} {count}' for name, waits, count in limited if not waits
        ]
        lines += ["# HELP dotdo_limit_waiting Steps that wait for a slot.", "# TYPE dotdo_limit_waiting gauge"]
        lines += [
            f'dotdo_limit_waiting{{action="{_escaped(name)}",limit="{waits}"}} {count}'
            for name, waits, count in limited
            if waits
        ]
        lines += ["# HELP dotdo_uptime_seconds Time since the start.", "# TYPE dotdo_uptime_seconds gauge"]
        lines.append(f"dotdo_uptime_seconds {time.monotonic() - self._began:.1f}")
        return "\n".join(lines) + "\n"


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
