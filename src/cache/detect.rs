//! Which clients write into a Redis: its keys are compared with the key formulas of every dialect. Nothing is written, no value is read,
//! and the number of keys and the time are bounded.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use regex::bytes::Regex;

use super::dialect::{Dialect, Kind};
use super::dialects;
use super::masters::Masters;
use super::releases;
use super::step::conditions;

/// Keys that are looked at.
const KEYS: u64 = 200_000;
/// Time that it may take.
const LIMIT: Duration = Duration::from_secs(5);
/// Keys per SCAN.
const COUNT: u32 = 1_000;
/// Sets of options of one formula: more are no options but parts of other people's keys.
const VARIANTS: usize = 20;
/// A formula with less text of its own would match anything.
const LEAST: usize = 5;

/// What was seen.
pub struct Sample {
    /// Keys that were looked at, and that there are.
    pub seen: u64,
    /// All keys of the database.
    pub size: u64,
    /// Clients, the most frequent first.
    pub found: Vec<Found>,
}

/// Keys of one client with one set of options.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    /// The client.
    pub dialect: &'static str,
    /// Its options as the keys show them; none that are the default.
    pub options: Vec<(String, String)>,
    /// How many keys.
    pub keys: u64,
    /// The formula that they match.
    pub formula: String,
}

/// A key formula as an expression.
struct Sign {
    dialect: &'static Dialect,
    formula: String,
    expression: Regex,
    /// The same with every option as it is by default: where two stand side by side, nothing else tells them apart.
    plain: Option<Regex>,
    /// Options that the formula does not show, because one of their words made it.
    fixed: Vec<(&'static str, String)>,
    kind: Option<&'static str>,
}

/// Looks at a Redis.
pub async fn sample(masters: &mut Masters) -> redis::RedisResult<Sample> {
    let (signs, begin) = (signs(), Instant::now());
    let mut size = 0;
    for master in 0..masters.count() {
        size += masters.ask::<u64>(master, &redis::cmd("DBSIZE")).await?;
    }
    let (mut cursor, mut seen, mut master) = (0_u64, 0, 0);
    let mut found: BTreeMap<(usize, Vec<(String, String)>), u64> = BTreeMap::new();
    let mut variants = vec![0; signs.len()];
    'all: loop {
        let mut scan = redis::cmd("SCAN");
        let (next, keys): (u64, Vec<Vec<u8>>) = masters.ask(master, scan.arg(cursor).arg("COUNT").arg(COUNT)).await?;
        for key in &keys {
            for (index, sign) in signs.iter().enumerate() {
                if begin.elapsed() > LIMIT {
                    break 'all;
                }
                let Some(options) = sign.read(key) else { continue };
                let known = found.contains_key(&(index, options.clone()));
                if let (false, Some(count)) = (known, variants.get_mut(index)) {
                    *count += 1;
                    if *count > VARIANTS {
                        continue;
                    }
                }
                // What only looks like it is of another type.
                if let (Some(kind), false) = (sign.kind, known) {
                    let there: String = masters.ask(master, redis::cmd("TYPE").arg(key)).await?;
                    if there != kind {
                        continue;
                    }
                }
                *found.entry((index, options)).or_default() += 1;
            }
        }
        seen += keys.len() as u64;
        cursor = next;
        master += usize::from(cursor == 0);
        if master == masters.count() || seen >= KEYS {
            break;
        }
    }
    let mut list: Vec<Found> = Vec::new();
    for ((index, options), keys) in found {
        // What has as many prefixes as keys belongs to somebody else.
        let Some(sign) = signs.get(index).filter(|_| variants.get(index).is_some_and(|count| *count <= VARIANTS))
        else {
            continue;
        };
        let own = Found { dialect: sign.dialect.name, options, keys, formula: sign.formula.clone() };
        // Two formulas of one client with the same options are one finding.
        match list.iter_mut().find(|known| known.dialect == own.dialect && known.options == own.options) {
            Some(known) if known.keys >= own.keys => {}
            Some(known) => *known = own,
            None => list.push(own),
        }
    }
    list.sort_by_key(|found| std::cmp::Reverse(found.keys));
    Ok(Sample { seen, size, found: list })
}

/// The expressions of all dialects whose keys have something of their own.
fn signs() -> Vec<Sign> {
    let lines = |dialect: &'static Dialect| dialect.steps.iter().chain(dialect.sweep).map(move |line| (dialect, line));
    dialects::all().flat_map(lines).flat_map(|(dialect, line)| signs_of(dialect, line)).collect()
}

fn signs_of(dialect: &'static Dialect, line: &str) -> Vec<Sign> {
    let (_, rest) = conditions(line);
    let mut words = rest.split(' ');
    let (verb, formula) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
    let kind = match verb {
        "UNLINK" | "SET" | "STAMP" | "INCR" => Some("string"),
        "MEMBERS" if rest.contains(" ZSET") => Some("zset"),
        "MEMBERS" => Some("set"),
        "HSTAMP" | "INDEX" => Some("hash"),
        _ => return Vec::new(),
    };
    let spelled = |name: &str| -> Vec<(String, String)> {
        let option = dialect.options.iter().find(|option| option.name == name);
        match option.map(|option| option.kind) {
            Some(Kind::Django(library)) => releases::all(library),
            Some(Kind::Symfony) => ["6.3", "5.4"]
                .iter()
                .filter_map(|first| Some(((*first).to_owned(), releases::symfony(first)?.1.to_owned())))
                .collect(),
            _ => Vec::new(),
        }
    };
    // A release stands for a text that is part of the key: one expression for each.
    let released = dialect
        .options
        .iter()
        .find(|option| formula.contains(&format!("<{}>", option.name)) && !spelled(option.name).is_empty());
    let variants = match released {
        Some(option) => {
            spelled(option.name).into_iter().map(|(word, text)| (Some((option.name, word)), text)).collect()
        }
        None => vec![(None, String::new())],
    };
    let sign = |(fixed, text): (Option<(&'static str, String)>, String)| {
        let formula = match &fixed {
            Some((name, _)) => formula.replace(&format!("<{name}>"), &text),
            None => formula.to_owned(),
        };
        let general = expression(&formula)?;
        let mut defaults = formula.clone();
        // An empty default says nothing: what is there may be the option or the tag.
        for (option, default) in dialect.options.iter().filter_map(|option| Some((option, option.default?))) {
            if !default.is_empty() {
                defaults = defaults.replace(&format!("<{}>", option.name), default);
            }
        }
        let plain = if defaults == formula { None } else { expression(&defaults) };
        Some(Sign { dialect, formula, expression: general, plain, fixed: fixed.into_iter().collect(), kind })
    };
    variants.into_iter().filter_map(sign).collect()
}

/// The formula as an expression; `None` if it could be anything.
fn expression(formula: &str) -> Option<Regex> {
    let (mut out, mut own, mut rest) = ("(?s-u)^".to_owned(), 0, formula);
    while let Some((before, after)) = rest.split_once('<') {
        out.push_str(&escaped(before));
        own += before.len();
        let (name, tail) = after.split_once('>')?;
        rest = tail;
        out.push_str(&match name {
            "tag" | "member" => ".+".to_owned(),
            "tag|md5" => "[0-9a-f]{32}".to_owned(),
            "tag|xxh64" => "[0-9a-f]{16}".to_owned(),
            "tag|rtc" => "[A-Za-z0-9_~]{11}".to_owned(),
            "tag|magento" => "[A-Z0-9_]+".to_owned(),
            name if name.starts_with("tag|sha1") => "[0-9a-f]{40}".to_owned(),
            name if name.contains('|') => ".+".to_owned(),
            name if name.ends_with(':') => format!("(?:(?P<{}>[^:]*):)?", name.trim_end_matches(':')),
            name => format!("(?P<{name}>.*?)"),
        });
        own += match name {
            "tag|md5" | "tag|xxh64" | "tag|rtc" => LEAST,
            name if name.starts_with("tag|sha1") => LEAST,
            _ => 0,
        };
    }
    out.push_str(&escaped(rest));
    own += rest.len();
    out.push('$');
    if own < LEAST { None } else { Regex::new(&out).ok() }
}

fn escaped(text: &str) -> String {
    regex::escape(text).replace('\0', "\\x00").replace('\u{1}', "\\x01")
}

impl Sign {
    /// The options that a key shows, if it matches.
    fn read(&self, key: &[u8]) -> Option<Vec<(String, String)>> {
        let expression = self.plain.as_ref().filter(|plain| plain.is_match(key)).unwrap_or(&self.expression);
        let groups = expression.captures(key)?;
        let mut options: Vec<(String, String)> =
            self.fixed.iter().map(|(name, word)| ((*name).to_owned(), word.clone())).collect();
        for name in expression.capture_names().flatten() {
            let text = groups.name(name).map(|group| group.as_bytes()).unwrap_or_default();
            options.push((name.to_owned(), String::from_utf8(text.to_vec()).ok()?));
        }
        // A text with line breaks is no prefix, and would be one in somebody's terminal.
        if options.iter().any(|(_, text)| text.contains(char::is_control) || text.len() > 100) {
            return None;
        }
        let is_default = |name: &str, text: &str| {
            let option = self.dialect.options.iter().find(|option| option.name == name)?;
            let word = option.kind.read(name, option.default?).ok()?.0;
            Some(word == text)
        };
        options.retain(|(name, text)| is_default(name, text) != Some(true));
        Some(options)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(key: &[u8]) -> Vec<(&'static str, Vec<(String, String)>)> {
        let mut all: Vec<_> = signs().iter().filter_map(|sign| Some((sign.dialect.name, sign.read(key)?))).collect();
        all.dedup();
        all
    }

    /// Keys that the real libraries wrote.
    #[test]
    fn each_client_is_known_by_its_keys() {
        let options = |list: &[(&str, &str)]| -> Vec<(String, String)> {
            list.iter().map(|(name, text)| ((*name).to_owned(), (*text).to_owned())).collect()
        };
        for (key, dialect, expected) in [
            (&b":1:tag_07743_82f87684924ecd4a815ee924449c3fa1"[..], "cache-dependencies", &[][..]),
            (
                b"app:2:tag_073_82f87684924ecd4a815ee924449c3fa1",
                "cache-tagging",
                &[("key_prefix", "app"), ("version", "2")],
            ),
            (b"_tag:CategoryModel.pk:42", "cashews", &[]),
            (b"bentocache:users:___bc:t:CategoryModel.pk:42", "bentocache", &[("namespace", "users")]),
            (b"nxt:__revalidated_tags__", "nextjs", &[("key_prefix", "nxt:")]),
            (b"app1:\x01tags\x01category.7", "symfony-redis-tag-aware", &[("namespace", "app1")]),
            (b"app1:category.7\x01tags\x01", "symfony-tag-aware", &[("namespace", "app1")]),
            (b"mc:tag:107716c3191617a2", "medusa", &[]),
            (b":1:8535ce592bc9d77ec39d1061ed617f1713de2b31", "django-cachalot", &[]),
            (b"laravel-database-laravel-cache-tag:posts:entries", "laravel", &[]),
            (
                b"laravel_database_laravel_cache_tag:posts:entries",
                "laravel",
                &[("option_prefix", ""), ("prefix", "laravel_database_laravel_cache_")],
            ),
        ] {
            let found = read(key);
            let expected = (dialect, options(expected));
            assert!(found.contains(&expected), "{} is {found:?}", key.escape_ascii());
        }
        for key in [&b"user:15"[..], b"session:82f87684924ecd4a815ee924449c3fa1", b"waltag:7:waltag:c"] {
            assert_eq!(read(key), [], "{}", key.escape_ascii());
        }
    }
}
