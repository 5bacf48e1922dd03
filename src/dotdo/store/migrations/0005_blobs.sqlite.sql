-- Data of entries and values of messages above 256 KiB, in parts. The row that they belong to is written after them, with
-- "@" and the digest in their place (of a message: the run, too). By digest: whoever writes a part, also one
-- who lost the run meanwhile, writes the same.

create table blobs (
    run text not null,
    digest text not null,
    part integer not null,
    data blob not null,
    primary key (run, digest, part)
) strict;
