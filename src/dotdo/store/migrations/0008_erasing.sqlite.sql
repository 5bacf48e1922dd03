-- Runs whose data is being erased, until nothing of it is left in the file: what a crash cuts short is taken up again.

create table erasing (run text not null primary key) without rowid;
