//! One frame of the stream, on its way into the flow.

use crate::cache::gap::Gap;
use crate::flow::Flow;
use crate::source::replication::Source;
use crate::source::replication::connection::Frame;
use crate::source::replication::error::Error;
use crate::source::replication::feedback::Feedback;
use crate::source::replication::pgoutput::Message;

/// Takes a frame. The SQL session is only asked when a relation is described. `heard` hears what somebody put into the log.
pub(super) async fn take(
    frame: Frame,
    source: &Source,
    flow: &mut Flow,
    feedback: &mut Feedback,
    heard: &mut impl FnMut(&str, &[u8]),
) -> Result<(), Error> {
    match frame {
        Frame::Keepalive { end, reply } => {
            feedback.received(end);
            flow.keepalive(end);
            if reply {
                feedback.requested();
            }
        }
        Frame::Notice(notice) => {
            tracing::error!("the server says: {notice}");
            // PostgreSQL 18 goes on without a publication that was dropped, and sends nothing of what it would have.
            if notice.message.contains("skipped loading publication") {
                flow.resync(&Gap::new("publication_skipped", "the server skipped the publication"));
            }
        }
        Frame::XLogData { end, data } => {
            feedback.received(end);
            let message = Message::parse(&data).map_err(|error| {
                Error::away(format!("{error}: the stream is opened anew at the last confirmed position"))
            })?;
            if let Message::Relation(relation) = &message {
                let read = flow.relations.read_ancestors_of(relation.oid, &source.session).await;
                read.map_err(|error| Error::session("reading the ancestors of a partition", &source.place, &error))?;
            }
            if let Message::Message { prefix, content } = &message {
                heard(prefix, content);
            }
            flow.take(&message).map_err(|error| Error::away(error.to_string()))?;
        }
    }
    Ok(())
}
