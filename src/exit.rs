//! Exit codes, after sysexits.h: scripts and systemd act on them.

/// Why the process ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    /// Wrong usage of the command line.
    Usage = 64,
    /// Rules or rule tests are wrong.
    Rules = 65,
    /// A rule path is missing, unreadable or empty.
    NoRules = 66,
    /// A server is away (one-shot commands).
    Unavailable = 69,
    /// A bug in waltag.
    Bug = 70,
    /// Not ready yet (`status`).
    NotYet = 75,
    /// A privilege is missing.
    NoPermission = 77,
    /// Settings, authentication, a missing publication.
    Config = 78,
}
