//! Node's.

use super::super::dialect::{Dialect, EARLY, Kind, Opt, PLAIN, STAMPED, Verified};

const KEY_PREFIX: Opt =
    Opt::text("key_prefix", Some(""), "keyPrefix of the handler; several while two builds are live");

/// Next.js keeps a record for 1.5 times its `revalidate`, or a year.
const MAX_AGE: Opt = Opt {
    name: "max_age",
    kind: Kind::Seconds,
    default: Some("365d"),
    about: "the longest life of a record: what is older is forgotten by and by",
    needed_if: None,
};

pub(super) const DIALECTS: [Dialect; 10] = [
    Dialect {
        name: "nextjs",
        client: "Next.js with the redis-strings handlers of @neshca/cache-handler or @fortedigital/nextjs-cache-handler",
        verified: Verified::Run("@neshca/cache-handler 1.9.0, @fortedigital/nextjs-cache-handler 3.3.0"),
        options: &[
            KEY_PREFIX,
            Opt::word(
                "handler",
                &["neshca", "fortedigital"],
                "whose; that of @fortedigital takes what is not in its index for a miss",
            ),
            MAX_AGE,
        ],
        // Their readers compare every tag of an entry, so one field does what the library's revalidateTag scans the whole index for.
        steps: &["HSTAMP <key_prefix>__revalidated_tags__ <tag> <now_ms> AGE <max_age>"],
        sweep: &[
            "[handler=neshca] INDEX <key_prefix>__sharedTags__",
            "[handler=fortedigital] INDEX <key_prefix>__sharedTags__ | HDEL <key_prefix>__sharedTags__ <member>",
        ],
        races: STAMPED,
        note: "A whole path is the tag `_N_T_/path`. A sweep finds the tags that entries were stored with, not the paths that a fetch was \
               made for. Next's own in-memory layers are not reached.",
        ..PLAIN
    },
    Dialect {
        name: "nextjs-turbo",
        client: "@trieb.work/nextjs-turbo-redis-cache: pages, fetches and `use cache`",
        verified: Verified::Run("@trieb.work/nextjs-turbo-redis-cache 1.18.0"),
        options: &[
            Opt::text(
                "key_prefix",
                None,
                "KEY_PREFIX, VERCEL_URL or BUILD_ID of its environment, else `UNDEFINED_URL_`",
            ),
            MAX_AGE,
        ],
        future: false,
        steps: &[
            "SCAN <tag>",
            "HSTAMP <key_prefix>__cacheComponents_revalidated_tags__ <tag> <now_ms> AGE <max_age>",
            "PUBLISH <key_prefix>:sync-channel:__cacheComponents_revalidated_tags__ {\"type\":\"insert\",\"key\":\"<tag|json>\",\"value\":<now_ms>}",
        ],
        sweep: &[
            "INDEX <key_prefix>__sharedTags__ | UNLINK <key_prefix><member> | HDEL <key_prefix>__sharedTags__ <member> | \
                  PUBLISH <key_prefix>:sync-channel:inMemoryDeduplicationCache {\"type\":\"delete\",\"keys\":[\"<member|json>\"]} | \
                  PUBLISH <key_prefix>:sync-channel:__sharedTags__ {\"type\":\"delete\",\"keys\":[\"<member|json>\"]}",
            "INDEX <key_prefix>__cacheComponents_sharedTags__",
        ],
        races: "pages and fetches: `repeat`, longer than the computation; `use cache` takes its time before it computes",
        note: "Each batch is one pass over the index of pages. Its handler remembers what it read, misses too, for ten seconds. Its database is 1 unless VERCEL_ENV is `production`.",
        ..PLAIN
    },
    Dialect {
        name: "nextjs-cache-components",
        client: "`use cache` with @mrjasonroy/cache-components-cache-handler",
        verified: Verified::Run("@mrjasonroy/cache-components-cache-handler 16.1.6"),
        options: &[
            Opt::text("key_prefix", Some("nextjs:data-cache:"), "keyPrefix of the handler"),
            Opt::text("tag_prefix", Some("nextjs:tags:"), "its tagPrefix"),
            MAX_AGE,
        ],
        steps: &["HSTAMP <tag_prefix><tag> expired <now_ms> EX <max_age>"],
        sweep: &["RECORDS <key_prefix>"],
        races: EARLY,
        ..PLAIN
    },
    Dialect {
        name: "bentocache",
        client: "bentocache 1, @adonisjs/cache",
        verified: Verified::Run("bentocache 1.6.1"),
        options: &[
            Opt::text("prefix", Some("bentocache"), "of the Redis driver"),
            Opt::text("namespace", Some(""), "cache.namespace(...)"),
            Opt::word(
                "bus",
                &["none", "redis"],
                "`redis` where a memory layer stands in front: it is told over the bus",
            ),
            Opt::text("store", Some("main"), "name of the store: part of the bus' channel"),
        ],
        // The library keeps a tag for ten days.
        steps: &[
            "STAMP <prefix>:<namespace:>___bc:t:<tag> \
             {\"value\":<now_ms>,\"logicalExpiration\":<now_ms+864000000>,\"tags\":[],\"createdAt\":<now_ms>} EX 864000",
            "[bus=redis] BENTOCACHE bentocache.notifications:<store> <prefix><:namespace> ___bc:t:<tag>",
        ],
        sweep: &[
            "RECORDS <prefix>:<namespace:> EXCEPT=___bc:t:",
            "[bus=redis] BENTOCACHE bentocache.notifications:<store> <prefix><:namespace>",
        ],
        races: STAMPED,
        note: "With grace periods an expired value may still be served, by design. The serializer must be JSON, the default. Entries that \
               live longer than ten days outlive the stamps of the library itself.",
        ..PLAIN
    },
    Dialect {
        name: "cacheable",
        client: "cacheable 2 with tags, on @keyv/redis and without its memory layer",
        verified: Verified::Run("cacheable 2.5.0 with @keyv/redis 5.1.6"),
        options: &[Opt::text(
            "key_prefix",
            Some("keyv::keyv:"),
            "what stands before its keys in Redis: `keyv::keyv:` with new KeyvRedis(url)",
        )],
        steps: &["SET <key_prefix>--cacheable--tags--:default:tag:<tag> {\"value\":<random>}"],
        // A record without its snapshot would be fresh.
        sweep: &["ENTRIES <key_prefix>--cacheable--tags--:default:key: <key_prefix><member>"],
        note: "With its memory layer, the default, two processes do not agree on a tag, whoever invalidates it: the first to read a stale \
               record drops what the second would have compared with.",
        ..PLAIN
    },
    Dialect {
        name: "async-cache-dedupe",
        client: "async-cache-dedupe 3, mercurius-cache",
        verified: Verified::Run("async-cache-dedupe 3.4.0"),
        options: &[Opt::text("key_prefix", Some(""), "ioredis' keyPrefix")],
        steps: &["MEMBERS <key_prefix>r:<tag> <key_prefix><member> INDEX=<key_prefix>k: TAGS=<key_prefix>r:"],
        sweep: &["KEYS", "ENTRIES <key_prefix>k: <key_prefix><member>"],
        note: "The library forgets a tag after referencesTTL (60 s by default): let it be longer than any record.",
        ..PLAIN
    },
    Dialect {
        name: "layered-loader",
        client: "layered-loader 14 with groups: the tag is the group",
        verified: Verified::Run("layered-loader 14.2.2"),
        options: &[
            Opt::text("prefix", None, "of the group cache"),
            Opt::text("channel", Some(""), "of the notification consumer, where an in-memory layer stands in front"),
            Opt {
                kind: Kind::Seconds,
                ..Opt::text("group_ttl", Some(""), "groupTtlInMsecs, if it is set: longer than any record")
            },
        ],
        // The index is a part of the records' keys. Counted up from nothing it would come to numbers that older records have.
        steps: &[
            "[group_ttl=] SET <prefix>:group-index:<tag> <random>",
            "[group_ttl!=] SET <prefix>:group-index:<tag> <random> EX <group_ttl>",
            "[channel!=] PUBLISH <channel> {\"actionId\":\"DELETE_GROUP\",\"group\":\"<tag|json>\",\"originUuid\":\"waltag\"}",
        ],
        ..PLAIN
    },
    Dialect {
        name: "envelop-response-cache",
        client: "@envelop/response-cache-redis 4: the tag is `Type:id`",
        verified: Verified::Run("@envelop/response-cache-redis 4.2.4"),
        options: &[],
        steps: &["MEMBERS <tag> <member> operations:<member>"],
        note: "Its keys have no prefix: give it a database of its own.",
        ..PLAIN
    },
    Dialect {
        name: "medusa",
        client: "Medusa's @medusajs/caching-redis 2",
        verified: Verified::Run("@medusajs/caching-redis 2.21.2"),
        options: &[Opt::text("prefix", Some("mc:"), "of the module")],
        steps: &["MEMBERS <prefix>tag:<tag|xxh64> <member>"],
        ..PLAIN
    },
    Dialect {
        name: "vendure",
        client: "Vendure's RedisCacheStrategy",
        verified: Verified::Run("@vendure/core 3.7.3"),
        options: &[Opt::text("namespace", Some("vendure-cache"), "of the plugin")],
        steps: &["MEMBERS <namespace>:tag:<tag> <member>"],
        ..PLAIN
    },
];
