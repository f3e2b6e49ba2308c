//! Tests against real servers: each starts its own PostgreSQL and Redis. They wait for facts, not for time.

#![allow(clippy::unwrap_used)]

mod bad_input;
mod bench;
mod changes;
mod chaos;
mod clients;
mod cluster;
mod commands;
mod crash;
mod demo;
mod dialects;
mod endurance;
mod failover;
mod gaps;
mod grammar;
mod libraries;
mod mistakes;
mod odd_values;
mod operators;
mod orm;
mod outages;
mod outbox;
mod outbox_full;
mod outbox_lease;
mod outbox_neighbours;
mod reader;
mod reload;
mod replicas;
mod sentinel;
mod server_settings;
mod setup;
mod setup_wal;
mod shutdown;
mod slots;
mod sources;
mod standby;
mod support;
mod systemd;
mod tls;
mod truncates;
mod visibility;
mod waiting;
