-- Tags from SQL, within the transaction: select waltag.invalidate('Report.all'). Nothing of it is left if that is rolled back.
-- Who may: GRANT USAGE ON SCHEMA waltag TO app; GRANT EXECUTE ON FUNCTION waltag.invalidate, waltag.invalidate_in TO app;
{schema}
{word}
CREATE OR REPLACE FUNCTION waltag.invalidate_in(cache text, VARIADIC tags text[]) RETURNS void LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $waltag$
DECLARE
  content text := json_build_object('tags', array_remove(tags, NULL), 'cache', cache);
  bytes bytea := convert_to(content, 'UTF8');
BEGIN
  IF octet_length(bytes) > 65536 THEN
    RAISE EXCEPTION 'these tags are % bytes long, and 64 kB is the most for one call', octet_length(bytes) USING HINT = 'Call it several times.';
  END IF;
  IF cardinality(array_remove(tags, NULL)) > 0 THEN
    {write}
  END IF;
END
$waltag$;
CREATE OR REPLACE FUNCTION waltag.invalidate(VARIADIC tags text[]) RETURNS void LANGUAGE sql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $waltag$
  SELECT waltag.invalidate_in(NULL, VARIADIC tags)
$waltag$;
REVOKE ALL ON FUNCTION waltag.invalidate_in(text, text[]), waltag.invalidate(text[]) FROM PUBLIC;
{ours_alone}
COMMENT ON FUNCTION waltag.invalidate(text[]) IS {comment};
