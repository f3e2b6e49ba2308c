//! What the refusals of a Redis mean to people.

use redis::{ErrorKind, RedisError, ServerErrorKind};

use super::Cache;
use crate::plain::{message, plain};

/// Why a cache did not take what it was sent.
#[derive(Clone, Debug, thiserror::Error)]
#[error("cache `{cache}` at {address}: {sentence}")]
pub struct Error {
    /// Alias of the cache.
    pub cache: String,
    /// Host and database.
    pub address: String,
    /// What happened, and what to do.
    pub sentence: String,
    /// Is it the settings' fault, so that waiting does not help?
    pub kind: Kind,
}

/// What kind of trouble.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Redis is away, loading, full or read-only: try again.
    Away,
    /// Wrong user or password, or a missing permission.
    Refused,
    /// The ACL withholds this key: the others go on, and its tag is owed until it is taken.
    Forbidden,
    /// Redis refuses this command for this key: the same.
    Key,
    /// There is something else under this key than the client library would write. It can read no record by it either, so nothing is left
    /// valid: count it and go on.
    Futile,
}

impl Error {
    /// What redis-rs reports, in a sentence.
    pub fn new(cache: &Cache, error: &RedisError) -> Error {
        let said = said(error);
        let code = error.code().unwrap_or_default();
        let (kind, sentence) = match (error.kind(), code) {
            (ErrorKind::AuthenticationFailed, _) | (_, "WRONGPASS" | "NOAUTH") => {
                (Kind::Refused, format!("Redis refuses the user or password ({said}); correct the cache's `url`"))
            }
            // Of the command itself they say `run the '...' command`.
            (_, "NOPERM" | "ERR") if KEY_REFUSED.iter().any(|words| said.contains(words)) => {
                (Kind::Forbidden, format!("{said}; the ACL user needs ~ patterns for the cache's keys"))
            }
            (_, "NOPERM") => (Kind::Refused, format!("{said}; the ACL user needs {PERMISSIONS}")),
            (_, "WRONGTYPE") => (Kind::Futile, said),
            (_, "ERR") if said.contains("WRONGTYPE") => (Kind::Futile, said),
            (_, "CROSSSLOT") => (Kind::Key, said),
            // A command within a script: each version wraps it in its own way, 6.2 the error itself.
            (_, "ERR") if said.contains("ACL failure in script") || said.contains("can't run this command") => {
                (Kind::Refused, format!("{said}; the ACL user needs {PERMISSIONS}"))
            }
            (_, "ERR") if said.contains("-OOM") => {
                (Kind::Away, format!("Redis is full ({said}); raise maxmemory or set an eviction policy"))
            }
            (_, "ERR") if WRAPPED.iter().any(|code| said.contains(code)) => (Kind::Away, said),
            (_, "ERR") if said.contains("unknown command") => {
                (Kind::Refused, format!("{said}; Redis 6.2 or later is needed, with {PERMISSIONS}"))
            }
            (_, "ERR") => (Kind::Key, said),
            (_, "FOREIGN") => {
                let sentence = format!(
                    "{said}: a serializer or compression of phpredis writes members that waltag cannot read; store this cache's tags without it"
                );
                (Kind::Refused, sentence)
            }
            (_, "OOM") => (Kind::Away, format!("Redis is full ({said}); raise maxmemory or set an eviction policy")),
            (ErrorKind::Server(ServerErrorKind::ReadOnly), _) => {
                (Kind::Away, format!("this Redis is a replica ({said}); the cache's `url` must name the master"))
            }
            (ErrorKind::Server(ServerErrorKind::BusyLoading), _) => {
                (Kind::Away, "Redis is still loading its data".into())
            }
            (ErrorKind::InvalidClientConfig, _) => (Kind::Refused, said),
            _ if said.contains("received fatal alert") => (
                Kind::Refused,
                format!("the server refuses our side of TLS ({said}); give a client certificate as `cert` and `key`"),
            ),
            _ if said.contains("invalid peer certificate") => (Kind::Refused, certificate(&said)),
            _ if error.is_timeout() => (Kind::Away, "Redis does not answer in time".into()),
            _ => (Kind::Away, said),
        };
        Error { cache: cache.name.clone(), address: cache.address(), sentence, kind }
    }

    /// A server's error reply within a pipeline.
    pub fn reply(cache: &Cache, error: redis::ServerError) -> Error {
        Error::new(cache, &RedisError::from(error))
    }
}

/// A sentence for people: what an `io::Error` says is shown as it is.
pub fn sentence(text: String) -> RedisError {
    std::io::Error::other(text).into()
}

/// What a certificate that is refused means.
fn certificate(said: &str) -> String {
    let remedy = match said {
        _ if said.contains("UnknownIssuer") || said.contains("BadSignature") => {
            "it is signed by no authority that waltag trusts: give the authority's certificate as `cacert: FILE`"
        }
        _ if said.contains("not valid for") || said.contains("NotValidForName") => {
            "let the cache's `url` use the name that it is for"
        }
        _ => "renew it",
    };
    format!("the server's certificate is refused ({said}); {remedy}")
}

/// ACL rules that the daemon needs for the dialects it speaks.
pub const PERMISSIONS: &str = "+hello +auth +ping +select +hmget +hset +hdel +time +eval +evalsha +script|load +unlink +set +scan on its keys and ~waltag:*; dialects with times, counters, sets or a bus also +get +hget +hrandfield +hscan +pttl +pexpire +incr +smembers +sscan +zscan +srem +zrem +publish and &its channels; a Cluster also +cluster|slots +cluster|nodes +cluster|countkeysinslot +cluster|getkeysinslot +asking; for wait_replicas also +wait; where Redis evicts keys +info, or an evicted marker is taken for a loss";

/// What a key is refused with: Redis up to 7.0, and 7.2 and Valkey, also within a script.
const KEY_REFUSED: [&str; 2] = ["one of the keys", "access a key"];

/// What passes by itself, within the error of a script.
const WRAPPED: [&str; 6] = ["-READONLY", "-MISCONF", "-NOREPLICAS", "-LOADING", "-MASTERDOWN", "-CLUSTERDOWN"];

/// The server's own words; redis-rs puts its category in front of them.
fn said(error: &RedisError) -> String {
    match (error.code(), error.detail()) {
        (Some(code), Some(detail)) => format!("{} {}", plain(code), message(detail)),
        // Our own words.
        (None, Some(detail)) if error.kind() == ErrorKind::InvalidClientConfig => detail.to_owned(),
        _ => message(&error.to_string()).to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rules::Rules;
    use crate::rules::expand::Surroundings;

    /// Redis 6.2 puts what happened into an error of its own: taken for a command that never works, stamps were lost.
    #[test]
    fn errors_within_a_script() {
        let text = "{version: 1, caches: {c: {url: 'redis://h', dialect: keys}}}";
        let rules = Rules::parse(vec![("r.yaml".into(), text.into())], &Surroundings::new(&|_| None, None)).unwrap();
        let kind = |said: &str| match redis::parse_redis_value(format!("-{said}\r\n").as_bytes()) {
            Ok(redis::Value::ServerError(error)) => Error::reply(&rules.caches[0], error).kind,
            other => panic!("{other:?}"),
        };
        let wrapped =
            |code: &str| format!("ERR Error running script (call to f_0): @user_script:1: @user_script: 1: -{code} x");
        for code in ["OOM", "READONLY", "NOREPLICAS", "MISCONF"] {
            assert_eq!(kind(&wrapped(code)), Kind::Away, "{code}");
        }
        assert_eq!(
            kind("ERR The user executing the script can't run this command or subcommand script: f_0"),
            Kind::Refused
        );
        assert_eq!(kind(&wrapped("WRONGTYPE")), Kind::Futile);
        assert_eq!(kind("WRONGTYPE Operation against a key"), Kind::Futile);
        // What is not stale must not be called done.
        for said in
            ["ERR value is not an integer or out of range", "CROSSSLOT Keys in request don't hash", "ERR something new"]
        {
            assert_eq!(kind(said), Kind::Key, "{said}");
        }
        for said in [
            "NOPERM this user has no permissions to access one of the keys used as arguments",
            "NOPERM No permissions to access a key",
            "ERR ACL failure in script: No permissions to access a key",
        ] {
            assert_eq!(kind(said), Kind::Forbidden, "{said}");
        }
        assert_eq!(kind("NOPERM User w has no permissions to run the 'unlink' command"), Kind::Refused);
        assert_eq!(kind("NOSCRIPT No matching script."), Kind::Away);
    }
}
