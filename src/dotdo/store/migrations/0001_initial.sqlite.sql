-- A run is one row in `runs` (its state, for queries: written when it is accepted, parked and ended) and many in
-- `journal` (the truth, append-only). A child run's id begins with its root's id, so rows of one tree stay together.
-- Times are ms since 1970 by the engine's clock, always passed in.

create table runs (
    id text not null primary key,
    root text not null,
    parent text,
    parent_step text,
    kind text not null,
    name text not null,
    version integer not null,
    key text,
    input_digest text not null,
    trail text,
    actor text,
    labels text not null,
    status text not null,
    undo text not null,
    generation integer not null,
    waiting_for text,            -- why it does not move, as JSON
    due_at integer,              -- when somebody should claim it; null: an event or a person must come first
    owner text,                  -- the node that has it in memory
    claim bigint not null,       -- counts claims; every write carries the number and fails when it is old
    crashed integer not null,    -- 1: the owner before died with it
    seq integer not null,        -- head of the journal when this row was written
    digest text not null,
    anchor text not null,        -- HMAC of the head, under a key outside the store
    created_at integer not null,
    ended_at integer
) without rowid;

create index runs_open on runs (owner, due_at) where ended_at is null;
create index runs_created on runs (created_at);
create index runs_parent on runs (parent) where parent is not null;
create index runs_trail on runs (trail) where trail is not null;

create table journal (
    run text not null,
    seq integer not null,
    kind text not null,
    step text not null,
    generation integer not null,
    attempt integer not null,
    at integer not null,
    data text not null,
    data_digest text not null,
    digest text not null,
    primary key (run, seq)
) strict, without rowid;  -- strict: no value of another type can look the same to the digests

-- Messages for a run from outside: events, operators' requests, children that ended. The owner moves them into the
-- journal, in order, and deletes them in the same transaction.
create table inbox (
    id integer primary key autoincrement,
    run text not null,
    kind text not null,
    name text not null,
    value text not null,
    sender text,                 -- the sender's own key: the same one twice is one message
    actor text,
    at integer not null
);

create index inbox_run on inbox (run, id);
create unique index inbox_sender on inbox (run, sender) where sender is not null;

create table nodes (
    id text not null primary key,
    host text not null,
    pid integer not null,
    started_at integer not null,
    lease_until integer not null
);

-- Snapshots of the newest versions by name; runs started under one keep it.
create table definitions (
    id text not null primary key,
    newest text not null,
    created_at integer not null
);
