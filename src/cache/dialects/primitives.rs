//! Formats without a library: the words of which the others are made, for applications with a cache of their own.

use super::super::dialect::{self, Dialect, Kind, Opt, PLAIN, Texts};

const TTL: Opt = Opt {
    name: "ttl",
    kind: Kind::Seconds,
    default: None,
    about: "how long a tag lives; at least as long as any record",
    needed_if: None,
};
const ABSENT: Opt = Opt {
    name: "absent",
    kind: Kind::Word(&["stale", "valid"]),
    default: None,
    about: "what a reader takes a missing tag for",
    needed_if: None,
};
const SWEEP: Opt = Opt {
    name: "sweep",
    kind: Kind::Word(&["none", "scan", "switch", "index", "records"]),
    default: Some("none"),
    about: "where absent is valid, what finds the records: tags that every record has (`switch`), a hash of records and their tags \
            (`index`), the records' own keys (`records`), or the tags' keys after all (`scan`)",
    needed_if: None,
};
const SWITCH: Opt = Opt {
    name: "switch",
    kind: Kind::Text,
    default: None,
    about: "tags that every record has",
    needed_if: Some(("sweep", "switch")),
};
const INDEX: Opt = Opt {
    name: "index",
    kind: Kind::Text,
    default: None,
    about: "a hash: field is a record, value a JSON list of its tags",
    needed_if: Some(("sweep", "index")),
};
const RECORDS: Opt = Opt {
    name: "records",
    kind: Kind::Text,
    default: None,
    about: "how the keys of records begin",
    needed_if: Some(("sweep", "records")),
};
const SWEEPS: &[&str] = &[
    "[absent=stale] KEYS",
    "[absent=valid,sweep=none] NONE",
    "[absent=valid,sweep=scan] KEYS",
    "[absent=valid,sweep=switch] TAGS <switch>",
    "[absent=valid,sweep=index] INDEX <index>",
    "[absent=valid,sweep=records] RECORDS <records>",
];

pub(super) const DIALECTS: [Dialect; 7] = [
    Dialect {
        name: "keys",
        client: "any cache whose records have names of their own: the tag is the key of a record",
        tags: Texts::Keys,
        steps: &["UNLINK <tag>"],
        ..PLAIN
    },
    Dialect {
        name: "prefix",
        client: "the same with names that begin with the tag: Spring's `cacheName::`, Rails, aiocache",
        tags: Texts::Keys,
        steps: &["SCAN <tag>"],
        sweep: &["RECORDS "],
        note: "Each batch is one pass over all keys of the database; many prefixes cost no more than one.",
        ..PLAIN
    },
    Dialect {
        name: "version",
        client: "records that carry the versions of their tags (docs/reading.md)",
        options: &[TTL, ABSENT, SWEEP, SWITCH, INDEX, RECORDS],
        steps: &["[absent=stale] SET <tag> <random> XX EX <ttl>", "[absent=valid] SET <tag> <random> EX <ttl>"],
        sweep: SWEEPS,
        races: "none for readers that take the versions before they compute; otherwise a late one stores the old value: `repeat`",
        ..PLAIN
    },
    Dialect {
        name: "stamp",
        client: "records that carry the time at which they were made, and are stale if a tag's is later or equal",
        options: &[Opt::word("unit", &["ms", "s"], "of the time"), TTL, ABSENT, SWEEP, SWITCH, INDEX, RECORDS],
        steps: &["[unit=ms] STAMP <tag> <now_ms> EX <ttl>", "[unit=s] STAMP <tag> <now_s> EX <ttl>"],
        sweep: SWEEPS,
        races: super::super::dialect::STAMPED,
        ..PLAIN
    },
    Dialect {
        name: "counter",
        client: "records that carry the counters of their tags",
        options: &[ABSENT, SWEEP, SWITCH, INDEX, RECORDS],
        steps: &["INCR <tag>"],
        sweep: SWEEPS,
        note: "A counter is never dropped. One that is lost (evicted) starts again, and records of its first life come back: use a \
               policy that evicts no keys without an expiry.",
        ..PLAIN
    },
    Dialect {
        name: "set",
        client: "a set of the keys of its records under each tag: redis-tag-cache, @imqueue/tag-cache",
        options: &[
            Opt::text("tag_prefix", Some(""), "in front of the tag"),
            Opt::text("prefix", Some(""), "in front of a member, where it is not part of it"),
            Opt::word("kind", &["set", "zset"], "of the tag's key"),
            Opt::word(
                "links",
                &["drop", "gone", "keep"],
                "what becomes of links: `gone` for writers that link before they store",
            ),
            dialect::RECORDS,
        ],
        sweep: &["KEYS", "[records!=] RECORDS <records>"],
        tags: Texts::Keys,
        steps: &[
            "[kind=set,links=drop] MEMBERS <tag_prefix><tag> <prefix><member>",
            "[kind=set,links=gone] MEMBERS <tag_prefix><tag> <prefix><member> LINKS=gone",
            "[kind=set,links=keep] MEMBERS <tag_prefix><tag> <prefix><member> LINKS=keep",
            "[kind=zset,links=drop] MEMBERS <tag_prefix><tag> <prefix><member> ZSET",
            "[kind=zset,links=gone] MEMBERS <tag_prefix><tag> <prefix><member> ZSET LINKS=gone",
            "[kind=zset,links=keep] MEMBERS <tag_prefix><tag> <prefix><member> ZSET LINKS=keep",
        ],
        ..PLAIN
    },
    Dialect {
        name: super::CUSTOM,
        client: "a format of your own, in the lines that the other dialects are made of",
        options: &[
            ABSENT,
            Opt::text("commands", None, "what is sent for a tag: a list of the lines that `waltag dialects` shows"),
            Opt {
                needed_if: Some(("absent", "valid")),
                ..Opt::text("sweep", None, "what finds the rest: a list of such lines; KEYS where absent is stale")
            },
        ],
        note: "Two examples stand below",
        ..PLAIN
    },
];
