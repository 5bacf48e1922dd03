-- name: write_blob
-- One part, bound as it is; it may be there already when a crash, or another owner, came in between.
insert into blobs (run, digest, part, data) values (:run, :digest, :part, :data) on conflict do nothing;

-- name: read_blob
-- The parts of one blob, in order.
select data from blobs where run = :run and digest = :digest order by part;

-- name: clear_blobs
-- What no entry of an ended run has, and no message that was handed on: blobs of messages, and of unfinished writes.
delete from blobs
where run in (select value ->> 0 from each(:rows)) and not exists (
    select 1 from journal where journal.run = blobs.run and journal.data_digest = blobs.digest
) and not exists (
    select 1 from inbox where inbox.value = '@' || blobs.run || '/' || blobs.digest
);

-- name: any_blob
-- Whether there is one at all: most stores never have any, and need not look for those that are left over.
select exists (select 1 from blobs);
