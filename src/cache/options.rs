//! An entry of `caches:` as meant: what every cache has. `spoken` reads what is the dialect's own.

mod spoken;

use std::time::Duration;

use redis::{ClientTlsConfig, TlsCertificates};

use super::Cache;
use super::dialect::Dialect;
use super::dialects;
use super::location::{self, Location};
use super::step::{Action, Step};
use crate::quantity;
use crate::rules::diagnostic::{Diagnostic, Place, Severity};
use crate::rules::expand::{Surroundings, expand};
use crate::rules::fields::{self, Fields};
use crate::rules::style::{self, Style};
use crate::rules::yaml::{Key, Node};
use crate::source::dsn::Dsn;
use crate::source::endpoint::Endpoint;

/// Fills that take longer are rare; each repeat costs one more pass.
const DEFAULT_REPEAT: Duration = Duration::from_secs(1);
/// Nobody reads a cache that is away; one sweep brings it back.
const DEFAULT_DETACH: Duration = Duration::from_secs(60);
/// The position waits for the last repeat, so WAL is kept for as long.
const LONGEST_REPEAT: Duration = Duration::from_secs(3600);

/// Nothing under the tag is cached for as long.
const LONGEST_FENCE: Duration = Duration::from_secs(60);
/// Tag keys of the releases whose locks are known.
const LOCKING: &[u8] = b":tag_07743_";
/// Options of every cache.
pub const COMMON: [(&str, &str); 16] = [
    (
        "url",
        "where Redis is: redis://, rediss://, redis+unix://, redis+cluster://host:port,host:port, redis+sentinel://host:port,host:port/name",
    ),
    ("sentinel_username", "with redis+sentinel://: who we are to the Sentinels"),
    ("sentinel_password", "and our password there; that of the URL is for the master"),
    ("cacert", "with rediss://: certificate of the authority, a PEM file"),
    ("cert", "our certificate"),
    ("key", "its key"),
    ("dialect", "the client library"),
    ("style", "how values become text; by default as the client's language writes them"),
    ("repeat", "stale again after these delays; [1s]"),
    ("guard", "of clients that compare times: stamps are this far in the future; off"),
    ("wait_replicas", "so many replicas of Redis must have taken what was sent before it counts (WAIT); 0"),
    (
        "prefix_only",
        "SQL (`waltag.invalidate`) may only name tags that begin with one of these, or that a template of the rules can render; where the tag is the key, the latter by default",
    ),
    ("detach_after", "a cache that is away for this long no longer holds up the others; 60s"),
    ("replicas", "database URLs of standbys that the application reads from"),
    ("accept_unverified", "true: use a dialect that was never run against its library"),
    ("fence", "of cache-dependencies: its own set() stores nothing under a stale tag for this long; off"),
];

/// Reads the options of one cache: what is wrong is reported, and the rest is still looked at.
struct Reader<'a> {
    fields: Fields<'a>,
    around: &'a Surroundings<'a>,
    problems: &'a mut Vec<Diagnostic>,
    /// Where something was put in place of a `${...}`, and what.
    expanded: Vec<(Place, String)>,
}

impl Cache {
    /// Reads one entry of `caches:`.
    pub fn read(key: &Key, node: &Node, around: &Surroundings, problems: &mut Vec<Diagnostic>) -> Option<Cache> {
        let reported = problems.len();
        let dialect = dialect_of(node, problems)?;
        let common = COMMON.iter().map(|(name, _)| *name).filter(|name| *name != "fence" || dialect.locks());
        let own = dialect.options.iter().flat_map(|option| [option.name].into_iter().chain(option.alias()));
        let known: Vec<&str> = common.chain(own).collect();
        let what = format!("a cache of dialect {}", dialect.name);
        let fields = Fields::of(node, &what, &known, problems)?;
        let mut reader = Reader { fields, around, problems, expanded: Vec::new() };
        let location = reader.location();
        reader.verified(dialect, key);
        let style = reader.style(dialect);
        let mut spoken = reader.spoken(dialect, &what);
        if location.as_ref().is_some_and(Location::is_cluster) {
            spoken = spoken.and_then(|spoken| reader.spread(spoken));
        }
        let repeat = reader.repeat();
        let replicas = reader.replicas();
        let fence = spoken.as_ref().and_then(|(steps, _)| reader.fence(steps, &repeat));
        let guard = spoken.as_ref().and_then(|(steps, _)| reader.guard(dialect, steps, &repeat)).unwrap_or_default();
        let wait_replicas = reader.replicas_to_wait_for();
        let prefix_only = reader.texts("prefix_only").into_iter().map(|(_, text)| text).collect();
        let detach_after = reader.seconds("detach_after").map_or(DEFAULT_DETACH, Duration::from_secs);
        reader.show_as_written(reported);
        if problems.iter().skip(reported).any(|problem| problem.severity == Severity::Error) {
            return None;
        }
        let (steps, reach) = spoken?;
        Some(Cache {
            name: key.name.clone(),
            place: key.place.clone(),
            location: location?,
            dialect,
            style,
            steps,
            reach,
            fence,
            guard,
            replicas,
            repeat,
            wait_replicas,
            prefix_only,
            detach_after,
        })
    }
}

fn dialect_of(node: &Node, problems: &mut Vec<Diagnostic>) -> Option<&'static Dialect> {
    let mut ignored = Vec::new();
    // Which keys are known depends on the dialect, so it is looked up before the keys are checked.
    let entries = match &node.value {
        crate::rules::yaml::Value::Map(_) => Fields::of(node, "a cache", &[], &mut ignored)?,
        _ => return Fields::of(node, "a cache", &[], problems).and(None),
    };
    let (place, name) = fields::text(entries.require("dialect", "the cache", problems)?, "`dialect`", problems)?;
    let found = dialects::named(name);
    if found.is_none() {
        let problem = place.error("unknown-dialect", format!("unknown dialect `{name}`"));
        let names = dialects::all().map(|dialect| dialect.name);
        problems.push(match dialects::refused(name) {
            Some(reason) => problem.help(reason),
            None => problem.suggest(name, names),
        });
    }
    found
}

impl Reader<'_> {
    /// The texts of a key, expanded.
    fn texts(&mut self, name: &str) -> Vec<(Place, String)> {
        let Some(node) = self.fields.get(name) else { return Vec::new() };
        let mut expanded = Vec::new();
        for (place, text) in fields::texts(node, &format!("`{name}`"), self.problems) {
            match expand(text, self.around) {
                Ok(value) => {
                    if value != text {
                        self.expanded.push((place.clone(), value.clone()));
                    }
                    expanded.push((place.clone(), value));
                }
                Err(sentence) => self.problems.push(place.error("expand", sentence)),
            }
        }
        expanded
    }

    /// A problem says what was written, and never what that stands for: it may be a secret, and whoever may ask how the daemon is would read it.
    fn show_as_written(&mut self, reported: usize) {
        for problem in
            self.problems.iter_mut().skip(reported).filter(|problem| !matches!(problem.code, "expand" | "url"))
        {
            let at = |place: &Place| (place.line, place.column) == (problem.place.line, problem.place.column);
            let told = |text: &String| {
                [Some(&problem.message), problem.help.as_ref()].into_iter().flatten().any(|said| said.contains(text))
            };
            if self.expanded.iter().any(|(place, text)| at(place) || (!text.is_empty() && told(text))) {
                problem.message = "what the `${...}` here stands for cannot be used".into();
                problem.help =
                    Some("write it out to see why, or run `waltag dialects` for what each option takes".into());
            }
        }
    }

    /// The one text of a key.
    fn text(&mut self, name: &str) -> Option<(Place, String)> {
        let mut texts = self.texts(name);
        if let Some((place, _)) = texts.get(1) {
            self.problems.push(place.error("type", format!("`{name}` takes one value")));
        }
        (!texts.is_empty()).then(|| texts.swap_remove(0))
    }

    /// One of a few words.
    fn word<T: Copy>(&mut self, name: &str, words: &[(&str, T)]) -> Option<T> {
        let (place, text) = self.text(name)?;
        let found = words.iter().find(|(word, _)| *word == text).map(|(_, value)| *value);
        if found.is_none() {
            let problem = place.error("option", format!("`{name}` cannot be `{text}`"));
            self.problems.push(problem.suggest(&text, words.iter().map(|(word, _)| *word)));
        }
        found
    }

    fn location(&mut self) -> Option<Location> {
        self.fields.require("url", "the cache", self.problems)?;
        let (place, text) = self.text("url")?;
        // The message must not quote the URL: it may hold a password.
        let wrong = |sentence: &str| place.error("url", sentence);
        if text.ends_with("#insecure") {
            let problem = wrong("a certificate that is not verified protects from nobody");
            self.problems.push(problem.help("give the certificate of its authority as `cacert: FILE`"));
            return None;
        }
        match Location::parse(&text) {
            Ok(location) => {
                let location = self.sentinel_credentials(location)?;
                self.certificates(location)
            }
            Err(sentence) => {
                self.problems.push(wrong(sentence).help(location::FORMS));
                None
            }
        }
    }

    fn sentinel_credentials(&mut self, location: Location) -> Option<Location> {
        let (username, password) = (self.text("sentinel_username"), self.text("sentinel_password"));
        if let Some((place, _)) = username.as_ref().or(password.as_ref())
            && location.service().is_none()
        {
            self.problems.push(place.error("option", "there are no Sentinels in this `url`").help(location::FORMS));
            return None;
        }
        let text = |given: &'_ Option<(Place, String)>| given.as_ref().map(|(_, text)| text.clone());
        Some(location.with_sentinel_credentials(text(&username).as_deref(), text(&password).as_deref()))
    }

    /// `cacert`, `cert` and `key`, as redis-cli calls them: PEM files for `rediss://`.
    fn certificates(&mut self, location: Location) -> Option<Location> {
        let mut file = |name: &str| -> Option<(Place, Vec<u8>)> {
            let (place, path) = self.text(name)?;
            match self.around.read(&path) {
                Ok(content) => Some((place, content)),
                Err(sentence) => {
                    self.problems.push(place.error("option", sentence));
                    None
                }
            }
        };
        let (root, certificate, key) = (file("cacert"), file("cert"), file("key"));
        let first = [&root, &certificate, &key].into_iter().flatten().next().map(|(place, _)| place.clone());
        let Some(place) = first else { return Some(location) };
        if !location.is_encrypted() {
            self.problems.push(place.error("option", "certificates are for TLS: write the URL as rediss://"));
            return None;
        }
        let client_tls = match (certificate, key) {
            (Some((_, client_cert)), Some((_, client_key))) => Some(ClientTlsConfig { client_cert, client_key }),
            (None, None) => None,
            _ => {
                self.problems.push(place.error("option", "`cert` and `key` go together"));
                return None;
            }
        };
        let certificates = TlsCertificates { client_tls, root_cert: root.map(|(_, content)| content) };
        let with = |info| {
            let client = redis::Client::build_with_tls(info, certificates.clone())?;
            Ok::<_, redis::RedisError>(client.get_connection_info().clone())
        };
        match location.each(with) {
            Ok(location) => Some(location),
            Err(error) => {
                self.problems.push(place.error("option", format!("these certificates cannot be used: {error}")));
                None
            }
        }
    }

    fn style(&mut self, dialect: &Dialect) -> Style {
        let words: Vec<(&str, Style)> =
            style::NAMES.iter().filter_map(|name| Some((*name, Style::named(name)?))).collect();
        self.word("style", &words).unwrap_or(dialect.style)
    }

    /// `[1s]` when nothing is said: it heals what a reader stores that was computing during the first pass.
    fn repeat(&mut self) -> Vec<Duration> {
        if self.fields.get("repeat").is_none() {
            return vec![DEFAULT_REPEAT];
        }
        let mut delays = Vec::new();
        for (place, text) in self.texts("repeat") {
            match quantity::duration(&text) {
                Ok(delay) if delay <= LONGEST_REPEAT => delays.push(delay),
                Ok(_) => self.problems.push(place.error("option", "`repeat` holds back the slot: at most 1h")),
                Err(sentence) => self.problems.push(place.error("option", sentence)),
            }
        }
        delays.sort();
        delays.dedup();
        delays
    }

    /// Standbys that the application reads from, each by its own database URL.
    fn replicas(&mut self) -> Vec<Endpoint> {
        let mut endpoints = Vec::new();
        for (place, text) in self.texts("replicas") {
            match Dsn::parse(Some(&text), &|_| None) {
                Ok(dsn) => endpoints.extend(dsn.endpoints().iter().cloned()),
                Err(error) => self.problems.push(place.error("option", error.to_string())),
            }
        }
        endpoints
    }

    /// None by default: the marker notices what a failover has lost.
    fn replicas_to_wait_for(&mut self) -> u8 {
        let Some((place, text)) = self.text("wait_replicas") else { return 0 };
        text.parse().unwrap_or_else(|_| {
            self.problems.push(place.error("option", "`wait_replicas` is a small number of replicas"));
            0
        })
    }

    /// How long the client's own `set()` refuses. It hides a stale value from fills that are shorter; the others need the repeat.
    fn fence(&mut self, steps: &[Step], repeat: &[Duration]) -> Option<Duration> {
        let unlinks = steps.iter().any(|step| step.action == Action::Unlink);
        let locks = steps.iter().all(|step| step.key.around().0.ends_with(LOCKING));
        self.hiding("fence", repeat, |delay| match delay {
            _ if unlinks => Some("`fence` needs `mode: set`"),
            _ if !locks => Some("`fence` needs release 0.7.7.43 or later: the locks of earlier ones are others"),
            _ => None,
        })
    }

    /// How far stamps are in the future.
    fn guard(&mut self, dialect: &Dialect, steps: &[Step], repeat: &[Duration]) -> Option<Duration> {
        let stamps = steps.iter().any(|step| matches!(step.action, Action::Stamp { .. }));
        self.hiding("guard", repeat, |delay| match delay {
            _ if !stamps => Some("`guard` is for clients that compare times, and this one does not"),
            _ if !dialect.future => {
                Some("this client takes a time in the future for now, or waits until it has come: `repeat` alone")
            }
            _ => None,
        })
    }

    /// Hides a stale value from fills that are shorter than this.
    fn hiding(
        &mut self,
        name: &str,
        repeat: &[Duration],
        refuse: impl Fn(Duration) -> Option<&'static str>,
    ) -> Option<Duration> {
        let (place, text) = self.text(name)?;
        let sentence = match quantity::duration(&text) {
            Err(sentence) => sentence,
            Ok(delay) if delay.is_zero() || delay > LONGEST_FENCE => format!("`{name}` is at most 60s"),
            Ok(_) if repeat.is_empty() => format!("`{name}` needs a `repeat` beside it, for fills that take longer"),
            Ok(delay) => match refuse(delay) {
                Some(sentence) => sentence.to_owned(),
                None => return Some(delay),
            },
        };
        self.problems.push(place.error("option", sentence));
        None
    }

    fn seconds(&mut self, name: &str) -> Option<u64> {
        let (place, text) = self.text(name)?;
        match quantity::duration(&text) {
            Ok(duration) if duration.as_secs() >= 1 => Some(duration.as_secs()),
            Ok(_) => {
                self.problems.push(place.error("option", format!("`{name}` is at least 1s")));
                None
            }
            Err(sentence) => {
                self.problems.push(place.error("option", sentence));
                None
            }
        }
    }
}
