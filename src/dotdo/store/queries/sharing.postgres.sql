-- name: lock_runs
-- In one order, or two nodes could each wait for the other.
select id from runs where id in (select value ->> 0 from each(:rows)) order by id for update;

-- name: lock_registry
-- Its entries are a chain.
lock table registry in share row exclusive mode;

-- name: enter
-- The first statement of a node's transactions: shuts out whoever would expel it, then looks whether somebody has.
select dotdo.enter(:number, :epoch);

-- name: join_shared
-- A node comes up, for as long as its lease by the server's clock.
insert into nodes (id, host, pid, started_at, lease_until, offers, definitions)
values (:node, :host, :pid, dotdo.now(), dotdo.now() + :lease, :offers, :definitions)
returning number, epoch;

-- name: renew
-- The heartbeat. A node that was expelled stays so.
update nodes set lease_until = dotdo.now() + :lease where id = :node and expelled_at is null returning dotdo.now();

-- name: publish
-- What a node defines has changed.
update nodes set offers = :offers, definitions = :definitions where id = :node and expelled_at is null;

-- name: published
-- What some nodes define.
select id, definitions from nodes where id in (select value ->> 0 from each(:rows));

-- name: expect_offered
-- Runs that wait for somebody who defines or offers what one does now; or for so much that not all of it is named.
update runs set due_at = :now
where ended_at is null and owner is null and (due_at is null or due_at > :now)
    and (waiting_for like '{"kind":"action"%' or waiting_for like '{"kind":"worker"%')
    and (
        waiting_for like '% more: %'
        or exists (select 1 from each(:rows) where waiting_for like value ->> 0)
    );

-- name: raise_epoch
-- Nothing that was sent on an earlier connection counts any more.
update nodes set epoch = epoch + 1 where id = :node and expelled_at is null returning epoch;

-- name: keep_out
-- Waits for the transaction that a node is in, and lets it begin no other one.
select pg_advisory_xact_lock(1685021807, cast(:number as integer));

-- name: end_transactions
-- Ends the transaction of a node that is frozen in the middle of it.
select pg_terminate_backend(pid) from pg_locks
where locktype = 'advisory' and classid = 1685021807 and objid = :number and objsubid = 2
    and database = (select oid from pg_database where datname = current_database())
    and pid <> pg_backend_pid();

-- name: lapsed_nodes
-- Nodes whose lease is over, and those that were expelled and may have runs left.
select id, number, expelled_at is not null from nodes where expelled_at is not null or lease_until <= dotdo.now();

-- name: expel
-- A node is gone, unless it has just renewed its lease.
update nodes set expelled_at = dotdo.now() where id = :node and expelled_at is null and lease_until <= dotdo.now();

-- name: resign
-- A node goes, or its process has lost it; whoever sweeps next frees what it still has.
update nodes set expelled_at = dotdo.now(), lease_until = 0, mark = :mark where id = :node and expelled_at is null;

-- name: number_of_node
-- What its lock goes by.
select number from nodes where id = :node;

-- name: unknown_owners
-- Owners of runs that are no nodes (any more); found from one owner to the next, however many runs each has.
with recursive owners (id) as (
    select min(owner) from runs where ended_at is null
    union all
    select (select min(owner) from runs where ended_at is null and owner > owners.id) from owners where id is not null
)
select id from owners where id is not null and id not in (select nodes.id from nodes);

-- name: rescue_shared
-- Frees a bounded batch of runs of nodes that are gone, and of owners that are no nodes.
update runs set
    owner = null, due_at = :now, crashed = coalesce((select mark from nodes where nodes.id = runs.owner), 1)
where id = any (array(
    select id from runs
    where ended_at is null and owner in (
        select id from nodes where expelled_at is not null union all select value ->> 0 from each(:unknown)
    )
    limit :limit for update skip locked
));

-- name: bury_nodes
-- Nodes that are gone and have nothing left.
delete from nodes
where expelled_at is not null and not exists (select 1 from runs where owner = nodes.id and ended_at is null);

-- name: list_nodes
-- Who is there, and for how long by the server's clock.
select id, host, pid, started_at, lease_until - dotdo.now(), offers, (
    select count(*) from runs where owner = nodes.id and ended_at is null
) from nodes where expelled_at is null order by started_at, id;

-- name: entry_digest
-- What a batch whose outcome is not known would have written.
select digest from journal where run = :run and seq = :seq;

-- name: settle_fact
-- The first to say it is right.
insert into facts (name, value) values (:name, :value) on conflict do nothing;

-- name: read_fact
-- What was said first.
select value from facts where name = :name;

-- name: notify
-- A hint to all other nodes, in a transaction of its own: commits with a hint queue up behind each other.
select pg_notify('dotdo', :hint);

-- name: server_time
-- By which nodes correct their clocks.
select dotdo.now();
