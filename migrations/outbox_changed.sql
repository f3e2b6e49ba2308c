-- The rows of {table}: the columns that the rules use, as PostgreSQL writes them whatever the writer's settings are. A migration must not
-- make writes fail: what cannot be written down (a column that is gone, values of more than a megabyte) only says that something changed.
{schema}
CREATE OR REPLACE FUNCTION {function}() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp
  SET DateStyle = 'ISO' SET TimeZone = 'UTC' SET IntervalStyle = 'postgres' SET extra_float_digits = 1 SET bytea_output = 'hex' AS {dollars}
DECLARE
  what "char" := CASE TG_OP WHEN 'INSERT' THEN 'i' WHEN 'UPDATE' THEN 'u' ELSE 'd' END;
  names text[] := {names};
  was text[];
  is_now text[];
  size int;
  skip boolean := false;
{declarations}BEGIN
  -- Anybody who may look into this schema can put it on a table of her own, and must not make tags of her rows.
  IF TG_RELID <> {root} AND NOT EXISTS (SELECT FROM pg_partition_ancestors(TG_RELID) above WHERE above.relid = {root}) THEN
    RETURN NULL;
  END IF;
  BEGIN
    IF TG_OP <> 'INSERT' THEN
      was := ARRAY[{old}]::text[];
    END IF;
    IF TG_OP <> 'DELETE' THEN
      is_now := ARRAY[{new}]::text[];
    END IF;
{compared}{utf8}  EXCEPTION WHEN OTHERS THEN
    BEGIN
      -- A session that has seen the columns with other types cannot read them otherwise.
      names := {columns};
      IF TG_OP <> 'INSERT' THEN
        EXECUTE {read} INTO was USING OLD;
      END IF;
      IF TG_OP <> 'DELETE' THEN
        EXECUTE {read} INTO is_now USING NEW;
      END IF;
{utf8}    EXCEPTION WHEN OTHERS THEN
      what := 'x';
    END;
  END;
  size := coalesce(pg_column_size(was), 0) + coalesce(pg_column_size(is_now), 0) + pg_column_size(names);
  IF what = 'x' OR size > 1000000 THEN
    what := 'x';
    was := NULL;
    is_now := NULL;
    size := pg_column_size(names);
  END IF;
  IF {full} OR size > 2000 AND {toasted} THEN
    skip := {owed};
  END IF;
  IF skip THEN
    PERFORM nextval('waltag.skipped');
  ELSE
    INSERT INTO waltag.outbox (relation, root, kind, names, old, new, size) VALUES (TG_RELID, {root}, what, names, was, is_now, size);
  END IF;
  {notify}
  RETURN NULL;
END
{dollars};
-- Whoever makes a partition makes a clone of its trigger, and may be another owner by then; called otherwise it does nothing.
COMMENT ON FUNCTION {function}() IS {comment};
