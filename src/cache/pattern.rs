//! Which keys of a Redis belong to the rules, when the tags cannot be listed: a template without its values.
//!
//! A glob narrows what SCAN returns; what it returns is matched here again, by the template's literals and the types of its
//! columns, so that `user:<id>` never touches `user:15:session`.

use std::collections::{BTreeSet, HashSet};

use tokio_postgres::types::Type;

use super::Cache;
use super::dialect::Texts;
use super::encoding::Encoding;
use super::formula::{Formula, NOTHING};
use super::reach::Way;
use super::step::{Action, Step};
use crate::rules::plan;
use crate::rules::style::Style;
use crate::rules::tables::TableName;
use crate::rules::template::{Name, Piece, Placeholder, Template};

/// The keys of one template, or of one hashed prefix.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Pattern(Vec<Part>);

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
enum Part {
    Literal(Vec<u8>),
    /// An integer as PostgreSQL writes it.
    Integer,
    /// Hexadecimal digits and hyphens: a uuid has 36, an md5 32.
    Hex(usize),
    /// Anything, at least this long.
    Text(usize),
}

/// A template bound to a cache and a table.
pub struct Subject<'a, T: Fn(&str) -> Option<u32>> {
    /// The template.
    pub template: &'a Template,
    /// The cache whose tags it makes.
    pub cache: &'a Cache,
    /// The style of the tag, if it has one of its own.
    pub style: Option<Style>,
    /// Its table.
    pub table: &'a TableName,
    /// The types of the table's columns. One that is not there (any more) may have held anything.
    pub type_of: T,
}

impl Pattern {
    /// Every key of a formula.
    pub fn of_formula(formula: &Formula) -> Option<Pattern> {
        let (head, encoding, tail) = formula.around();
        let part = encoding?.digits().map_or(Part::Text(1), Part::Hex);
        Some(join(vec![Part::Literal(head.to_vec()), part, Part::Literal(tail.to_vec())]))
    }

    /// What a sweep looks for in place of a tag that has no key.
    pub fn of_tag(cache: &Cache, tag: &[u8]) -> Vec<Pattern> {
        // An empty text would be every key.
        if tag.is_empty() {
            return Vec::new();
        }
        let scans = cache.steps.iter().filter(|step| step.action == Action::Scan);
        let listed = cache.reach.ways.iter().any(|way| matches!(way, Way::Index { .. }));
        let pattern = |step: &Step| {
            let text = step.key.render(&NOTHING.with(tag));
            if listed { Pattern::exactly(&text) } else { Pattern::starting(&text) }
        };
        scans.map(pattern).collect()
    }

    /// Every key that starts so.
    pub fn starting(head: &[u8]) -> Pattern {
        join(vec![Part::Literal(head.to_vec()), Part::Text(0)])
    }

    /// This text alone.
    pub fn exactly(text: &[u8]) -> Pattern {
        Pattern(vec![Part::Literal(text.to_vec())])
    }

    /// The keys of a formula that a template can render. `None` if that would reach further than the rules (what comes before the first
    /// column must end in a separator).
    pub fn of_template(formula: &Formula, of: &Subject<impl Fn(&str) -> Option<u32>>, open: bool) -> Option<Pattern> {
        let (head, encoding, tail) = formula.around();
        if *encoding? != Encoding::Verbatim {
            return Pattern::of_formula(formula);
        }
        let mut parts = vec![Part::Literal(head.to_vec())];
        parts.extend(of.template.pieces.iter().map(|piece| of.part(piece)));
        parts.push(Part::Literal(tail.to_vec()));
        parts.extend(open.then_some(Part::Text(0)));
        let Pattern(parts) = join(parts);
        let separator = |last: &u8| last.is_ascii() && !last.is_ascii_alphanumeric();
        let anchored = match parts.as_slice() {
            [Part::Literal(_)] => true,
            [Part::Literal(text), ..] => text.last().is_some_and(separator),
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

    /// Does every key of a tag that is looked for ([`Pattern::of_tag`]) belong to it?
    pub fn covers(&self, other: &Pattern) -> bool {
        match other.0.as_slice() {
            [Part::Literal(text)] => self.matches(text),
            [Part::Literal(head), Part::Text(0)] => matches!(self.0.last(), Some(Part::Text(_))) && self.matches(head),
            _ => false,
        }
    }

    /// Does this key belong to it?
    pub fn matches(&self, key: &[u8]) -> bool {
        key.starts_with(self.prefix()) && fits(&self.0, key)
    }
}

/// Patterns together: thousands of plain heads and texts cost a look-up, not a comparison each.
pub struct Matcher<'a> {
    /// Texts that a key begins with; none begins with another.
    heads: BTreeSet<&'a [u8]>,
    texts: HashSet<&'a [u8]>,
    others: Vec<&'a Pattern>,
}

impl<'a> Matcher<'a> {
    /// Of these.
    pub fn new(patterns: &'a BTreeSet<Pattern>) -> Matcher<'a> {
        let mut matcher = Matcher { heads: BTreeSet::new(), texts: HashSet::new(), others: Vec::new() };
        for pattern in patterns {
            match pattern.0.as_slice() {
                [Part::Literal(text)] => drop(matcher.texts.insert(text)),
                // In their order a head comes before those that begin with it.
                [Part::Literal(head), Part::Text(0)] if !matcher.starts(head) => drop(matcher.heads.insert(head)),
                [Part::Literal(_), Part::Text(0)] => {}
                _ => matcher.others.push(pattern),
            }
        }
        matcher
    }

    fn starts(&self, key: &[u8]) -> bool {
        self.heads.range(..=key).next_back().is_some_and(|head| key.starts_with(head))
    }

    /// Does one of them match?
    pub fn matches(&self, key: &[u8]) -> bool {
        self.texts.contains(key) || self.starts(key) || self.others.iter().any(|pattern| pattern.matches(key))
    }
}

/// A glob for every key that starts like all of `patterns`.
pub fn common_glob(patterns: &BTreeSet<Pattern>) -> Vec<u8> {
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

/// Literals side by side are one.
fn join(parts: Vec<Part>) -> Pattern {
    let mut joined: Vec<Part> = Vec::new();
    for part in parts {
        match (joined.last_mut(), part) {
            (_, Part::Literal(text)) if text.is_empty() => {}
            (Some(Part::Literal(text)), Part::Literal(more)) => text.extend(more),
            (_, part) => joined.push(part),
        }
    }
    Pattern(joined)
}

impl<T: Fn(&str) -> Option<u32>> Subject<'_, T> {
    fn part(&self, piece: &Piece) -> Part {
        match piece {
            Piece::Literal(text) => Part::Literal(text.as_bytes().to_vec()),
            Piece::Placeholder(placeholder) => match &placeholder.name {
                Name::Table => Part::Literal(plan::constant(&self.table.name, placeholder)),
                Name::Schema => Part::Literal(plan::constant(&self.table.schema, placeholder)),
                Name::Row => Part::Text(0),
                Name::Column(column, _) => self.column(placeholder, (self.type_of)(column)),
            },
        }
    }

    /// What a column can be written as.
    fn column(&self, placeholder: &Placeholder, type_oid: Option<u32>) -> Part {
        let style = placeholder.style.or(self.style).unwrap_or(self.cache.style);
        let text = Part::Text(usize::from(self.cache.dialect.tags == Texts::Keys));
        // A filter may write anything, and a style may write NULL as a word.
        if !placeholder.filters.is_empty() || style.null().is_some() {
            return text;
        }
        match type_oid.and_then(Type::from_oid) {
            Some(Type::INT2 | Type::INT4 | Type::INT8 | Type::OID) => Part::Integer,
            Some(Type::UUID) => Part::Hex(36),
            _ => text,
        }
    }
}

/// Follows every position of the key that the parts so far can end at: the time is the product of the lengths, whatever
/// the key (whoever fills the cache chooses its keys).
fn fits(parts: &[Part], key: &[u8]) -> bool {
    let mut reachable = vec![false; key.len() + 1];
    if let Some(start) = reachable.first_mut() {
        *start = true;
    }
    for part in parts {
        let mut next = vec![false; key.len() + 1];
        let mut reach = |at: usize| next.get_mut(at).into_iter().for_each(|there| *there = true);
        let starts = reachable.iter().enumerate().filter(|(_, there)| **there).map(|(at, _)| at);
        for start in starts {
            let rest = key.get(start..).unwrap_or_default();
            match part {
                Part::Literal(text) if rest.starts_with(text) => reach(start + text.len()),
                Part::Hex(length) => {
                    let digits = rest.iter().take_while(|byte| byte.is_ascii_hexdigit() || **byte == b'-').count();
                    if digits >= *length {
                        reach(start + length);
                    }
                }
                Part::Integer => {
                    let sign = usize::from(rest.first() == Some(&b'-'));
                    let digits = rest.iter().skip(sign).take_while(|byte| byte.is_ascii_digit()).count();
                    (1..=digits).for_each(|count| reach(start + sign + count));
                }
                // Everything behind the first start is reachable: later starts add nothing.
                Part::Text(least) => {
                    (start + least..=key.len()).for_each(&mut reach);
                    break;
                }
                Part::Literal(_) => {}
            }
        }
        reachable = next;
    }
    reachable.last() == Some(&true)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The pattern in a cache of these options.
    fn pattern_in(options: &str, template: &str) -> Option<Pattern> {
        let text = format!("{{version: 1, caches: {{c: {{url: 'redis://h', {options}}}}}}}");
        let around = crate::rules::expand::Surroundings::new(&|_| None, None);
        let rules = crate::rules::Rules::parse(vec![("r.yaml".into(), text.into())], &around).unwrap();
        let table = TableName { schema: "shop".into(), name: "t".into() };
        let type_of = |column: &str| match column {
            "id" => Some(Type::INT8.oid()),
            "unknown" => None,
            _ => Some(Type::TEXT.oid()),
        };
        let (template, cache) = (&Template::parse(template).unwrap(), &rules.caches[0]);
        let subject = Subject { template, cache, style: None, table: &table, type_of };
        Pattern::of_template(&cache.steps[0].key, &subject, false)
    }

    fn pattern(template: &str) -> Option<Pattern> {
        pattern_in("dialect: keys", template)
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
            ("<@schema>.<@table|upper>:<id>", "shop.T:7", true),
            ("users", "users", true),
            ("users", "users2", false),
        ] {
            assert_eq!(pattern(template).unwrap().matches(key.as_bytes()), owed, "{template} {key}");
        }
        // These could be any key.
        assert_eq!((pattern("<id>"), pattern("user<id>"), pattern("<name>:x")), (None, None, None));
        assert_eq!(pattern("clé<id>"), None);
        assert!(pattern("a:<unknown>").unwrap().matches(b"a:x:y"), "doubt invalidates");
        // What Python writes for NULL is no integer; where empty text is a tag, it is a key as well.
        assert!(pattern_in("dialect: keys, style: python", "user:<id>").unwrap().matches(b"user:None"));
        assert!(pattern_in("dialect: version, ttl: 1h, absent: stale", "n:<name>").unwrap().matches(b"n:"));
    }

    #[test]
    fn a_key_made_to_be_slow_is_not() {
        let key = ":".repeat(20_000);
        let begin = std::time::Instant::now();
        assert!(!pattern("s:<a>:<b>:<c>:<d>:x").unwrap().matches(format!("s:{key}").as_bytes()));
        assert!(begin.elapsed() < std::time::Duration::from_secs(2));
    }

    #[test]
    fn hashed_keys() {
        let pattern = Pattern::of_formula(&Formula::parse("app[1]:1:tag_073_<tag|md5>", &|_| None).unwrap()).unwrap();
        assert!(pattern.matches(b"app[1]:1:tag_073_82f87684924ecd4a815ee924449c3fa1"));
        assert!(!pattern.matches(b"app[1]:1:tag_073_82f87684924ecd4a815ee924449c3fa1x"));
        assert!(!pattern.matches(b"app[1]:1:page:1"));
        assert_eq!(common_glob(&[pattern].into()), br"app\[1\]:1:tag_073_*");
    }

    #[test]
    fn many_at_once() {
        let heads = ["ab", "a", "b:", "b:1", "c"].map(|head| Pattern::starting(head.as_bytes()));
        let all: BTreeSet<Pattern> =
            heads.into_iter().chain([Pattern::exactly(b"x"), pattern("u:<id>").unwrap()]).collect();
        let matcher = Matcher::new(&all);
        for key in ["a", "ab", "azz", "b:2", "b:1x", "c", "cc", "x", "u:7"] {
            assert!(matcher.matches(key.as_bytes()), "{key}");
        }
        for key in ["", "b", "xx", "u:x", "u:", "A"] {
            assert!(!matcher.matches(key.as_bytes()), "{key}");
        }
    }

    #[test]
    fn one_glob_for_all() {
        let patterns = [pattern("user:<id>").unwrap(), pattern("users").unwrap()];
        assert_eq!(common_glob(&patterns.into()), b"user*");
        assert_eq!(common_glob(&[pattern("a").unwrap(), pattern("b").unwrap()].into()), b"*");
    }
}
