-- name: post_messages
-- Messages for runs from outside; a sender's key that was seen is ignored.
insert into inbox (run, kind, name, value, sender, actor, at)
select
    value ->> 0, value ->> 1, value ->> 2, value ->> 3, value ->> 4, value ->> 5, cast(value ->> 6 as bigint)
from each(:rows)
where true
on conflict do nothing;

-- name: wake_receivers
-- Makes parked runs due that have just been sent a message.
update runs set due_at = :now
where id in (select value ->> 0 from each(:rows))
    and ended_at is null and status <> 'blocked' and (due_at is null or due_at > :now);

-- name: read_inbox
-- The messages of several runs, in order of arrival.
select id, run, kind, name, value, sender, actor, at
from inbox where run in (select value ->> 0 from each(:runs)) order by id;

-- name: runs_with_messages
-- Runs that a node has in memory, for which another process has left messages.
select distinct inbox.run from inbox join runs on runs.id = inbox.run
where runs.owner = :node and runs.ended_at is null;

-- name: take_messages
-- Deletes messages that are in the journal now.
delete from inbox where id in (select cast(value ->> 0 as bigint) from each(:rows));

-- name: clear_inbox
-- An ended run takes no more messages; what came too late goes with it.
delete from inbox where run in (select value ->> 0 from each(:rows));
