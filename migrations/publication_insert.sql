-- For tables whose rows nothing identifies and whose rules listen to inserts only: published with updates, their UPDATE
-- would fail.
CREATE PUBLICATION {publication} WITH (publish = 'insert, truncate', publish_via_partition_root = false);
