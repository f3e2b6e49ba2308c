-- The tables that the rules name. Leaves are published under their own names: through their root, the old values of a leaf
-- that does not log them would arrive as NULL.
CREATE PUBLICATION {publication} FOR TABLE {tables}
  WITH (publish = 'insert, update, delete, truncate', publish_via_partition_root = false);
