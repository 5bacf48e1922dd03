-- name: heads_of_tree
-- A root and all below it, with what their last entries must say when their data is gone.
select runs.id, runs.parent, runs.name, runs.version, runs.status, runs.undo, runs.generation, runs.ended_at,
    journal.seq, journal.kind, journal.at, journal.digest, journal.data
from runs left join journal on journal.run = runs.id and journal.seq = runs.seq
where runs.id = :root or (runs.id > :root || '.' and runs.id < :root || '/') order by runs.id
-- sqlite
;
-- postgres: nobody may open one again meanwhile
for update of runs;

-- name: add_erased_entries
-- The entries that say who erased what stands before them.
insert into journal (run, seq, kind, step, generation, attempt, at, data, data_digest, digest)
select
    value ->> 0, cast(value ->> 1 as bigint), value ->> 2, value ->> 3, cast(value ->> 4 as bigint),
    cast(value ->> 5 as bigint), cast(value ->> 6 as bigint), value ->> 7, value ->> 8, value ->> 9
from each(:rows);

-- name: erase_rows
-- What a row says of its caller goes; its id, name, times and the input's digest stay, which a repeated key needs.
update runs set
    key = null,
    trail = null,
    labels = '{}',
    waiting_for = null,
    seq = cast(new.value ->> 1 as bigint),
    digest = new.value ->> 2,
    anchor = new.value ->> 3
from each(:rows) as new
where runs.id = new.value ->> 0;

-- name: add_erasing
-- Their journals are to be erased.
insert into erasing (run) select value ->> 0 from each(:rows) where true on conflict do nothing;

-- name: any_erasing
-- Whether something is still to be erased.
select exists (select 1 from erasing);

-- name: erase_entries
-- A few entries lose their data; digests stay, so the chain does.
update journal set data = '' where (run, seq) in (
    select journal.run, journal.seq from erasing join journal on journal.run = erasing.run
    where journal.kind <> 'erased' and journal.data <> '' limit :limit
);

-- name: erase_parts
-- A few parts of large values.
delete from blobs where (run, digest, part) in (
    select blobs.run, blobs.digest, blobs.part from erasing join blobs on blobs.run = erasing.run limit :limit
);

-- name: end_erasing
-- Nothing of them is left in the file.
delete from erasing;
