"""How many requests a key may make: a bucket of tokens for each, filled evenly, emptied by requests.

`100/s` is a bucket of 100 that fills within a second; `5000/h` one of 5,000 that fills within an hour. What is left is
told in the headers of draft-ietf-httpapi-ratelimit-headers-10.
"""

import math
import time
from collections import OrderedDict

import msgspec

from dotdo.keys import Rate
from dotdo.server.problems import Refused

MOST_BUCKETS = 100_000  # those of the keys that were used last


class _Bucket(msgspec.Struct):
    tokens: float
    at: float


class Rates:
    """The buckets of one server. default: for keys without a rate of their own; None: those have no limit."""

    def __init__(self, default: Rate | None) -> None:
        self.default = default
        self._buckets: OrderedDict[str, _Bucket] = OrderedDict()

    def take(self, id: str, own: Rate | None) -> dict[str, str]:
        """Takes one request's token; what the answer's headers say of it. Raises Refused when there is none."""
        rate = own or self.default
        if rate is None:
            return {}
        now = time.monotonic()
        bucket = self._buckets.get(id)
        if bucket is None:
            bucket = self._buckets[id] = _Bucket(rate.count, now)
            if len(self._buckets) > MOST_BUCKETS:
                self._buckets.popitem(last=False)
        else:
            self._buckets.move_to_end(id)
            bucket.tokens = min(rate.count, bucket.tokens + (now - bucket.at) * rate.count / rate.seconds)
            bucket.at = now
        if bucket.tokens < 1:
            wait = math.ceil((1 - bucket.tokens) * rate.seconds / rate.count)
            headers = {**_headers(rate, 0, wait), "Retry-After": str(wait)}
            text = f"This API key may make {rate} requests; the next one in {wait} s."
            raise Refused(429, "rate_limited", text, retryable=True, headers=headers)
        bucket.tokens -= 1
        full_in = math.ceil((rate.count - bucket.tokens) * rate.seconds / rate.count)
        return _headers(rate, int(bucket.tokens), full_in)


def _headers(rate: Rate, left: int, seconds: int) -> dict[str, str]:
    policy = f'"key";q={rate.count};w={rate.seconds}'
    return {"RateLimit-Policy": policy, "RateLimit": f'"key";r={left};t={seconds}'}
