-- Keys of the HTTP API: never their text, only its digest.

create table api_keys (
    id text not null primary key,
    name text not null,
    hint text not null,
    digest text not null unique,
    scopes text not null,        -- as JSON
    created_at integer not null,
    expires_at integer,
    revoked_at integer,
    used_at integer
) without rowid;
