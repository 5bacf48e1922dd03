"""Onboards one customer in a process of its own: `python -m examples.onboarding.onboard FOLDER KEY NAME EMAIL`.

Started again with the same key, after a crash or not, it goes on with the same run and prints the same result.
"""

import asyncio
import sys
from pathlib import Path

from examples.onboarding.app import customer_onboarding, open_client


async def main(folder: Path, key: str, name: str, email: str) -> None:
    """Starts or continues the run, waits for its end, and prints its result."""
    async with open_client(folder) as client:
        handle = await client.start(customer_onboarding.with_(key=key), user_name=name, user_email=email)
        print(f"{handle.id} completed: {await handle.result()}")


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1]), *sys.argv[2:]))
