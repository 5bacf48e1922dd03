"""A platform for the tests: PostgreSQL, a SQLite file, and `dotdo serve` with both as databases of the application.

Prints where everything is as one line of JSON, and ends when its standard input does.
"""

import json
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parents[3]))

from tests.postgres import postgres_server  # noqa: E402  # the repository's own


def main(folder: Path, postgres: str) -> None:
    """Runs until standard input ends."""
    store, shop, ledger = folder / "dotdo.db", folder / "shop.db", folder / "ledger"
    ledger.touch()
    dotdo = [sys.executable, "-m", "dotdo"]
    made = [*dotdo, "keys", "create", "tests", "--scope", "*", "--store", str(store)]
    key = subprocess.run(made, check=True, capture_output=True, text=True).stdout.strip()
    command = [*dotdo, "serve", "--app", str(HERE / "app.py"), "--store", str(store), "--port", "0"]
    command += ["--sql", f"main={postgres}", "--sql", f"shop=sqlite:///{shop}"]
    log = folder / "log"
    with log.open("w") as file:
        environment = {**os.environ, "LEDGER": str(ledger), "DOTDO_WORKER_LEASE": "3"}
        server = subprocess.Popen(command, stdin=subprocess.DEVNULL, stderr=file, env=environment)
    while not (found := re.search(r"at (http://\S+)", log.read_text())):
        if server.poll() is not None:
            sys.exit(f"the server did not start:\n{log.read_text()}")
        time.sleep(0.02)
    print(json.dumps({"url": found[1], "key": key, "postgres": postgres, "shop": str(shop), "ledger": str(ledger)}))
    sys.stdout.flush()
    sys.stdin.read()
    server.terminate()
    server.wait(timeout=20)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory(prefix="dotdo-typescript-") as name, postgres_server() as postgres_url:
        main(Path(name), postgres_url)
