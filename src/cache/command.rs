//! The Redis commands that make a tag stale. The hot path fills a pipeline with them, `explain` prints them: one code.

use std::sync::LazyLock;
use std::time::{Duration, SystemTime};

use rand::RngExt;
use redis::Script;

use super::formula::{Fill, Formula, NOTHING};
use super::step::{Action, BUMP, MEMBERS, Members, ROWS, STAMP, Step};
use super::{Cache, released};

/// Members that one script looks at: calls of a few milliseconds.
const SLICE: &[u8] = b"250";
/// Where the cursor of [`MEMBERS`] stands among its arguments.
const CURSOR: usize = 4;
/// Where the heads and tails of its records begin.
const RECORDS: usize = 12;

/// Keys that start so are ours: a marker says how far a cache is, and no tag, whoever names it, may take it away.
pub const OWN: &[u8] = b"waltag:";

static STAMP_HASH: LazyLock<String> = LazyLock::new(|| Script::new(STAMP).get_hash().to_owned());
static ROWS_HASH: LazyLock<String> = LazyLock::new(|| Script::new(ROWS).get_hash().to_owned());
static BUMP_HASH: LazyLock<String> = LazyLock::new(|| Script::new(BUMP).get_hash().to_owned());
static MEMBERS_HASH: LazyLock<String> = LazyLock::new(|| Script::new(MEMBERS).get_hash().to_owned());

/// One command, ready to be sent or shown.
#[derive(Clone)]
pub struct Command {
    arguments: Vec<Vec<u8>>,
    next: Next,
    /// In a Cluster nothing else keeps order: what has a later turn waits for the answers of an earlier one.
    turn: u8,
    /// For people.
    script: &'static str,
}

/// What an answer leaves to be done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Next {
    Nothing,
    /// It goes on from the cursor that it returns.
    Cursor,
    /// It returns sets that are too large for one script.
    Sets,
}

impl Command {
    /// A command with its arguments.
    pub(super) fn new(arguments: Vec<Vec<u8>>) -> Command {
        Command { arguments, next: Next::Nothing, turn: 0, script: "" }
    }

    /// The same at another turn.
    pub(super) fn at(self, turn: usize) -> Command {
        Command { turn: u8::try_from(turn).unwrap_or(u8::MAX), ..self }
    }

    /// Its turn.
    pub(super) fn turn(&self) -> u8 {
        self.turn
    }

    /// Its key, or its channel: every command has one.
    pub fn key(&self) -> &[u8] {
        let of_script = self.arguments.first().is_some_and(|name| name == b"EVALSHA");
        self.arguments.get(if of_script { 3 } else { 1 }).map(Vec::as_slice).unwrap_or_default()
    }

    fn script(arguments: Vec<Vec<u8>>, script: &'static str) -> Command {
        Command { script, ..Command::new(arguments) }
    }

    /// For Redis.
    pub fn pack(&self) -> redis::Cmd {
        let mut command = redis::Cmd::new();
        for argument in &self.arguments {
            command.arg(argument.as_slice());
        }
        command
    }

    /// Does it go on from a cursor?
    pub(super) fn is_walk(&self) -> bool {
        self.next == Next::Cursor
    }

    /// To be sent to another server: a cursor says nothing there.
    pub(super) fn restarted(mut self) -> Command {
        if let (Next::Cursor, Some(place)) = (self.next, self.arguments.get_mut(CURSOR)) {
            *place = b"0".to_vec();
        }
        self
    }

    /// What is left to do after its answer.
    pub fn after(mut self, answer: &redis::Value) -> Vec<Command> {
        match self.next {
            Next::Nothing => Vec::new(),
            Next::Cursor => {
                let (cursor, members): (Vec<u8>, Vec<Vec<u8>>) = match answer {
                    redis::Value::Array(_) => redis::from_redis_value_ref(answer).unwrap_or_default(),
                    _ => (redis::from_redis_value_ref(answer).unwrap_or_default(), Vec::new()),
                };
                // What is only listed has its records on other nodes.
                let turn = self.turn.into();
                let around = self.arguments.get(RECORDS..).unwrap_or_default().chunks_exact(2);
                let records =
                    members.iter().flat_map(|member| around.clone().map(move |pair| pair.join(member.as_slice())));
                let mut owed: Vec<Command> =
                    records.map(|record| Command::new(vec![b"UNLINK".to_vec(), record]).at(turn)).collect();
                let done = cursor.is_empty() || cursor == b"0";
                if let (false, Some(place)) = (done, self.arguments.get_mut(CURSOR)) {
                    *place = cursor;
                    owed.push(self);
                }
                owed
            }
            Next::Sets => {
                let sets: Vec<Vec<u8>> = redis::from_redis_value_ref(answer).unwrap_or_default();
                let member = Formula::member();
                let members =
                    Members { sorted: false, records: vec![member], links: "drop", like: String::new(), index: None };
                sets.into_iter().map(|set| members_of(&members, set, &NOTHING)).collect()
            }
        }
    }
}

/// As redis-cli would take it.
impl std::fmt::Display for Command {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        for (index, argument) in self.arguments.iter().enumerate() {
            let space = if index == 0 { "" } else { " " };
            let text = String::from_utf8_lossy(argument);
            let plain = !text.is_empty()
                && !text.contains(|c: char| c.is_whitespace() || c.is_control() || "\"'\\".contains(c));
            if plain {
                write!(f, "{space}{text}")?;
            } else {
                write!(f, "{space}\"{}\"", argument.escape_ascii())?;
            }
        }
        if self.script.is_empty() { Ok(()) } else { write!(f, "  # {}", self.script) }
    }
}

/// What is drawn anew for each pass and each attempt: a version that was used before could bring records back to life that were stored
/// under it.
#[derive(Clone, Copy, Debug)]
pub struct Draw(Fill<'static>);

impl Draw {
    /// For a cache, whose guard its stamps are ahead.
    pub fn new(cache: &Cache) -> Draw {
        let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        // A client that compares with `<` would take a record of the same millisecond for newer.
        let now = since + cache.guard + Duration::from_millis(1);
        let guard = cache.guard.as_millis() as u64;
        Draw(Fill { random: rand::rng().random::<u64>() >> 1, now: now.as_millis() as u64, guard, ..NOTHING })
    }

    /// With a tag.
    pub fn fill<'a>(&self, tag: &'a [u8]) -> Fill<'a> {
        self.0.with(tag)
    }
}

/// The commands for one tag.
pub fn commands<'a>(cache: &'a Cache, tag: &'a [u8], draw: Draw) -> impl Iterator<Item = Command> + 'a {
    let each = cache.steps.iter().flat_map(move |step| {
        let fill = draw.fill(tag);
        on_key(cache, step, step.key.render(&fill), &fill)
    });
    in_turns(each)
}

/// One after the other.
pub(super) fn in_turns(commands: impl Iterator<Item = Command>) -> impl Iterator<Item = Command> {
    commands.enumerate().map(|(turn, command)| command.at(turn))
}

/// The commands for a key that is known already: its fence goes first, or a reader could store between the two.
pub fn on_key(cache: &Cache, step: &Step, key: Vec<u8>, fill: &Fill) -> impl Iterator<Item = Command> + use<> {
    let own = key.starts_with(OWN);
    let fence = cache.fence.and_then(|delay| {
        let life = released::life(delay).to_string().into_bytes();
        Some(Command::new(vec![b"SET".to_vec(), released::key(&key)?, released::value(delay), b"PX".to_vec(), life]))
    });
    fence.into_iter().chain(act(&step.action, key, fill)).filter(move |_| !own)
}

/// One step on a key.
pub fn act(action: &Action, key: Vec<u8>, fill: &Fill) -> Option<Command> {
    let number = |number: u64| number.to_string().into_bytes();
    Some(match action {
        Action::Unlink => Command::new(vec![b"UNLINK".to_vec(), key]),
        Action::DropField(field) => Command::new(vec![b"HDEL".to_vec(), key, field.render(fill)]),
        Action::Set { value, life, existing } => {
            let mut arguments = vec![b"SET".to_vec(), key, value.render(fill)];
            arguments.extend(existing.then(|| b"XX".to_vec()));
            arguments.extend(life.iter().flat_map(|life| [b"EX".to_vec(), number(*life)]));
            Command::new(arguments)
        }
        Action::Stamp { unit, values, life, age } => {
            let mut arguments = script(&STAMP_HASH, key);
            // A stamp in the future must not be gone before its time.
            let life = if *life == 0 { 0 } else { life.saturating_mul(1_000).saturating_add(fill.guard + 1_000) };
            let oldest = if *age == 0 { 0 } else { unit.of(fill.now.saturating_sub(age.saturating_mul(1_000))) };
            arguments.extend([number(unit.of(fill.now)), number(life), number(oldest)]);
            arguments.extend(values.iter().map(|value| value.render(fill)));
            Command::script(arguments, "stamp.lua: never lowered")
        }
        Action::Count => Command::new(vec![b"INCR".to_vec(), key]),
        Action::Bump => {
            let arguments = script(&BUMP_HASH, key);
            Command::script(arguments, "bump.lua: one more, serialized")
        }
        Action::Members(members) => members_of(members, key, fill),
        Action::Publish(message) => Command::new(vec![b"PUBLISH".to_vec(), key, message.render(fill)]),
        Action::Rows { texts } => {
            let space = fill.tag.windows(3).position(|three| three == b" {\"")?;
            let (table, row) = (fill.tag.get(..space)?, fill.tag.get(space + 1..)?);
            let mut arguments = script(&ROWS_HASH, [key.as_slice(), b"schemes:", table].concat());
            arguments.extend([key, table.to_vec(), row.to_vec(), if *texts { b"1" } else { b"0" }.to_vec()]);
            Command { next: Next::Sets, ..Command::script(arguments, "rows.lua: the conditions that it meets") }
        }
        Action::Scan => return None,
    })
}

fn script(hash: &str, key: Vec<u8>) -> Vec<Vec<u8>> {
    vec![b"EVALSHA".to_vec(), hash.as_bytes().to_vec(), b"1".to_vec(), key]
}

fn members_of(members: &Members, key: Vec<u8>, fill: &Fill) -> Command {
    let mut arguments = script(&MEMBERS_HASH, key);
    let scan = if members.sorted { b"ZSCAN" } else { b"SSCAN" };
    let now = (fill.now / 1_000).to_string().into_bytes();
    let head = |formula: Option<&Formula>| formula.map(|formula| formula.around().0.to_vec()).unwrap_or_default();
    let (index, tags) = (members.index.as_ref().map(|both| &both.0), members.index.as_ref().map(|both| &both.1));
    arguments.extend([b"0".to_vec(), scan.to_vec(), SLICE.to_vec(), members.links.as_bytes().to_vec(), now]);
    arguments.extend([members.like.as_bytes().to_vec(), head(index), head(tags)]);
    for record in &members.records {
        let (head, _, tail) = record.around();
        arguments.extend([head.to_vec(), tail.to_vec()]);
    }
    Command {
        next: Next::Cursor,
        ..Command::script(arguments, "members.lua: the records of its members, slice by slice")
    }
}
