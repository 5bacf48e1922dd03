"""What clients are answered is what contract/golden/client has written down; TypeScript's client reads that."""

from pathlib import Path

from tests.server.client_contract import GOLDEN, converse, written
from tests.server.running import running


def test_server_answers_exactly_what_is_written_down(tmp_path: Path):
    with running(tmp_path / "dotdo.db") as server:
        said = {name: written(exchange) for name, exchange in converse(server).items()}
    assert sorted(said) == sorted(path.stem for path in GOLDEN.glob("*.json"))
    for name, text in said.items():
        here = (GOLDEN / f"{name}.json").read_text(encoding="utf-8")
        assert text == here, f"python -m tests.server.client_contract writes {name}.json anew"
