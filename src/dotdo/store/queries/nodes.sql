-- name: join_node
-- A node comes up.
insert into nodes (id, host, pid, started_at, lease_until) values (:node, :host, :pid, :now, :lease_until);

-- name: leave_node
-- A node goes down in order.
delete from nodes where id = :node;

-- name: touch_node
-- To see whether the store can be written: forth, and back in the same transaction. What stays equal is not written.
update nodes set started_at = started_at + cast(:by as bigint) where id = :node;

-- name: expel_others
-- The holder of the store's only engine lock knows that every other node is gone.
delete from nodes where id <> :node;

-- name: release_runs
-- A node that goes down in order gives back what it still has, but for runs with attempts whose end nobody saw.
update runs set owner = null, due_at = :now
where owner = :node and ended_at is null and id not in (select value ->> 0 from each(:unseen));

-- name: save_definitions
-- Keeps a snapshot of the newest versions.
insert into definitions (id, newest, created_at) values (:id, :newest, :now) on conflict (id) do nothing;

-- name: load_definitions
-- A snapshot by its id.
select newest from definitions where id = :id;
