//! Templates with `<labels[]>`: one row, many tags.

use std::borrow::Cow;

use super::super::template::Step;
use super::super::value::walk;
use super::Cell;
use super::entry::{Entry, Piece, UNREADABLE};
use super::writing::cell;
use crate::tags::Tags;

/// Tags that one row fans out to at most, and their bytes: two long arrays must not fill the memory.
const MOST: usize = 10_000;
const MOST_BYTES: usize = 4 << 20;

impl Entry {
    /// One tag for each combination of elements.
    pub(super) fn fan_out(&self, pieces: &[Piece], row: &[Cell], tags: &mut Tags) -> Result<bool, &'static str> {
        let mut heads: Vec<Vec<u8>> = vec![Vec::new()];
        for piece in pieces {
            match piece {
                Piece::Literal(bytes) => heads.iter_mut().for_each(|head| head.extend_from_slice(bytes)),
                Piece::Row(whole) => heads.iter_mut().for_each(|head| whole.write(row, head)),
                Piece::Column { index, path, writing } => {
                    let values: Vec<Option<Cow<str>>> = match cell(row, *index) {
                        Cell::Text(text) => walk(writing.type_oid, text, path)
                            .ok_or(UNREADABLE)?
                            .into_iter()
                            .map(|(oid, value)| writing.write(oid, value))
                            .collect(),
                        Cell::Null | Cell::Unknown | Cell::Lost if path.contains(&Step::Each) => Vec::new(),
                        Cell::Null | Cell::Unknown | Cell::Lost => vec![writing.write(writing.type_oid, None)],
                    };
                    let (mut longer, mut bytes) = (Vec::new(), 0);
                    for head in &heads {
                        for value in &values {
                            let mut next = head.clone();
                            if self.push(&mut next, value.clone()) {
                                bytes += next.len();
                                longer.push(next);
                            }
                            if longer.len() > MOST || bytes > MOST_BYTES {
                                return Err("the row fans out to too many tags");
                            }
                        }
                    }
                    heads = longer;
                }
            }
        }
        if let Some(reason) = heads.iter().find_map(|head| self.too_long(head.len())) {
            return Err(reason);
        }
        let new: u64 = heads.iter().map(|tag| u64::from(tags.insert(tag))).sum();
        self.made.inc_by(new);
        Ok(!heads.is_empty())
    }
}
