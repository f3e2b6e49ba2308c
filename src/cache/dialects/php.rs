//! PHP's.

use super::super::dialect::{Dialect, Kind, Opt, PLAIN, RECORDS, Texts, Verified};
use crate::rules::style::Style;

const OPTION_PREFIX: Opt = Opt::text("option_prefix", Some(""), "Redis::OPT_PREFIX, Predis' prefix");
const NAMESPACE: Opt = Opt::text("namespace", Some(""), "of the pool: what stands before the first colon of its keys");
const SYMFONY: Opt = Opt {
    name: "release",
    kind: Kind::Symfony,
    default: Some("7.0"),
    about: "of symfony/cache: the separators changed with 6.3, the versions with 5.4",
    needed_if: None,
};
const RESERVED: Texts = Texts::Without("{}()/\\@:");

const PHP: Dialect = Dialect { style: Style::Php, ..PLAIN };

pub(super) const DIALECTS: [Dialect; 11] = [
    Dialect {
        name: "laravel",
        client: "Laravel 10 to 13: Cache::tags() on a redis store",
        verified: Verified::Run("illuminate/cache 13"),
        options: &[
            Opt::text(
                "option_prefix",
                Some("laravel-database-"),
                "database.redis.options.prefix; `laravel_database_` up to 12",
            ),
            Opt::text(
                "prefix",
                Some("laravel-cache-"),
                "cache.prefix; `laravel_cache_` in 11 and 12, `laravel_cache_:` in 10",
            ),
        ],
        // Up to 13.2x the link is written before the record.
        steps: &[
            "MEMBERS <option_prefix><prefix>tag:<tag>:entries <option_prefix><prefix><member> ZSET LINKS=gone LIKE=^%x+:",
        ],
        note: "Its connection `cache` is database 1 by default.",
        ..PHP
    },
    Dialect {
        name: "laravel-9",
        client: "Laravel 5 to 9",
        verified: Verified::Run("illuminate/cache 8.83"),
        options: &[
            Opt::text("option_prefix", Some("laravel_database_"), "database.redis.options.prefix"),
            Opt::text("prefix", Some("laravel_cache_:"), "cache.prefix and a colon"),
        ],
        steps: &["UNLINK <option_prefix><prefix>tag:<tag>:key"],
        note: "What was stored for ever stays in Redis as garbage, as it does with the library's own lists of references.",
        ..PHP
    },
    Dialect {
        name: "symfony-redis-tag-aware",
        client: "Symfony's RedisTagAwareAdapter 4.3 to 7; Shopware 6",
        verified: Verified::Run("symfony/cache 7.4 and 5.4"),
        options: &[OPTION_PREFIX, NAMESPACE, SYMFONY, RECORDS],
        tags: RESERVED,
        steps: &["MEMBERS <option_prefix><namespace:><release><tag> <option_prefix><member> LIKE=^[^\"%z]"],
        sweep: &["KEYS", "[records!=] RECORDS <records>"],
        note: "Before 7.4 an item that was read, invalidated and saved again loses its links: the library's own invalidation misses it \
               as well.",
        ..PHP
    },
    Dialect {
        name: "symfony-tag-aware",
        client: "Symfony's TagAwareAdapter over a RedisAdapter, 4.3 to 7: `tags: true` of the framework",
        verified: Verified::Run("symfony/cache 7.4 and 5.4"),
        options: &[OPTION_PREFIX, NAMESPACE, SYMFONY],
        tags: RESERVED,
        steps: &[
            "[release=6.3] UNLINK <option_prefix><namespace:><tag><release>",
            "[release=5.4] UNLINK <option_prefix><namespace:><tag><release>",
            "[release=4.3] BUMP <option_prefix><namespace:><tag><release>",
        ],
        sweep: &[
            "[release=6.3] KEYS",
            "[release=5.4] KEYS",
            // A counter that is not there is 0.
            "[release=4.3] RECORDS <option_prefix><namespace:> EXCEPT=<release>",
        ],
        note: "A reader remembers versions for 150 ms. Chained adapters (APCu in front) are not reached.",
        ..PHP
    },
    Dialect {
        name: "drupal",
        client: "Drupal's redis module, with cache_tags.invalidator.checksum of that module",
        verified: Verified::Read("the module of 2020 with Drupal core 11"),
        options: &[
            Opt::text("cache_prefix", None, "$settings['cache_prefix']: set it, the default changes with each deploy"),
            Opt::text("bins", Some("default"), "names of the cache bins that hold what the rules cover"),
        ],
        tags: Texts::Without(" "),
        steps: &["INCR <cache_prefix>:cachetags:<tag>"],
        sweep: &["TAGS x-redis-bin:<bins>"],
        note: "Counters have no expiry and must not be lost: no policy that evicts keys without one.",
        ..PHP
    },
    Dialect {
        name: "magento",
        client: "Magento 2 and OpenMage with Cm_Cache_Backend_Redis",
        verified: Verified::Read("Cm_Cache_Backend_Redis of 2026-02"),
        options: &[Opt::text("id_prefix", None, "cache.frontend.*.id_prefix of env.php, such as `69d_`")],
        steps: &["MEMBERS zc:ti:<id_prefix><tag|magento> zc:k:<member> LINKS=keep"],
        note: "Its own garbage collection drops the links. The full-page cache in Varnish is not reached.",
        ..PHP
    },
    Dialect {
        name: "typo3",
        client: "TYPO3's RedisBackend",
        verified: Verified::Read("TYPO3 14.3"),
        options: &[Opt::text(
            "keyPrefix",
            Some(""),
            "of the backend, from version 13 on; before, each cache has a database",
        )],
        tags: Texts::Only("_%-&"),
        steps: &[
            "MEMBERS <keyPrefix>tagIdents:<tag> <keyPrefix>identData:<member> INDEX=<keyPrefix>identTags: TAGS=<keyPrefix>tagIdents:",
        ],
        ..PHP
    },
    Dialect {
        name: "neos",
        client: "Neos Flow's RedisBackend",
        verified: Verified::Read("Neos.Cache 9.0"),
        options: &[Opt::text(
            "prefix",
            None,
            "md5 of the application identifier, a colon, the cache's identifier and a colon",
        )],
        tags: Texts::Only("_%-&"),
        steps: &["MEMBERS <prefix>tag:<tag> <prefix>entry:<member> INDEX=<prefix>tags: TAGS=<prefix>tag:"],
        ..PHP
    },
    Dialect {
        name: "nette",
        client: "Nette Caching with contributte/redis",
        verified: Verified::Read("contributte/redis 0.6.2"),
        options: &[RECORDS],
        // The link is written before the record.
        steps: &["MEMBERS Contributte.Journal:<tag>:keys <member> LINKS=gone"],
        sweep: &["KEYS", "[records!=] RECORDS <records>"],
        forgets: true,
        note: "The set of a tag gets the expiry of its last record: links of longer ones vanish, for the library as well.",
        ..PHP
    },
    Dialect {
        name: "cakephp",
        client: "CakePHP's RedisEngine with groups",
        verified: Verified::Read("CakePHP 5.1.1"),
        options: &[Opt::text("prefix", Some("cake_"), "of the cache configuration")],
        tags: Texts::Constant,
        steps: &["INCR <prefix><tag>"],
        sweep: &["TAGS"],
        note: "A group that is lost (evicted) starts again, and old records come back.",
        ..PHP
    },
    Dialect {
        name: "yii2",
        client: "Yii 2's TagDependency with yii2-redis",
        verified: Verified::Read("Yii 2.0.55 with yii2-redis 2.1.2"),
        options: &[
            Opt::text("keyPrefix", Some(""), "of the cache component"),
            Opt::word("serializer", &["php", "igbinary"], "igbinary where that extension is loaded"),
        ],
        steps: &[
            "[serializer=php] UNLINK <tag|yii_php:keyPrefix>",
            "[serializer=igbinary] UNLINK <tag|yii_igbinary:keyPrefix>",
        ],
        sweep: &["RECORDS <keyPrefix>"],
        ..PHP
    },
];
