//! Where committed changes come from: PostgreSQL's logical replication.
//!
//! [`dsn`] -> [`endpoint`] -> a SQL [`session`] and a [`replication`] stream to the same server; [`visibility`] says which
//! transactions readers see.

pub mod clock;
pub mod dsn;
mod dsn_defaults;
mod dsn_tls;
pub mod endpoint;
pub mod lsn;
pub mod replica;
pub mod replication;
pub mod server_error;
pub mod session;
pub mod visibility;
