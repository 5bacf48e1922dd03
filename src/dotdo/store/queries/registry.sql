-- name: retention_window
-- The next runs by age, and whether each is the root of a tree that may go: all of it ended long enough ago, and it is
-- not the first run of a chain that goes on, which leads callers to the others.
select created_at, id, parent is null and ended_at <= :before
    and (cast(:status as text) is null or status = :status) and (cast(:name as text) is null or name = :name)
    and not exists (
        select 1 from runs as below where below.id > runs.id || '.' and below.id < runs.id || '/'
            and (below.ended_at is null or below.ended_at > :before)
    )
    and not exists (
        select 1 from links join runs as later on later.id = links.run
        where links.chain = runs.id and later.ended_at is null
    )
from runs
where created_at <= :before and (created_at, id) > (:after_at, :after_id)
order by created_at, id limit :limit;

-- name: tree
-- A root and all below it.
select id, seq, digest, ended_at from runs
where id = :root or (id > :root || '.' and id < :root || '/') order by id
-- sqlite
;
-- postgres: nobody may open one again meanwhile
for update;

-- name: delete_runs
-- Takes the rows away; the journals follow.
delete from runs where id in (select value ->> 0 from each(:rows));

-- name: delete_labels
-- And their labels.
delete from labels where (name, value, run) in (
    select label.key, label.value, runs.id from runs, pairs(runs.labels) as label
    where runs.id in (select value ->> 0 from each(:rows))
);

-- name: delete_links
-- And their places in chains.
delete from links where run in (select value ->> 0 from each(:rows));

-- name: add_leftovers
-- Journals to be cleared.
insert into leftovers (run) select value ->> 0 from each(:rows);

-- name: leftover_runs
-- Deleted runs whose journals are still there.
select run from leftovers order by run limit :limit;

-- name: runs_to_clear
-- Some of them, for whoever clears their journals.
select run from leftovers order by run limit :limit
-- sqlite
;
-- postgres: one node for each
for update skip locked;

-- name: clear_entries
-- A few entries of a deleted run.
delete from journal where run = :run and seq in (select seq from journal where run = :run limit :limit);

-- name: clear_parts
-- Its large values.
delete from blobs where run = :run;

-- name: forget_leftover
-- Nothing of it is left.
delete from leftovers where run = :run;

-- name: add_registry_entry
-- A deletion is written down in the transaction that makes it.
insert into registry (number, kind, at, actor, data, data_digest, digest, anchor)
values (:number, :kind, :at, :actor, :data, :data_digest, :digest, :anchor);

-- name: last_registry_entry
-- The head of the registry.
select number, kind, at, actor, data, data_digest, digest, anchor from registry order by number desc limit 1;

-- name: read_registry
-- All of it.
select number, kind, at, actor, data, data_digest, digest, anchor from registry order by number;
