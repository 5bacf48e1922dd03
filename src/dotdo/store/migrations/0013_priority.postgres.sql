-- Runs have a priority: of those that are due the highest are claimed first. Names take turns within one.

alter table dotdo.runs add column priority bigint not null default 0;

drop view dotdo.heads;
drop index dotdo.runs_due;
create index runs_due on dotdo.runs (priority, name, due_at)
where ended_at is null and owner is null and due_at is not null;

-- The first free run of each priority and name: from one to the next by the index, however many runs each has.
create view dotdo.heads as
with recursive first(id) as (
    select (
        select id from dotdo.runs
        where ended_at is null and owner is null and due_at is not null order by priority, name, due_at limit 1
    )
    union all
    select coalesce((
        select next.id from dotdo.runs as next
        where next.ended_at is null and next.owner is null and next.due_at is not null
            and next.priority = runs.priority and next.name > runs.name
        order by next.name, next.due_at limit 1
    ), (
        select next.id from dotdo.runs as next
        where next.ended_at is null and next.owner is null and next.due_at is not null
            and next.priority > runs.priority
        order by next.priority, next.name, next.due_at limit 1
    ))
    from first join dotdo.runs on runs.id = first.id
)
select runs.priority, runs.name, runs.due_at from first join dotdo.runs on runs.id = first.id;
