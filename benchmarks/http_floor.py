"""The least that an endpoint of the same stack does: reads a JSON body, answers with a JSON object of a run's size."""

import asyncio
import socket

import msgspec
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

ANSWER = {"id": "run_" + "0" * 32, "status": "completed", "labels": {}, "padding": "x" * 500}


async def endpoint(request: Request) -> Response:
    """Reads, and answers."""
    given = msgspec.json.decode(await request.body())
    return Response(msgspec.json.encode({**ANSWER, "result": given["params"]}), 200, None, "application/json")


async def main() -> None:
    """Serves on a free port, which it prints, until it is killed."""
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listener.bind(("127.0.0.1", 0))
    listener.listen(2048)
    app = Starlette(routes=[Route("/v1/actions/{name}/execute", endpoint, methods=["POST"])])
    print(f"at http://127.0.0.1:{listener.getsockname()[1]}", flush=True)
    config = uvicorn.Config(app, log_config=None, access_log=False, server_header=False)
    await uvicorn.Server(config).serve([listener])


if __name__ == "__main__":
    asyncio.run(main())
