"""What a worker offers of an application, and what it says of the rest."""

from dotdo import Catalogue, Secret, action, effect, service
from dotdo.worker.offering import offers_of


def test_what_a_worker_cannot_run_is_left_out_with_the_reason():
    catalogue = Catalogue()

    @action("free", catalogue=catalogue)
    def free() -> None: ...

    @action("limited", concurrency=1, catalogue=catalogue)
    def limited() -> None: ...

    @action("rated", version=2, rate="10/minute", catalogue=catalogue)
    def rated() -> None: ...

    @action("secret", catalogue=catalogue)
    def secret(token: Secret[str]) -> None: ...

    @effect("telling", catalogue=catalogue)
    def telling(token: Secret[str]) -> None: ...

    @service("whole", catalogue=catalogue)
    async def whole() -> None: ...

    offers = offers_of(catalogue)
    assert [each.name for each in offers.actions] == ["free", "limited", "rated"]
    assert offers.limited == ["limited", "rated"]
    assert "telling" not in {each.name for each in offers.effects}
    assert sorted(offers.left_out) == [
        "action secret@1: its secret inputs do not leave the server",
        "effect telling@1: its secret inputs do not leave the server",
        "the service whole: the server runs it",
    ]
