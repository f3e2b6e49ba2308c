//! Python's.

use super::super::dialect::{Dialect, Kind, Opt, PLAIN, RECORDS, Texts, Verified};
use super::super::releases::Library;
use crate::rules::style::Style;

const KEY_PREFIX: Opt = Opt::text("key_prefix", Some(""), "CACHES[alias]['KEY_PREFIX']");
const VERSION: Opt = Opt::text("version", Some("1"), "CACHES[alias]['VERSION']");
const MODE: Opt = Opt::word(
    "mode",
    &["unlink", "set"],
    "drop a stale tag as the library does, or give it a version never used before",
);

/// Tag keys live for 24 hours, whatever happens (`set()` of the library).
const STEPS: &[&str] = &[
    "[mode=unlink] UNLINK <key_prefix>:<version>:<release><tag|md5>",
    "[mode=set] SET <key_prefix>:<version>:<release><tag|md5> <random> XX EX 86400",
];

const fn release(library: Library, default: &'static str) -> Opt {
    let about = "of the library; several during an upgrade";
    Opt { name: "release", kind: Kind::Django(library), default: Some(default), about, needed_if: None }
}

const PYTHON: Dialect = Dialect { style: Style::Python, ..PLAIN };

pub(super) const DIALECTS: [Dialect; 7] = [
    Dialect {
        name: "cache-dependencies",
        client: "cache-dependencies 0.7.7.39 to 0.7.7.48, on django-redis or Django's own backend",
        verified: Verified::Run("cache-dependencies 0.7.7.48"),
        options: &[KEY_PREFIX, VERSION, release(Library::CacheDependencies, "0.7.7.48"), MODE],
        steps: STEPS,
        races: "a reader that computes over the commit stores the old value: `repeat`; or `fence` with `mode: set`, which its set() heeds",
        ..PYTHON
    },
    Dialect {
        name: "cache-tagging",
        client: "cache-tagging 0.7.1 to 0.7.7.39, on django-redis or Django's own backend",
        verified: Verified::Run("cache-tagging 0.7.3"),
        options: &[KEY_PREFIX, VERSION, release(Library::CacheTagging, "0.7.3"), MODE],
        steps: STEPS,
        ..PYTHON
    },
    Dialect {
        name: "cashews",
        client: "cashews 7",
        verified: Verified::Run("cashews 7.6.0"),
        options: &[Opt::text("client_side_prefix", Some(""), "`cashews:` with client_side=True"), RECORDS],
        steps: &["MEMBERS _tag:<tag> <client_side_prefix><member>"],
        sweep: &["KEYS", "[records!=] RECORDS <records>"],
        forgets: true,
        note: "The set of a tag gets the expiry of its last writer: a short record makes it forget longer ones, for the library as well. \
               Its own tag templates write True as `true` and None as nothing: use the filters, or `style: plain`.",
        ..PYTHON
    },
    Dialect {
        name: "django-cachalot",
        client: "django-cachalot 2, on django-redis or Django's own backend",
        verified: Verified::Run("django-cachalot 2.9.1"),
        options: &[KEY_PREFIX, VERSION, Opt::text("database", Some("default"), "the alias in DATABASES")],
        tags: Texts::Table,
        steps: &["STAMP <key_prefix>:<version>:<tag|sha1:database> <now_s>"],
        sweep: &["TAGS"],
        races: super::super::dialect::STAMPED,
        note: "It knows tables, not rows: `tags: [\"<@table>\"]`.",
        ..PYTHON
    },
    Dialect {
        name: "django-cacheops",
        client: "django-cacheops 7: rules have `rows: true` in place of tags",
        verified: Verified::Run("django-cacheops 7.2"),
        options: &[
            Opt::text("prefix", Some(""), "CACHEOPS_PREFIX"),
            Opt::word("insideout", &["false", "true"], "CACHEOPS_INSIDEOUT"),
        ],
        tags: Texts::Rows,
        steps: &["[insideout=false] ROWS <prefix>", "[insideout=true] ROWTEXTS <prefix>"],
        sweep: &[
            "[insideout=false] TABLES <prefix>conj: | MEMBERS conj <member>",
            "[insideout=true] TABLES <prefix>conj: | UNLINK conj",
        ],
        races: "a query that runs over the commit stores the old rows: `repeat`; none with cached_as(keep_fresh=True)",
        note: "Columns are compared by their names in the database: a field with another `db_column` is not found. local_get is never \
               invalidated, by anybody.",
        ..PYTHON
    },
    Dialect {
        name: "redis-tagged-cache",
        client: "redis-tagged-cache 0.12",
        verified: Verified::Run("redis-tagged-cache 0.12.1"),
        options: &[Opt::text("namespace", Some("default"), "of the RedisTaggedCache")],
        steps: &["SET rtc:<namespace|rtc>:t:<tag|rtc> <random> XX EX 86400"],
        sweep: &["TAGS @@@all@@@"],
        ..PYTHON
    },
    Dialect {
        name: "fastapi-cache",
        client: "fastapi-cache2 0.2: it has no tags, the tag is the namespace of an endpoint",
        verified: Verified::Run("fastapi-cache2 0.2.2"),
        options: &[Opt::text("prefix", None, "of FastAPICache.init()")],
        tags: Texts::Keys,
        steps: &["SCAN <prefix>:<tag>:"],
        sweep: &["RECORDS "],
        note: "Each batch is one pass over all keys of the database.",
        ..PYTHON
    },
];
