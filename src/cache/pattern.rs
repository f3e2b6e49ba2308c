//! Which keys of a Redis belong to the rules, when the tags cannot be listed: a template without its values.
//!
//! A glob narrows what SCAN returns; what it returns is matched here again, by the template's literals and the types of its
//! columns, so that `user:<id>` never touches `user:15:session`.

use tokio_postgres::types::Type;

use super::dialect::KeyFormula;
use crate::rules::template::{Name, Piece, Template};

/// The keys of one template, or of one hashed prefix.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pattern(Vec<Part>);

#[derive(Clone, Debug, PartialEq, Eq)]
enum Part {
    Literal(Vec<u8>),
    /// An integer as PostgreSQL writes it.
    Integer,
    /// Hexadecimal digits and hyphens: a uuid has 36, an md5 32.
    Hex(usize),
    /// Anything, at least one byte.
    Text,
}

impl Pattern {
    /// Every tag key of a hashed formula.
    pub fn of_formula(formula: &KeyFormula) -> Option<Pattern> {
        match formula {
            KeyFormula::Md5(head) => Some(Pattern(vec![Part::Literal(head.as_bytes().to_vec()), Part::Hex(32)])),
            KeyFormula::Verbatim => None,
        }
    }

    /// The keys that a template can render where the tag is the key. `None` if that would reach further than the rules:
    /// a template with columns must start with a literal that ends in a separator.
    pub fn of_template(
        template: &Template,
        schema: &str,
        table: &str,
        type_of: impl Fn(&str) -> u32,
    ) -> Option<Pattern> {
        let mut parts: Vec<Part> = Vec::new();
        for piece in &template.pieces {
            let part = match piece {
                Piece::Literal(text) => Part::Literal(text.as_bytes().to_vec()),
                Piece::Placeholder(placeholder) => match &placeholder.name {
                    Name::Table => Part::Literal(table.as_bytes().to_vec()),
                    Name::Schema => Part::Literal(schema.as_bytes().to_vec()),
                    // A filter may write anything.
                    Name::Column(_) if !placeholder.filters.is_empty() => Part::Text,
                    Name::Column(column) => match Type::from_oid(type_of(column)) {
                        Some(Type::INT2 | Type::INT4 | Type::INT8 | Type::OID) => Part::Integer,
                        Some(Type::UUID) => Part::Hex(36),
                        _ => Part::Text,
                    },
                },
            };
            match (parts.last_mut(), part) {
                (Some(Part::Literal(text)), Part::Literal(more)) => text.extend(more),
                (_, part) => parts.push(part),
            }
        }
        let anchored = match parts.as_slice() {
            [Part::Literal(_)] => true,
            [Part::Literal(text), ..] => text.last().is_some_and(|last| !last.is_ascii_alphanumeric()),
            _ => false,
        };
        anchored.then_some(Pattern(parts))
    }

    /// The literal that it starts with.
    pub fn prefix(&self) -> &[u8] {
        match self.0.first() {
            Some(Part::Literal(text)) => text,
            _ => b"",
        }
    }

    /// Does this key belong to it?
    pub fn matches(&self, key: &[u8]) -> bool {
        fits(&self.0, key)
    }
}

/// A glob for every key that starts like all of `patterns`.
pub fn common_glob(patterns: &[Pattern]) -> Vec<u8> {
    let mut prefix = patterns.first().map(Pattern::prefix).unwrap_or_default();
    for pattern in patterns {
        let same = prefix.iter().zip(pattern.prefix()).take_while(|(a, b)| a == b).count();
        prefix = prefix.get(..same).unwrap_or_default();
    }
    let mut glob = Vec::with_capacity(prefix.len() + 1);
    for byte in prefix {
        if br"\*?[]^".contains(byte) {
            glob.push(b'\\');
        }
        glob.push(*byte);
    }
    glob.push(b'*');
    glob
}

fn fits(parts: &[Part], key: &[u8]) -> bool {
    let Some((first, rest)) = parts.split_first() else { return key.is_empty() };
    match first {
        Part::Literal(text) => key.strip_prefix(text.as_slice()).is_some_and(|tail| fits(rest, tail)),
        Part::Hex(length) => key.split_at_checked(*length).is_some_and(|(digits, tail)| {
            digits.iter().all(|byte| byte.is_ascii_hexdigit() || *byte == b'-') && fits(rest, tail)
        }),
        Part::Integer => {
            let sign = usize::from(key.first() == Some(&b'-'));
            let digits = key.iter().skip(sign).take_while(|byte| byte.is_ascii_digit()).count();
            digits > 0 && fits(rest, key.get(sign + digits..).unwrap_or_default())
        }
        Part::Text => (1..=key.len()).any(|length| fits(rest, key.get(length..).unwrap_or_default())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pattern(template: &str) -> Option<Pattern> {
        let type_of = |column: &str| if column == "id" { Type::INT8.oid() } else { Type::TEXT.oid() };
        Pattern::of_template(&Template::parse(template).unwrap(), "shop", "t", type_of)
    }

    #[test]
    fn what_a_template_can_render_and_nothing_else() {
        for (template, key, owed) in [
            ("user:<id>", "user:15", true),
            ("user:<id>", "user:-15", true),
            ("user:<id>", "user:15:session", false),
            ("user:<id>", "user:", false),
            ("user:<id>", "user:x", false),
            ("user:email:<email>", "user:email:a@b", true),
            ("user:email:<email>", "user:email:", false),
            ("a:<id>.b:<name>", "a:1.b:x.y", true),
            ("a:<id>.b:<name>", "a:1.c:x", false),
            ("<@schema>.<@table>:<id>", "shop.t:7", true),
            ("users", "users", true),
            ("users", "users2", false),
        ] {
            assert_eq!(pattern(template).unwrap().matches(key.as_bytes()), owed, "{template} {key}");
        }
        // These could be any key.
        assert_eq!((pattern("<id>"), pattern("user<id>"), pattern("<name>:x")), (None, None, None));
    }

    #[test]
    fn hashed_keys() {
        let pattern = Pattern::of_formula(&KeyFormula::Md5("app[1]:1:tag_073_".into())).unwrap();
        assert!(pattern.matches(b"app[1]:1:tag_073_82f87684924ecd4a815ee924449c3fa1"));
        assert!(!pattern.matches(b"app[1]:1:tag_073_82f87684924ecd4a815ee924449c3fa1x"));
        assert!(!pattern.matches(b"app[1]:1:page:1"));
        assert_eq!(common_glob(&[pattern]), br"app\[1\]:1:tag_073_*");
    }

    #[test]
    fn one_glob_for_all() {
        let patterns = [pattern("user:<id>").unwrap(), pattern("users").unwrap()];
        assert_eq!(common_glob(&patterns), b"user*");
        assert_eq!(common_glob(&[pattern("a").unwrap(), pattern("b").unwrap()]), b"*");
    }
}
