//! Names of tables, exactly as in the catalog, and patterns of them.

use std::fmt;

use crate::plain::plain;

/// Schema and name exactly as in the catalog.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TableName {
    /// Schema.
    pub schema: String,
    /// Name.
    pub name: String,
}

/// The tables of a rule.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum TableSet {
    /// `table:`.
    One(TableName),
    /// `tables:`: patterns of schema and name, and those of exceptions.
    Matching {
        /// What belongs to it, ...
        include: Vec<TableName>,
        /// ... unless it is here.
        exclude: Vec<TableName>,
    },
}

impl fmt::Display for TableName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", plain(&self.schema), plain(&self.name))
    }
}

impl TableName {
    /// `name`, `schema.name`, or either part in double quotes; `schema` when none is given.
    pub fn parse_in(schema: &str, text: &str) -> Option<TableName> {
        let (first, rest) = part(text)?;
        if rest.is_empty() {
            return Some(TableName { schema: schema.to_owned(), name: first });
        }
        let (second, rest) = part(rest.strip_prefix('.')?)?;
        rest.is_empty().then_some(TableName { schema: first, name: second })
    }

    /// The same in the schema `public`.
    pub fn parse(text: &str) -> Option<TableName> {
        TableName::parse_in("public", text)
    }

    /// As an SQL identifier.
    pub fn sql(&self) -> String {
        use crate::source::session::identifier;
        format!("{}.{}", identifier(&self.schema), identifier(&self.name))
    }

    /// What [`TableName::sql`] has written; nothing if it is anything else.
    pub fn parse_sql(text: &str) -> Option<TableName> {
        // What is escaped (U&"...") has lost its quotes' meaning: it is found by how it would be written.
        let plain = TableName::parse(text).filter(|table| table.sql() == text);
        plain.or_else(|| {
            let (schema, rest) = unescaped(text)?;
            let (name, rest) = unescaped(rest.strip_prefix('.')?)?;
            let table = TableName { schema, name };
            (rest.is_empty() && table.sql() == text).then_some(table)
        })
    }

    /// Read as a pattern: does `table` match it?
    fn matches(&self, table: &TableName) -> bool {
        fits(self.schema.as_bytes(), table.schema.as_bytes()) && fits(self.name.as_bytes(), table.name.as_bytes())
    }
}

impl TableSet {
    /// Does this table belong to it?
    pub fn contains(&self, table: &TableName) -> bool {
        match self {
            TableSet::One(one) => one == table,
            TableSet::Matching { include, exclude } => {
                include.iter().any(|pattern| pattern.matches(table))
                    && !exclude.iter().any(|pattern| pattern.matches(table))
            }
        }
    }

    /// The one table, if it is not a pattern.
    pub fn one(&self) -> Option<&TableName> {
        match self {
            TableSet::One(one) => Some(one),
            TableSet::Matching { .. } => None,
        }
    }

    /// Its tables: the one, whether it is known or not, or those among `known` that match.
    pub fn among<'a>(&self, known: impl IntoIterator<Item = &'a TableName>) -> Vec<TableName> {
        match self {
            TableSet::One(one) => vec![one.clone()],
            TableSet::Matching { .. } => {
                let mut matching: Vec<_> = known.into_iter().filter(|table| self.contains(table)).cloned().collect();
                matching.sort();
                matching
            }
        }
    }
}

impl fmt::Display for TableSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            TableSet::One(one) => one.fmt(f),
            TableSet::Matching { include, exclude } => {
                let list =
                    include.iter().map(ToString::to_string).chain(exclude.iter().map(|table| format!("!{table}")));
                f.write_str(&list.collect::<Vec<_>>().join(", "))
            }
        }
    }
}

/// An identifier in double quotes, with `U&` and escapes or without, and what follows.
fn unescaped(text: &str) -> Option<(String, &str)> {
    let Some(escaped) = text.strip_prefix("U&") else { return quoted(text) };
    let (name, rest) = quoted(escaped)?;
    let mut out = String::new();
    let mut pieces = name.split('\\');
    out.push_str(pieces.next()?);
    while let Some(piece) = pieces.next() {
        match piece.strip_prefix('+') {
            Some(number) => {
                out.push(char::from_u32(u32::from_str_radix(number.get(..6)?, 16).ok()?)?);
                out.push_str(number.get(6..)?);
            }
            // Two of them are one.
            None if piece.is_empty() => {
                out.push('\\');
                out.push_str(pieces.next()?);
            }
            None => return None,
        }
    }
    Some((out, rest))
}

fn part(text: &str) -> Option<(String, &str)> {
    if text.starts_with('"') {
        return quoted(text);
    }
    let (name, rest) = text.split_at(text.find('.').unwrap_or(text.len()));
    (!name.is_empty()).then(|| (name.to_owned(), rest))
}

/// A name in double quotes (`""` is one of them) and what follows; `None` if it is empty or not closed.
pub(super) fn quoted(text: &str) -> Option<(String, &str)> {
    let mut rest = text.strip_prefix('"')?;
    let mut name = String::new();
    loop {
        let (before, after) = rest.split_once('"')?;
        name.push_str(before);
        match after.strip_prefix('"') {
            Some(tail) => {
                name.push('"');
                rest = tail;
            }
            None => return (!name.is_empty()).then_some((name, after)),
        }
    }
}

/// `*` is any text, `?` one byte. In time of the product of the lengths, whatever the pattern.
pub(super) fn fits(pattern: &[u8], text: &[u8]) -> bool {
    let (mut at, mut read, mut star) = (0, 0, None);
    while read < text.len() {
        match pattern.get(at) {
            Some(b'*') => {
                star = Some((at, read));
                at += 1;
            }
            Some(byte) if *byte == b'?' || text.get(read) == Some(byte) => {
                at += 1;
                read += 1;
            }
            // The last star takes one more.
            _ => match star {
                Some((place, taken)) => {
                    star = Some((place, taken + 1));
                    (at, read) = (place + 1, taken + 1);
                }
                None => return false,
            },
        }
    }
    pattern.get(at..).unwrap_or_default().iter().all(|byte| *byte == b'*')
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(schema: &str, name: &str) -> TableName {
        TableName { schema: schema.into(), name: name.into() }
    }

    #[test]
    fn table_names() {
        assert_eq!(TableName::parse("first_model"), Some(name("public", "first_model")));
        assert_eq!(TableName::parse_in("app", "first_model"), Some(name("app", "first_model")));
        assert_eq!(TableName::parse("shop.Product"), Some(name("shop", "Product")));
        assert_eq!(TableName::parse("\"odd.schema\".\"a \"\"b\"\"\""), Some(name("odd.schema", "a \"b\"")));
        for bad in ["", ".", "a.", "a.b.c", "\"a", "\"\"", "a.\"b\"c"] {
            assert_eq!(TableName::parse(bad), None, "{bad}");
        }
    }

    #[test]
    fn patterns() {
        let set = TableSet::Matching {
            include: vec![name("shop", "*"), name("tenant_*", "invoices")],
            exclude: vec![name("shop", "audit_*")],
        };
        for (table, belongs) in [
            (name("shop", "orders"), true),
            (name("shop", "audit_log"), false),
            (name("tenant_7", "invoices"), true),
            (name("tenant_7", "orders"), false),
            (name("shops", "orders"), false),
        ] {
            assert_eq!(set.contains(&table), belongs, "{table}");
        }
        assert_eq!(set.to_string(), "shop.*, tenant_*.invoices, !shop.audit_*");
        assert!(fits(b"a*b?c*", b"axxbxc") && fits(b"*", b"") && fits(b"", b""));
        assert!(!fits(b"a*b?c*", b"axxbxyc") && !fits(b"", b"x"));
        assert!(!fits("*a".repeat(30).as_bytes(), "a".repeat(29).as_bytes()));
    }
}
