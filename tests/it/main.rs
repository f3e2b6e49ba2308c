//! Tests against real servers: each starts its own PostgreSQL and Redis. They wait for facts, not for time.

mod bad_input;
mod changes;
mod clients;
mod commands;
mod crash;
mod demo;
mod example;
mod server_settings;
mod shutdown;
mod support;
mod visibility;
