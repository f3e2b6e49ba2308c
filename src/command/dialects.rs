//! `waltag dialects`: what is known of each client library, from the same data that the daemon goes by. `--markdown` is
//! docs/dialects.md.

use std::fmt::Write;

use serde_json::{Value, json};

use super::show;
use crate::cache::dialect::{Dialect, Kind, Opt, Texts, Verified};
use crate::cache::dialects;
use crate::cache::options::COMMON;
use crate::exit::Exit;
use crate::failure::Failure;
use crate::rules::diagnostic::nearest;

/// How it is printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// For people.
    Text,
    /// For programs.
    Json,
    /// docs/dialects.md.
    Markdown,
}

/// Prints one, or all.
pub fn dialects(name: Option<&str>, form: Form) -> Result<(), Failure> {
    let Some(name) = name else {
        show(match form {
            Form::Text => list(),
            Form::Json => {
                serde_json::to_string_pretty(&dialects::all().map(object).collect::<Vec<_>>()).unwrap_or_default()
            }
            Form::Markdown => markdown(),
        });
        return Ok(());
    };
    let Some(dialect) = dialects::named(name) else {
        let names: Vec<&str> = dialects::all().map(|dialect| dialect.name).collect();
        let hint = match (dialects::refused(name), nearest(name, &names)) {
            (Some(reason), _) => format!(": {reason}"),
            (None, Some(near)) => format!("; did you mean {near}?"),
            (None, None) => String::new(),
        };
        return Err(Failure::new(Exit::Usage, format!("there is no dialect `{name}`{hint}")));
    };
    show(match form {
        Form::Text => text(dialect),
        Form::Json => serde_json::to_string_pretty(&object(dialect)).unwrap_or_default(),
        Form::Markdown => section(dialect),
    });
    Ok(())
}

fn list() -> String {
    let width = dialects::all().map(|dialect| dialect.name.len()).max().unwrap_or_default();
    let line = |dialect: &Dialect| {
        format!("{:width$}  {}\n{:width$}  {}", dialect.name, dialect.client, "", verified(dialect))
    };
    let lines: Vec<String> = dialects::all().map(line).collect();
    format!("{}\n\n`waltag dialects NAME` shows options, what is sent, and which races stay open.", lines.join("\n"))
}

fn verified(dialect: &Dialect) -> String {
    match dialect.verified {
        Verified::Run(version) => format!("tested with {version}"),
        Verified::Read(version) => {
            format!("not run against the library: read in {version}; needs accept_unverified: true")
        }
        Verified::Primitive => "no library".into(),
    }
}

fn text(dialect: &Dialect) -> String {
    let mut out = format!("{}: {}\n{}\n", dialect.name, dialect.client, verified(dialect));
    let mut part = |title: &str, lines: Vec<String>| {
        if !lines.is_empty() {
            let _ = write!(out, "\n{title}\n  {}\n", lines.join("\n  "));
        }
    };
    let options = dialect.options.iter();
    part("options", options.map(|option| format!("{}: {} ({})", option.name, option.about, takes(option))).collect());
    let lines = |lines: &[&str]| lines.iter().map(|line| escaped(line)).collect();
    part("sent for a stale tag", lines(dialect.steps));
    part("what cannot be listed", lines(dialect.sweep));
    part("values are written as", vec![format!("{:?}", dialect.style).to_lowercase()]);
    part("tags", limits(dialect).into_iter().collect());
    part("races left open, and what closes them", vec![dialect.races.into()]);
    part("note", [dialect.note].into_iter().filter(|note| !note.is_empty()).map(str::to_owned).collect());
    out.trim_end().to_owned()
}

fn takes(option: &Opt) -> String {
    let kind = match option.kind {
        Kind::Text => "text".to_owned(),
        Kind::Word(words) => words.join(" | "),
        Kind::Seconds => "a time".to_owned(),
        Kind::Django(_) | Kind::Symfony => "a release".to_owned(),
    };
    match (option.default, option.needed_if) {
        (Some(""), _) => format!("{kind}; empty by default"),
        (Some(default), _) => format!("{kind}; {default} by default"),
        (None, Some((name, word))) => format!("{kind}; needed with {name}: {word}"),
        (None, None) => format!("{kind}; needed"),
    }
}

fn limits(dialect: &Dialect) -> Option<String> {
    match dialect.tags {
        Texts::Any => None,
        Texts::Keys => Some("an empty value skips the tag: the text is a key".into()),
        Texts::Without(reserved) => Some(format!("without any of {reserved}").replace("any of  ", "spaces")),
        Texts::Only(others) => Some(format!("only letters, digits and {others}")),
        Texts::Constant => Some("no columns: groups stand in the application's configuration".into()),
        Texts::Rows => Some("none: a rule has `rows: true` in their place, and the table sends whole old rows".into()),
        Texts::Table => Some("<@table> only".into()),
    }
}

fn escaped(line: &str) -> String {
    line.replace('\u{1}', "\\x01").replace('\0', "\\0").trim_end().to_owned()
}

fn object(dialect: &Dialect) -> Value {
    let (run, version) = match dialect.verified {
        Verified::Run(version) => (true, Some(version)),
        Verified::Read(version) => (false, Some(version)),
        Verified::Primitive => (true, None),
    };
    let option = |option: &Opt| json!({"name": option.name, "takes": takes(option), "default": option.default, "about": option.about});
    json!({
        "name": dialect.name, "client": dialect.client, "verified": run, "version": version,
        "style": format!("{:?}", dialect.style).to_lowercase(),
        "options": dialect.options.iter().map(option).collect::<Vec<_>>(),
        "steps": dialect.steps, "sweep": dialect.sweep, "tags": limits(dialect), "races": dialect.races, "note": dialect.note,
    })
}

const HEAD: &str = "\
# Dialects

How each client library marks a tag stale, and what waltag sends in its place. This page is `waltag dialects --markdown`; a test keeps it in
step with the program. `scripts/test clients` runs the libraries that are marked so.

Lines of *sent* and *sweep* are what the program goes by; `dialect: custom` takes the same lines in a rule file. `<option>` is an option,
`<tag>` the tag, `<member>` a member of its set, `<random>` 63 random bits that are drawn anew for each pass and attempt, `<now_ms>` the time
and the `guard`. `STAMP` and `HSTAMP` never lower a time; `MEMBERS` drops the records of a set in slices of 250, records before links.
*Sweep* is how TRUNCATE, a resync and unknown old values find what cannot be listed.

A client that stores a record and links it to its tags in two steps can die between the two, and a Redis can be restored from a copy that was made
there: such a record is found by no tag, by the library's own invalidation neither, and lives as long as its expiry says. Where a dialect takes
`records:`, a sweep finds it.

On a Redis Cluster (`url: redis+cluster://...`) every command goes to the master of its key. `MEMBERS` only lists a set where it is and drops the
records where they are; the links stay, as a link that goes apart from its record could orphan one that is stored between the two: the client's
own housekeeping takes them. A sweep looks at every master, and twice where slots move meanwhile. `django-cacheops` needs one server.
Run there against its library: `bentocache`, `symfony-redis-tag-aware` and `symfony-tag-aware`.

";

/// `tests/it/dialects.rs` runs them.
const EXAMPLES: &str = "
| `commands:` | |
|---|---|
| `UNLINK key` | the key is dropped |
| `SET key value [XX] [EX seconds]` | with `<random>` in the value |
| `STAMP key value [EX seconds]`, `HSTAMP key field value ... [EX seconds]` | with `<now_ms>` or `<now_s>` in the value; never lowered |
| `INCR key` | |
| `MEMBERS key record ... [ZSET] [LINKS=gone] [LIKE=pattern] [INDEX=head TAGS=head]` | the key is a set; `<member>` in the records. `LINKS=gone`: the client links before it stores; `keep`: it drops links itself. `INDEX` and `TAGS`: where a record lists its tags, and what stands before a tag of that list in its set's key |
| `SCAN head` | records begin so |
| `PUBLISH channel text` | |

| `sweep:` | |
|---|---|
| `KEYS` | the tags' own keys: they are there whenever a record can be a hit |
| `TAGS tag ...` | tags that every record has |
| `INDEX hash` | field is a record, value a JSON list of its tags |
| `RECORDS head [EXCEPT=text]` | keys that begin so are records |
| `ENTRIES head record` | keys that begin so stand for a record, `<member>` for the rest of the key |
| `NONE` | nothing finds them: `unknown:` of each rule must name tags |

`<tag|md5>`, `<tag|xxh64>` and `<tag|json>` encode the tag; words are separated by spaces.

A set of pages under each tag, `app:tag:<tag>`, each page under `app:page:<member>`; other processes have an in-memory layer and listen:

```yaml
caches:
  pages:
    url: redis://127.0.0.1:6379/3
    dialect: custom
    absent: stale
    commands: [\"MEMBERS app:tag:<tag> app:page:<member>\", \"PUBLISH app:stale <tag>\"]
```

Counters that a fragment carries along, where a missing one counts as 0, and every fragment carries the counter `all`:

```yaml
caches:
  fragments:
    url: redis://127.0.0.1:6379/3
    dialect: custom
    absent: valid
    commands: [\"INCR app:counter:<tag>\"]
    sweep: [\"TAGS all\"]
```
";

fn markdown() -> String {
    let mut out = HEAD.to_owned();
    out.push_str("| dialect | the application reads with | tested with |\n|---|---|---|\n");
    for dialect in dialects::all() {
        let tested = match dialect.verified {
            Verified::Run(version) => version.to_owned(),
            Verified::Read(version) => format!("**not run against the library**; read in {version}"),
            Verified::Primitive => String::new(),
        };
        let _ = writeln!(out, "| [{0}](#{0}) | {1} | {tested} |", dialect.name, dialect.client);
    }
    out.push_str("\nEvery cache takes these options, too:\n\n| option | |\n|---|---|\n");
    for (name, about) in COMMON {
        let _ = writeln!(out, "| `{name}` | {about} |");
    }
    out.push_str("\nNot to be served from outside:\n\n");
    for (name, reason) in dialects::REFUSED {
        let _ = writeln!(out, "* {name}: {reason}.");
    }
    for dialect in dialects::all() {
        out.push('\n');
        out.push_str(&section(dialect));
        if dialect.name == dialects::CUSTOM {
            out.push_str(EXAMPLES);
        }
    }
    out.trim_end().to_owned()
}

fn section(dialect: &Dialect) -> String {
    let mut out = format!("## {}\n\n{}. {}.\n", dialect.name, capital(dialect.client), capital(&verified(dialect)));
    if !dialect.options.is_empty() {
        out.push_str("\n| option | takes | |\n|---|---|---|\n");
        for option in dialect.options {
            let _ = writeln!(out, "| `{}` | {} | {} |", option.name, takes(option).replace('|', "or"), option.about);
        }
    }
    let block = |lines: &[&str]| lines.iter().map(|line| format!("    {}\n", escaped(line))).collect::<String>();
    if !dialect.steps.is_empty() {
        let _ = write!(out, "\nSent:\n\n{}\nSweep:\n\n{}", block(dialect.steps), block(dialect.sweep));
    }
    for (title, sentence) in
        [("Tags", limits(dialect)), ("Open", Some(dialect.races.to_owned())), ("Note", Some(dialect.note.to_owned()))]
    {
        if let Some(sentence) = sentence.filter(|sentence| !sentence.is_empty()) {
            let _ = write!(out, "\n{title}: {}.\n", sentence.trim_end_matches('.'));
        }
    }
    out
}

fn capital(text: &str) -> String {
    let mut characters = text.chars();
    characters.next().map_or(String::new(), |first| first.to_uppercase().chain(characters).collect())
}

#[cfg(test)]
mod tests {
    /// `cargo run -- dialects --markdown > docs/dialects.md` brings it up to date.
    #[test]
    fn the_page_is_in_step() {
        let page = include_str!("../../docs/dialects.md");
        assert!(
            page.trim_end() == super::markdown(),
            "docs/dialects.md is old: waltag dialects --markdown > docs/dialects.md"
        );
    }
}
