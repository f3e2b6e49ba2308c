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
        options: &["key_prefix", "version", "release", "releases", "mode"],
    },
    Dialect {
        name: "cache-tagging",
        style: Style::Python,
        keys: KeyForm::DjangoTag(Library::CacheTagging),
        operation: OperationForm::UnlinkOrSet,
        empty_skips: false,
        options: &["key_prefix", "version", "release", "releases", "mode"],
    },
    Dialect {
        name: "keys",
        style: Style::Plain,
        keys: KeyForm::Verbatim,
        operation: OperationForm::Unlink,
        empty_skips: true,
        options: &[],
    },
    Dialect {
        name: "version",
        style: Style::Plain,
        keys: KeyForm::Verbatim,
        operation: OperationForm::Version,
        empty_skips: false,
        options: &["ttl", "absent"],
    },
];

/// The dialect of that name.
pub fn named(name: &str) -> Option<&'static Dialect> {
    DIALECTS.iter().find(|dialect| dialect.name == name)
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
