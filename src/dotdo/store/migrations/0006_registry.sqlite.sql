-- What was deleted for good: which runs, with the heads of their journals, when and by whom. Chained and anchored, so
-- that the audit can tell a deletion of ours from another's.

create table registry (
    number integer not null primary key,
    kind text not null,
    at integer not null,
    actor text,
    data text not null,
    data_digest text not null,
    digest text not null,
    anchor text not null
) strict;

-- Deleted runs whose journals are still to be cleared, a few entries at a time.
create table leftovers (run text not null primary key) without rowid;
