-- Old values of updated and deleted rows. They are written to the WAL: {cost}.
ALTER TABLE {table} REPLICA IDENTITY FULL;
