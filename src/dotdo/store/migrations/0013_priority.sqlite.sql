-- Runs have a priority: of those that are due the highest are claimed first. Names take turns within one.

alter table runs add column priority integer not null default 0;

drop view heads;
drop index runs_due;
create index runs_due on runs (priority, name, due_at)
where ended_at is null and owner is null and due_at is not null;

-- The first free run of each priority and name: from one to the next by the index, however many runs each has.
create view heads as
with recursive first(id) as (
    select (
        select id from runs indexed by runs_due
        where ended_at is null and owner is null and due_at is not null order by priority, name, due_at limit 1
    )
    union all
    select coalesce((
        select next.id from runs as next indexed by runs_due
        where next.ended_at is null and next.owner is null and next.due_at is not null
            and next.priority = runs.priority and next.name > runs.name
        order by next.name, next.due_at limit 1
    ), (
        select next.id from runs as next indexed by runs_due
        where next.ended_at is null and next.owner is null and next.due_at is not null
            and next.priority > runs.priority
        order by next.priority, next.name, next.due_at limit 1
    ))
    from first join runs on runs.id = first.id
)
select runs.priority, runs.name, runs.due_at from first join runs on runs.id = first.id;
