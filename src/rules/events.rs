//! The kinds of change that a tag listens to.

/// One kind of change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// A new row.
    Insert,
    /// A changed row.
    Update,
    /// A deleted row.
    Delete,
    /// An emptied table.
    Truncate,
}

/// Every event with its name.
pub const EVENTS: [(Event, &str); 4] =
    [(Event::Insert, "insert"), (Event::Update, "update"), (Event::Delete, "delete"), (Event::Truncate, "truncate")];

impl Event {
    /// As it is written.
    pub fn name(self) -> &'static str {
        EVENTS.iter().find(|(event, _)| *event == self).map_or("", |(_, name)| name)
    }
}

/// A set of events.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Events(u8);

impl Events {
    /// No event.
    pub const NONE: Events = Events(0);
    /// Every event.
    pub const ALL: Events = Events(0b1111);

    /// With one more.
    #[must_use]
    pub fn with(self, event: Event) -> Events {
        Events(self.0 | 1 << event as u8)
    }

    /// Those in both.
    #[must_use]
    pub fn and(self, other: Events) -> Events {
        Events(self.0 & other.0)
    }

    /// Is it in the set?
    pub fn contains(self, event: Event) -> bool {
        self.0 & 1 << event as u8 != 0
    }
}
