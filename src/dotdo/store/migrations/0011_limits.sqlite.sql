-- Limits of actions across nodes: who waits for a slot, and who has one. A ticket takes its slots one after the other,
-- always in the same order, so that no two wait for each other.

create table tickets (
    id integer primary key autoincrement, -- its place among those of the same priority
    pool text not null,          -- the action whose limits these are
    run text not null,
    step text not null,
    claim bigint not null,       -- of the run when it asked last
    priority integer not null,   -- the higher, the sooner
    limits text not null,        -- as JSON, in the order in which they are taken: scope, how many, for how long
    stage integer not null,      -- how many of them it has; -1: it has none and asks for none, but keeps its place
    scope text,                  -- the limit that it waits for
    at integer not null          -- when it asked, or had all
);

create unique index tickets_step on tickets (run, step, pool);
create index tickets_waiting on tickets (scope, priority desc, id) where scope is not null;
create index tickets_settled on tickets (id) where scope is null;

create table slots (
    scope text not null,
    ticket integer not null,
    until integer,               -- null: until it is given back; else of a rate, for so long after the start
    primary key (scope, ticket)
) without rowid;

create index slots_ticket on slots (ticket);
create index slots_until on slots (until) where until is not null;

-- Limits for which tickets wait that only time will move.
create table rates (
    scope text not null primary key,
    pool text not null,
    most integer not null,
    lasts integer not null,      -- ms
    next_at integer not null
) without rowid;

create index rates_next on rates (next_at);
