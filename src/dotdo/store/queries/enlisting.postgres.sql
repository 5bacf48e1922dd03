-- name: moment
-- Which database this is, for as long as its server runs, and which transaction: it gets its number here.
select
    extract(epoch from pg_postmaster_start_time()) || '/' || (select oid from pg_database where datname = current_database()),
    cast(pg_current_xact_id() as text);

-- name: identity
-- The same without a transaction's number.
select
    extract(epoch from pg_postmaster_start_time()) || '/' || (select oid from pg_database where datname = current_database());

-- name: same_transaction
-- Whether the transaction is still that one: under autocommit each statement has its own.
select coalesce(cast(pg_current_xact_id_if_assigned() as text) = :transaction, false);

-- name: known_digest
-- What the run was given that has the key already.
select input_digest from runs where id = :run;
