DO $waltag$ DECLARE one record; strangers text; BEGIN
  IF NOT EXISTS (SELECT FROM pg_namespace WHERE nspname = 'waltag') THEN
    CREATE SCHEMA waltag;
  END IF;
  -- Default privileges may have given it to others.
  FOR one IN SELECT a.grantee AS who FROM pg_namespace n, aclexplode(n.nspacl) a
      WHERE n.nspname = 'waltag' AND a.privilege_type = 'CREATE' AND a.grantee <> n.nspowner LOOP
    EXECUTE format('REVOKE CREATE ON SCHEMA waltag FROM %s', CASE one.who WHEN 0 THEN 'PUBLIC' ELSE one.who::regrole::text END);
  END LOOP;
  SELECT string_agg(DISTINCT r.rolname, ', ') INTO strangers FROM pg_namespace n LEFT JOIN pg_class c ON c.relnamespace = n.oid
    LEFT JOIN pg_proc p ON p.pronamespace = n.oid JOIN pg_roles r ON r.oid IN (n.nspowner, c.relowner, p.proowner)
    WHERE n.nspname = 'waltag' AND r.rolname <> current_user AND NOT r.rolsuper;
  IF strangers IS NOT NULL THEN
    RAISE EXCEPTION 'the schema waltag, or something in it, belongs to %', strangers USING HINT = 'Run setup as that role, or drop the schema first.';
  END IF;
END $waltag$;
