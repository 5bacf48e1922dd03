-- name: save_offers
-- Definitions that a worker offers, instead of what was offered under their names and versions before.
insert into offers (kind, name, version, definition, databases, at)
select new.value ->> 0, new.value ->> 1, cast(new.value ->> 2 as bigint), new.value ->> 3, new.value ->> 4,
    cast(new.value ->> 5 as bigint)
from each(:rows) as new
where true
on conflict (kind, name, version) do update
set definition = excluded.definition, databases = excluded.databases, at = excluded.at;

-- name: list_offers
-- All of them, by name.
select kind, name, version, definition, databases, at from offers order by kind, name, version;

-- name: expect_workers
-- Runs that wait for a worker: one has come.
update runs set due_at = :now
where ended_at is null and owner is null and (due_at is null or due_at > :now)
    and waiting_for like '{"kind":"worker"%';
