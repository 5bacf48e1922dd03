-- name: link_runs
-- Runs that go on for others.
insert into links (run, chain, previous, number)
select value ->> 0, value ->> 1, value ->> 2, cast(value ->> 3 as bigint) from each(:rows);

-- name: move_messages
-- What a run had not taken goes to the one that goes on for it, behind what that one was sent before, in order.
insert into inbox (run, kind, name, value, sender, actor, at)
select succession.value ->> 0, kind, name, inbox.value, sender, actor, at
from each(:rows) as succession join inbox on inbox.run = succession.value ->> 2
where kind in ('event', 'cancel')
order by inbox.id
on conflict do nothing;

-- name: newest_of_chain
-- The last run of a chain, known by the first or by any that is linked.
select run from links
where chain = coalesce((select chain from links where run = :run), :run)
order by number desc limit 1;

-- name: runs_of_chain
-- The runs that went on for a first one, newest first.
select run from links where chain = :first order by number desc;
