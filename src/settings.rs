//! What was typed, and what it means: flag, `WALTAG_*` variable, `WALTAG_*_FILE` variable, default, in this order.

use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::cli::{LogFormat, Typed};
use crate::files;
use crate::quantity;
use crate::rules::diagnostic::nearest;
use crate::rules::expand::Surroundings;
use crate::source::dsn::{self, Dsn};
use crate::source::replication::slot::{Mode, Names};

/// Names of the variables without `WALTAG_`; those that can hold a secret have a `_FILE` twin.
const VARIABLES: [(&str, bool); 18] = [
    ("DATABASE_URL", true),
    ("RULES", false),
    ("SLOT", false),
    ("PUBLICATION", false),
    ("TAG_MEMORY", false),
    ("LISTEN", false),
    ("LISTEN_HOSTS", false),
    ("LISTEN_TOKEN", true),
    ("LOCK_TIMEOUT", false),
    ("LOG_FORMAT", false),
    ("SLOT_MODE", false),
    ("MAX_RETAINED_WAL", false),
    ("RESYNC_RATE", false),
    ("CANARY", false),
    ("FLUSH_NUDGE", false),
    ("SOURCE", false),
    ("POLL", false),
    ("NO_LISTEN", false),
];
/// More often would be a busy loop.
const SHORTEST_POLL: Duration = Duration::from_millis(5);
/// Where rules are looked for when nothing is said.
const DEFAULT_RULES: &str = "/etc/waltag/rules.d";
/// Only this machine may ask, unless it is told otherwise.
const DEFAULT_LISTEN: &str = "127.0.0.1:9185";
/// The budget's bounds: a piece of a transaction must fit, and positions within it are 32 bits.
const TAG_MEMORY: std::ops::RangeInclusive<u64> = 1 << 20..=1 << 30;

/// Validated settings of every command.
#[derive(Clone)]
pub struct Settings {
    /// The database.
    pub dsn: Dsn,
    /// `--rules`.
    pub rules: Vec<String>,
    /// Slot and publication.
    pub names: Names,
    /// Bytes that may wait on their way to Redis.
    pub tag_memory: usize,
    /// Where the admin server listens; empty for none.
    pub listen: String,
    /// Names that the admin server is called by.
    pub listen_hosts: Vec<String>,
    /// What others than this machine must bring.
    pub listen_token: Option<String>,
    /// How long DDL and slot creation may wait for locks.
    pub lock_timeout: Duration,
    /// How long the slot lives.
    pub slot_mode: Mode,
    /// Bytes of WAL that may be kept for us; 0 for no bound.
    pub max_retained_wal: u64,
    /// Keys that a sweep makes stale per second.
    pub resync_rate: Option<u32>,
    /// Between two messages that measure the way through the log.
    pub canary: Option<Duration>,
    /// Asynchronous commits are brought out at once.
    pub flush_nudge: bool,
    /// The outbox is looked at this often, whether or not anybody was notified.
    pub poll: Duration,
    /// The outbox is not listened to, and its triggers notify nobody: a pooler may stand between.
    pub no_listen: bool,
}

/// What is wrong with the settings.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A variable that means nothing.
    #[error("unknown variable {0}{1}")]
    UnknownVariable(String, String),
    /// A value that cannot be used.
    #[error("{0}: {1}")]
    Value(String, String),
    /// The DSN.
    #[error(transparent)]
    Dsn(#[from] dsn::Error),
}

/// The process environment, or a test's.
#[derive(Clone)]
pub struct Environment(Vec<(String, String)>);

impl Environment {
    /// The process's own.
    pub fn of_process() -> Environment {
        let text = |value: std::ffi::OsString| value.to_string_lossy().into_owned();
        Environment(std::env::vars_os().map(|(name, value)| (text(name), text(value))).collect())
    }

    /// One variable; empty counts as unset, as systemd's EnvironmentFile leaves it.
    pub fn get(&self, name: &str) -> Option<String> {
        self.0.iter().find(|(known, value)| known == name && !value.is_empty()).map(|(_, value)| value.clone())
    }

    /// Where the admin server listens. Here an empty variable says something: none.
    fn listen(&self) -> String {
        let set = self.0.iter().find(|(name, _)| name == "WALTAG_LISTEN");
        set.map_or_else(|| DEFAULT_LISTEN.to_owned(), |(_, value)| value.clone())
    }

    /// Where the last good rules are kept: the first of systemd's directories.
    pub fn state_directory(&self) -> Option<PathBuf> {
        Some(PathBuf::from(self.get("STATE_DIRECTORY")?.split(':').next()?))
    }

    /// For rule files.
    pub fn credentials(&self) -> Option<PathBuf> {
        self.get("CREDENTIALS_DIRECTORY").map(PathBuf::from)
    }

    /// An unknown `WALTAG_*` variable is most likely a misspelt setting, so it is refused.
    fn refuse_unknown(&self) -> Result<(), Error> {
        let known: Vec<String> = VARIABLES
            .iter()
            .flat_map(|(name, secret)| [Some(format!("WALTAG_{name}")), secret.then(|| format!("WALTAG_{name}_FILE"))])
            .flatten()
            .collect();
        let known: Vec<&str> = known.iter().map(String::as_str).collect();
        let unknown = |name: &&String| name.starts_with("WALTAG_") && !known.contains(&name.as_str());
        match self.0.iter().map(|(name, _)| name).find(unknown) {
            None => Ok(()),
            Some(name) => {
                let hint = match nearest(name, &known) {
                    Some(near) => format!("; did you mean {near}?"),
                    None => format!("; known: {}", known.join(", ")),
                };
                Err(Error::UnknownVariable(name.clone(), hint))
            }
        }
    }

    /// `WALTAG_name`, or the content of the file that `WALTAG_name_FILE` names.
    fn setting(&self, name: &str) -> Result<Option<String>, Error> {
        if let Some(value) = self.get(&format!("WALTAG_{name}")) {
            return Ok(Some(value));
        }
        let twin = format!("WALTAG_{name}_FILE");
        self.get(&twin).map(|path| self.file(&twin, &path)).transpose()
    }

    fn file(&self, setting: &str, path: &str) -> Result<String, Error> {
        let path = match self.credentials() {
            Some(directory) if Path::new(path).is_relative() => directory.join(path),
            _ => PathBuf::from(path),
        };
        match files::read_text(&path) {
            Ok(text) => Ok(text.trim_end_matches(['\n', '\r']).to_owned()),
            Err(error) => Err(Error::Value(setting.to_owned(), format!("cannot read {}: {error}", path.display()))),
        }
    }
}

/// Calls `use_it` with what rule files may refer to.
pub fn with_surroundings<T>(environment: &Environment, use_it: impl FnOnce(&Surroundings) -> T) -> T {
    let variable = |name: &str| environment.get(name);
    use_it(&Surroundings::new(&variable, environment.credentials()))
}

impl Settings {
    /// From the command line and the environment.
    pub fn resolve(typed: &Typed, environment: &Environment) -> Result<Settings, Error> {
        environment.refuse_unknown()?;
        let setting = |flag: &Option<String>, name: &str, default: &str| -> Result<String, Error> {
            let value = match flag {
                Some(value) => Some(value.clone()),
                None => environment.setting(name)?,
            };
            Ok(value.unwrap_or_else(|| default.to_owned()))
        };
        let wrong = |name: &str| {
            let name = name.to_owned();
            move |sentence: String| Error::Value(name, sentence)
        };
        if typed.database_url.as_deref().is_some_and(Dsn::names_password) {
            tracing::warn!(
                "the password in --database-url can be seen by everybody on this machine in the process list: put it into --database-url-file, WALTAG_DATABASE_URL or a password file"
            );
        }
        let url = match (&typed.database_url, &typed.database_url_file) {
            (Some(url), _) => Some(url.clone()),
            (None, Some(path)) => Some(environment.file("--database-url-file", path)?),
            (None, None) => environment.setting("DATABASE_URL")?.or_else(|| environment.get("DATABASE_URL")),
        };
        let rules = match typed.rules.as_slice() {
            [] => environment.get("WALTAG_RULES").map_or(vec![DEFAULT_RULES.into()], |list| {
                list.split(':').filter(|path| !path.is_empty()).map(str::to_owned).collect()
            }),
            paths => paths.to_vec(),
        };
        let slot = setting(&typed.slot, "SLOT", "waltag")?;
        if slot.is_empty() || slot.len() > 63 || !slot.bytes().all(|b| matches!(b, b'a'..=b'z' | b'0'..=b'9' | b'_')) {
            let sentence = format!("`{slot}` is not a slot name: 1 to 63 of a-z, 0-9 and _");
            return Err(Error::Value("--slot".into(), sentence));
        }
        let publication = setting(&typed.publication, "PUBLICATION", "waltag")?;
        let memory = setting(&typed.tag_memory, "TAG_MEMORY", "32MiB")?;
        let tag_memory = quantity::bytes(&memory).map_err(wrong("--tag-memory"))?;
        if !TAG_MEMORY.contains(&tag_memory) {
            return Err(Error::Value("--tag-memory".into(), "between 1MiB and 1GiB".into()));
        }
        let lock_timeout = setting(&typed.lock_timeout, "LOCK_TIMEOUT", "2s")?;
        let lock_timeout = quantity::duration(&lock_timeout).map_err(wrong("--lock-timeout"))?;
        let slot_mode = word(typed.slot_mode, environment, "WALTAG_SLOT_MODE")?;
        let retained = setting(&typed.max_retained_wal, "MAX_RETAINED_WAL", "4GiB")?;
        let max_retained_wal = quantity::bytes(&retained).map_err(wrong("--max-retained-wal"))?;
        let rate = setting(&typed.resync_rate, "RESYNC_RATE", "off")?;
        let resync_rate = match rate.as_str() {
            "off" => None,
            number => Some(number.parse::<u32>().ok().filter(|rate| *rate > 0).ok_or_else(|| {
                wrong("--resync-rate")(format!("`{number}` is neither `off` nor a number of keys per second"))
            })?),
        };
        let canary = match setting(&typed.canary, "CANARY", "10s")?.as_str() {
            "off" => None,
            text => Some(quantity::duration(text).map_err(wrong("--canary"))?.max(Duration::from_millis(100))),
        };
        let flush_nudge = match setting(&typed.flush_nudge, "FLUSH_NUDGE", "off")?.as_str() {
            "on" => true,
            "off" => false,
            other => return Err(wrong("--flush-nudge")(format!("`{other}` is neither `on` nor `off`"))),
        };
        let listen = typed.listen.clone().unwrap_or_else(|| environment.listen());
        let hosts = setting(&typed.listen_hosts, "LISTEN_HOSTS", "")?;
        let listen_hosts = hosts.split(',').map(str::trim).filter(|host| !host.is_empty()).map(str::to_owned).collect();
        let listen_token = match &typed.listen_token_file {
            Some(path) => Some(environment.file("--listen-token-file", path)?),
            None => environment.setting("LISTEN_TOKEN")?,
        };
        if listen_token
            .as_ref()
            .is_some_and(|token| token.is_empty() || !token.bytes().all(|byte| byte.is_ascii_graphic()))
        {
            let sentence = "a token is made of ASCII letters, digits and signs, without blanks";
            return Err(Error::Value("--listen-token-file".into(), sentence.into()));
        }
        let dsn = Dsn::parse(url.as_deref(), &|name| environment.get(name))?;
        let feed = word(typed.source, environment, "WALTAG_SOURCE")?;
        let poll = setting(&typed.poll, "POLL", "1s")?;
        let poll = quantity::duration(&poll).map_err(wrong("--poll"))?.max(SHORTEST_POLL);
        let no_listen = match environment.get("WALTAG_NO_LISTEN").as_deref() {
            _ if typed.no_listen => true,
            None | Some("off") => false,
            Some("on") => true,
            Some(other) => return Err(wrong("WALTAG_NO_LISTEN")(format!("`{other}` is neither `on` nor `off`"))),
        };
        let names = Names { slot, publication, feed, wakes: !no_listen };
        Ok(Settings {
            dsn,
            rules,
            names,
            tag_memory: tag_memory as usize,
            listen,
            listen_hosts,
            listen_token,
            lock_timeout,
            slot_mode,
            max_retained_wal,
            resync_rate,
            canary,
            flush_nudge,
            poll,
            no_listen,
        })
    }
}

/// One of a few words: a flag, or its variable.
fn word<T: clap::ValueEnum + Default>(typed: Option<T>, environment: &Environment, name: &str) -> Result<T, Error> {
    let text = match (typed, environment.get(name)) {
        (Some(typed), _) => return Ok(typed),
        (None, None) => return Ok(T::default()),
        (None, Some(text)) => text,
    };
    T::from_str(&text, false).map_err(|_| {
        let words = T::value_variants().iter().filter_map(T::to_possible_value);
        let words: Vec<String> = words.map(|word| word.get_name().to_owned()).collect();
        Error::Value(name.to_owned(), format!("`{text}` is none of {}", words.join(", ")))
    })
}

/// The log's form: needed before anything else, so that errors of the other settings are told in it.
pub fn log_format(typed: &Typed, environment: &Environment) -> Result<LogFormat, Error> {
    if let Some(format) = typed.log_format {
        return Ok(format);
    }
    match environment.get("WALTAG_LOG_FORMAT").as_deref() {
        None | Some("text") => Ok(LogFormat::Text),
        Some("json") => Ok(LogFormat::Json),
        Some(other) => Err(Error::Value("WALTAG_LOG_FORMAT".into(), format!("`{other}` is neither text nor json"))),
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::cli::Cli;

    fn resolve(arguments: &[&str], variables: &[(&str, &str)]) -> Result<Settings, Error> {
        let cli = Cli::try_parse_from(["waltag", "run"].iter().chain(arguments)).unwrap();
        let pairs = variables.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        Settings::resolve(&cli.typed, &Environment(pairs))
    }

    #[test]
    fn precedence() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), "postgres://u@from-file/db\n").unwrap();
        let path = file.path().display().to_string();
        let host = |settings: Settings| settings.dsn.endpoints()[0].to_string();
        let both =
            [("WALTAG_DATABASE_URL", "postgres://u@from-variable/db"), ("WALTAG_DATABASE_URL_FILE", path.as_str())];
        let flag = ["--database-url", "postgres://u@from-flag/db"];
        assert_eq!(host(resolve(&flag, &both).unwrap()), "from-flag:5432");
        assert_eq!(host(resolve(&[], &both).unwrap()), "from-variable:5432");
        assert_eq!(host(resolve(&[], &both[1..]).unwrap()), "from-file:5432");
        let shared = [("DATABASE_URL", "postgres://u@shared/db")];
        assert_eq!(host(resolve(&[], &shared).unwrap()), "shared:5432");
        assert_eq!(resolve(&[], &[("WALTAG_RULES", "a:b")]).unwrap().rules, ["a", "b"]);
        let listen = |arguments: &[&str], value: Option<&str>| {
            let variable = value.map(|value| ("WALTAG_LISTEN", value));
            resolve(arguments, variable.as_slice()).unwrap().listen
        };
        assert_eq!((listen(&[], None), listen(&[], Some(""))), (DEFAULT_LISTEN.into(), String::new()));
        assert_eq!(listen(&["--listen", ""], Some("x:1")), "");
        assert_eq!(resolve(&["--rules", "c"], &[("WALTAG_RULES", "a:b")]).unwrap().rules, ["c"]);
    }

    #[test]
    fn mistakes() {
        let sentence =
            |arguments: &[&str], variables: &[(&str, &str)]| resolve(arguments, variables).err().unwrap().to_string();
        assert!(sentence(&[], &[("WALTAG_DATABASE_ULR", "x")]).contains("did you mean WALTAG_DATABASE_URL?"));
        assert!(sentence(&["--tag-memory", "1kB"], &[]).contains("--tag-memory"));
        assert!(sentence(&["--slot", "My-Slot"], &[]).contains("a-z"));
        assert!(sentence(&[], &[("WALTAG_DATABASE_URL_FILE", "/none")]).contains("/none"));
    }
}
