-- name: append_entries
-- A batch of entries; the join drops those of an old claim, and the row count tells.
insert into journal (run, seq, kind, step, generation, attempt, at, data, data_digest, digest)
select
    value ->> 0, cast(value ->> 1 as bigint), value ->> 2, value ->> 3, cast(value ->> 4 as bigint),
    cast(value ->> 5 as bigint), cast(value ->> 6 as bigint), value ->> 7, value ->> 8, value ->> 9
from each(:rows) join runs on runs.id = value ->> 0 and runs.claim = cast(value ->> 10 as bigint);

-- name: read_journals
-- The journals of several runs, each in order.
select run, seq, kind, step, generation, attempt, at, data, data_digest, digest
from journal where run in (select value ->> 0 from each(:runs)) order by run, seq;

-- name: read_journal
-- One run's journal from an entry on.
select run, seq, kind, step, generation, attempt, at, data, data_digest, digest
from journal where run = :run and seq > :after order by seq limit :limit;

-- name: taken_events
-- The events that a run has taken.
select data from journal where run = :run and kind = 'event' order by seq;

-- name: read_published
-- What a run has published after an entry.
select seq, data from journal
-- sqlite: its planner would go through the run's whole journal
indexed by journal_published
-- both
where run = :run and kind = 'published' and seq > :after order by seq;

-- name: read_chains
-- What the digests of a range of runs cover, for the audit; put together here, because that is faster than in Python.
select
    run, kind,
    run || '|' || seq || '|' || kind || '|' || step || '|' || generation || '|' || attempt || '|' || at,
    data, data_digest, digest
from journal where run >= :first and run <= :last order by run, seq;
