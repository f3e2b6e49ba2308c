//! What waltag asks for by itself is found in `pg_catalog`, whatever `search_path` role, database or server have, and whatever anybody puts in front
//! of it, or beside it where it fits better.

mod lint;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use tokio_postgres::Client;

use crate::mallory::{sprung_since, world};
use crate::support::{Daemon, Pooler, SCHEMA, World, fill, is_gone, root, succeed};

/// Where mallory's things are.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Trap {
    /// In a schema before `pg_catalog`: everything has its double.
    Before,
    /// In `public`, where she may create, as everybody may until PostgreSQL 14: behind `pg_catalog`, and a better fit.
    Beside,
}

/// Doubles of functions, operators, tables and types; each says that it was used, in the server's log. `{schema}`, `{names}`: of functions that are
/// called somewhere in waltag.
const DOUBLES: &str = r#"
DO $do$ DECLARE
    f record;
    say CONSTANT text := 'BEGIN RAISE LOG ''SPRUNG %% as %%'', %L, current_user; RETURN%s; END';
BEGIN
    FOR f IN SELECT p.proname, p.prokind, pg_get_function_arguments(p.oid) AS arguments, pg_get_function_identity_arguments(p.oid) AS identity,
        pg_get_function_result(p.oid) AS result, CASE WHEN p.proretset OR p.proallargtypes IS NOT NULL OR p.prorettype = 'void'::regtype THEN ''
        ELSE ' NULL' END AS returned FROM pg_proc p WHERE p.pronamespace = 'pg_catalog'::regnamespace AND p.proname = ANY ({names})
    LOOP BEGIN
        IF f.prokind = 'f' THEN
            EXECUTE format('CREATE FUNCTION {schema}.%I(%s) RETURNS %s LANGUAGE plpgsql SET search_path = pg_catalog AS %L',
                f.proname, f.arguments, f.result, format(say, f.proname || '(' || f.identity || ')', f.returned));
        ELSE
            EXECUTE format('CREATE FUNCTION {schema}.step(%s) RETURNS text LANGUAGE plpgsql SET search_path = pg_catalog AS %L',
                concat_ws(', ', 'text', NULLIF(f.identity, '*')), format(say, f.proname, ' $1'));
            EXECUTE format('CREATE AGGREGATE {schema}.%I(%s) (SFUNC = {schema}.step, STYPE = text)', f.proname, COALESCE(NULLIF(f.identity, ''), '*'));
        END IF;
    -- Not every signature can be had in PL/pgSQL.
    EXCEPTION WHEN OTHERS THEN NULL; END; END LOOP;
    FOR f IN SELECT o.oid, o.oprname, CASE WHEN o.oprleft <> 0 THEN format_type(o.oprleft, NULL) END AS l, format_type(o.oprright, NULL) AS r,
        format_type(o.oprresult, NULL) AS result FROM pg_operator o WHERE o.oprnamespace = 'pg_catalog'::regnamespace
        AND o.oprname IN ('=', '<>', '<', '>', '<=', '>=', '||', '~~', '!~~', '~', '-', '+', '*', '/', '<<', '>>', '*<>', '->>')
    LOOP BEGIN
        EXECUTE format('CREATE FUNCTION {schema}.o%s(%s) RETURNS %s LANGUAGE plpgsql SET search_path = pg_catalog AS %L',
            f.oid, concat_ws(', ', f.l, f.r), f.result, format(say, format('%s (%s, %s)', f.oprname, f.l, f.r), ' NULL'));
        EXECUTE format('CREATE OPERATOR {schema}.%s (FUNCTION = {schema}.o%s, %s RIGHTARG = %s)',
            f.oprname, f.oid, 'LEFTARG = ' || f.l || ',', f.r);
    EXCEPTION WHEN OTHERS THEN NULL; END; END LOOP;
    FOR f IN SELECT relname, relkind FROM pg_class WHERE relnamespace = 'pg_catalog'::regnamespace AND relkind IN ('r', 'v') AND relname LIKE 'pg\_%'
    LOOP BEGIN
        EXECUTE format('CREATE FUNCTION {schema}.%I() RETURNS boolean LANGUAGE plpgsql STABLE SET search_path = pg_catalog AS %L',
            'view_' || f.relname, format(say, f.relname, ' true'));
        EXECUTE format('CREATE VIEW {schema}.%I AS SELECT t.*%s FROM pg_catalog.%I t WHERE {schema}.%I()',
            f.relname, CASE f.relkind WHEN 'r' THEN ', t.xmin' END, f.relname, 'view_' || f.relname);
        EXECUTE format('GRANT SELECT ON {schema}.%I TO PUBLIC', f.relname);
    EXCEPTION WHEN OTHERS THEN NULL; END; END LOOP;
    FOR f IN SELECT typname FROM pg_type WHERE typnamespace = 'pg_catalog'::regnamespace AND typname IN ('text', 'name', 'oid', 'int4', 'int8', 'bool',
        'json', 'jsonb', 'regclass', 'regproc', 'regprocedure', 'regtype', 'regnamespace', 'xid', 'xid8', 'pg_lsn', 'pg_snapshot', 'bytea',
        'timestamptz', 'interval', 'char', 'float8', 'numeric', 'bit')
    LOOP BEGIN
        EXECUTE format('CREATE FUNCTION {schema}.%I() RETURNS boolean LANGUAGE plpgsql SET search_path = pg_catalog AS %L',
            'type_' || f.typname, format(say, 'type ' || f.typname, ' true'));
        EXECUTE format('CREATE DOMAIN {schema}.%I AS pg_catalog.%I CHECK ({schema}.%I())', f.typname, f.typname, 'type_' || f.typname);
    EXCEPTION WHEN OTHERS THEN NULL; END; END LOOP;
END $do$"#;

/// What fits better than `pg_catalog`'s: exact types where those take any, or convert.
const BETTER: &str = r#"
DO $do$ DECLARE
    f record;
    say CONSTANT text := 'BEGIN RAISE LOG ''SPRUNG %% as %%'', %L, current_user; RETURN NULL; END';
BEGIN
    FOR f IN WITH t(t) AS (VALUES ('oid'), ('text'), ('xid'), ('name'), ('bigint')),
        lists(list) AS (SELECT a.t FROM t a UNION SELECT concat_ws(', ', a.t, b.t) FROM t a, t b UNION SELECT concat_ws(', ', a.t, b.t, c.t) FROM t a, t b, t c
            UNION VALUES ('oid, text, xid, text, text'), ('oid, text, xid, text, text, text'), ('oid, text, xid, text, text, text, text'),
            ('oid, text, xid, "char", text'), ('oid, text, aclitem[]'), ('bigint, text, numeric'), ('bigint, text, bigint, text, bigint'),
            ('name, boolean, oid'), ('name, boolean, bigint'), ('name, boolean'), ('name, boolean, boolean, smallint'), ('name, boolean, boolean, integer'),
            ('VARIADIC text[]'), ('text, VARIADIC text[]'))
        SELECT n.name, list FROM lists, (VALUES ('concat'), ('concat_ws'), ('json_build_array'), ('format'), ('num_nulls')) n(name)
        -- Two that fit equally well would be an error, and run nothing.
        WHERE list NOT LIKE '%VARIADIC%' OR (list LIKE 'text,%') = (n.name IN ('concat_ws', 'format'))
    LOOP BEGIN
        EXECUTE format('CREATE FUNCTION {schema}.%I(%s) RETURNS text LANGUAGE plpgsql SET search_path = pg_catalog AS %L',
            f.name, f.list, format(say, f.name || '(' || f.list || ')'));
    EXCEPTION WHEN OTHERS THEN NULL; END; END LOOP;
    FOR f IN SELECT DISTINCT p.proname, list, CASE WHEN p.prorettype::regtype::text LIKE 'any%' THEN 'text' ELSE p.prorettype::regtype::text END AS result
        FROM pg_proc p, (VALUES ('text', 'name'), ('name', 'text'), ('oid', 'regclass'), ('regclass', 'oid'), ('regclass', 'text'), ('oid', 'text'),
            ('anyarray', 'text[]'), ('anyarray', 'name[]'), ('anyarray', 'smallint[]'), ('anyelement', 'text'), ('anyelement', 'name'), ('anyelement', 'oid'),
            ('anyelement', 'bigint'), ('bigint', 'integer'), ('integer', 'bigint'), ('integer', 'oid'), ('"any"', 'text'), ('"any"', 'name')) s(was, is_now),
        LATERAL (SELECT string_agg(CASE format_type(a, NULL) WHEN s.was THEN s.is_now ELSE format_type(a, NULL) END, ', ' ORDER BY n) AS list,
            bool_or(format_type(a, NULL) = s.was) AS fits FROM unnest(p.proargtypes) WITH ORDINALITY u(a, n)) x
        WHERE p.pronamespace = 'pg_catalog'::regnamespace AND p.proname = ANY ({names}) AND p.prokind = 'f' AND NOT p.proretset AND x.fits
    LOOP BEGIN
        EXECUTE format('CREATE FUNCTION {schema}.%I(%s) RETURNS %s LANGUAGE plpgsql SET search_path = pg_catalog AS %L',
            f.proname, f.list, f.result, format(say, f.proname || '(' || f.list || ')'));
    EXCEPTION WHEN OTHERS THEN NULL; END; END LOOP;
    FOR f IN WITH t(t) AS (VALUES ('oid'), ('regclass'), ('name'), ('text'), ('"char"'), ('smallint'), ('integer'), ('bigint'), ('xid'), ('numeric'))
        SELECT l.t AS l, r.t AS r, o.name FROM t l, t r, (VALUES ('='), ('<>'), ('<'), ('>'), ('<='), ('>='), ('||')) o(name)
        -- A literal beside an oid would be taken for one.
        WHERE NOT (o.name = '||' AND l.t = r.t) AND NOT EXISTS (SELECT FROM pg_operator WHERE oprname = o.name AND oprleft = l.t::regtype AND oprright = r.t::regtype)
    LOOP BEGIN
        EXECUTE format('CREATE FUNCTION {schema}.%I(%s, %s) RETURNS %s LANGUAGE plpgsql SET search_path = pg_catalog AS %L',
            'operator ' || f.name, f.l, f.r, CASE f.name WHEN '||' THEN 'text' ELSE 'boolean' END, format(say, format('%s (%s, %s)', f.name, f.l, f.r)));
        EXECUTE format('CREATE OPERATOR {schema}.%s (FUNCTION = {schema}.%I, LEFTARG = %s, RIGHTARG = %s)', f.name, 'operator ' || f.name, f.l, f.r);
    EXCEPTION WHEN OTHERS THEN NULL; END; END LOOP;
END $do$"#;

/// Every source file of waltag's own that may hold SQL.
fn sources() -> Vec<PathBuf> {
    let (mut found, mut directories) = (Vec::new(), vec![root().join("src"), root().join("migrations")]);
    while let Some(directory) = directories.pop() {
        for path in fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path()) {
            match path.extension().and_then(|extension| extension.to_str()) {
                Some("rs" | "sql") => found.push(path),
                _ if path.is_dir() => directories.push(path),
                _ => {}
            }
        }
    }
    found.sort();
    found
}

/// Everything that is called anywhere: an array of SQL.
fn called() -> String {
    let call = regex::Regex::new(r"\b([a-z][a-z0-9_]*)\(").unwrap();
    let text: String = sources().iter().map(|path| fs::read_to_string(path).unwrap()).collect();
    let mut names: Vec<String> = call.captures_iter(&text).map(|found| format!("'{}'", &found[1])).collect();
    names.sort();
    names.dedup();
    format!("ARRAY[{}]", names.join(","))
}

/// Puts everything up, and the paths of database and roles.
async fn set(world: &World, trap: Trap) -> Client {
    let owner = world.sql().await;
    owner.batch_execute("SET search_path = pg_catalog").await.unwrap();
    let mallory = world.sql_as("mallory", &world.database).await;
    mallory.batch_execute("SET search_path = pg_catalog").await.unwrap();
    let schema = if trap == Trap::Before { "trap" } else { "public" };
    let allow = "CREATE SCHEMA trap AUTHORIZATION mallory; GRANT USAGE ON SCHEMA trap TO PUBLIC; GRANT CREATE ON SCHEMA public TO PUBLIC";
    owner.batch_execute(allow).await.unwrap();
    let mut made = BETTER.replace("{schema}", schema).replace("{names}", &called());
    if trap == Trap::Before {
        made = format!("{};{made}", DOUBLES.replace("{schema}", schema).replace("{names}", &called()));
    }
    mallory.batch_execute(&made).await.unwrap();
    let count = "SELECT (SELECT count(*) FROM pg_proc WHERE proowner = 'mallory'::regrole) + (SELECT count(*) FROM pg_class WHERE relowner = 'mallory'::regrole)";
    let made: i64 = owner.query_one(count, &[]).await.unwrap().get(0);
    assert!(made > if trap == Trap::Before { 1_800 } else { 1_000 }, "only {made}");
    lead_into(&owner, trap).await;
    owner
}

/// Also of roles that have come since.
async fn lead_into(owner: &Client, trap: Trap) {
    if trap == Trap::Before {
        let path = "trap, pg_catalog, public";
        let roles = "DO $$ DECLARE r record; BEGIN FOR r IN SELECT rolname FROM pg_roles WHERE rolname IN ('postgres', 'waltag') LOOP
            EXECUTE format('ALTER ROLE %I SET search_path = {path}', r.rolname); END LOOP; END $$";
        let paths = format!("ALTER DATABASE shop SET search_path = {path}; {}", roles.replace("{path}", path));
        owner.batch_execute(&paths).await.unwrap();
    }
}

const RULES: &str = r#"{version: 1, caches: {c: {url: "{redis}/0", dialect: keys}}, rules: [{table: first_model, tags: ["a:<id>", "n:<name>"]},
    {tables: ["shop.*"], tags: ["s:<id>:<category_id>:<updated_at>"]}, {table: kinds, tags: ["k:<yes>"]}],
    tests: [{name: t, table: first_model, new: {id: "1", name: x}, expect: ["a:1", "n:x"]}]}"#;

fn schema() -> String {
    format!(
        "{SCHEMA} CREATE TABLE kinds (id bigint PRIMARY KEY, yes boolean NOT NULL) PARTITION BY RANGE (id);
         CREATE TABLE kinds_1 PARTITION OF kinds DEFAULT; INSERT INTO kinds VALUES (1, true);"
    )
}

const COMMANDS: &[&str] = &[
    "init",
    "test --live",
    "check --live",
    "setup",
    "setup --prefer wal",
    "setup --source outbox",
    "setup --prefer wal --apply",
    "setup",
    "check --live",
    "setup --remove",
    "setup --remove --apply",
    "setup --apply",
    "check --live",
    "setup --remove --apply",
    "setup --source outbox --apply",
    "setup --source outbox",
    "check --live --source outbox",
    "setup --source outbox --remove",
    "setup --source outbox --remove --apply",
];

async fn commands(trap: Trap) {
    let world = world(&schema()).await;
    world.rules(RULES);
    let owner = set(&world, trap).await;
    let mut found = Vec::new();
    for command in COMMANDS {
        let known = world.postgres.log().len();
        lead_into(&owner, trap).await;
        let output = world.waltag("postgres", &command.split(' ').collect::<Vec<_>>()).output().unwrap();
        found.extend(sprung_since(&world, known).iter().map(|line| format!("`{command}` ran {line}")));
        if !output.status.success() && !command.starts_with("check") {
            found.push(format!("`{command}`: {}", String::from_utf8_lossy(&output.stderr)));
        }
    }
    assert!(found.is_empty(), "{} in all: {:#?}", found.len(), &found[..found.len().min(60)]);
}

#[tokio::test]
async fn commands_pass_by_what_stands_before() {
    commands(Trap::Before).await;
}

#[tokio::test]
async fn commands_pass_by_what_stands_beside() {
    commands(Trap::Beside).await;
}

/// Waits until it holds, or something of mallory's was run, or the daemon is no more.
async fn until_or_sprung<F: Future<Output = bool>>(
    world: &World,
    known: usize,
    daemon: &mut Daemon,
    fact: &str,
    mut holds: impl FnMut() -> F,
) {
    let deadline = Instant::now() + Duration::from_secs(60);
    loop {
        let found = sprung_since(world, known);
        assert!(found.is_empty(), "before {fact}: {found:#?}");
        if holds().await {
            return;
        }
        let ended = daemon.child.try_wait().unwrap();
        assert!(ended.is_none() && Instant::now() < deadline, "never: {fact} ({ended:?})\n{}", daemon.log());
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// A daemon that finds everything as it should be, but for what mallory has put up since; and writers with such a path.
async fn daemon(trap: Trap, source: &str, pooled: bool) {
    let mut world = world(&schema()).await;
    world.source = source.into();
    world.rules(RULES);
    let silent: &[&str] = if pooled { &["--no-listen"] } else { &[] };
    succeed(&mut world.waltag("postgres", &[&["setup", "--apply"], silent].concat()));
    let owner = set(&world, trap).await;
    let pooler = pooled.then(|| Pooler::start(&world));
    let known = world.postgres.log().len();
    let mut command = world.waltag("waltag", &[&["run"], silent].concat());
    command.env("WALTAG_LISTEN", "127.0.0.1:0").env("STATE_DIRECTORY", world.directory.path());
    if let Some(pooler) = &pooler {
        command.env("WALTAG_DATABASE_URL", format!("postgres://waltag@127.0.0.1:{}/shop", pooler.port));
    }
    let mut daemon = world.start(&mut command);
    let log = daemon.log_file();
    let has = |text: &'static str| fs::read_to_string(&log).unwrap().contains(text);
    until_or_sprung(&world, known, &mut daemon, "the daemon is ready", async || has("resync complete")).await;
    let (writer, mut cache) = (world.sql().await, world.cache(0).await);
    for (change, key) in [
        ("INSERT INTO public.first_model VALUES (1, 'x')", "a:1"),
        ("UPDATE public.first_model SET name = 'y'", "n:x"),
        ("INSERT INTO shop.second_model VALUES (2, 3, 4, 'n', 's', NULL); TRUNCATE public.first_model", "n:y"),
        ("INSERT INTO public.kinds VALUES (3, false)", "k:false"),
        ("DELETE FROM public.kinds", "k:true"),
        // The catalog is read again.
        ("ALTER TABLE public.kinds ADD more int; INSERT INTO public.kinds VALUES (4, true, 1)", "k:true"),
        (
            "CREATE TABLE public.kinds_2 PARTITION OF public.kinds FOR VALUES FROM (10) TO (20); ALTER TABLE public.kinds_2 REPLICA IDENTITY FULL; INSERT INTO public.kinds VALUES (11, false)",
            "k:false",
        ),
        ("SELECT waltag.invalidate('a:7')", "a:7"),
    ] {
        fill(&mut cache, key).await;
        writer.batch_execute(change).await.unwrap_or_else(|error| panic!("{change}: {error:?}"));
        until_or_sprung(&world, known, &mut daemon, change, || is_gone(&cache, key)).await;
    }
    world.rules(&RULES.replace("\"n:<name>\"", "\"m:<name>\""));
    until_or_sprung(&world, known, &mut daemon, "the rules are read again", async || has("rules reloaded")).await;
    if source == "replication" {
        let output = world.waltag("waltag", &["run", "--dry-run", "--once"]).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        world.settled(&owner).await;
    }
    // It looks around every five seconds.
    let looked = Instant::now();
    until_or_sprung(&world, known, &mut daemon, "it has looked around", async || {
        looked.elapsed() > Duration::from_secs(6)
    })
    .await;
    // A second one takes over: what it asks the server at first.
    assert_eq!(daemon.stop(), Some(0));
    let mut second = world.start(&mut command);
    fill(&mut cache, "a:8").await;
    writer.batch_execute("INSERT INTO public.first_model VALUES (8, 'z')").await.unwrap();
    until_or_sprung(&world, known, &mut second, "the next one goes on", || is_gone(&cache, "a:8")).await;
}

#[tokio::test]
async fn a_daemon_passes_by_what_stands_before() {
    daemon(Trap::Before, "replication", false).await;
}

#[tokio::test]
async fn a_daemon_passes_by_what_stands_beside() {
    daemon(Trap::Beside, "replication", false).await;
}

#[tokio::test]
async fn an_outbox_passes_by_what_stands_before() {
    daemon(Trap::Before, "outbox", false).await;
}

#[tokio::test]
async fn an_outbox_passes_by_what_stands_beside() {
    daemon(Trap::Beside, "outbox", false).await;
}

#[tokio::test]
async fn an_outbox_behind_a_pooler_passes_by_what_stands_before() {
    daemon(Trap::Before, "outbox", true).await;
}

#[tokio::test]
async fn an_outbox_behind_a_pooler_passes_by_what_stands_beside() {
    daemon(Trap::Beside, "outbox", true).await;
}

/// `waltag setup | psql` of somebody with such a path: what is made is made of `pg_catalog`'s types and functions.
#[tokio::test]
async fn what_is_printed_names_what_it_means() {
    for source in ["replication", "outbox"] {
        let world = world(&schema()).await;
        world.rules(RULES);
        let plain = succeed(&mut world.waltag("postgres", &["setup", "--source", source]));
        let owner = set(&world, Trap::Before).await;
        let (known, path) = (world.postgres.log().len(), world.directory.path().join("setup.sql"));
        fs::write(&path, plain).unwrap();
        let bundled = world.postgres.program("psql");
        let mut psql = Command::new(if bundled.exists() { &bundled } else { Path::new("psql") });
        let url = world.postgres.url("postgres", &world.database);
        succeed(psql.args(["-X", "-q", "-v", "ON_ERROR_STOP=1", &url, "-f"]).arg(&path));
        world
            .sql()
            .await
            .batch_execute("INSERT INTO public.first_model VALUES (1, 'x'); SELECT waltag.invalidate('a:7')")
            .await
            .unwrap();
        let hers = "SELECT (SELECT count(*) FROM pg_attribute a JOIN pg_class c ON c.oid = a.attrelid JOIN pg_type t ON t.oid = a.atttypid
                WHERE c.relnamespace = 'waltag'::regnamespace AND t.typowner = 'mallory'::regrole)
            + (SELECT count(*) FROM pg_proc p JOIN pg_type t ON t.oid = ANY (p.proargtypes) OR t.oid = p.prorettype
                WHERE p.pronamespace = 'waltag'::regnamespace AND t.typowner = 'mallory'::regrole)
            + (SELECT count(*) FROM pg_depend d JOIN pg_attrdef f ON f.oid = d.objid JOIN pg_proc p ON p.oid = d.refobjid WHERE p.proowner = 'mallory'::regrole)";
        let hers: i64 = owner.query_one(hers, &[]).await.unwrap().get(0);
        let found = sprung_since(&world, known);
        assert!(
            found.is_empty() && hers == 0,
            "{source}: {hers} of her types and functions are in waltag's; {found:#?}"
        );
    }
}
