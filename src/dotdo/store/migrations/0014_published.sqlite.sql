-- Nothing on a file, which has one engine: on PostgreSQL, nodes publish what they define, with schemas.
select 1;
