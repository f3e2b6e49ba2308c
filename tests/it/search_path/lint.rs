//! Reads the SQL in the sources: a relation or function without its schema must be one of `pg_catalog`'s, or be named in the text itself.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::sync::Mutex;

use regex::Regex;

use super::sources;
use crate::support::{World, root};

/// What a server has in `pg_catalog`.
struct Catalog {
    relations: BTreeSet<String>,
    functions: BTreeSet<String>,
}

/// Called like functions, and found by the grammar.
const GRAMMAR: &[&str] = &[
    "coalesce", "greatest", "least", "nullif", "exists", "cast", "row", "array", "any", "all", "some", "values",
    "extract", "grouping",
];

/// Each is compiled once.
fn regex(pattern: &'static str) -> Regex {
    static COMPILED: Mutex<BTreeMap<&'static str, Regex>> = Mutex::new(BTreeMap::new());
    COMPILED.lock().unwrap().entry(pattern).or_insert_with(|| Regex::new(pattern).unwrap()).clone()
}

/// The string literals of a Rust source with the lines that they begin in.
fn literals(source: &str) -> Vec<(usize, String)> {
    let token = regex(r##"(?s)//[^\n]*|/\*.*?\*/|'(?:\\u\{[^}]*\}|\\.|[^\\'])'|b?r(?P<mark>#*)"|(?P<open>b?")"##);
    let (mut found, mut at) = (Vec::new(), 0);
    while let Some(captures) = token.captures_at(source, at) {
        let whole = captures.get(0).unwrap();
        at = whole.end();
        let line = source[..at].matches('\n').count() + 1;
        if let Some(mark) = captures.name("mark") {
            let end = format!("\"{}", mark.as_str());
            let length = source[at..].find(&end).unwrap_or(source.len() - at);
            found.push((line, source[at..at + length].to_owned()));
            at += length + end.len();
        } else if captures.name("open").is_some() {
            let mut text = String::new();
            let mut rest = source[at..].char_indices();
            while let Some((offset, c)) = rest.next() {
                match c {
                    '"' => {
                        at += offset + 1;
                        break;
                    }
                    '\\' => match rest.next().map(|(_, c)| c) {
                        // The line goes on, without what indents it.
                        Some('\n') => {
                            let mut ahead = rest.clone();
                            while ahead.next().is_some_and(|(_, c)| c.is_whitespace()) {
                                rest.next();
                            }
                        }
                        Some('n') => text.push('\n'),
                        Some(c) => text.push(c),
                        None => {}
                    },
                    c => text.push(c),
                }
            }
            found.push((line, text));
        }
    }
    found
}

fn is_sql(text: &str) -> bool {
    regex(r"(^|[;({}]|\n)\s*(SELECT|INSERT INTO|UPDATE|DELETE FROM|CREATE|ALTER|DROP|GRANT|REVOKE|COMMENT ON|WITH)\s")
        .is_match(text)
}

/// Without comments and texts, and with `{}` for each placeholder.
fn bare(sql: &str) -> String {
    let sql = regex(r"--[^\n]*").replace_all(sql, "");
    let sql = regex(r"'(?:[^']|'')*'").replace_all(&sql, "''");
    let sql = regex(r"\{[^{}]*\}").replace_all(&sql, "{}");
    regex("\"(\\w+)\"").replace_all(&sql, "$1").into_owned()
}

/// Names that the text itself gives: of WITH, and aliases with columns.
fn given(sql: &str) -> BTreeSet<String> {
    let with = regex(r"(\w+)\s*(?:\([^()]*\))?\s+AS\s+(?:NOT\s+)?(?:MATERIALIZED\s+)?\(");
    let alias = regex(r"(?:\)|\bAS)\s+(\w+)\(");
    let names = with.captures_iter(sql).chain(alias.captures_iter(sql));
    names.map(|captures| captures[1].to_owned()).collect()
}

/// What is not to be found without a path. `known`: what texts beside this one give.
fn lost(sql: &str, known: &BTreeSet<String>, catalog: &Catalog) -> Vec<String> {
    let sql = bare(sql);
    let own = given(&sql);
    let is_given = |name: &str| known.contains(name) || own.contains(name);
    let mut lost = Vec::new();
    let head = regex(
        r"\b(?:(?P<distinct>DISTINCT\s+)?FROM|JOIN|INSERT\s+INTO|TABLE|TRUNCATE|LOCK|(?:CREATE\s+(?:UNIQUE\s+)?INDEX|CREATE\s+TRIGGER|DROP\s+TRIGGER|CREATE\s+RULE|CREATE\s+POLICY|GRANT|REVOKE|COMMENT)\b[^;]*?\bON)\s",
    );
    let item = regex(
        r"^\s*(?:(?:ONLY|LATERAL|TABLE|FUNCTION|SEQUENCE|IF\s+EXISTS|IF\s+NOT\s+EXISTS)\s+)*([a-z_]\w*)((?:\.\w+)*)(\s*\([^()]*\))?(?:\s+(?:AS\s+)?[a-z_]\w*(?:\([^()]*\))?)?",
    );
    let mut at = 0;
    while let Some(captures) = head.captures_at(&sql, at) {
        let mut end = captures.get(0).unwrap().end();
        at = end;
        if captures.name("distinct").is_some() {
            continue;
        }
        while let Some(captures) = item.captures(&sql[end..]) {
            let is_called = captures.get(3).is_some_and(|list| list.as_str().starts_with('('));
            if captures[2].is_empty()
                && !is_called
                && !catalog.relations.contains(&captures[1])
                && !is_given(&captures[1])
            {
                lost.push(format!("relation {}", &captures[1]));
            }
            end += captures.get(0).unwrap().end();
            match sql[end..].trim_start().strip_prefix(',') {
                Some(rest) => end = sql.len() - rest.len(),
                None => break,
            }
        }
    }
    for captures in regex(r"\bUPDATE\s+(?:ONLY\s+)?([a-z_]\w*)(?:\s+[a-z_]\w*)?\s+SET\b").captures_iter(&sql) {
        if !catalog.relations.contains(&captures[1]) {
            lost.push(format!("relation {}", &captures[1]));
        }
    }
    for captures in regex(r"(?:^|[^\w.}])([a-z_]\w*)\(").captures_iter(&sql) {
        let name = &captures[1];
        if !GRAMMAR.contains(&name) && !catalog.functions.contains(name) && !is_given(name) {
            lost.push(format!("function {name}"));
        }
    }
    lost
}

/// All that is lost in a source.
fn lost_in(text: &str, is_rust: bool, catalog: &Catalog) -> Vec<String> {
    if !is_rust {
        return lost(text, &BTreeSet::new(), catalog);
    }
    // What its own tests say is sent to nobody.
    let literals = literals(text.split("#[cfg(test)]\nmod tests {").next().unwrap());
    let known = literals.iter().flat_map(|(_, literal)| given(&bare(literal))).collect();
    let sql = literals.iter().filter(|(_, literal)| is_sql(literal));
    sql.flat_map(|(line, literal)| {
        lost(literal, &known, catalog).into_iter().map(move |name| format!("line {line}: {name}"))
    })
    .collect()
}

#[tokio::test]
async fn every_name_in_the_sources_is_qualified_or_the_catalogs() {
    let world = World::with("", "").await;
    let sql = world.sql().await;
    let names = async |query: &str| {
        sql.query(query, &[]).await.unwrap().iter().map(|row| row.get::<_, String>(0)).collect::<BTreeSet<_>>()
    };
    let mut catalog = Catalog {
        relations: names(
            "SELECT relname::text FROM pg_catalog.pg_class WHERE relnamespace = 'pg_catalog'::pg_catalog.regnamespace",
        )
        .await,
        functions: names(
            "SELECT proname::text FROM pg_catalog.pg_proc WHERE pronamespace = 'pg_catalog'::pg_catalog.regnamespace",
        )
        .await,
    };
    assert!(catalog.relations.contains("pg_class") && catalog.functions.contains("concat"));
    // Asked for only where the server is new enough.
    catalog.relations.insert("pg_publication_namespace".into());
    let (mut found, mut statements) = (Vec::new(), 0);
    for path in sources() {
        let name = path.strip_prefix(root()).unwrap().display().to_string();
        // It talks to a server of its own.
        if name.starts_with("src/demo") {
            continue;
        }
        let (text, is_rust) = (fs::read_to_string(&path).unwrap(), name.ends_with(".rs"));
        statements += if is_rust { literals(&text).iter().filter(|(_, literal)| is_sql(literal)).count() } else { 1 };
        found.extend(lost_in(&text, is_rust, &catalog).into_iter().map(|lost| format!("{name}, {lost}")));
    }
    assert!(statements > 80, "only {statements}");
    assert!(found.is_empty(), "{found:#?}");
    // The same with a schema left out, and with a table of somebody else's.
    for (path, was, is_now, name) in [
        ("migrations/outbox.sql", "INSERT INTO waltag.outbox", "INSERT INTO outbox", "relation outbox"),
        ("migrations/outbox.sql", "pg_total_relation_size('waltag", "total_size('waltag", "function total_size"),
        ("src/setup/catalog/query.rs", "JOIN pg_namespace n ON", "JOIN namespace n ON", "relation namespace"),
        ("src/source/outbox/progress.rs", "UPDATE waltag.progress", "UPDATE progress", "relation progress"),
        ("src/source/outbox/mod.rs", "waltag.measure_outbox()", "measure_outbox()", "function measure_outbox"),
    ] {
        let text = fs::read_to_string(root().join(path)).unwrap();
        // Where it is written otherwise by now there is nothing to leave out.
        let planted = text.replace(was, is_now);
        let seen = lost_in(&planted, path.ends_with(".rs"), &catalog);
        assert!(planted == text || seen.iter().any(|seen| seen.ends_with(name)), "{path}: {was}, {seen:?}");
    }
}

/// It sees what it should, and nothing else.
#[test]
fn what_the_lint_sees() {
    let set = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
    let catalog = Catalog {
        relations: set(&["pg_class", "pg_namespace"]),
        functions: set(&["count", "unnest", "concat", "substring"]),
    };
    for (sql, name) in [
        ("SELECT 1 FROM foo", "relation foo"),
        ("SELECT * FROM pg_class c JOIN foo ON true", "relation foo"),
        ("SELECT * FROM pg_class c, foo", "relation foo"),
        ("SELECT * FROM pg_class AS c, unnest(x) u(a), foo f WHERE true", "relation foo"),
        ("(SELECT count(*) FROM foo)", "relation foo"),
        ("WITH a AS (SELECT 1) SELECT * FROM a, foo", "relation foo"),
        ("INSERT INTO foo VALUES (1)", "relation foo"),
        ("{WRITES} UPDATE foo p SET a = 1", "relation foo"),
        ("DELETE FROM foo WHERE true", "relation foo"),
        ("ALTER TABLE IF EXISTS foo ADD x int", "relation foo"),
        ("CREATE TABLE IF NOT EXISTS foo (id int)", "relation foo"),
        ("ALTER TABLE a.b SET LOGGED; TRUNCATE foo", "relation foo"),
        ("GRANT SELECT ON foo TO x", "relation foo"),
        ("GRANT SELECT ON waltag.outbox, foo TO x", "relation foo"),
        ("CREATE TRIGGER t AFTER INSERT OR UPDATE ON foo EXECUTE FUNCTION waltag.f()", "relation foo"),
        ("CREATE UNIQUE INDEX CONCURRENTLY {} ON foo ({})", "relation foo"),
        ("SELECT foo(1)", "function foo"),
        ("SELECT count(foo (1)), pg_catalog.count(foo(2))", "function foo"),
        ("BEGIN\n  UPDATE waltag.progress SET a = foo('x');\nEND", "function foo"),
        ("SELECT \"foo\"(1)", "function foo"),
    ] {
        assert_eq!(lost(sql, &BTreeSet::new(), &catalog), [name], "{sql}");
        let rust = format!("fn f() {{ let c = '\"'; /* \" */ g({sql:?}, r#\"x\"y\"#) }} // \"");
        assert_eq!(lost_in(&rust, true, &catalog), [format!("line 1: {name}")], "{rust}");
    }
    for sql in [
        "SELECT coalesce(a, 1) FROM pg_class c, LATERAL (SELECT 1) own(rows) WHERE a IS DISTINCT FROM b",
        "WITH RECURSIVE t(oid, b) AS MATERIALIZED (SELECT 1), u AS (SELECT 2) SELECT oid FROM t JOIN u ON u.a = t.b",
        "INSERT INTO waltag.outbox (a) VALUES (1)",
        "-- FROM here on: foo(1)\nALTER TABLE {table} REPLICA IDENTITY FULL;",
        "SELECT 'FROM foo', substring(a FROM '\\d+')",
        "SELECT * FROM {wanted} JOIN pg_namespace n ON n.oid = c.x WHERE x IN (1)",
        "SELECT * FROM unnest(ARRAY[1]) AS w(a, b)",
        "GRANT USAGE ON SCHEMA waltag TO app; COMMENT ON ROLE {} IS ''",
        "SELECT waltag.foo(1), {function}(2)",
    ] {
        assert_eq!(lost(sql, &BTreeSet::new(), &catalog), [""; 0], "{sql}");
    }
    let rust = "fn f<'a>(x: &'a str) { h(\"an UPDATE of foo fails: SELECT FROM foo\", \"EXISTS (SELECT FROM sent)\", \"WITH sent AS (SELECT \\\n     1) x\") }";
    assert_eq!(lost_in(rust, true, &catalog), [""; 0]);
    assert_eq!(
        literals("a(\"x \\\n   y\", r#\"z\"#, b\"w\", 'q', \"\\\"\")")
            .iter()
            .map(|(_, text)| text.as_str())
            .collect::<Vec<_>>(),
        ["x y", "z", "w", "\""]
    );
}
