//! What the rules need from the database: read ([`catalog`]), judged ([`verify`], [`harm`]), decided ([`identity`], [`lists`],
//! with the price: [`cost`]), written as SQL ([`statements`], [`publishing`], [`removal`]), shown ([`examples`]). With
//! triggers in place of a publication: [`outbox`].

pub mod catalog;
pub mod cost;
pub mod examples;
mod harm;
pub mod identity;
mod lists;
pub mod outbox;
mod publishing;
pub mod removal;
pub mod statements;
pub mod tags;
pub mod verify;
