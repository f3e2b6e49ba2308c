//! `ignore` and `only`, bound to columns: does an update count?

use super::writing::cell;
use super::{Cell, Change};

/// Which columns decide.
pub(super) struct BoundChanges {
    /// Only these; otherwise all but these.
    pub(super) only: bool,
    /// Their places.
    pub(super) columns: Vec<usize>,
}

impl BoundChanges {
    /// Did something change that counts? Where that is not known, it did.
    pub(super) fn concern(&self, change: &Change) -> bool {
        let (Some(old), Some(new)) = (change.old, change.new) else { return true };
        let differs = |index: usize| match (cell(old, index), cell(new, index)) {
            // TOAST that did not change.
            (_, Cell::Unknown) => false,
            (Cell::Unknown | Cell::Lost, _) | (_, Cell::Lost) => true,
            (old, new) => old != new,
        };
        match self.only {
            true => self.columns.iter().any(|index| differs(*index)),
            false => (0..old.len().max(new.len())).any(|index| !self.columns.contains(&index) && differs(index)),
        }
    }
}
