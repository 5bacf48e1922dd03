-- What workers have offered: it can still be called when none of them is there, also after a restart.

create table offers (
    kind text not null,          -- action or effect
    name text not null,
    version integer not null,
    definition text not null,    -- the offer, as JSON
    databases text not null,     -- names of the databases in which its attempts commit, as JSON
    at integer not null,
    primary key (kind, name, version)
) without rowid;
