-- Tables are added below. Leaves are published under their own names: through their root, the old values of a leaf that
-- does not log them would arrive as NULL.
CREATE PUBLICATION {publication}
  WITH (publish = 'insert, update, delete, truncate', publish_via_partition_root = false{generated});
