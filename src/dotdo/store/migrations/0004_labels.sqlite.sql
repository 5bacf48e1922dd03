-- Labels by name and value, so that the runs of one are found without looking at all others.

create table labels (
    name text not null,
    value text not null,
    run text not null,
    primary key (name, value, run)
) without rowid;

insert into labels (name, value, run)
select label.key, label.value, runs.id from runs, json_each(runs.labels) as label where runs.labels <> '{}';
