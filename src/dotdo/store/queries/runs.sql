-- name: accept_runs
-- A batch of new runs; an id that exists is left alone, and the row count tells.
insert into runs (
    id, root, parent, parent_step, kind, name, version, key, input_digest, trail, actor, labels, status, undo,
    generation, waiting_for, due_at, owner, claim, crashed, seq, digest, anchor, created_at, ended_at, priority
)
select
    value ->> 0, value ->> 1, value ->> 2, value ->> 3, value ->> 4, value ->> 5, cast(value ->> 6 as bigint),
    value ->> 7, value ->> 8, value ->> 9, value ->> 10, value ->> 11, value ->> 12, 'none', 0, value ->> 13,
    cast(value ->> 14 as bigint), value ->> 15, 1, 0, 1, value ->> 16, value ->> 17, cast(value ->> 18 as bigint), null,
    cast(value ->> 19 as bigint)
from each(:rows)
where true
on conflict (id) do nothing;

-- name: update_runs
-- A batch of runs parked or ended by their owner. A message that came meanwhile makes the run due at once; a blocked
-- run only if it is a person's word, and one that is about to be blocked takes neither that nor an event before.
-- The claim is looked at here for writes without entries: all others are refused by append_entries before. It is for
-- other nodes: within one process a run is in memory once, and what is written of it is so (tests/store/test_fencing.py).
update runs set
    status = new.value ->> 2,
    undo = new.value ->> 3,
    generation = cast(new.value ->> 4 as bigint),
    waiting_for = new.value ->> 5,
    due_at = case
        when new.value ->> 11 is null and exists (
            select 1 from inbox where inbox.run = runs.id
                and (new.value ->> 2 <> 'blocked' or inbox.kind in ('cancel', 'resolve'))
                and (inbox.kind not in ('cancel', 'event') or cast(new.value ->> 14 as bigint) = 0)
        )
        then cast(new.value ->> 12 as bigint)
        else cast(new.value ->> 6 as bigint)
    end,
    owner = new.value ->> 7,
    seq = cast(new.value ->> 8 as bigint),
    digest = new.value ->> 9,
    anchor = new.value ->> 10,
    ended_at = cast(new.value ->> 11 as bigint),
    crashed = cast(new.value ->> 13 as bigint)
from each(:rows) as new
where runs.id = new.value ->> 0 and runs.claim = cast(new.value ->> 1 as bigint);

-- name: claim_due
-- Takes a bounded batch of due runs, all of one priority: the highest, or, when that is patient, the one in which a run
-- has waited the longest. The claim number fences off whoever had them before. Names take turns, beginning after the one
-- that came last; of each name the oldest come first.
update runs set
    owner = :node, claim = claim + 1, waiting_for = null,
    status = case when status in ('waiting', 'pending') then 'running' else status end
-- sqlite
where id in (
    with due as materialized (select priority, name, due_at from heads where due_at <= :now),
-- postgres: other nodes claim at the same time, and may offer what this one does not; in an array, because the planner
-- may ask a subquery more than once
where id = any (array(
    with due as materialized (select priority, name, due_at from heads where due_at <= :now and exists (
        select from runs where ended_at is null and owner is null and due_at <= :now
            and runs.priority = heads.priority and runs.name = heads.name
            and kind || ' ' || name || '@' || version not in (select value ->> 0 from each(:elsewhere))
    )),
-- both
    turn as materialized (select priority, name from due where priority = (
        select priority from due order by case when cast(:patient as boolean) then due_at end, priority desc limit 1
    ))
-- sqlite
    select free.id from turn cross join runs as free where free.id in (
        select one.id from runs as one indexed by runs_due
        where one.ended_at is null and one.owner is null and one.priority = turn.priority and one.name = turn.name
            and one.due_at <= :now order by one.due_at limit :limit / (select count(*) from turn) + 1
    )
    order by row_number() over (partition by turn.name order by free.due_at), turn.name <= :last, turn.name limit :limit
)
-- postgres
    select free.id from turn cross join lateral (
        select id, due_at from runs where ended_at is null and owner is null and due_at <= :now
            and runs.priority = turn.priority and runs.name = turn.name
            and kind || ' ' || name || '@' || version not in (select value ->> 0 from each(:elsewhere))
        order by due_at limit cast(:limit as bigint) / (select count(*) from turn) + 1 for update skip locked
    ) as free
    order by row_number() over (partition by turn.name order by free.due_at), turn.name <= :last, turn.name limit :limit
))
-- both
returning id, claim, crashed, name;

-- name: claim_one
-- Takes one run again, whoever had it: used by its own node after a failed write. Whatever becomes of this claim,
-- attempts of the run may have ended unseen (2), so whoever goes on with it settles them first.
update runs set owner = :node, claim = claim + 1, crashed = case when crashed = 1 then 1 else 2 end
where id = :run and ended_at is null and (owner is null or owner = :node)
returning id, claim, crashed;

-- name: stray_runs
-- Unfinished runs of a node that were accepted by another run: its children, and the one that goes on for it.
select id from runs
where owner = :node and ended_at is null
    and (parent = :run or id in (select run from links where links.previous = :run));

-- name: own_runs
-- What the store thinks a node has in memory.
select id from runs where owner = :node and ended_at is null;

-- name: open_runs
-- Runs that have not ended, blocked ones too; in pages.
select id from runs where ended_at is null and id > :after order by id limit :limit;

-- name: unfinished_runs
-- Runs that would go on by themselves.
select id, claim from runs where ended_at is null and status <> 'blocked' limit :limit;

-- name: mark_crashed
-- What was in flight in these runs is not known.
update runs set crashed = 1 where id in (select value ->> 0 from each(:rows));

-- name: latest_time
-- How far the store has come.
select max(at) from (select max(created_at) as at from runs union all select max(ended_at) from runs) as times;

-- name: rescue
-- Frees a bounded batch of runs whose owner is no live node. Swept for ever, never only at the start.
update runs set owner = null, crashed = 1, due_at = :now
where id in (
    select id from runs
    where ended_at is null and owner is not null
        and not exists (select 1 from nodes where nodes.id = runs.owner and nodes.lease_until > :now)
    limit :limit
);

-- name: expect_definitions
-- Runs that wait for a process which defines what they are of: one may just be coming up.
update runs set due_at = :now
where ended_at is null and owner is null and due_at > :now and due_at <= :soon
    and waiting_for like '{"kind":"action"%';

-- name: next_due
-- When the earliest unclaimed run is due.
select min(due_at) from runs where ended_at is null and owner is null and due_at is not null;

-- name: get_run
-- One run with the entry at its head, which holds the result or error of an ended one, and its latest progress.
select runs.*, journal.kind, journal.data, (
    select data from journal as told
-- sqlite: its planner would go through the run's whole journal
    indexed by journal_published
-- both
    where told.run = runs.id and told.kind = 'published' order by told.seq desc limit 1
), (select previous from links where links.run = runs.id)
from runs left join journal on journal.run = runs.id and journal.seq = runs.seq
where runs.id = :run;

-- name: runs_over
-- Which of several runs have ended, are blocked, or do not exist; for clients who wait for them.
select wanted.value ->> 0 from each(:runs) as wanted left join runs on runs.id = wanted.value ->> 0
where runs.id is null or runs.ended_at is not null or runs.status = 'blocked';

-- name: list_runs
-- Runs, newest first, by whatever is asked for; `before` continues after a page. Of what is not asked for nothing is
-- said, so that an index can be used where there is one: few runs are under way, or have ended otherwise than well.
select runs.*, journal.kind, journal.data, (
    select data from journal as told
-- sqlite: its planner would go through the run's whole journal
    indexed by journal_published
-- both
    where told.run = runs.id and told.kind = 'published' order by told.seq desc limit 1
), (select previous from links where links.run = runs.id)
from runs left join journal on journal.run = runs.id and journal.seq = runs.seq
where true
    and runs.id in ( -- if labels
        select labels.run from labels join each(:labels) as wanted -- if labels
            on labels.name = wanted.value ->> 0 and labels.value = wanted.value ->> 1 -- if labels
        group by labels.run having count(*) = :count -- if labels
    ) -- if labels
    and runs.status = :status -- if status
    and runs.status not in ('running', 'completed') -- if notable
-- sqlite: its planner would rather go through all runs in order of time
    and runs.id in (select id from runs indexed by runs_open where ended_at is null) -- if running
-- postgres
    and runs.ended_at is null -- if running
-- both
    and runs.undo = :undo -- if undo
    and runs.name = :name -- if name
    and runs.trail = :trail -- if trail
    and runs.parent = :parent -- if parent
    and runs.created_at >= :since -- if since
    and (runs.created_at, runs.id) < (:before_at, :before_id) -- if before_at
order by runs.created_at desc, runs.id desc
limit :limit;

-- name: label_runs
-- The labels of new runs.
insert into labels (name, value, run)
select label.key, label.value, given.value ->> 0 from each(:rows) as given, pairs(given.value ->> 1) as label
where true
on conflict do nothing;

-- name: run_state
-- What decides whether a message may be posted to a run.
select status, undo, kind, owner, generation from runs where id = :run
-- sqlite
;
-- postgres: its owner may be parking it just now
for update;

-- name: wake_run
-- Makes a run due at once because a message came. A blocked run waits for a person, whatever comes.
update runs set due_at = :now where id = :run and status <> 'blocked' and (due_at is null or due_at > :now);

-- name: wake_blocked
-- Has a blocked run take a person's answer; other questions of it are still open, so it stays blocked.
update runs set due_at = :now where id = :run and status = 'blocked';

-- name: reopen_run
-- An ended or blocked run is to be opened again; its owner journals the new generation.
update runs set status = 'pending', ended_at = null, due_at = :now, waiting_for = null where id = :run;

-- name: read_heads
-- Anchored heads of a range of runs, in the order of read_chains, for the audit.
select
    id, seq, digest, anchor, status, undo, name, version,
    kind, key, trail, actor, labels, priority, root, parent, parent_step, created_at, ended_at
from runs where id >= :first and id <= :last order by id;

-- name: find_runs
-- Runs by how their id begins; newest first, because ids begin with the time.
select id from runs where id >= :prefix and id <= :prefix || '~' order by id desc limit :limit;

-- name: count_by_status
-- How many runs there are in each state.
select status, count(*) from runs group by status;
