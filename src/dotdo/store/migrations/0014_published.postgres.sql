-- What nodes define, with schemas: a step goes to a node that has its action, and its input is checked before.

alter table dotdo.nodes add column definitions text not null default '[]'; -- as JSON; nodes before this one tell names only

-- Runs that wait for somebody who defines or offers something: they are looked for whenever somebody comes.
create index runs_wanting on dotdo.runs (id)
where ended_at is null and owner is null and (waiting_for like '{"kind":"action"%' or waiting_for like '{"kind":"worker"%');
