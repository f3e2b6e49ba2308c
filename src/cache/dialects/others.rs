//! Of .NET and Go.

use super::super::dialect::{Dialect, EARLY, Opt, PLAIN, RECORDS, Verified};

const INSTANCE: Opt = Opt::text("instance", Some(""), "RedisCacheOptions.InstanceName");

pub(super) const DIALECTS: [Dialect; 3] = [
    Dialect {
        name: "fusioncache",
        client: "FusionCache 2.5 and later on Redis as L2, with or without a backplane",
        verified: Verified::Read("FusionCache 2.7.0"),
        options: &[
            INSTANCE,
            Opt::text("prefix", Some(""), "CacheKeyPrefix"),
            Opt::word(
                "serializer",
                &["system-text-json", "newtonsoft"],
                "of the distributed cache; others are not spoken",
            ),
            Opt::word(
                "backplane",
                &["redis", "none"],
                "without one a node keeps what it read of a tag for up to ten days",
            ),
            Opt::text("cache_name", Some("FusionCache"), "CacheName or BackplaneChannelPrefix"),
        ],
        steps: &[
            "[serializer=system-text-json] HSTAMP <instance>v2:<prefix>__fc:t:<tag> \
             data {\"Value\":<now_ticks>,\"Timestamp\":<now_ticks>,\"LogicalExpirationTimestamp\":<now_ticks+8640000000000>,\"Tags\":null,\"Metadata\":null} \
             absexp <now_ticks+8640000000000> sldexp -1 EX 864000",
            "[serializer=newtonsoft] HSTAMP <instance>v2:<prefix>__fc:t:<tag> \
             data {\"v\":<now_ticks>,\"t\":<now_ticks>,\"l\":<now_ticks+8640000000000>} absexp <now_ticks+8640000000000> sldexp -1 EX 864000",
            "[backplane=redis] FUSIONCACHE <cache_name>.Backplane:v2 <prefix>__fc:t:<tag>",
        ],
        future: false,
        // The library's own Clear().
        sweep: &["TAGS !"],
        races: EARLY,
        note: "The JSON was derived from the source and from older snapshots of it. The backplane sets the time of a tag in each node \
               unread.",
        ..PLAIN
    },
    Dialect {
        name: "aspnet-output-cache",
        client: "ASP.NET's output cache on Redis",
        verified: Verified::Read("Microsoft.AspNetCore.OutputCaching.StackExchangeRedis 9"),
        options: &[INSTANCE],
        steps: &["MEMBERS <instance>__MSOCT_<tag> <instance>__MSOCV_<member> ZSET"],
        sweep: &["RECORDS <instance>__MSOCV_"],
        ..PLAIN
    },
    Dialect {
        name: "gocache",
        client: "eko/gocache with its redis store",
        verified: Verified::Read("gocache at 8d8d3b1f"),
        options: &[RECORDS],
        sweep: &["KEYS", "[records!=] RECORDS <records>"],
        steps: &["MEMBERS gocache_tag_<tag> <member>"],
        ..PLAIN
    },
];
