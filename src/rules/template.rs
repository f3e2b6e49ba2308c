//! `CategoryModel.pk:<category_id>`: literal text and placeholders, as written.

use super::filter::{self, Filter};
use super::style::Style;
use super::tables::quoted;

/// A parsed template; it knows names, not columns. [`super::plan`] binds it to a table.
#[derive(Clone, Debug, PartialEq)]
pub struct Template {
    /// As the user wrote it: for messages.
    pub text: String,
    /// Literals and placeholders in order.
    pub pieces: Vec<Piece>,
}

/// A piece of a [`Template`].
#[derive(Clone, Debug, PartialEq)]
pub enum Piece {
    /// Text that goes into the tag as it is.
    Literal(String),
    /// `<name|filter|...>`.
    Placeholder(Placeholder),
}

/// What stands between `<` and `>`.
#[derive(Clone, Debug, PartialEq)]
pub struct Placeholder {
    /// What is looked up.
    pub name: Name,
    /// This style instead of the cache's.
    pub style: Option<Style>,
    /// Applied in order.
    pub filters: Vec<Filter>,
    /// Characters before its `<`.
    pub offset: usize,
    /// Characters from `<` to `>`.
    pub width: usize,
}

/// What a [`Placeholder`] names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Name {
    /// A column, exactly as in the catalog, and the way into it.
    Column(String, Vec<Step>),
    /// `<@table>`: the rule's table.
    Table,
    /// `<@schema>`: its schema.
    Schema,
    /// The whole row (`rows: true`); nobody writes it.
    Row,
}

/// A step from a column's value inwards.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// `.key` of a json object.
    Key(String),
    /// `[]`: one tag for each element of an array.
    Each,
}

/// What is wrong with a template; `offset` and `width` count characters.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Error {
    /// Stable name of the kind of problem.
    pub code: &'static str,
    /// What happened.
    pub message: String,
    /// A word that may be misspelt, and what is known in its place.
    pub wrong: Option<(String, Vec<&'static str>)>,
    /// Characters before the problem.
    pub offset: usize,
    /// Characters that it spans.
    pub width: usize,
}

impl Template {
    /// Parses a template.
    pub fn parse(text: &str) -> Result<Template, Error> {
        let characters: Vec<char> = text.chars().collect();
        let (mut pieces, mut literal, mut at) = (Vec::new(), String::new(), 0);
        while let Some(character) = characters.get(at) {
            match (character, characters.get(at + 1)) {
                ('<', Some('<')) => {
                    literal.push('<');
                    at += 2;
                }
                ('<', _) => {
                    if !literal.is_empty() {
                        pieces.push(Piece::Literal(std::mem::take(&mut literal)));
                    }
                    let width = placeholder_width(&characters, at)?;
                    let inner = characters.get(at + 1..at + width - 1).unwrap_or_default();
                    pieces.push(Piece::Placeholder(placeholder(inner, at, width)?));
                    at += width;
                }
                (other, _) => {
                    literal.push(*other);
                    at += 1;
                }
            }
        }
        if !literal.is_empty() {
            pieces.push(Piece::Literal(literal));
        }
        if pieces.is_empty() {
            return Err(problem("placeholder", "a tag must not be empty".into(), 0, 1));
        }
        Ok(Template { text: text.to_owned(), pieces })
    }

    /// Without a placeholder for a column: the same tag for every row.
    pub fn is_constant(&self) -> bool {
        self.columns().next().is_none() && !self.is_row()
    }

    /// What `rows: true` stands for: the table, a space, and the row.
    pub fn row() -> Template {
        let placeholder =
            |name| Piece::Placeholder(Placeholder { name, style: None, filters: Vec::new(), offset: 0, width: 0 });
        let pieces = vec![placeholder(Name::Table), Piece::Literal(" ".into()), placeholder(Name::Row)];
        Template { text: "rows".into(), pieces }
    }

    /// Is it the whole row?
    pub fn is_row(&self) -> bool {
        self.pieces.iter().any(|piece| matches!(piece, Piece::Placeholder(Placeholder { name: Name::Row, .. })))
    }

    /// The columns that it needs.
    pub fn columns(&self) -> impl Iterator<Item = (&str, &Placeholder)> {
        self.pieces.iter().filter_map(|piece| match piece {
            Piece::Placeholder(placeholder) => match &placeholder.name {
                Name::Column(column, _) => Some((column.as_str(), placeholder)),
                Name::Table | Name::Schema | Name::Row => None,
            },
            Piece::Literal(_) => None,
        })
    }
}

/// Characters from the `<` at `start` to its `>`; a quoted name may hold `>`.
fn placeholder_width(characters: &[char], start: usize) -> Result<usize, Error> {
    let mut quoted = false;
    for (at, character) in characters.iter().enumerate().skip(start + 1) {
        match character {
            '"' => quoted = !quoted,
            '>' if !quoted => return Ok(at - start + 1),
            '<' if !quoted => break,
            _ => {}
        }
    }
    let message = "`<` is not closed by `>`; a literal `<` is written `<<`".into();
    Err(problem("placeholder", message, start, characters.len() - start))
}

fn placeholder(inner: &[char], offset: usize, width: usize) -> Result<Placeholder, Error> {
    let fail = |message: String| problem("placeholder", message, offset, width);
    let parts = split_filters(inner);
    let mut parts = parts.iter();
    let (_, name) = parts.next().cloned().unwrap_or_default();
    let name = match name.trim() {
        "" => return Err(fail("`<>` names no column; a literal `<` is written `<<`".into())),
        "@table" => Name::Table,
        "@schema" => Name::Schema,
        other if other.starts_with('@') => {
            let known = vec!["@table", "@schema"];
            let error = fail(format!("`<{other}>` is not known"));
            return Err(Error { wrong: Some((other.to_owned(), known)), ..error });
        }
        path => {
            let message = format!(
                "`{path}` is not a column name; an odd one is written <\"{}\">, a place in json <column.key>, each element of an array <column[]>",
                path.replace('"', "\"\"")
            );
            path_of(path).ok_or_else(|| fail(message))?
        }
    };
    let mut filters = Vec::new();
    let style = parts.clone().next().and_then(|(_, text)| Style::named(text.trim()));
    for (start, text) in parts.skip(usize::from(style.is_some())) {
        let at = offset + 1 + start;
        let parsed = Filter::parse(text).map_err(|error| match error {
            filter::Error::Unknown(word) => Error {
                wrong: Some((word.clone(), filter::NAMES.to_vec())),
                ..problem("unknown-filter", format!("unknown filter `{word}`"), at, text.chars().count())
            },
            filter::Error::Argument(message) => problem("filter-argument", message, at, text.chars().count()),
        });
        filters.push(parsed?);
    }
    Ok(Placeholder { name, style, filters, offset, width })
}

/// `column`, `"odd name"`, `column.key[].key`.
fn path_of(text: &str) -> Option<Name> {
    let (column, mut rest) = segment(text)?;
    let mut path = Vec::new();
    while !rest.is_empty() {
        if let Some(after) = rest.strip_prefix("[]") {
            path.push(Step::Each);
            rest = after;
        } else {
            let (key, after) = segment(rest.strip_prefix('.')?)?;
            path.push(Step::Key(key));
            rest = after;
        }
    }
    Some(Name::Column(column, path))
}

/// A plain or quoted name, and what follows.
fn segment(text: &str) -> Option<(String, &str)> {
    if text.starts_with('"') {
        return quoted(text);
    }
    let (name, rest) = text.split_at(text.find(['.', '[']).unwrap_or(text.len()));
    let odd = name.is_empty() || name.contains(['"', ']', '(', ')', '{', '}', ' ']);
    (!odd).then(|| (name.to_owned(), rest))
}

/// `name|filter|filter`, each with the characters before it; bars within quotes do not count.
fn split_filters(inner: &[char]) -> Vec<(usize, String)> {
    let (mut parts, mut quoted) = (vec![(0, String::new())], false);
    for (at, character) in inner.iter().enumerate() {
        quoted ^= *character == '"';
        match (character, parts.last_mut()) {
            ('|', _) if !quoted => parts.push((at + 1, String::new())),
            (other, Some((_, part))) => part.push(*other),
            (_, None) => {}
        }
    }
    parts
}

fn problem(code: &'static str, message: String, offset: usize, width: usize) -> Error {
    Error { code, message, wrong: None, offset, width }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn literal(text: &str) -> Piece {
        Piece::Literal(text.into())
    }

    #[test]
    fn pieces() {
        let template = Template::parse("C.pk:<category_id>.T:<type|lower|default:none><<b>").unwrap();
        let [first, Piece::Placeholder(category), second, Piece::Placeholder(kind), last] = template.pieces.as_slice()
        else {
            panic!("{template:?}")
        };
        assert_eq!((first, second, last), (&literal("C.pk:"), &literal(".T:"), &literal("<b>")));
        assert_eq!(
            (category.name.clone(), category.offset, category.width),
            (Name::Column("category_id".into(), Vec::new()), 5, 13)
        );
        assert_eq!(kind.filters, [Filter::Lower, Filter::Default("none".into())]);
        assert!(!template.is_constant());
    }

    #[test]
    fn names() {
        let template = Template::parse("<@schema>.<@table>").unwrap();
        assert!(template.is_constant());
        let template = Template::parse("<\"odd > \"\"na|me\"\"\"|python>").unwrap();
        let (column, placeholder) = template.columns().next().unwrap();
        assert_eq!((column, placeholder.style), ("odd > \"na|me\"", Some(Style::Python)));
        assert_eq!(Template::parse("é:<naïve>").unwrap().columns().next().unwrap().0, "naïve");
    }

    #[test]
    fn paths() {
        let path = |text: &str| {
            let template = Template::parse(text).unwrap();
            let placeholder = template.columns().next().unwrap().1.clone();
            match placeholder.name {
                Name::Column(column, path) => (column, path),
                _ => panic!(),
            }
        };
        let key = |key: &str| Step::Key(key.into());
        assert_eq!(path("<labels[]>"), ("labels".into(), vec![Step::Each]));
        assert_eq!(path("<payload.user.id|lower>"), ("payload".into(), vec![key("user"), key("id")]));
        assert_eq!(path("<\"a.b\".\"c d\"[].e>"), ("a.b".into(), vec![key("c d"), Step::Each, key("e")]));
    }

    #[test]
    fn mistakes_are_placed() {
        for (text, code, offset) in [
            ("a:<id", "placeholder", 2),
            ("a:<>", "placeholder", 2),
            ("a:<b<c>", "placeholder", 2),
            ("é<id|lowr>", "unknown-filter", 5),
            ("<id|lower:3>", "filter-argument", 4),
            ("<id|default>", "filter-argument", 4),
            ("<id|lower|python>", "filter-argument", 10),
            ("<labels[>", "placeholder", 0),
            ("<a..b>", "placeholder", 0),
            ("<a[]b>", "placeholder", 0),
            ("<@tabel>", "placeholder", 0),
            ("", "placeholder", 0),
        ] {
            let error = Template::parse(text).unwrap_err();
            assert_eq!((error.code, error.offset), (code, offset), "{text}: {error:?}");
        }
    }
}
