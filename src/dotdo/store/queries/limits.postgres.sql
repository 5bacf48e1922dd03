-- name: lock_pools
-- Who decides about the slots of an action decides alone. The locks come sorted, so that no two wait for each other.
select pg_advisory_xact_lock(1685021808, cast(value ->> 0 as integer)) from each(:rows);
