//! Every kind of mistake in a rule file: where it is told, by which code, with which help.

use std::process::Command;

use crate::support::{fail, root, succeed};

/// Rule files that are wrong: text, code, line, column, and a word of the help.
const WRONG: &[(&str, &str, usize, usize, &str)] = &[
    ("version: 1\ncaches: [a\nrules: []\n", "yaml", 3, 6, ""),
    ("version: 1\nrules:\n\t- x\n", "yaml", 3, 2, ""),
    ("version: 2\n", "version", 1, 10, "version: 1"),
    ("rules: []\n", "missing-key", 1, 1, "version"),
    ("version: 1\nrulez: []\n", "unknown-key", 2, 1, "did you mean `rules`?"),
    ("version: 1\nrules:\n  - tabel: t\n    tags: [a]\n", "unknown-key", 3, 5, "did you mean `table`?"),
    (
        "version: 1\nrules:\n  - table: t\n    tags: [{tag: a, event: insert}]\n",
        "unknown-key",
        4,
        21,
        "did you mean `events`?",
    ),
    ("version: 1\nrules:\n  - table: t\n    tags: [a]\n    table: u\n", "duplicate-key", 5, 5, "line 3"),
    ("version: 1\nversion: 1\n", "duplicate-key", 2, 1, "line 1"),
    ("version: 1\nrules:\n  - table: t\n", "missing-key", 3, 5, "tags"),
    ("version: 1\nrules:\n  - table: a.b.c\n    tags: [a]\n", "table", 3, 12, "schema.table"),
    ("version: 1\nrules:\n  - table: t\n    tags: a\n", "type", 4, 11, "a list"),
    ("version: 1\nrules: {a: b}\n", "type", 2, 8, "a list"),
    ("version: 1\nrules:\n  - table: t\n    tags: [\"a:<id\"]\n", "placeholder", 4, 15, "<<"),
    ("version: 1\nrules:\n  - table: t\n    tags:\n      - 'é:<a b>'\n", "placeholder", 5, 12, "column"),
    (
        "version: 1\nrules:\n  - table: t\n    tags: [\"a:<id|lowr>\"]\n",
        "unknown-filter",
        4,
        19,
        "did you mean `lower`?",
    ),
    ("version: 1\nrules:\n  - table: t\n    tags: [\"a:<id|upper:3>\"]\n", "filter-argument", 4, 19, "no argument"),
    (
        "version: 1\nrules:\n  - table: t\n    tags: [\"a:<id|lower|python>\"]\n",
        "filter-argument",
        4,
        25,
        "stands first",
    ),
    ("version: 1\nrules:\n  - table: t\n    tags: [\"<@tabel>\"]\n", "placeholder", 4, 13, "did you mean `@table`?"),
    (
        "version: 1\nrules:\n  - table: t\n    tags: [a]\n    events: [inserted]\n",
        "unknown-event",
        5,
        14,
        "did you mean `insert`?",
    ),
    (
        "version: 1\ncaches:\n  pages: {url: \"redis://h\", dialect: keys}\nrules:\n  - table: t\n    tags: [a]\n    caches: [page]\n",
        "unknown-cache",
        7,
        14,
        "did you mean `pages`?",
    ),
    ("version: 1\nrules:\n  - table: t\n    tags: [a]\n", "no-cache", 4, 12, "default"),
    (
        "version: 1\ncaches:\n  a: {url: \"redis://h\", dialect: kees}\n",
        "unknown-dialect",
        3,
        34,
        "did you mean `keys`?",
    ),
    ("version: 1\ncaches:\n  a: {url: \"http://h\", dialect: keys}\n", "url", 3, 12, "redis://"),
    (
        "version: 1\ncaches:\n  a: {url: \"redis://h\", dialect: cache-tagging, releases: [0.7.3, 0.9]}\n",
        "option",
        3,
        67,
        "0.7.1",
    ),
    ("version: 1\ncaches:\n  a: {url: \"redis://h\", dialect: version, ttl: 1h}\n", "missing-key", 3, 6, "absent"),
    ("version: 1\ncaches:\n  a: {url: \"${NOT_SET}\", dialect: keys}\n", "expand", 3, 12, "NOT_SET:-default"),
    ("version: 1\ncaches:\n  a: {url: !env X, dialect: keys}\n", "yaml-tag", 3, 17, "without a tag"),
    (
        "version: 1\ncaches: {c: {url: \"redis://h\", dialect: keys}}\nrules:\n  - {table: t, when: \"row.a ==\", tags: [a]}\n",
        "condition",
        4,
        30,
        "CEL",
    ),
    (
        "version: 1\ncaches: {c: {url: \"redis://h\", dialect: keys}}\nrules:\n  - {table: t, when: \"rwo.a == 1\", tags: [a]}\n",
        "condition",
        4,
        23,
        "row.rwo",
    ),
    (
        "version: 1\ncaches: {c: {url: \"redis://h\", dialect: keys}}\nrules:\n  - {table: t, when: \"row.a == 1 && foo(row.b)\", tags: [a]}\n",
        "condition",
        4,
        37,
        "unknown function",
    ),
    (
        "version: 1\ncaches: {c: {url: \"redis://h\", dialect: keys}}\nrules:\n  - {table: t, when: \"row.a + 1\", tags: [a]}\n",
        "condition-type",
        4,
        23,
        "true or false",
    ),
    (
        "version: 1\ncaches: {c: {url: \"redis://h\", dialect: keys}}\nrules:\n  - {table: t, tags: [a], ignore: [x], only: [y]}\n",
        "option",
        4,
        35,
        "exclude each other",
    ),
    (
        "version: 1\ncaches: {c: {url: \"redis://h\", dialect: keys}}\nrules:\n  - {table: t, tags: [a], old: never}\n",
        "option",
        4,
        32,
        "require",
    ),
    (
        "version: 1\ncaches: {c: {url: \"redis://h\", dialect: keys}}\nrules:\n  - {table: t, tags: [a], unknown: some}\n",
        "option",
        4,
        36,
        "everything",
    ),
    (
        "version: 1\ncaches: {c: {url: \"redis://h\", dialect: keys}}\nrules:\n  - {table: t, tags: [a], unknown: [\"x:<id>\"]}\n",
        "option",
        4,
        38,
        "the same for every row",
    ),
    (
        "version: 1\ncaches: {c: {url: \"redis://h\", dialect: keys}}\nrules:\n  - {table: t, unknown: pattern, tags: [\"<id>\"]}\n",
        "unknown-pattern",
        4,
        25,
        "separator",
    ),
    (
        "version: 1\ncaches: {c: {url: \"redis://h\", dialect: keys}}\nrules:\n  - {table: t, tags: [a], collapse: {over: 0, to: b}}\n",
        "option",
        4,
        44,
        "100000",
    ),
    (
        "version: 1\ncaches: {c: {url: \"redis://h\", dialect: keys}}\nrules:\n  - {table: t, tags: [a], collapse: {over: 5, to: \"b:<x[]>\"}}\n",
        "option",
        4,
        52,
        "fan out",
    ),
    (
        "version: 1\ncaches: {c: {url: \"redis://h\", dialect: keys}}\nrules:\n  - {table: t, tables: [u], tags: [a]}\n",
        "option",
        4,
        24,
        "exclude each other",
    ),
    (
        "version: 1\ncaches: {c: {url: \"redis://h\", dialect: keys}}\nrules:\n  - {tables: [\"!u\"], tags: [a]}\n",
        "table",
        4,
        14,
        "shop.*",
    ),
    (
        "version: 1\ncaches: {c: {url: \"redis://h\", dialect: keys}}\nrules:\n  - {table: t, rows: true}\n",
        "tag-form",
        4,
        22,
        "django-cacheops",
    ),
    (
        "version: 1\ncaches: {c: {url: \"redis://h\", dialect: keys}}\nrules:\n  - {table: t, tags: [{tag: a, via: [x]}]}\n",
        "not-yet",
        4,
        37,
        "keep the column",
    ),
    (
        "version: 1\ncaches: {c: {url: \"redis://h\", dialect: keys}}\nrules:\n  - {table: t, tags: [\"a:<id|date:%Q>\"]}\n",
        "filter-argument",
        4,
        30,
        "strftime",
    ),
    (
        "version: 1\ncaches: {c: {url: \"redis://h\", dialect: keys}}\nrules:\n  - {table: t, tags: [\"a:<id|truncate:x>\"]}\n",
        "filter-argument",
        4,
        30,
        "truncate:20",
    ),
    (
        "version: 1\ncaches: {c: {url: \"redis://h\", dialect: keys}}\nrules:\n  - {table: t, tags: [a]}\ntests: [{name: n, table: t, expect: []}]\n",
        "missing-key",
        5,
        9,
        "neither `old` nor `new`",
    ),
    (
        "version: 1\ncaches: {c: {url: \"redis://h\", dialect: keys}}\nrules:\n  - {table: t, tags: [a]}\ntests: [{name: n, table: t, new: {id: 1}, expect: {d: []}}]\n",
        "unknown-cache",
        5,
        52,
        "did you mean `c`?",
    ),
    (
        "version: 1\ncaches: {c: {url: \"redis://h\", dialect: keys}}\nrules:\n  - {table: t, tags: [a]}\ntests: [{name: n, tabel: t, new: {id: 1}, expect: []}]\n",
        "unknown-key",
        5,
        19,
        "did you mean `table`?",
    ),
    (
        "version: 1\ncaches: {c: {url: \"redis://h\", dialect: keys}}\nrules:\n  - {table: t, tags: [a]}\ndefaults: {style: Python}\n",
        "option",
        5,
        19,
        "did you mean `python`?",
    ),
    (
        "version: 1\ncaches:\n  c: {url: \"redis://h\", dialect: keys}\n  d: {url: \"redis://h\", dialect: cache-tagging}\nrules:\n  - {table: t, caches: [d], unknown: pattern, tags: [\"a:<id>\"]}\n",
        "unknown-pattern",
        6,
        38,
        "does not keep tags as they are",
    ),
    (
        "version: 1\ncaches: {c: {url: \"redis://h\", dialect: symfony-redis-tag-aware}}\nrules: [{table: t, tags: [\"a:<id>\"]}]\n",
        "tag-form",
        3,
        28,
        "refuses",
    ),
    (
        "version: 1\ncaches: {c: {url: \"redis://h\", dialect: typo3, accept_unverified: true}}\nrules: [{table: t, tags: [\"a:<id>\"]}]\n",
        "tag-form",
        3,
        28,
        "letters, digits",
    ),
    (
        "version: 1\ncaches: {c: {url: \"redis://h\", dialect: django-cachalot}}\nrules: [{table: t, tags: [\"a\"]}]\n",
        "tag-form",
        3,
        28,
        "<@table>",
    ),
    (
        "version: 1\ncaches: {c: {url: \"redis://h\", dialect: cakephp, accept_unverified: true}}\nrules: [{table: t, tags: [\"a<id>\"]}]\n",
        "tag-form",
        3,
        28,
        "groups",
    ),
    (
        "version: 1\ncaches: {c: {url: \"redis://h\", dialect: bentocache, guard: 2s}}\nrules: [{table: t, tags: [\"Product\"]}]\n",
        "guard",
        3,
        28,
        "never be cached",
    ),
    (
        "version: 1\ncaches: {c: {url: \"redis://h\", dialect: drupal, cache_prefix: x}}\nrules: [{table: t, tags: [\"a\"]}]\n",
        "unverified",
        2,
        10,
        "accept_unverified",
    ),
    (
        "version: 1\ncaches: {c: {url: \"redis://h\", dialect: keys, guard: 2s}}\nrules: [{table: t, tags: [\"a\"]}]\n",
        "option",
        2,
        54,
        "compare times",
    ),
    (
        "version: 1\ncaches: {c: {url: \"redis://h\", dialect: yii2, accept_unverified: true}}\nrules: [{table: t, tags: [\"a\"]}]\n",
        "option",
        2,
        13,
        "prefix",
    ),
    (
        "version: 1\ncaches: {c: {url: \"redis://h\", dialect: phpfastcache}}\nrules: [{table: t, tags: [\"a\"]}]\n",
        "unknown-dialect",
        2,
        41,
        "lose records",
    ),
    (
        "version: 1\ncaches: {c: {url: \"redis://h\", dialect: custom, absent: stale, commands: ['FROB x']}}\nrules: [{table: t, tags: [\"a\"]}]\n",
        "option",
        2,
        75,
        "none of UNLINK",
    ),
    (
        "version: 1\ncaches: {c: {url: \"redis://h\", dialect: custom, absent: valid, commands: ['INCR <tag>']}}\nrules: [{table: t, tags: [\"a\"]}]\n",
        "option",
        2,
        13,
        "RECORDS head",
    ),
    (
        "version: 1\ncaches: {c: {url: \"redis://h\", dialect: nextjs, key_prefix: [a, b], guard: 90s}}\nrules: [{table: t, tags: [\"a\"]}]\n",
        "option",
        2,
        76,
        "at most 60s",
    ),
    (
        "version: 1\ncaches: {c: {url: \"redis://h\", dialect: fusioncache, accept_unverified: true, guard: 2s}}\nrules: [{table: t, tags: [\"a\"]}]\n",
        "option",
        2,
        86,
        "until it has come",
    ),
    (
        "version: 1\ncaches: {c: {url: \"redis://h\", dialect: cache-dependencies, mode: set, fence: 2s}}\nrules:\n  - {table: t, tags: [Product]}\n",
        "fence",
        4,
        23,
        "never be cached",
    ),
    ("version: 1\ncaches: {c: {url: \"redis://h\", dialect: cache-dependencies, fence: 2s}}\n", "option", 2, 68, ""),
    (
        "version: 1\ncaches: {c: {url: \"redis://h\", dialect: cache-dependencies, mode: set, release: 0.7.7.42, fence: 2s}}\n",
        "option",
        2,
        98,
        "",
    ),
    (
        "version: 1\ncaches: {c: {url: \"redis://h\", dialect: keys}, c: {url: \"redis://h\", dialect: keys}}\n",
        "duplicate-key",
        2,
        48,
        "",
    ),
];

#[test]
fn wrong_rule_files() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("r.yaml");
    let mut wrong = Vec::new();
    for (text, code, line, column, help) in WRONG.iter().copied() {
        std::fs::write(&path, text).unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_waltag"));
        let said = fail(command.env_clear().args(["check", "--rules"]).arg(&path), 65);
        let place = format!("r.yaml:{line}:{column}\n");
        let told = said.contains(&format!("error[{code}]")) && said.contains(&place) && said.contains(help);
        if !told || !said.contains('^') {
            wrong.push(format!("{code} at {line}:{column} with `{help}`:\n{said}"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n\n"));
}

/// Codes that need a database, or more than one file: shown elsewhere.
const ELSEWHERE: [&str; 13] = [
    "column-list",
    "identity",
    "not-a-table",
    "not-logged",
    "no-table",
    "publication",
    "uncovered",
    "unknown-column",
    "unknown-table",
    "path",
    "encoding",
    "duplicate-cache",
    "repeated-tag",
];
/// Warnings: text and code.
const WARNED: [(&str, &str); 4] = [
    (
        "version: 1\ncaches: {c: {url: \"redis://h\", dialect: cashews}}\nrules: [{table: t, tags: [\"a:<id>\"]}]\n",
        "reach",
    ),
    (
        "version: 1\ncaches: {c: {url: \"redis://h\", dialect: keys}}\nrules: [{table: t, when: \"new.a == 1\", tags: [a]}]\n",
        "one-sided",
    ),
    (
        "version: 1\ncaches: {c: {url: \"redis://h\", dialect: keys}}\nrules: [{table: t, tags: [a], events: []}]\n",
        "no-event",
    ),
    (
        "version: 1\ncaches: {c: {url: \"redis://h\", dialect: keys}}\nrules: [{table: t, tags: [a], caches: []}]\n",
        "no-cache",
    ),
];

/// No code without a broken file that shows it.
#[test]
fn every_code_is_shown() {
    let mut shown: Vec<&str> = WRONG.iter().map(|(_, code, ..)| *code).collect();
    shown.extend(WARNED.iter().map(|(_, code)| *code));
    shown.extend(ELSEWHERE);
    let mut files = vec![root().join("src")];
    let mut unshown = Vec::new();
    while let Some(path) = files.pop() {
        if path.is_dir() {
            files.extend(std::fs::read_dir(path).unwrap().map(|entry| entry.unwrap().path()));
            continue;
        }
        let text = std::fs::read_to_string(&path).unwrap();
        for call in ["error(\"", "warning(\"", "problem(\""] {
            for part in text.split(call).skip(1) {
                let code = part.split('"').next().unwrap();
                let is_code = !code.is_empty() && code.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'-');
                if is_code && !shown.contains(&code) {
                    unshown.push(format!("{code} in {}", path.display()));
                }
            }
        }
    }
    assert!(unshown.is_empty(), "{unshown:#?}");
}

#[test]
fn warnings_strict_and_json() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("r.yaml");
    let check = |arguments: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_waltag"));
        command.env_clear().arg("check").args(arguments).arg("--rules").arg(&path);
        command
    };
    for (text, code) in WARNED {
        std::fs::write(&path, text).unwrap();
        assert!(succeed(&mut check(&[])).contains(&format!("warning[{code}]")), "{text}");
        assert!(fail(&mut check(&["--strict"]), 65).contains("--strict"));
    }
    std::fs::write(&path, "version: 1\nrulez: []\nrules:\n  - table: t\n    tags: []\n    events: []\n").unwrap();
    let output = check(&["--json"]).output().unwrap();
    assert_eq!(output.status.code(), Some(65));
    let json: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let problem = &json["problems"][0];
    assert_eq!((&problem["code"], &problem["line"], &problem["column"]), (&"unknown-key".into(), &2.into(), &1.into()));
    assert_eq!((&problem["severity"], &problem["help"]), (&"error".into(), &"did you mean `rules`?".into()));
    let mut schema = Command::new(env!("CARGO_BIN_EXE_waltag"));
    let schema: serde_json::Value = serde_json::from_str(&succeed(schema.env_clear().arg("schema"))).unwrap();
    assert_eq!(schema["title"], "waltag rule file");
}

/// What a file can be that is no rule file: each gets an error, soon, and nothing is lost.
#[test]
fn odd_files() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("r.yaml");
    let mut bomb = String::from("version: 1\na0: &a0 [x, x, x, x, x, x, x, x, x]\n");
    for level in 1..30 {
        let list = vec![format!("*a{}", level - 1); 9].join(", ");
        bomb.push_str(&format!("a{level}: &a{level} [{list}]\n"));
    }
    let long = format!("version: 1\nrules:\n{}", "  - {table: t, tags: [x]}\n".repeat(150_000));
    let begin = std::time::Instant::now();
    for (what, text, code) in [
        ("alias bomb", bomb.into_bytes(), 65),
        ("nesting", format!("version: 1\nrules: {}", "[".repeat(100_000)).into_bytes(), 65),
        ("4 MB without a cache", long.into_bytes(), 65),
        ("nothing", Vec::new(), 65),
        ("zeros", vec![0; 4096], 65),
        (
            "a deep condition",
            format!("version: 1\nrules:\n  - {{table: t, when: \"{}\", tags: [a]}}\n", "(".repeat(100_000))
                .into_bytes(),
            65,
        ),
    ] {
        std::fs::write(&path, &text).unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_waltag"));
        let said = fail(command.env_clear().args(["check", "--rules"]).arg(&path), code);
        assert!(said.contains("error["), "{what}: {}", said.chars().take(500).collect::<String>());
    }
    println!("six odd files in {:?}", begin.elapsed());
}
