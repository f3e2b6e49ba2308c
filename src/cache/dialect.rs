//! How a client library marks a tag stale, as data: the key formula, the operation, the options under the client's own
//! names. A new client of a known shape is a new row in [`DIALECTS`].

use md5::{Digest, Md5};

use crate::rules::style::Style;

/// A client library, or a plain primitive.
#[derive(Debug)]
pub struct Dialect {
    /// Name in rule files.
    pub name: &'static str,
    /// How its application writes values into tags.
    pub style: Style,
    /// How a tag becomes keys.
    pub keys: KeyForm,
    /// What is done to these keys unless `mode` says otherwise.
    pub operation: OperationForm,
    /// Does an empty placeholder skip the tag? Where the text is the key itself, `user:` must not be reached by accident.
    pub empty_skips: bool,
    /// Its options beside `url`, `dialect` and `style`.
    pub options: &'static [&'static str],
    /// It is not spoken yet: rules can be checked and tested with it, and nothing is run.
    pub planned: bool,
}

/// How a tag becomes keys.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KeyForm {
    /// The tag is the key.
    Verbatim,
    /// `<key_prefix>:<version>:tag_<release>_<md5 of the tag>`: Django's make_key over the library's own key.
    DjangoTag(Library),
}

/// The two names under which the tag library was released.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Library {
    /// Up to 0.7.7.39.
    CacheTagging,
    /// From 0.7.7.39 on.
    CacheDependencies,
}

/// What is done to a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OperationForm {
    /// UNLINK: an absent tag key is a miss.
    Unlink,
    /// UNLINK, or with `mode: set` a version never used before, for as long as the library keeps a tag (86,400 s).
    UnlinkOrSet,
    /// SET to a version never used before, by `ttl` and `absent`.
    Version,
}

/// Every dialect.
pub const DIALECTS: [Dialect; 4] = [
    Dialect {
        name: "cache-dependencies",
        style: Style::Python,
        keys: KeyForm::DjangoTag(Library::CacheDependencies),
        operation: OperationForm::UnlinkOrSet,
        empty_skips: false,
        options: &["key_prefix", "version", "release", "releases", "mode", "fence"],
        planned: false,
    },
    Dialect {
        name: "cache-tagging",
        style: Style::Python,
        keys: KeyForm::DjangoTag(Library::CacheTagging),
        operation: OperationForm::UnlinkOrSet,
        empty_skips: false,
        options: &["key_prefix", "version", "release", "releases", "mode"],
        planned: false,
    },
    Dialect {
        name: "keys",
        style: Style::Plain,
        keys: KeyForm::Verbatim,
        operation: OperationForm::Unlink,
        empty_skips: true,
        options: &[],
        planned: false,
    },
    Dialect {
        name: "version",
        style: Style::Plain,
        keys: KeyForm::Verbatim,
        operation: OperationForm::Version,
        empty_skips: false,
        options: &["ttl", "absent"],
        planned: false,
    },
];

/// A client that is known by name, and how its application writes values.
const fn planned(name: &'static str, style: Style, empty_skips: bool) -> Dialect {
    let (keys, operation) = (KeyForm::Verbatim, OperationForm::Unlink);
    Dialect { name, style, keys, operation, empty_skips, options: &[], planned: true }
}

/// Clients that are not spoken yet.
pub const PLANNED: [Dialect; 33] = [
    planned("aspnet-output-cache", Style::Plain, false),
    planned("async-cache-dedupe", Style::Plain, false),
    planned("bentocache", Style::Plain, false),
    planned("cacheable", Style::Plain, false),
    planned("cakephp", Style::Php, false),
    planned("cashews", Style::Python, false),
    planned("counter", Style::Plain, false),
    planned("django-cachalot", Style::Python, false),
    planned("django-cacheops", Style::Python, false),
    planned("drupal", Style::Php, false),
    planned("envelop-response-cache", Style::Plain, false),
    planned("fastapi-cache", Style::Python, false),
    planned("fusioncache", Style::Plain, false),
    planned("gocache", Style::Plain, false),
    planned("laravel", Style::Php, false),
    planned("laravel-9", Style::Php, false),
    planned("layered-loader", Style::Plain, false),
    planned("magento", Style::Php, false),
    planned("medusa", Style::Plain, false),
    planned("neos", Style::Php, false),
    planned("nette", Style::Php, false),
    planned("nextjs", Style::Plain, false),
    planned("nextjs-cache-components", Style::Plain, false),
    planned("nextjs-turbo", Style::Plain, false),
    planned("prefix", Style::Plain, true),
    planned("redis-tagged-cache", Style::Python, false),
    planned("set", Style::Plain, true),
    planned("stamp", Style::Plain, false),
    planned("symfony-redis-tag-aware", Style::Php, false),
    planned("symfony-tag-aware", Style::Php, false),
    planned("typo3", Style::Php, false),
    planned("vendure", Style::Plain, false),
    planned("yii2", Style::Php, false),
];

/// The dialect of that name.
pub fn named(name: &str) -> Option<&'static Dialect> {
    DIALECTS.iter().chain(&PLANNED).find(|dialect| dialect.name == name)
}

impl Library {
    /// The release that is assumed when none is given.
    pub fn default_release(self) -> &'static str {
        match self {
            Library::CacheTagging => "0.7.3",
            Library::CacheDependencies => "0.7.7.48",
        }
    }
}

/// What comes before the tag, and whether the tag is hashed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum KeyFormula {
    /// The tag.
    Verbatim,
    /// This text, then the tag's md5 in hexadecimal.
    Md5(String),
}

impl KeyFormula {
    /// The key of a tag.
    pub fn key(&self, tag: &[u8]) -> Vec<u8> {
        match self {
            KeyFormula::Verbatim => tag.to_vec(),
            KeyFormula::Md5(head) => {
                let mut key = Vec::with_capacity(head.len() + 32);
                key.extend_from_slice(head.as_bytes());
                for byte in Md5::digest(tag) {
                    key.extend([HEX[usize::from(byte >> 4)], HEX[usize::from(byte & 15)]]);
                }
                key
            }
        }
    }
}

const HEX: [u8; 16] = *b"0123456789abcdef";

#[cfg(test)]
mod tests {
    use super::*;

    /// The keys that the real libraries computed for `CategoryModel.pk:15`.
    #[test]
    fn keys_of_the_real_clients() {
        let key = |head: &str| String::from_utf8(KeyFormula::Md5(head.into()).key(b"CategoryModel.pk:15")).unwrap();
        assert_eq!(key(":1:tag_073_"), ":1:tag_073_82f87684924ecd4a815ee924449c3fa1");
        assert_eq!(key("myapp:2:tag_073_"), "myapp:2:tag_073_82f87684924ecd4a815ee924449c3fa1");
        assert_eq!(KeyFormula::Verbatim.key(b"user:15"), b"user:15");
    }
}
