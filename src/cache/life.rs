//! Which life of which Redis it is. Was a key evicted, or were writes lost? Redis under maxmemory may drop any key, the marker as well; that is no gap. Another process, another history
//! (a replica that took over) or no eviction at all is one.

use redis::RedisResult;

use super::masters::Masters;

/// Which life of which Redis, and how many keys it has evicted in it (INFO: `run_id`, `master_replid`, `evicted_keys`).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Life {
    run: String,
    history: String,
    evicted: u64,
}

impl Life {
    /// Reads it; nothing if the ACL or a proxy does not let us.
    pub async fn read(masters: &mut Masters, node: usize) -> RedisResult<Option<Life>> {
        match masters.ask::<String>(node, &redis::cmd("INFO")).await {
            Ok(info) => Ok(Life::parse(&info)),
            Err(error) if matches!(error.code(), Some("NOPERM" | "ERR")) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// From the answer to INFO.
    pub fn parse(info: &str) -> Option<Life> {
        let field =
            |name: &str| info.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':')).map(str::trim);
        let (run, history) = (field("run_id")?.to_owned(), field("master_replid")?.to_owned());
        Some(Life { run, history, evicted: field("evicted_keys")?.parse().ok()? })
    }

    /// The same process, with the same history.
    pub fn is_life_of(&self, before: &Life) -> bool {
        (&self.run, &self.history) == (&before.run, &before.history)
    }

    /// Since `before`, keys were evicted and nothing else can have taken one away.
    pub fn has_evicted_since(&self, before: &Life) -> bool {
        self.is_life_of(before) && self.evicted > before.evicted
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_explains_a_key_that_is_gone() {
        let life = |run: &str, history: &str, evicted: u64| {
            Life::parse(&format!("# Server\r\nrun_id:{run}\r\nmaster_replid:{history}\r\nevicted_keys:{evicted}\r\n"))
                .unwrap()
        };
        let before = life("a", "h", 5);
        assert!(life("a", "h", 6).has_evicted_since(&before));
        for other in [life("a", "h", 5), life("b", "h", 6), life("a", "i", 6)] {
            assert!(!other.has_evicted_since(&before));
        }
        assert_eq!(Life::parse("run_id:a\r\n"), None);
    }
}
