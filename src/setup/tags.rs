//! `waltag.invalidate` and `waltag.invalidate_in`: tags from SQL, on the way that the changes take.

use std::collections::BTreeSet;

use super::outbox::statements::{NOTIFY, OWED, ours_alone};
use super::statements::{MARK, SCHEMA, Statement, fill};
use crate::flow::said::Word;
use crate::source::replication::slot::Feed;
use crate::source::session::{Error, Sql, identifier, literal};

const INVALIDATE: &str = include_str!("../../migrations/invalidate.sql");
/// Any role can put a message into the log. Those of the functions below are known by a word: 120 random bits, in two sequences, because what a sequence
/// holds only those see who may, it survives a crash, and no publication sends it.
const WORD: &str = "CREATE SEQUENCE IF NOT EXISTS waltag.word_1;\nCREATE SEQUENCE IF NOT EXISTS waltag.word_2;";
/// The word as a query.
const SAID: &str = "SELECT concat(a.last_value, '.', b.last_value) FROM waltag.word_1 a, waltag.word_2 b WHERE a.is_called AND b.is_called";
/// Made by the first who needs it: also where a dump has brought the sequences without what was in them.
const SPEAK: &str = "IF NOT EXISTS (SELECT FROM waltag.word_1 a, waltag.word_2 b WHERE a.is_called AND b.is_called) THEN
      PERFORM pg_advisory_xact_lock(7305437184610);
      IF NOT EXISTS (SELECT FROM waltag.word_1 a, waltag.word_2 b WHERE a.is_called AND b.is_called) THEN
        PERFORM setval('waltag.word_1', ('x' || left(encode(sha256(convert_to(gen_random_uuid()::text, 'UTF8')), 'hex'), 15))::bit(60)::bigint + 1);
        PERFORM setval('waltag.word_2', ('x' || left(encode(sha256(convert_to(gen_random_uuid()::text, 'UTF8')), 'hex'), 15))::bit(60)::bigint + 1);
      END IF;
    END IF;
    PERFORM pg_logical_emit_message(true, concat('waltag:', ({said})), bytes);";
/// How they speak, for their comment.
const BY_REPLICATION: &str = "replication, by a word of sequences";

/// `text[]`: somebody may have made another function of this name.
const ITS_ARGUMENTS: &str = "f.proargtypes::text = '1009'";

/// What is there of them.
pub struct Tags {
    comment: Option<String>,
    outbox: bool,
    has_word: bool,
    /// The daemon's role may read it.
    hears: bool,
    /// Whose the schema, or something in it, is, if not ours.
    pub stranger: Option<String>,
}

/// The installation's word, as far as the connecting role may read it; in `deaf` why that is not how it should be. Nothing is read but sequences
/// in a schema that belongs to whoever could change what arrives anyway: a superuser, the owner of the database, of a table or schema of the rules, ourselves.
pub async fn word(session: &Sql, trusted: &BTreeSet<String>, deaf: &mut Option<String>) -> Result<Word, Error> {
    let trusted: Vec<String> = trusted.iter().map(|name| literal(name)).collect();
    let query = format!(
        "SELECT obj_description(f.oid, 'pg_proc'), w.oid IS NOT NULL, \
         o.rolsuper OR n.nspowner IN (SELECT datdba FROM pg_database WHERE datname = current_database()) OR o.rolname = current_user \
           OR o.rolname = ANY (ARRAY[{}]::name[]), \
         has_schema_privilege(n.oid, 'USAGE') AND w.mine \
         FROM pg_namespace n JOIN pg_roles o ON o.oid = n.nspowner \
         LEFT JOIN LATERAL (SELECT min(c.oid) AS oid, bool_and(has_table_privilege(c.oid, 'SELECT')) AS mine, count(*) AS number FROM pg_class c \
           JOIN pg_roles r ON r.oid = c.relowner WHERE c.relnamespace = n.oid AND c.relname IN ('word_1', 'word_2') AND c.relkind = 'S' \
           AND (c.relowner = n.nspowner OR r.rolsuper)) w ON w.number = 2 \
         LEFT JOIN pg_proc f ON f.pronamespace = n.oid AND f.proname = 'invalidate' AND {ITS_ARGUMENTS} WHERE n.nspname = 'waltag'",
        trusted.join(", ")
    );
    let rows = session.rows(&query).await?;
    let field = |index: usize| rows.first().and_then(|row| row.get(index));
    let Some(comment) = field(0).filter(|comment| comment.starts_with(&format!("{MARK}tags by replication"))) else {
        return Ok(Word::Unknown);
    };
    let trouble = match (comment.contains(BY_REPLICATION), field(1), field(2), field(3)) {
        (false, ..) => Some("its functions are those of an earlier setup"),
        (_, Some("t"), Some("t"), Some("t")) => None,
        (_, Some("t"), Some("t"), _) => Some("this role may not read waltag.word_1 and waltag.word_2"),
        (_, Some("t"), ..) => {
            Some("the schema `waltag` belongs to a role that owns neither the database nor a table of the rules")
        }
        _ => Some("there are no sequences waltag.word_1 and waltag.word_2 of the schema's owner"),
    };
    if let Some(trouble) = trouble {
        *deaf = Some(format!(
            "tags that are named in SQL (waltag.invalidate) are not heard: {trouble}. `waltag setup --apply` mends it"
        ));
        return Ok(Word::Unknown);
    }
    // None has been made before the first call.
    Ok(session.value(SAID).await?.map_or(Word::Unknown, Word::Known))
}

impl Tags {
    /// Reads it; `role` is who has to hear them.
    pub async fn read(session: &Sql, role: &str) -> Result<Tags, Error> {
        let query = format!(
            "SELECT obj_description(f.oid, 'pg_proc'), EXISTS (SELECT FROM pg_class o WHERE o.relnamespace = n.oid AND o.relname = 'outbox'), \
             w.number = 2, has_schema_privilege(r.oid, n.oid, 'USAGE') AND w.theirs \
             FROM pg_namespace n LEFT JOIN pg_proc f ON f.pronamespace = n.oid AND f.proname = 'invalidate' AND {ITS_ARGUMENTS} \
             LEFT JOIN pg_roles r ON r.rolname = {} LEFT JOIN LATERAL (SELECT count(*) AS number, bool_and(has_table_privilege(r.oid, c.oid, 'SELECT')) AS theirs \
               FROM pg_class c WHERE c.relnamespace = n.oid AND c.relname IN ('word_1', 'word_2')) w ON true \
             WHERE n.nspname = 'waltag'",
            literal(role)
        );
        let rows = session.rows(&query).await?;
        let field = |index: usize| rows.first().and_then(|row| row.get(index));
        // Whoever owns the schema can put a table of her own in the place of ours, and a trigger on it that runs as whoever made the functions.
        let owners = "SELECT r.rolname FROM pg_namespace n LEFT JOIN pg_class c ON c.relnamespace = n.oid LEFT JOIN pg_proc p ON p.pronamespace = n.oid \
            JOIN pg_roles r ON r.oid IN (n.nspowner, c.relowner, p.proowner) \
            WHERE n.nspname = 'waltag' AND r.rolname <> current_user AND NOT r.rolsuper LIMIT 1";
        let stranger = session.value(owners).await?;
        let yes = |index: usize| field(index) == Some("t");
        Ok(Tags { stranger, comment: field(0).map(str::to_owned), outbox: yes(1), has_word: yes(2), hears: yes(3) })
    }

    /// Makes them, unless they are there as they should be, and lets `role` hear them. With an outbox they write a row, as its owner; otherwise a
    /// message into the log, under a word that only they know.
    pub fn apply(&self, feed: Feed, notify: bool, role: &str) -> Vec<Statement> {
        let (how, write) = match (feed, notify) {
            (Feed::Replication, _) => (BY_REPLICATION, fill(SPEAK, &[("said", SAID.to_owned())])),
            (Feed::Outbox, notify) => {
                let row = "INSERT INTO waltag.outbox (relation, root, kind, names, size) VALUES (0, 0, 'm', ARRAY[content], octet_length(bytes));";
                let row =
                    format!("IF {OWED} THEN\n    PERFORM nextval('waltag.skipped');\n  ELSE\n    {row}\n  END IF;");
                let (how, wake) = if notify { ("outbox, bounded", NOTIFY) } else { ("outbox, bounded and polled", "") };
                (how, format!("{row}\n  {wake}"))
            }
        };
        let mut statements = Vec::new();
        let comment = format!("{MARK}tags by {how}, in UTF-8");
        if self.comment.as_ref() != Some(&comment) {
            let word = if feed == Feed::Replication { WORD } else { "" };
            // Who was granted something since is not asked again.
            let functions: &[&str] = if self.comment.is_some() { &[] } else { &["invalidate", "invalidate_in"] };
            let relations: &[&str] = if self.has_word || word.is_empty() { &[] } else { &["word_1", "word_2"] };
            let values = [
                ("schema", SCHEMA.to_owned()),
                ("word", word.to_owned()),
                ("write", write),
                ("comment", literal(&comment).trim().to_owned()),
                ("ours_alone", ours_alone(relations, functions)),
            ];
            statements.push(Statement::whole(fill(INVALIDATE, &values)));
        }
        if feed == Feed::Replication && !self.hears {
            let role = identifier(role);
            statements.push(Statement::new(format!(
                "-- What the daemon knows these messages by.\nGRANT USAGE ON SCHEMA waltag TO {role};\nGRANT SELECT ON SEQUENCE waltag.word_1, waltag.word_2 TO {role};"
            )));
        }
        statements
    }

    /// Takes them away, unless an outbox needs them.
    pub fn remove(&self) -> Option<Statement> {
        let ours = self.comment.as_ref().is_some_and(|comment| comment.starts_with(MARK));
        (ours && !self.outbox).then(|| Statement::new("-- waltag.invalidate.\nDROP SCHEMA waltag CASCADE;"))
    }
}
