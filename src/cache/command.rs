//! The Redis commands that make a tag stale. The hot path fills a pipeline with them, `explain` prints them: one code.

use rand::RngExt;

use super::{Cache, released};

/// What is done to the key of a stale tag.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    /// UNLINK: like DEL, freed in the background.
    Unlink,
    /// SET to a random version for `ttl` seconds; `existing` adds XX, where an absent key is stale anyway.
    Set {
        /// Life of the key in seconds.
        ttl: u64,
        /// Only if the key exists.
        existing: bool,
    },
}

/// One command, ready to be sent or shown.
pub struct Command(Vec<Vec<u8>>);

impl Command {
    /// For Redis.
    pub fn pack(&self) -> redis::Cmd {
        let mut command = redis::Cmd::new();
        for argument in &self.0 {
            command.arg(argument.as_slice());
        }
        command
    }
}

/// As redis-cli would take it.
impl std::fmt::Display for Command {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        for (index, argument) in self.0.iter().enumerate() {
            let space = if index == 0 { "" } else { " " };
            let text = String::from_utf8_lossy(argument);
            let plain = !text.is_empty()
                && !text.contains(|c: char| c.is_whitespace() || c.is_control() || "\"'\\".contains(c));
            if plain {
                write!(f, "{space}{text}")?;
            } else {
                write!(f, "{space}{:?}", text)?;
            }
        }
        Ok(())
    }
}

/// The commands for one tag. `version` is drawn by the caller, new for each pass and each attempt: a version that was used
/// before could bring records back to life that were stored under it.
pub fn commands<'a>(cache: &'a Cache, tag: &'a [u8], version: u64) -> impl Iterator<Item = Command> + 'a {
    cache.keys.iter().flat_map(move |formula| on_key(cache, formula.key(tag), version))
}

/// The commands for a key that is known already: its fence goes first, or a reader could store between the two.
pub fn on_key(cache: &Cache, key: Vec<u8>, version: u64) -> impl Iterator<Item = Command> {
    let fence = cache.fence.and_then(|delay| {
        let life = released::life(delay).to_string().into_bytes();
        Some(Command(vec![b"SET".to_vec(), released::key(&key)?, released::value(delay), b"PX".to_vec(), life]))
    });
    fence.into_iter().chain(std::iter::once(operation(cache, key, version)))
}

fn operation(cache: &Cache, key: Vec<u8>, version: u64) -> Command {
    let Operation::Set { ttl, existing } = cache.operation else { return Command(vec![b"UNLINK".to_vec(), key]) };
    let mut arguments = vec![b"SET".to_vec(), key, version.to_string().into_bytes()];
    arguments.extend(existing.then(|| b"XX".to_vec()));
    arguments.extend([b"EX".to_vec(), ttl.to_string().into_bytes()]);
    Command(arguments)
}

/// 63 random bits: never used before, and a positive number for every client that parses it.
pub fn new_version() -> u64 {
    rand::rng().random::<u64>() >> 1
}
