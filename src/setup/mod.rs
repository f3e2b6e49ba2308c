//! What the rules need from the database: read ([`catalog`]), judged ([`verify`]), written as SQL ([`statements`]).

pub mod catalog;
pub mod statements;
pub mod verify;
