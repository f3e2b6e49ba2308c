-- The rows of {table}: the columns that the rules use, as PostgreSQL writes them whatever the writer's settings are. A column that a
-- migration takes away must not make writes fail: then the row only says that something changed.
CREATE OR REPLACE FUNCTION {function}() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp
  SET DateStyle = 'ISO' SET TimeZone = 'UTC' SET IntervalStyle = 'postgres' SET extra_float_digits = 1 SET bytea_output = 'hex' AS {dollars}
DECLARE
  what "char" := lower(TG_OP)::"char";
  names text[] := {names};
  was text[];
  is_now text[];
{declarations}BEGIN
  BEGIN
    IF TG_OP <> 'INSERT' THEN
      was := ARRAY[{old}]::text[];
    END IF;
    IF TG_OP <> 'DELETE' THEN
      is_now := ARRAY[{new}]::text[];
    END IF;
{compared}  EXCEPTION WHEN OTHERS THEN
    what := 'x';
  END;
  INSERT INTO waltag.outbox (relation, root, kind, names, old, new) VALUES (TG_RELID, {root}, what, names, was, is_now);
  {notify}
  RETURN NULL;
END
{dollars};
REVOKE ALL ON FUNCTION {function}() FROM PUBLIC;
COMMENT ON FUNCTION {function}() IS {comment};
