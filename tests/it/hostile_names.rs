//! Names that whoever may make a table chooses: they end no statement of `setup`, printed or applied, and no line that anybody reads.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::path::Path;
use std::process::Command;

use tokio_postgres::Client;
use waltag::source::session::quoted as identifier;

use crate::mallory::{run, world};
use crate::support::{World, fill, is_gone, until};

/// The same names in every run.
const SEED: u64 = 20_261_130;
/// What a name that is taken for a command of psql's makes.
const FILE: &str = "/tmp/waltag-forged";

const CANARY: &str = "CREATE TABLE canary (id int); INSERT INTO canary VALUES (1);";

/// Each of them once did harm somewhere. What stands behind a line break is looked for at the beginnings of lines.
const NASTY: &[&str] = &[
    "x\nFORGED",
    "x\r\nFORGED",
    "x\rFORGED",
    "x\nALTER ROLE mallory SUPERUSER; --",
    "x\rALTER ROLE mallory SUPERUSER; --",
    "x\"\nALTER ROLE mallory SUPERUSER; --",
    "x\";\nALTER ROLE mallory SUPERUSER; --",
    "x';\nALTER ROLE mallory SUPERUSER; --",
    "x$waltag$;\nALTER ROLE mallory SUPERUSER; --",
    "x*/;\nALTER ROLE mallory SUPERUSER; /*",
    "x\n\\! touch /tmp/waltag-forged\n",
    "\\! touch /tmp/waltag-forged",
    "x\";\n\\! touch /tmp/waltag-forged\n",
    "x\";\nSELECT 'DROP TABLE canary' \\gexec\n",
    "\\gexec",
    "\\",
    "\\\"",
    "\\'; DROP TABLE canary; --",
    "'; DROP TABLE canary; --",
    "\"; DROP TABLE canary; --",
    "'",
    "\"",
    "''\"\"",
    "$waltag$",
    "$waltag1$ $waltag$",
    "$$",
    "$1",
    "{table}",
    "{cost}",
    "{publication}",
    "{role} {index} {comment} {function}",
    "{notify}{dollars}{}",
    "--",
    "/*",
    "*/",
    ";",
    ":'x'",
    ":\"x\"",
    ":x",
    "%s %1$I %",
    "U&\"\\000a\"",
    "\u{1b}[2J\u{1b}]0;FORGED\u{7}",
    "\u{85}FORGED",
    "\u{2028}FORGED",
    "\u{202e}FORGED",
    "\u{7f}\u{1}\u{9b}",
    "a.b",
    "<id>",
    "a\tb",
    " ",
    "äääääääääääääääääääääääääääääää",
    "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa\nFORGED",
];

const PIECES: &[&str] = &[
    "\n",
    "\r",
    "'",
    "\"",
    "\\",
    "$",
    "$$",
    "$waltag$",
    "{",
    "}",
    "{table}",
    "{cost}",
    "--",
    "/*",
    "*/",
    ";",
    ":",
    ":'x'",
    "x",
    "\nFORGED ",
    "\u{1b}",
    "\u{85}",
    "\u{2028}",
    "%",
    "é",
    " ",
    "\t",
    ".",
    "<",
    ">",
    "E'",
    "U&\"",
    "\n\\! touch /tmp/waltag-forged\n",
    "\nALTER ROLE mallory SUPERUSER;\n",
    "\"; DROP TABLE canary; --",
    "'; DROP TABLE canary; --",
];

/// The first bytes of a name, as PostgreSQL cuts it.
fn cut(name: &str, most: usize) -> String {
    let end = (0..=most.min(name.len())).rev().find(|end| name.is_char_boundary(*end));
    name[..end.unwrap()].to_owned()
}

/// The fixed names and `more` of their pieces.
fn names(more: usize) -> Vec<String> {
    println!("seed {SEED}");
    let mut state = SEED;
    let mut random = move |below: usize| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) as usize % below
    };
    let mut names: Vec<String> = NASTY.iter().map(|name| (*name).to_owned()).collect();
    while names.len() < NASTY.len() + more {
        let name: String = (0..=random(6)).map(|_| PIECES[random(PIECES.len())]).collect();
        let name = cut(&name, 63);
        if !names.contains(&name) {
            names.push(name);
        }
    }
    names
}

/// A double-quoted scalar of YAML.
fn yaml(text: &str) -> String {
    let escaped = text.chars().map(|c| match c {
        '"' | '\\' => format!("\\{c}"),
        ' '..='~' => c.to_string(),
        c => format!("\\U{:08X}", c as u32),
    });
    format!("\"{}\"", escaped.collect::<String>())
}

/// What went wrong, each thing once.
#[derive(Default)]
struct Harm(BTreeSet<String>);

impl Harm {
    /// Runs a command of waltag's, and looks at all that it says; whether it worked.
    fn look(&mut self, world: &World, user: &str, arguments: &[&str]) -> (bool, String) {
        let output = world.waltag(user, arguments).output().unwrap();
        let said = String::from_utf8_lossy(&[output.stdout.as_slice(), &output.stderr].concat()).into_owned();
        assert!(!said.contains("panicked"), "{arguments:?}: {said}");
        // The name of a role or publication that was asked for tells nothing.
        let what: Vec<&str> = arguments.iter().copied().filter(|argument| !argument.contains('=')).collect();
        self.read(&what.join(" "), &said);
        match output.status.success() {
            true => (true, String::from_utf8(output.stdout).unwrap()),
            false => (false, String::from_utf8_lossy(&output.stderr).into_owned()),
        }
    }

    fn read(&mut self, what: &str, said: &str) {
        if let Some(control) = said.chars().find(|c| c.is_control() && *c != '\n') {
            self.0.insert(format!("`{what}` says a raw {control:?}"));
        }
        for word in ["FORGED", "ALTER ROLE mallory", "\\! touch", "DROP TABLE canary"] {
            if said.lines().any(|line| line.starts_with(word)) {
                self.0.insert(format!("`{what}` has a line that begins with {word}"));
            }
        }
    }

    /// What must not have happened, and is put right for the next.
    async fn done(&mut self, sql: &Client, what: &str) {
        let query = "SELECT rolsuper FROM pg_roles WHERE rolname = 'mallory'";
        if sql.query_one(query, &[]).await.unwrap().get(0) {
            self.0.insert(format!("`{what}` made mallory a superuser"));
            sql.batch_execute("ALTER ROLE mallory NOSUPERUSER").await.unwrap();
        }
        if sql.query_one("SELECT to_regclass('canary') IS NULL", &[]).await.unwrap().get(0) {
            self.0.insert(format!("`{what}` dropped a table"));
            sql.batch_execute(CANARY).await.unwrap();
        }
        if Path::new(FILE).exists() {
            self.0.insert(format!("`{what}` made {FILE}"));
            fs::remove_file(FILE).unwrap();
        }
    }

    /// Nothing but what is waltag's came, and nothing went.
    fn differs(&mut self, what: &str, before: &BTreeSet<String>, after: &BTreeSet<String>, ours: &[&str]) {
        let expected = |line: &&String| ours.iter().any(|start| line.starts_with(start));
        let came =
            after.difference(before).filter(|line| !expected(line)).map(|line| format!("`{what}`: new {line:?}"));
        let went =
            before.difference(after).filter(|line| !expected(line)).map(|line| format!("`{what}`: gone {line:?}"));
        self.0.extend(came.chain(went).take(3));
    }

    fn none(self) {
        assert!(self.0.is_empty(), "{:#?}", self.0);
    }
}

/// All that setup could change, each with its kind.
async fn state(sql: &Client) -> BTreeSet<String> {
    let query = "SELECT concat('role ', rolname, ' ', rolsuper, rolreplication, rolcreaterole, rolcanlogin, rolbypassrls) FROM pg_roles
        UNION ALL SELECT concat('relation ', n.nspname, ' ', c.relname, ' ', c.relkind, c.relowner, c.relacl) FROM pg_class c JOIN pg_namespace n
            ON n.oid = c.relnamespace WHERE c.oid >= 16384 AND n.nspname NOT IN ('waltag', 'pg_toast') AND c.relname NOT LIKE 'waltag\\_identity\\_%'
        UNION ALL SELECT concat('identity ', oid, relreplident) FROM pg_class WHERE relkind IN ('r', 'p') AND oid >= 16384 AND relnamespace IS DISTINCT FROM to_regnamespace('waltag')
        UNION ALL SELECT concat('function ', n.nspname, ' ', p.proname, ' ', md5(p.prosrc), p.proacl) FROM pg_proc p JOIN pg_namespace n ON n.oid = p.pronamespace
            WHERE p.oid >= 16384 AND n.nspname <> 'waltag'
        UNION ALL SELECT concat('schema ', nspname, ' ', nspowner, nspacl) FROM pg_namespace WHERE nspname NOT LIKE 'pg\\_%'
        UNION ALL SELECT concat('trigger ', tgname, ' ', tgrelid) FROM pg_trigger WHERE NOT tgisinternal AND tgname NOT LIKE 'waltag\\_%'
        UNION ALL SELECT concat('column ', attrelid, ' ', attname, ' ', atttypid, attnotnull) FROM pg_attribute JOIN pg_class c ON c.oid = attrelid
            WHERE c.oid >= 16384 AND c.relkind IN ('r', 'p') AND attnum > 0 AND c.relnamespace IS DISTINCT FROM to_regnamespace('waltag')
            AND c.relnamespace <> 'pg_toast'::regnamespace
        UNION ALL SELECT concat('publication ', pubname, ' ', puballtables) FROM pg_publication UNION ALL SELECT concat('database ', datname) FROM pg_database
        UNION ALL SELECT concat('setting ', setdatabase, setrole, setconfig) FROM pg_db_role_setting UNION ALL SELECT concat('slot ', slot_name) FROM pg_replication_slots
        UNION ALL SELECT concat('member ', roleid, member) FROM pg_auth_members UNION ALL SELECT concat('canary ', count(*)) FROM canary";
    sql.query(query, &[]).await.unwrap().iter().map(|row| row.get(0)).collect()
}

/// `waltag setup ... | psql`, as people do.
fn psql(world: &World, text: &str) -> Result<(), String> {
    let path = world.directory.path().join("setup.sql");
    fs::write(&path, text).unwrap();
    let bundled = world.postgres.program("psql");
    let mut psql = Command::new(if bundled.exists() { bundled } else { "psql".into() });
    psql.args([
        "-X",
        "-q",
        "-v",
        "ON_ERROR_STOP=1",
        "-v",
        "x=FORGED",
        &world.postgres.url("postgres", &world.database),
    ]);
    let output = psql.env("PGCLIENTENCODING", "UTF8").stdin(File::open(&path).unwrap()).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    if output.status.success() { Ok(()) } else { Err(said) }
}

const FORMS: [&[&str]; 3] = [&["--source", "replication"], &["--prefer", "wal"], &["--source", "outbox"]];

/// `--remove` is of the source alone.
fn back<'a>(form: &[&'a str]) -> Vec<&'a str> {
    let source: &[&str] = if form[0] == "--source" { form } else { &[] };
    [&["setup", "--remove"], source].concat()
}

/// There and back, by psql or by `--apply`.
async fn there_and_back(
    harm: &mut Harm,
    world: &World,
    sql: &Client,
    form: &[&str],
    names: &[&str],
    by_psql: bool,
    ours: &[&str],
) {
    let (there, back) = ([&["setup"], form, names].concat(), [back(form).as_slice(), names].concat());
    let before = state(sql).await;
    for (arguments, expected) in [(&there, ours), (&back, &[][..])] {
        let what = format!("setup {} {}", form.join(" "), if arguments == &back { "--remove" } else { "" });
        let what = format!("{what} {}", if by_psql { "| psql" } else { "--apply" });
        let worked = match by_psql {
            true => {
                let (_, printed) = harm.look(world, "postgres", arguments);
                psql(world, &printed)
            }
            false => match harm.look(world, "postgres", &[arguments.as_slice(), &["--apply"]].concat()) {
                (true, _) => Ok(()),
                (false, said) => Err(said),
            },
        };
        if let Err(said) = worked {
            let from = said.find("ERROR").or(said.find("setup at")).or(said.find("error")).unwrap_or_default();
            harm.0.insert(format!("`{what}` fails: {:?}", cut(&said[from..], 400)));
        } else if !harm.look(world, "postgres", arguments).1.contains("Nothing to do") {
            harm.0.insert(format!("`{what}` did not do all that it should"));
        }
        harm.done(sql, &what).await;
        harm.differs(&what, &before, &state(sql).await, expected);
    }
    // What failed half-way must not count twice.
    if state(sql).await != before {
        run(&mut world.waltag("postgres", &[back.as_slice(), &["--apply"]].concat()));
    }
}

const SCHEMAS: [&str; 3] = ["s\"\nFORGED.$waltag$", "t'\r\nFORGED {table}", "z\";\nALTER ROLE mallory SUPERUSER; --"];

/// Three schemas in which every table is called so, its columns, constraints and indexes too: found by a pattern, with a key that no index can
/// hold; the same without a key, for inserts; and each by its name, with a key that an index can hold.
fn hostile(names: &[String]) -> (String, String) {
    let mut sql: String = SCHEMAS.iter().map(|schema| format!("CREATE SCHEMA {};", identifier(schema))).collect();
    let mut rules =
        r#"{tables: ["s*.*"], tags: ["<@table>:<id>"]}, {tables: ["t*.*"], events: [insert], tags: ["i:<@table>"]}"#
            .to_owned();
    for (at, name) in names.iter().enumerate() {
        let next = |by: usize| &names[(at + by) % names.len()];
        let column = identifier(next(1));
        let other = |by: usize, end: &str| identifier(&format!("{}{end}", cut(next(by), 60)));
        let table = |of: usize| format!("{}.{}", identifier(SCHEMAS[of]), identifier(name));
        sql += &format!(
            "CREATE TABLE {s} ({column} text CONSTRAINT {p} PRIMARY KEY, id bigint NOT NULL, CONSTRAINT {c} CHECK (id > 0)); CREATE INDEX {i} ON {s} (id);
             CREATE TABLE {t} (id bigint, {column} text); CREATE TABLE {n} (id bigint CONSTRAINT {p} PRIMARY KEY, {column} int NOT NULL, more text);",
            s = table(0),
            t = table(1),
            n = table(2),
            p = other(2, "~p"),
            c = other(3, "~c"),
            i = other(4, "~i"),
        );
        let by_name = format!("{}.{}", identifier(SCHEMAS[2]), identifier(name));
        rules += &format!(",\n{{table: {}, tags: [{}]}}", yaml(&by_name), yaml(&format!("n:<id>:<{column}>")));
    }
    (sql, format!("{{version: 1, caches: {{c: {{url: \"{{redis}}/0\", dialect: keys}}}}, rules: [{rules}]}}"))
}

const OURS: [&str; 5] =
    ["role waltag ", "identity ", "schema waltag ", "publication waltag ", "publication waltag_insert "];

#[tokio::test]
async fn setup_of_tables_that_are_called_so() {
    let (sql, rules) = hostile(&names(40));
    let world = world(&format!("{CANARY}{sql}")).await;
    world.rules(&rules);
    let (sql, mut harm) = (world.sql().await, Harm::default());
    for form in FORMS {
        for by_psql in [true, false] {
            there_and_back(&mut harm, &world, &sql, form, &[], by_psql, &OURS).await;
        }
    }
    harm.none();
}

/// Those that would do the most, each by itself: nothing else has stopped `setup` before.
#[tokio::test]
async fn setup_of_one_table_that_is_called_so() {
    let world = world(CANARY).await;
    let (sql, mut harm) = (world.sql().await, Harm::default());
    let acts = |name: &&&str| ["mallory", "touch", "gexec", "DROP", "{"].iter().any(|word| name.contains(word));
    for name in NASTY.iter().filter(acts) {
        let (schema, rules) = hostile(&[(*name).to_owned()]);
        sql.batch_execute(&schema).await.unwrap_or_else(|error| panic!("{name:?}: {error:?}"));
        world.rules(&rules);
        for by_psql in [true, false] {
            there_and_back(&mut harm, &world, &sql, FORMS[1], &[], by_psql, &OURS).await;
        }
        let drop = SCHEMAS.map(|schema| format!("DROP SCHEMA {} CASCADE", identifier(schema))).join(";");
        sql.batch_execute(&drop).await.unwrap();
    }
    harm.none();
}

/// What is asked for is no better than what is found.
#[tokio::test]
async fn setup_for_roles_and_publications_that_are_called_so() {
    let world =
        world(&format!("{CANARY}CREATE TABLE item (id int PRIMARY KEY, name text); CREATE TABLE log (name text)"))
            .await;
    world.rules(
        r#"{version: 1, caches: {c: {url: "{redis}/0", dialect: keys}}, rules: [{table: item, tags: ["i:<name>"]}, {table: log, events: [insert], tags: ["l:<name>"]}]}"#,
    );
    let (sql, mut harm) = (world.sql().await, Harm::default());
    for (at, name) in names(8).iter().enumerate() {
        // The second publication has a longer name.
        let publication = cut(name, 56);
        let asked = [format!("--role={name}"), format!("--publication={publication}")];
        let asked: Vec<&str> = asked.iter().map(String::as_str).collect();
        let ours = [
            format!("role {name} "),
            "identity ".into(),
            "schema waltag ".into(),
            format!("publication {publication}"),
        ];
        let ours: Vec<&str> = ours.iter().map(String::as_str).collect();
        // Each goes one way; the names are quoted by the same hand in all of them.
        there_and_back(&mut harm, &world, &sql, FORMS[at % FORMS.len()], &asked, at % 4 != 0, &ours).await;
    }
    harm.none();
}

/// Everything else that people read: the other commands, the log, and what the daemon says of itself.
#[tokio::test]
async fn no_line_is_forged() {
    // Where `setup` fails there is no daemon to look at.
    let names: Vec<String> = names(20).into_iter().filter(|name| !name.contains('{')).collect();
    let (schema, rules) = hostile(&names);
    let mut harm = Harm::default();
    for source in ["replication", "outbox"] {
        let mut world = world(&format!("{schema} CREATE TABLE first_model (id int PRIMARY KEY)")).await;
        world.source = source.into();
        world.rules(&rules);
        let sql = world.sql().await;
        for command in [&["check", "--live"][..], &["check", "--live", "--json"], &["init"], &["check"]] {
            harm.look(&world, "postgres", command);
        }
        let (worked, said) = harm.look(&world, "postgres", &["setup", "--apply"]);
        assert!(worked, "{said}");
        harm.look(&world, "postgres", &["check", "--live"]);
        for name in names.iter().take(12) {
            let table = format!("{}.{}", identifier(SCHEMAS[0]), identifier(name));
            let output = world.waltag("postgres", &["explain", &table, "--new", "{\"id\": 1}"]).output().unwrap();
            harm.read("explain", &String::from_utf8_lossy(&[output.stdout, output.stderr].concat()));
            let output = world.waltag("postgres", &["resync", "--dry-run", "--table", &table]).output().unwrap();
            harm.read("resync", &String::from_utf8_lossy(&[output.stdout, output.stderr].concat()));
        }
        let daemon = world.watched();
        // One whose column is gone, one that nobody publishes, one that is renamed, one that changes.
        let by_name = |name: &str| format!("{}.{}", identifier(SCHEMAS[2]), identifier(name));
        let found = |name: &str| format!("{}.{}", identifier(SCHEMAS[0]), identifier(name));
        let changes = format!(
            "ALTER TABLE {} DROP COLUMN {}; CREATE TABLE {} (id bigint PRIMARY KEY); ALTER TABLE {} RENAME TO {};
             ALTER TABLE {} REPLICA IDENTITY NOTHING; INSERT INTO {} (id, {}) VALUES (7, 'x'); TRUNCATE {}",
            by_name(&names[0]),
            identifier(&names[1]),
            found("new\nFORGED\u{1b}"),
            found(&names[1]),
            identifier("renamed\r\nFORGED"),
            by_name(&names[5]),
            found(&names[3]),
            identifier(&names[4]),
            by_name(&names[6]),
        );
        sql.batch_execute(&changes).await.unwrap();
        daemon.readyz(503);
        until("the new table is noticed", || async { daemon.get("/readyz").1.contains("new") }).await;
        world.settled(&sql).await;
        let address = daemon.address();
        for command in [&["status", "--listen", &address][..], &["status", "--json", "--listen", &address]] {
            harm.look(&world, "postgres", &command[..command.len() - 2]);
            let output = world.waltag("postgres", command).output().unwrap();
            harm.read(
                &command[..command.len() - 2].join(" "),
                &String::from_utf8_lossy(&[output.stdout, output.stderr].concat()),
            );
        }
        harm.read(&format!("the log of the daemon, {source},"), &daemon.log());
        for path in ["/readyz", "/status"] {
            harm.read(path, &daemon.get(path).1);
        }
        daemon.stop();
        run(&mut world.waltag("postgres", &["setup", "--remove", "--apply"]));
        let output = world.waltag("postgres", &["run", "--setup", "--once"]).output().unwrap();
        harm.read(&format!("run --setup, {source},"), &String::from_utf8_lossy(&output.stderr));
    }
    harm.none();
}

/// The stream of a publication with such a name is the stream of that publication.
#[tokio::test]
async fn a_publication_that_is_called_so_is_read() {
    if crate::support::outbox() {
        return;
    }
    let world = World::with("", "CREATE TABLE first_model (id int PRIMARY KEY); CREATE PUBLICATION other").await;
    world.rules(crate::outbox::ONE);
    let name = "--publication=x\"', other\nFORGED,\"y";
    let mut harm = Harm::default();
    assert!(harm.look(&world, "postgres", &["setup", name, "--apply"]).0);
    harm.look(&world, "waltag", &["check", "--live", name]);
    let daemon = world.watched_with(&[name]);
    let (sql, mut cache) = (world.sql().await, world.cache(0).await);
    fill(&mut cache, "a:1").await;
    sql.batch_execute("INSERT INTO first_model VALUES (1)").await.unwrap();
    until("it is stale", || is_gone(&cache, "a:1")).await;
    sql.batch_execute("ALTER PUBLICATION \"x\"\"', other\nFORGED,\"\"y\" DROP TABLE first_model").await.unwrap();
    daemon.readyz(503);
    harm.read("the log of the daemon", &daemon.log());
    let output = world.waltag("postgres", &["status", "--listen", &daemon.address()]).output().unwrap();
    harm.read("status", &String::from_utf8_lossy(&output.stdout));
    harm.none();
}
