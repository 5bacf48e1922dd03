"""`dotdo serve`, with a short lease for workers: the tests wait for the end of one."""

import sys

from dotdo.cli import main
from dotdo.engine.workers import Workers

assert Workers.__init__.__defaults__ is not None
Workers.__init__.__defaults__ = (*Workers.__init__.__defaults__[:-1], 2.0)
sys.argv[0] = "dotdo"
main()
