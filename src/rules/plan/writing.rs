//! How a column's value becomes text, and what needs no column.

use std::borrow::Cow;

use super::Cell;
use crate::rules::filter::Filter;
use crate::rules::style::Style;
use crate::rules::tables::TableName;
use crate::rules::template::{Name, Piece as Written, Placeholder, Template};

/// The text of a template without columns.
pub(crate) fn plain(template: &Template, table: &TableName) -> Vec<u8> {
    let mut text = Vec::new();
    for piece in &template.pieces {
        match piece {
            Written::Literal(literal) => text.extend_from_slice(literal.as_bytes()),
            Written::Placeholder(placeholder) => text.extend(match placeholder.name {
                Name::Schema => constant(&table.schema, placeholder),
                _ => constant(&table.name, placeholder),
            }),
        }
    }
    text
}

pub(super) fn cell<'a>(row: &[Cell<'a>], index: usize) -> Cell<'a> {
    row.get(index).copied().unwrap_or(Cell::Unknown)
}

/// A row, with what was not sent taken from the other image.
pub(super) fn patched<'a>(row: &[Cell<'a>], other: &[Cell<'a>]) -> Vec<Cell<'a>> {
    row.iter().zip(other).map(|(own, other)| if *own == Cell::Unknown { *other } else { *own }).collect()
}

/// How a column's value becomes text: its style first, then the filters in order.
pub(super) struct Writing {
    pub(super) type_oid: u32,
    pub(super) style: Style,
    /// What NULL is before the filters: only a style that the placeholder names itself says so.
    pub(super) null: Option<&'static str>,
    pub(super) filters: Vec<Filter>,
}

/// A value as a placeholder writes it in a cache of this style; `None` skips the tag.
pub(crate) fn written<'a>(
    placeholder: &Placeholder,
    style: Style,
    type_oid: u32,
    text: Option<Cow<'a, str>>,
) -> Option<Cow<'a, str>> {
    Writing::of(placeholder, style, type_oid).write(type_oid, text)
}

impl Writing {
    /// Of a placeholder, in a cache of this style.
    pub(super) fn of(placeholder: &Placeholder, style: Style, type_oid: u32) -> Writing {
        let null = placeholder.style.and_then(Style::null);
        let filters = placeholder.filters.clone();
        Writing { type_oid, style: placeholder.style.unwrap_or(style), null, filters }
    }

    /// `None` skips the tag: NULL that neither the style nor a filter gives a text.
    pub(super) fn write<'a>(&self, type_oid: u32, value: Option<Cow<'a, str>>) -> Option<Cow<'a, str>> {
        let text = match value {
            Some(Cow::Borrowed(text)) => Some(self.style.write(type_oid, text)),
            Some(Cow::Owned(text)) => Some(Cow::Owned(self.style.write(type_oid, &text).into_owned())),
            None => self.null.map(Into::into),
        };
        filtered(text, &self.filters).or_else(|| self.style.null().map(Into::into))
    }
}

pub(super) fn filtered<'a>(text: Option<Cow<'a, str>>, filters: &[Filter]) -> Option<Cow<'a, str>> {
    filters.iter().fold(text, |text, filter| filter.apply(text))
}

/// `<@table>` and `<@schema>`.
pub(crate) fn constant(name: &str, placeholder: &Placeholder) -> Vec<u8> {
    filtered(Some(name.into()), &placeholder.filters).unwrap_or_default().into_owned().into_bytes()
}
