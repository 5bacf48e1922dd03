"""Keys of the HTTP API in the store: never their text, only its digest."""

from typing import TYPE_CHECKING, Any

import msgspec

from dotdo.keys import ApiKey

if TYPE_CHECKING:
    from dotdo.store.sql import Database


class ApiKeys:
    """The part of `SqlStore` that keeps API keys."""

    _db: "Database"
    _sql: dict[str, str]

    def save_api_key(self, key: ApiKey) -> None:
        """Keeps a new key."""
        values = msgspec.structs.asdict(key)
        del values["revoked_at"], values["used_at"]
        with self._db.transaction():
            self._db.write(self._sql["save_api_key"], {**values, "scopes": msgspec.json.encode(key.scopes).decode()})

    def revoke_api_key(self, id: str, now: int) -> bool:
        """The key allows nothing from now on; whether there is such a key."""
        with self._db.transaction():
            self._db.write(self._sql["revoke_api_key"], {"id": id, "now": now})
            return self._db.changes() == 1

    def touch_api_keys(self, used: list[tuple[str, int]]) -> None:
        """Notes when keys were last used."""
        with self._db.transaction():
            self._db.write(self._sql["touch_api_keys"], {"rows": msgspec.json.encode(used).decode()})

    def find_api_key(self, digest: str) -> ApiKey | None:
        """A key by the digest of its text."""
        found = self._db.read(self._sql["find_api_key"], {"digest": digest})
        return _api_key(found[0]) if found else None

    def list_api_keys(self) -> list[ApiKey]:
        """Every key, oldest first."""
        return [_api_key(row) for row in self._db.read(self._sql["list_api_keys"])]


def _api_key(row: tuple[Any, ...]) -> ApiKey:
    id, name, hint, digest, scopes, created_at, expires_at, revoked_at, used_at, rate = row
    return ApiKey(
        id=id,
        name=name,
        hint=hint,
        digest=digest,
        scopes=msgspec.json.decode(scopes, type=tuple[str, ...]),
        created_at=created_at,
        expires_at=expires_at,
        revoked_at=revoked_at,
        used_at=used_at,
        rate=rate,
    )
