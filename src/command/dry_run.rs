//! `waltag run --dry-run`: what the rules would make of the changes that come, beside a running daemon or without one. Nothing is
//! consumed: it reads a temporary copy of the slot, which is gone with the connection. Nothing is written to Redis.

use tokio::time::sleep_until;

use super::show;
use crate::cache::command::{Draw, commands};
use crate::exit::Exit;
use crate::failure::Failure;
use crate::plain::whole;
use crate::rules::Rules;
use crate::rules::diagnostic;
use crate::settings::Settings;
use crate::setup::verify;
use crate::setup::{catalog, catalog::Catalog};
use crate::shutdown::Shutdown;
use crate::source::Stream;
use crate::source::lsn::{Lsn, Xid};
use crate::source::replication::connection::Frame;
use crate::source::replication::error::Error;
use crate::source::replication::feedback::Feedback;
use crate::source::replication::pgoutput::Message;
use crate::source::replication::relations::Relations;
use crate::source::replication::slot::Feed;
use crate::source::replication::{self, Replication};
use crate::tags::Stale;

/// Prints each transaction that makes something stale, until a signal; with `once` until the end of what was committed at the
/// start.
pub async fn dry_run(settings: &Settings, rules: &Rules, once: bool) -> Result<(), Failure> {
    if settings.names.feed == Feed::Outbox {
        let sentence = "--dry-run reads a copy of a slot, and an outbox has none; `waltag explain` and `waltag test --live` show what the rules make of a change";
        return Err(Failure::new(Exit::Usage, sentence));
    }
    let mut shutdown = Shutdown::listen()?;
    let mut source = replication::open(&settings.dsn, &settings.names, settings.lock_timeout, false).await?;
    source.stream.read_a_copy().await?;
    let read = catalog::read(&source.catalog, rules, &settings.names).await;
    let catalog: Catalog = read.map_err(|error| Error::session("reading the catalog", &source.place, &error))?;
    let (refused, told) = verify::tables(rules, &catalog);
    told.iter().for_each(|problem| tracing::warn!("{problem}"));
    if !refused.is_empty() {
        return Err(Failure::new(Exit::Rules, diagnostic::list(&refused)));
    }
    let goal = if once { Some(source.stream.end(&source.session).await?) } else { None };
    source.stream.begin(&source.session, &settings.names).await?;
    tracing::info!(server = source.place, slot = source.stream.slot, "reading a copy of the slot; nothing is written");
    let mut relations = Relations::default();
    let census = catalog::census(&source.catalog, &Replication::past(&settings.names)).await;
    let census = census.map_err(|error| Error::session("reading the catalog", &source.place, &error))?;
    relations.begin(catalog.lineage(rules), census);
    let mut feedback = Feedback::new(Lsn(0));
    let mut open = None;
    loop {
        let failed = |error| Failure::from(Error::stream("streaming", &settings.names.slot, &error));
        tokio::select! {
            () = shutdown.asked() => return Ok(()),
            () = sleep_until(feedback.due()) => feedback.send(&mut source.stream.connection).await.map_err(failed)?,
            frame = source.stream.connection.next() => {
                let position = match frame.map_err(failed)? {
                    Frame::Keepalive { end, reply } => {
                        if reply {
                            feedback.requested();
                        }
                        open.is_none().then_some(end)
                    }
                    Frame::Notice(notice) => {
                        tracing::warn!("the server says: {notice}");
                        None
                    }
                    Frame::XLogData { data, .. } => take(&data, rules, &mut relations, &mut open)?,
                };
                // A copy confirms for itself only.
                if let Some(position) = position {
                    feedback.confirm(position);
                    if goal.is_some_and(|goal| position >= goal) {
                        return Ok(());
                    }
                }
            }
        }
    }
}

/// The transaction that is being received: what it is called, and what it makes stale.
struct Open {
    xid: u32,
    stale: Vec<Stale>,
}

/// Takes a message; the end of the transaction that it completes.
fn take(
    data: &[u8],
    rules: &Rules,
    relations: &mut Relations,
    open: &mut Option<Open>,
) -> Result<Option<Lsn>, Failure> {
    let message = Message::parse(data).map_err(|error| Error::away(error.to_string()))?;
    match &message {
        Message::Begin { xid, .. } => {
            *open = Some(Open { xid: xid.0, stale: rules.caches.iter().map(|_| Stale::default()).collect() });
        }
        Message::Commit { end_lsn, .. } => {
            open.take().into_iter().for_each(|transaction| tell(rules, transaction, *end_lsn));
            return Ok(Some(*end_lsn));
        }
        Message::Relation(relation) => {
            let xid = open.as_ref().map_or(Xid(0), |open| Xid(open.xid));
            relations.describe(relation, xid, Lsn(0), rules);
        }
        Message::Type { oid, namespace, name } => relations.describe_type(*oid, namespace, name),
        _ => {}
    }
    let Some(Open { stale, .. }) = open else { return Ok(None) };
    relations.change(&message, stale).map_err(|error| Error::undecodable(error.to_string()))?;
    Ok(None)
}

fn tell(rules: &Rules, transaction: Open, end: Lsn) {
    let Open { xid, mut stale } = transaction;
    let stale: Vec<Stale> = stale.iter_mut().map(|stale| stale.take(true)).collect();
    if stale.iter().all(Stale::is_empty) {
        return;
    }
    show(format_args!("transaction {xid}, up to {end}"));
    for (cache, stale) in rules.caches.iter().zip(&stale) {
        for tag in stale.tags.iter() {
            show(format_args!("  {}  {}", cache.name, whole(&String::from_utf8_lossy(tag))));
            for command in commands(cache, tag, Draw::new(cache)) {
                show(format_args!("    {command}"));
            }
        }
        if stale.sweep.is_some() {
            show(format_args!("  {}  and tags that cannot be listed: a sweep", cache.name));
        }
    }
}
