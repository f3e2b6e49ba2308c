//! Names of tables and types of columns: a row of the outbox says neither. Read again after a second, because tables are altered.

use std::collections::{BTreeSet, HashMap};
use std::time::Duration;

use tokio::time::Instant;

use crate::source::BASE_TYPE;
use crate::source::session::{Answer, Error, Sql};

/// What was read is believed for this long.
const FRESH: Duration = Duration::from_secs(1);

/// A relation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Shape {
    /// Its schema.
    pub schema: String,
    /// Its name.
    pub name: String,
    /// Its columns with their types; a domain has its base type.
    pub columns: Vec<(String, u32)>,
}

/// What was read; nothing of a relation that is gone.
#[derive(Default)]
pub struct Known(HashMap<u32, Option<Shape>>);

/// The relations that rows came of.
pub struct Shapes {
    sql: Sql,
    known: Known,
    read: Instant,
    wanted: BTreeSet<u32>,
    running: Option<Answer>,
}

impl Shapes {
    /// None is known.
    pub fn new(sql: &Sql) -> Shapes {
        Shapes {
            sql: sql.clone(),
            known: Known::default(),
            read: Instant::now(),
            wanted: BTreeSet::new(),
            running: None,
        }
    }

    /// Asks for what is not known of these relations.
    pub fn learn(&mut self, relations: BTreeSet<u32>) {
        if self.read.elapsed() > FRESH {
            self.known.0.clear();
        }
        self.wanted = relations.into_iter().filter(|oid| !self.known.0.contains_key(oid)).collect();
        if self.wanted.is_empty() {
            return;
        }
        let numbers: Vec<String> = self.wanted.iter().map(u32::to_string).collect();
        let query = format!(
            "SELECT c.oid, n.nspname, c.relname, (SELECT coalesce(json_agg(json_build_array(a.attname, {BASE_TYPE}) \
             ORDER BY a.attnum), '[]') FROM pg_attribute a JOIN pg_type t ON t.oid = a.atttypid WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped) \
             FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace WHERE c.oid IN ({})",
            numbers.join(", ")
        );
        self.running = Some(self.sql.ask(query));
    }

    /// Is a statement under way?
    pub fn is_running(&self) -> bool {
        self.running.is_some()
    }

    /// Asks no more.
    pub fn forget(&mut self) {
        self.running = None;
    }

    /// Waits for it. Cancel-safe.
    pub async fn answer(&mut self) -> Result<(), Error> {
        let Some(running) = &mut self.running else { return Ok(()) };
        let answer = running.await;
        self.running = None;
        if self.known.0.is_empty() {
            self.read = Instant::now();
        }
        self.known.0.extend(std::mem::take(&mut self.wanted).into_iter().map(|oid| (oid, None)));
        for row in answer? {
            self.known.learn(|index| row.get(index));
        }
        Ok(())
    }

    /// What is known of them.
    pub fn known(&self) -> &Known {
        &self.known
    }
}

impl Known {
    /// From the texts of the columns: number, schema, name, columns with their types.
    pub fn learn<'a>(&mut self, get: impl Fn(usize) -> Option<&'a str>) {
        let field = |index: usize| get(index).unwrap_or_default();
        let columns = serde_json::from_str(field(3)).unwrap_or_default();
        let shape = Shape { schema: field(1).into(), name: field(2).into(), columns };
        self.0.insert(field(0).parse().unwrap_or_default(), Some(shape));
    }

    /// The table of a row; that whose trigger it was if the table is gone meanwhile.
    pub fn of(&self, relation: u32, root: u32) -> Option<&Shape> {
        let known = |oid| self.0.get(&oid).and_then(Option::as_ref);
        known(relation).or_else(|| known(root))
    }
}
