-- Old values of the columns of this index. They are written to the WAL: {cost}.
-- What fails later: UPDATE and DELETE, once the index is dropped (a migration that drops one of its columns drops it, too); ALTER
-- TABLE ... DROP NOT NULL of one of its columns. `waltag setup` then says what is missing.
{use}
