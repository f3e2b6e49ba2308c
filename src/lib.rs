//! waltag makes tagged cache entries in Redis stale when PostgreSQL rows change: after the commit, and not before every
//! reader can see it.
//!
//! The modules stand in the order in which a row travels:
//!
//! | module | |
//! |---|---|
//! | [`source`] | the SQL session and the replication stream of one PostgreSQL primary; which transactions readers see |
//! | [`rules`] | the YAML registry: table rows to tag templates, compiled into a plan per relation |
//! | [`tags`] | distinct tags, back to back |
//! | [`flow`] | message to tags to fence to lanes |
//! | [`fence`] | tags wait here until every new snapshot sees their transaction |
//! | [`cache`] | dialects as data, the Redis commands, a lane per cache, the marker |
//! | [`daemon`] | the loop that moves it all, and confirms what is done |
//!
//! Around it: [`cli`] and [`settings`] (what was typed, and what it means), [`command`] (one module per command),
//! [`setup`] (what the database needs), [`status`] and [`metrics`] (what operators see), [`demo`].

pub mod source;

pub mod rules;

pub mod tags;

pub mod flow;

pub mod fence;

pub mod cache;

pub mod daemon;

mod backoff;
pub mod cli;
pub mod command;
pub mod demo;
pub mod exit;
pub mod failure;
pub mod files;
pub mod http;
pub mod log;
pub mod metrics;
pub mod plain;
mod quantity;
pub mod settings;
pub mod setup;
mod shutdown;
pub mod status;
mod systemd;
pub mod tls;
