-- What the triggers fill and the daemon empties. It is not in the WAL: after a crash or a failover, when PostgreSQL empties it, the daemon
-- makes everything stale anyway, because readers may have seen commits that are gone. Vacuumed often: its rows live for a second.
{schema}
CREATE UNLOGGED TABLE IF NOT EXISTS waltag.outbox (
  xid xid8 NOT NULL DEFAULT pg_current_xact_id(),
  id bigint GENERATED ALWAYS AS IDENTITY,
  at timestamptz NOT NULL DEFAULT clock_timestamp(),
  relation oid NOT NULL,
  root oid NOT NULL,
  kind "char" NOT NULL,
  names text[],
  old text[],
  new text[],
  size int NOT NULL DEFAULT 0,
  PRIMARY KEY (xid, id)
) WITH (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 5000, autovacuum_vacuum_insert_threshold = -1,
  autovacuum_vacuum_cost_delay = 0, autovacuum_analyze_scale_factor = 0, autovacuum_analyze_threshold = 1000000);
-- How far each daemon is (one row for each --slot), and who is at work. It vanishes with the outbox: behind a pooler nobody else would notice
-- the crash. And what is not in the WAL is not replicated where all tables are.
CREATE UNLOGGED TABLE IF NOT EXISTS waltag.progress (
  instance text PRIMARY KEY,
  position bigint NOT NULL,
  done pg_snapshot NOT NULL,
  owner text NOT NULL DEFAULT '',
  pid int,
  begun timestamptz,
  at timestamptz NOT NULL DEFAULT clock_timestamp(),
  skipped bigint NOT NULL DEFAULT 0
) WITH (fillfactor = 20);
ALTER TABLE waltag.progress ADD COLUMN IF NOT EXISTS skipped bigint NOT NULL DEFAULT 0, SET UNLOGGED;
-- A waltag that is gone for good must not fill the disk. When so many bytes are owed nothing more is written down (0: no bound). The sequence goes
-- up instead, whatever becomes of the transaction; whoever sees it move makes everything stale, empties the table, and lets the others see it.
CREATE SEQUENCE IF NOT EXISTS waltag.skipped;
CREATE OR REPLACE FUNCTION waltag.outbox_limit() RETURNS bigint LANGUAGE sql IMMUTABLE RETURN {limit}::bigint;
-- What is deleted and not vacuumed, because of an old snapshot, is not owed: the daemon says how many bytes there are while little is.
CREATE SEQUENCE IF NOT EXISTS waltag.bloat MINVALUE 0 START 0;
CREATE OR REPLACE FUNCTION waltag.measure_outbox() RETURNS bigint LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp
  SET enable_seqscan = off SET enable_bitmapscan = off AS $waltag$
DECLARE
  bytes bigint := pg_total_relation_size('waltag.outbox');
  known bigint := (SELECT last_value FROM waltag.bloat);
BEGIN
  IF bytes < known OR waltag.outbox_limit() > 0 AND bytes > waltag.outbox_limit() / 4 AND bytes > known AND (SELECT count(*) < 10000 AND
      coalesce(sum(size + 150), 0) < waltag.outbox_limit() / 8 FROM (SELECT size FROM waltag.outbox WHERE xid >= (SELECT pg_snapshot_xmax(done)
      FROM waltag.progress ORDER BY 1 LIMIT 1) LIMIT 10000) owed) THEN
    PERFORM setval('waltag.bloat', bytes);
  END IF;
  RETURN bytes;
END
$waltag$;
CREATE OR REPLACE FUNCTION waltag.empty_outbox() RETURNS bigint LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp SET lock_timeout = '500ms' AS $waltag$
BEGIN
  IF {owed} THEN
    TRUNCATE waltag.outbox;
    PERFORM setval('waltag.bloat', 0);
    RETURN nextval('waltag.skipped');
  END IF;
  RETURN 0;
EXCEPTION WHEN lock_not_available THEN
  RETURN NULL;
END
$waltag$;
REVOKE ALL ON FUNCTION waltag.outbox_limit(), waltag.measure_outbox(), waltag.empty_outbox() FROM PUBLIC;
{ours_alone}
CREATE OR REPLACE FUNCTION waltag.truncated() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $waltag$
BEGIN
  INSERT INTO waltag.outbox (relation, root, kind) VALUES (TG_RELID, TG_RELID, 't');
  {notify}
  RETURN NULL;
END
$waltag$;
REVOKE ALL ON FUNCTION waltag.truncated() FROM PUBLIC;
