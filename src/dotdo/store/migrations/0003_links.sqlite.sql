-- A service that continues as new is a chain of runs: `run` goes on for `previous`; `chain` is the first of all.

create table links (
    run text not null primary key,
    chain text not null,
    previous text not null,
    number integer not null
) without rowid;

create unique index links_chain on links (chain, number);
create index links_previous on links (previous);
