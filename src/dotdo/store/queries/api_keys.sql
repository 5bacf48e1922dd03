-- name: save_api_key
-- A new key.
insert into api_keys (id, name, hint, digest, scopes, created_at, expires_at, revoked_at, used_at, rate)
values (:id, :name, :hint, :digest, :scopes, :created_at, :expires_at, null, null, :rate);

-- name: find_api_key
-- A key by the digest of its text.
select id, name, hint, digest, scopes, created_at, expires_at, revoked_at, used_at, rate
from api_keys where digest = :digest;

-- name: list_api_keys
-- Every key, oldest first.
select id, name, hint, digest, scopes, created_at, expires_at, revoked_at, used_at, rate
from api_keys order by created_at, id;

-- name: revoke_api_key
-- A key allows nothing from now on. One that was revoked before keeps its time.
update api_keys set revoked_at = coalesce(revoked_at, :now) where id = :id;

-- name: touch_api_keys
-- When keys were last used.
update api_keys set used_at = cast(new.value ->> 1 as bigint)
from each(:rows) as new
where api_keys.id = new.value ->> 0;
