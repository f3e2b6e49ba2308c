//! `waltag.invalidate` and `waltag.invalidate_in`: tags from SQL, on the way that the changes take.

use super::outbox::statements::{NOTIFY, OWED, ours_alone};
use super::statements::{MARK, Statement};
use crate::source::replication::slot::Feed;
use crate::source::session::{Error, Sql, literal};

const INVALIDATE: &str = include_str!("../../migrations/invalidate.sql");

/// What is there of them.
pub struct Tags {
    comment: Option<String>,
    outbox: bool,
    /// Whose the schema, or something in it, is, if not ours.
    pub stranger: Option<String>,
}

impl Tags {
    /// Reads it.
    pub async fn read(session: &Sql) -> Result<Tags, Error> {
        let query = "SELECT obj_description(to_regprocedure('waltag.invalidate(text[])'), 'pg_proc'), to_regclass('waltag.outbox') IS NOT NULL";
        let rows = session.rows(query).await?;
        let field = |index: usize| rows.first().and_then(|row| row.get(index));
        // Whoever owns the schema can put a table of her own in the place of ours, and a trigger on it that runs as whoever made the functions.
        let owners = "SELECT r.rolname FROM pg_namespace n LEFT JOIN pg_class c ON c.relnamespace = n.oid LEFT JOIN pg_proc p ON p.pronamespace = n.oid \
            JOIN pg_roles r ON r.oid IN (n.nspowner, c.relowner, p.proowner) \
            WHERE n.nspname = 'waltag' AND r.rolname <> current_user AND NOT r.rolsuper LIMIT 1";
        let stranger = session.value(owners).await?;
        Ok(Tags { stranger, comment: field(0).map(str::to_owned), outbox: field(1) == Some("t") })
    }

    /// Makes them, unless they are there as they should be. With an outbox they write a row, as its owner; otherwise a message into the
    /// log, which any role may.
    pub fn apply(&self, feed: Feed, notify: bool) -> Option<Statement> {
        let (how, security, write) = match (feed, notify) {
            (Feed::Replication, _) => {
                ("replication", "", "PERFORM pg_logical_emit_message(true, 'waltag', bytes);".to_owned())
            }
            (Feed::Outbox, notify) => {
                let row = "INSERT INTO waltag.outbox (relation, root, kind, names, size) VALUES (0, 0, 'm', ARRAY[content], octet_length(bytes));";
                let row =
                    format!("IF {OWED} THEN\n    PERFORM nextval('waltag.skipped');\n  ELSE\n    {row}\n  END IF;");
                let (how, wake) = if notify { ("outbox, bounded", NOTIFY) } else { ("outbox, bounded and polled", "") };
                (how, "SECURITY DEFINER", format!("{row}\n  {wake}"))
            }
        };
        let comment = format!("{MARK}tags by {how}, in UTF-8");
        (self.comment.as_ref() != Some(&comment)).then(|| {
            let text = INVALIDATE.replace("{security}", security).replace("{write}", &write);
            // Who was granted it since is not asked again.
            let ours = if self.comment.is_some() {
                String::new()
            } else {
                ours_alone(false, &["invalidate", "invalidate_in"])
            };
            Statement::new(text.replace("{comment}", literal(&comment).trim()).replace("{ours_alone}", &ours))
        })
    }

    /// Takes them away, unless an outbox needs them.
    pub fn remove(&self) -> Option<Statement> {
        let ours = self.comment.as_ref().is_some_and(|comment| comment.starts_with(MARK));
        (ours && !self.outbox).then(|| Statement::new("-- waltag.invalidate.\nDROP SCHEMA waltag CASCADE;"))
    }
}
