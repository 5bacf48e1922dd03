-- name: add_tickets
-- Steps that ask for the slots of an action for the first time.
insert into tickets (pool, run, step, claim, priority, limits, stage, scope, at)
select
    value ->> 0, value ->> 1, value ->> 2, cast(value ->> 3 as bigint), cast(value ->> 4 as bigint), value ->> 5, 0,
    value ->> 6, cast(value ->> 7 as bigint)
from each(:rows)
where true
on conflict do nothing;

-- name: find_tickets
-- What steps that ask, or give back, have already.
select tickets.id, tickets.pool, tickets.run, tickets.step, tickets.limits, tickets.stage, tickets.scope
from each(:rows) as given join tickets
    on tickets.run = given.value ->> 0 and tickets.step = given.value ->> 1 and tickets.pool = given.value ->> 2
order by tickets.id;

-- name: keep_tickets
-- A newer owner of a run asks again: it keeps its place, and what it has.
update tickets set claim = cast(new.value ->> 1 as bigint)
from each(:rows) as new
where tickets.id = cast(new.value ->> 0 as bigint);

-- name: renew_tickets
-- It asks from the beginning, at its old place: it had been absent, or its limits have changed.
update tickets set
    claim = cast(new.value ->> 1 as bigint),
    limits = new.value ->> 2,
    stage = 0,
    scope = new.value ->> 3,
    at = cast(new.value ->> 4 as bigint)
from each(:rows) as new
where tickets.id = cast(new.value ->> 0 as bigint);

-- name: move_tickets
-- It has got one more slot, and waits for the next, or has all.
update tickets set
    stage = cast(new.value ->> 1 as bigint), scope = new.value ->> 2, at = cast(new.value ->> 3 as bigint)
from each(:rows) as new
where tickets.id = cast(new.value ->> 0 as bigint);

-- name: set_aside_tickets
-- Whoever had all slots is gone and has not come back yet: they are for others, its place stays.
update tickets set stage = -1 where tickets.id in (select cast(value ->> 0 as bigint) from each(:rows));

-- name: delete_tickets
-- Nobody needs them any more.
delete from tickets where tickets.id in (select cast(value ->> 0 as bigint) from each(:rows));

-- name: take_slots
-- Slots taken; those of a rate again with their time, once the attempt starts.
insert into slots (scope, ticket, until)
select value ->> 0, cast(value ->> 1 as bigint), cast(value ->> 2 as bigint) from each(:rows)
where true
on conflict (scope, ticket) do update set until = excluded.until;

-- name: free_slots
-- Gives back what tickets have, but not the starts that count for their rates.
delete from slots where until is null and ticket in (select cast(value ->> 0 as bigint) from each(:rows));

-- name: clear_slots
-- Starts that count for no rate any more.
delete from slots where until <= :now;

-- name: any_past_slot
-- Whether there are such.
select 1 from slots where until <= :now limit 1;

-- name: count_slots
-- How many slots of each limit are taken, and when the first of them becomes free by itself.
select given.value ->> 0, count(slots.ticket), min(slots.until)
from each(:rows) as given left join slots
    on slots.scope = given.value ->> 0 and (slots.until is null or slots.until > :now)
group by given.value ->> 0;

-- name: first_waiting
-- The next ones for each limit, by priority and place; with whether their runs still go on.
select tickets.id, tickets.pool, tickets.run, tickets.step, tickets.limits, tickets.stage, tickets.scope,
    runs.id is not null and runs.ended_at is null and runs.status <> 'blocked', tickets.claim
-- sqlite
from each(:rows) as given cross join tickets left join runs on runs.id = tickets.run
where tickets.id in (
    select waiting.id from tickets as waiting
    where waiting.scope is not null and waiting.scope = given.value ->> 0
    order by waiting.priority desc, waiting.id limit :limit
)
-- postgres: it would look at all tickets for each limit
from each(:rows) as given cross join lateral (
    select * from tickets
    where scope is not null and scope = given.value ->> 0 order by priority desc, id limit :limit
) as tickets left join runs on runs.id = tickets.run
-- both
order by tickets.priority desc, tickets.id;

-- name: longest_waiting
-- Who has waited the longest for each limit, whatever its priority: of each the first, and of these the first.
select tickets.id, tickets.pool, tickets.run, tickets.step, tickets.limits, tickets.stage, tickets.scope,
    runs.id is not null and runs.ended_at is null and runs.status <> 'blocked', tickets.claim
from each(:rows) as given join tickets on tickets.id = (
    select min((
        select one.id from tickets as one
        where one.scope is not null and one.scope = given.value ->> 0
            and one.priority = cast(level.value ->> 0 as bigint)
        order by one.id limit 1
    ))
    from each(:levels) as level
) left join runs on runs.id = tickets.run;

-- name: count_tickets
-- How many steps of each action have their slots, and how many wait, and for which kind of limit.
select pool, case when scope is null then '' when scope like 'rate %' then 'rate' else 'concurrency' end, count(*)
from tickets where scope is not null or stage >= 0 group by 1, 2 order by 1, 2;

-- name: waiting_scopes
-- Which of several limits somebody waits for.
select given.value ->> 0 from each(:rows) as given
where exists (select 1 from tickets where tickets.scope is not null and tickets.scope = given.value ->> 0);

-- name: stale_tickets
-- Tickets of runs that have come to rest; and slots whose run somebody else has by now, or nobody, and that has not come
-- back for them.
select tickets.id, tickets.pool, tickets.limits,
    runs.id is null or runs.ended_at is not null or runs.status = 'blocked'
from tickets left join runs on runs.id = tickets.run
where tickets.scope is null and (
    runs.id is null or runs.ended_at is not null or runs.status = 'blocked'
    or (tickets.stage >= 0 and tickets.at < :before and (runs.owner is null or runs.claim <> tickets.claim))
)
order by tickets.id limit :limit;

-- name: due_rates
-- Limits that time has moved.
select scope, pool, most, lasts from rates where next_at <= :now order by next_at limit :limit;

-- name: set_rates
-- When to look again at limits for which somebody waits.
insert into rates (scope, pool, most, lasts, next_at)
select
    value ->> 0, value ->> 1, cast(value ->> 2 as bigint), cast(value ->> 3 as bigint), cast(value ->> 4 as bigint)
from each(:rows)
where true
on conflict (scope) do update set most = excluded.most, lasts = excluded.lasts, next_at = excluded.next_at;

-- name: delete_rates
-- Nobody waits for them any more.
delete from rates where scope in (select value ->> 0 from each(:rows));

-- name: next_slot
-- When the earliest limit moves by itself.
select min(next_at) from rates;
