-- Progress is read often, and must be found without going through a run's whole journal.

create index journal_published on journal (run, seq) where kind = 'published';
