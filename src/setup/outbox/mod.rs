//! The outbox: triggers that write down what the rules need of each change, in its transaction. What is needed ([`need`]) of which relations
//! ([`carriers`]), what is there ([`triggers`]), and the difference as SQL ([`statements`]).
//!
//! Row triggers: they see each old row with its new one, fire for writes to a leaf and by the apply worker of a logical subscriber, and
//! are cloned to partitions that are made later. Triggers of statements do none of that.

pub mod carriers;
pub mod need;
pub mod statements;
pub mod triggers;
