-- What workers have offered: it can still be called when none of them is there, also after a restart.

create table dotdo.offers (
    kind text not null,          -- action or effect
    name text collate "C" not null,
    version bigint not null,
    definition text not null,    -- the offer, as JSON
    databases text not null,     -- names of the databases in which its attempts commit, as JSON
    at bigint not null,
    primary key (kind, name, version)
);
