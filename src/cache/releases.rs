//! What the tag keys of a release are called.
//!
//! cache-tagging and cache-dependencies build a prefix from an internal
//! version which is not the one they are published under: `'tag_' + __version__ without dots + '_'`.

/// The two names under which the tag library was released.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Library {
    /// Up to 0.7.7.39.
    CacheTagging,
    /// From 0.7.7.39 on.
    CacheDependencies,
}

/// library, first release, last release, prefix of its tag keys; read from each release's `__version__`.
const PREFIXES: [(Library, &str, &str, &str); 19] = [
    (Library::CacheTagging, "0.7.1", "0.7.1", "tag_07_"),
    (Library::CacheTagging, "0.7.2", "0.7.2", "tag_072_"),
    (Library::CacheTagging, "0.7.3", "0.7.3", "tag_073_"),
    (Library::CacheTagging, "0.7.4", "0.7.4", "tag_074_"),
    (Library::CacheTagging, "0.7.5", "0.7.6.1", "tag_075_"),
    (Library::CacheTagging, "0.7.6.2", "0.7.6.2", "tag_0762_"),
    (Library::CacheTagging, "0.7.7.0", "0.7.7.14", "tag_0770_"),
    (Library::CacheTagging, "0.7.7.15", "0.7.7.16", "tag_07714_"),
    (Library::CacheTagging, "0.7.7.17", "0.7.7.17", "tag_07717_"),
    (Library::CacheTagging, "0.7.7.18", "0.7.7.18", "tag_07718_"),
    (Library::CacheTagging, "0.7.7.19", "0.7.7.19", "tag_07719_"),
    (Library::CacheTagging, "0.7.7.20", "0.7.7.20", "tag_07720_"),
    (Library::CacheTagging, "0.7.7.21", "0.7.7.32", "tag_07721_"),
    (Library::CacheTagging, "0.7.7.33", "0.7.7.34", "tag_07733_"),
    (Library::CacheTagging, "0.7.7.35", "0.7.7.36", "tag_07735_"),
    (Library::CacheTagging, "0.7.7.37", "0.7.7.37", "tag_07737_"),
    (Library::CacheTagging, "0.7.7.38", "0.7.7.39", "tag_07738_"),
    (Library::CacheDependencies, "0.7.7.39", "0.7.7.42", "tag_07738_"),
    (Library::CacheDependencies, "0.7.7.43", "0.7.7.48", "tag_07743_"),
];

/// The prefix of the tag keys that `release` writes. `releases:` of one cache may name those of either library, because a
/// rolling upgrade goes from one to the other.
pub fn tag_prefix(release: &str) -> Option<&'static str> {
    let wanted = numbers(release)?;
    let found = PREFIXES.iter().find(|(_, first, last, _)| {
        numbers(first).is_some_and(|first| first <= wanted) && numbers(last).is_some_and(|last| wanted <= last)
    });
    found.map(|(_, _, _, prefix)| *prefix)
}

/// Oldest and newest release of a library, for messages.
pub fn range(library: Library) -> (&'static str, &'static str) {
    let mut own = PREFIXES.iter().filter(|(of, ..)| *of == library);
    let first = own.next().map_or("", |(_, first, ..)| first);
    (first, own.next_back().map_or("", |(_, _, last, _)| last))
}

/// The newest release and the tag key prefix of each format of a library.
pub fn all(library: Library) -> Vec<(String, String)> {
    let own = PREFIXES.iter().filter(|(of, ..)| *of == library);
    own.map(|(_, _, last, prefix)| ((*last).to_owned(), (*prefix).to_owned())).collect()
}

/// The infix of the tag keys of a release of Symfony's cache, with the first release that has it. Before 5.4 `TagAwareAdapter` counts.
pub fn symfony(release: &str) -> Option<(&'static str, &'static str)> {
    let wanted = numbers(release)?;
    let known = [("6.3", "\x01tags\x01"), ("5.4", "\0tags\0"), ("4.3", "\0tags\0")];
    known.into_iter().find(|(first, _)| numbers(first).is_some_and(|first| first <= wanted))
}

fn numbers(release: &str) -> Option<Vec<u32>> {
    release.split('.').map(|part| part.parse().ok()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prefixes() {
        for (release, prefix) in [
            ("0.7.1", Some("tag_07_")),
            ("0.7.3", Some("tag_073_")),
            ("0.7.6.1", Some("tag_075_")),
            ("0.7.7.9", Some("tag_0770_")),
            ("0.7.7.16", Some("tag_07714_")),
            ("0.7.7.30", Some("tag_07721_")),
            ("0.7.7.39", Some("tag_07738_")),
            ("0.7.7.42", Some("tag_07738_")),
            ("0.7.7.43", Some("tag_07743_")),
            ("0.7.7.48", Some("tag_07743_")),
            ("0.7.7.49", None),
            ("0.7.0", None),
            ("latest", None),
        ] {
            assert_eq!(tag_prefix(release), prefix, "{release}");
        }
        assert_eq!(symfony("7.4.22"), Some(("6.3", "\x01tags\x01")));
        assert_eq!(symfony("6.2"), Some(("5.4", "\0tags\0")));
        assert_eq!((symfony("4.4.48").unwrap().0, symfony("4.2"), symfony("x")), ("4.3", None, None));
        assert_eq!(range(Library::CacheTagging), ("0.7.1", "0.7.7.39"));
        assert_eq!(range(Library::CacheDependencies), ("0.7.7.39", "0.7.7.48"));
    }
}
