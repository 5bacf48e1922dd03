-- Claims take turns over the names of due runs, so that a flood of one name keeps no other one waiting.

create index runs_due on runs (name, due_at) where ended_at is null and owner is null and due_at is not null;

-- The first free run of each name: from one name to the next by the index, however many runs each has.
create view heads as
with recursive first(id) as (
    select (
        select id from runs indexed by runs_due
        where ended_at is null and owner is null and due_at is not null order by name, due_at limit 1
    )
    union all
    select (
        select next.id from runs as next indexed by runs_due
        where next.ended_at is null and next.owner is null and next.due_at is not null and next.name > runs.name
        order by next.name, next.due_at limit 1
    )
    from first join runs on runs.id = first.id
)
select runs.name, runs.due_at from first join runs on runs.id = first.id;
