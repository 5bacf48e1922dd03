-- How many requests an API key may make, such as 100/s; null: what the server says.

alter table dotdo.api_keys add column rate text;
