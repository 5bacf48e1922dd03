-- What people look for is found without a look at all the runs that went well; of those nothing is in here, at no time.
create index runs_notable on dotdo.runs (status, created_at, id) where status not in ('running', 'completed');
