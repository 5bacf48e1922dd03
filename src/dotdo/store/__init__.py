"""Everything that touches the store's database. Sync, and knows no engine; it keeps names and bytes."""
