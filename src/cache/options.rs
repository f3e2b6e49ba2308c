//! An entry of `caches:` as meant.

use std::time::Duration;

use redis::{ClientTlsConfig, ConnectionAddr, ConnectionInfo, IntoConnectionInfo, TlsCertificates};

use super::Cache;
use super::command::Operation;
use super::dialect::{self, DIALECTS, Dialect, KeyForm, KeyFormula, OperationForm};
use super::releases;
use crate::quantity;
use crate::rules::diagnostic::{Diagnostic, Place, Severity};
use crate::rules::expand::{Surroundings, expand};
use crate::rules::fields::{self, Fields};
use crate::rules::style::{self, Style};
use crate::rules::yaml::{Key, Node};
use crate::source::dsn::Dsn;
use crate::source::endpoint::Endpoint;

/// How long cache-tagging and cache-dependencies keep a tag (their `set()`: 24 hours, never refreshed).
const DJANGO_TAG_LIFE: u64 = 86_400;

/// Fills that take longer are rare; each repeat costs one more pass.
const DEFAULT_REPEAT: Duration = Duration::from_secs(1);
/// Nobody reads a cache that is away; one sweep brings it back.
const DEFAULT_DETACH: Duration = Duration::from_secs(60);
/// The position waits for the last repeat, so WAL is kept for as long.
const LONGEST_REPEAT: Duration = Duration::from_secs(3600);

/// Nothing under the tag is cached for as long.
const LONGEST_FENCE: Duration = Duration::from_secs(60);
/// Tag keys of the releases whose locks are known.
const LOCKING: &str = ":tag_07743_";

/// Reads the options of one cache: what is wrong is reported, and the rest is still looked at.
struct Reader<'a> {
    fields: Fields<'a>,
    around: &'a Surroundings<'a>,
    problems: &'a mut Vec<Diagnostic>,
}

impl Cache {
    /// Reads one entry of `caches:`.
    pub fn read(key: &Key, node: &Node, around: &Surroundings, problems: &mut Vec<Diagnostic>) -> Option<Cache> {
        let reported = problems.len();
        let dialect = dialect_of(node, problems)?;
        let known: Vec<&str> =
            ["url", "cacert", "cert", "key", "dialect", "style", "repeat", "detach_after", "replicas"]
                .into_iter()
                .chain(dialect.options.iter().copied())
                .collect();
        let what = format!("a cache of dialect {}", dialect.name);
        // What the options of a client that is not spoken yet are called is not known here.
        let mut unjudged = Vec::new();
        let fields = Fields::of(node, &what, &known, if dialect.planned { &mut unjudged } else { problems })?;
        let mut reader = Reader { fields, around, problems };
        let url = reader.url();
        let style = reader.style(dialect);
        let keys = reader.keys(dialect.keys);
        let operation = reader.operation(dialect);
        let repeat = reader.repeat();
        let replicas = reader.replicas();
        let fence = reader.fence(&keys, operation, &repeat);
        let detach_after = reader.seconds("detach_after").map_or(DEFAULT_DETACH, Duration::from_secs);
        if problems.iter().skip(reported).any(|problem| problem.severity == Severity::Error) {
            return None;
        }
        Some(Cache {
            name: key.name.clone(),
            place: key.place.clone(),
            url: url?,
            dialect,
            style,
            keys,
            operation: operation?,
            fence,
            replicas,
            repeat,
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
    let found = dialect::named(name);
    if found.is_some_and(|dialect| dialect.planned) {
        let message = format!("the dialect `{name}` is not spoken yet: its rules can be checked and tested, not run");
        problems.push(place.warning("not-yet", message));
    }
    if found.is_none() {
        let problem = place.error("unknown-dialect", format!("unknown dialect `{name}`"));
        problems.push(problem.suggest(name, DIALECTS.iter().map(|dialect| dialect.name)));
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
                Ok(text) => expanded.push((place.clone(), text)),
                Err(sentence) => self.problems.push(place.error("expand", sentence)),
            }
        }
        expanded
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

    fn url(&mut self) -> Option<ConnectionInfo> {
        self.fields.require("url", "the cache", self.problems)?;
        let (place, text) = self.text("url")?;
        let scheme = text.split("://").next().unwrap_or_default();
        // The message must not quote the URL: it may hold a password.
        let help =
            "write redis://[user:password@]host:6379/DB, rediss:// for TLS, or redis+unix:///path/redis.sock?db=DB";
        let wrong = |sentence: &str| place.error("url", sentence).help(help);
        if !matches!(scheme, "redis" | "rediss" | "unix" | "redis+unix") {
            self.problems.push(wrong("a Redis URL starts with redis://, rediss:// or redis+unix://"));
            return None;
        }
        if text.ends_with("#insecure") {
            self.problems.push(
                place
                    .error("url", "a certificate that is not verified protects from nobody")
                    .help("give the certificate of its authority as `cacert: FILE`"),
            );
            return None;
        }
        match text.as_str().into_connection_info() {
            Ok(info) => self.certificates(info),
            Err(_) => {
                self.problems.push(wrong("this is not a Redis URL"));
                None
            }
        }
    }

    /// `cacert`, `cert` and `key`, as redis-cli calls them: PEM files for `rediss://`.
    fn certificates(&mut self, info: ConnectionInfo) -> Option<ConnectionInfo> {
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
        let Some(place) = first else { return Some(info) };
        if !matches!(info.addr(), ConnectionAddr::TcpTls { .. }) {
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
        match redis::Client::build_with_tls(info, certificates) {
            Ok(client) => Some(client.get_connection_info().clone()),
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

    fn keys(&mut self, form: KeyForm) -> Vec<KeyFormula> {
        let KeyForm::DjangoTag(library) = form else { return vec![KeyFormula::Verbatim] };
        let mut prefixes = self.texts("key_prefix");
        if prefixes.is_empty() {
            prefixes.push((self.fields.place.clone(), String::new()));
        }
        let mut versions = self.texts("version");
        if versions.is_empty() {
            versions.push((self.fields.place.clone(), "1".into()));
        }
        if let (Some(node), Some(_)) = (self.fields.get("release"), self.fields.get("releases")) {
            self.problems.push(node.place.error("option", "`release` and `releases` exclude each other"));
        }
        let mut releases = self.texts("releases");
        releases.extend(self.text("release"));
        if releases.is_empty() {
            releases.push((self.fields.place.clone(), library.default_release().into()));
        }
        let mut heads = Vec::new();
        for (place, release) in releases {
            match releases::tag_prefix(&release) {
                Some(prefix) if heads.contains(&prefix) => {}
                Some(prefix) => heads.push(prefix),
                None => {
                    let (first, last) = releases::range(library);
                    let problem =
                        place.error("option", format!("`{release}` is not a release whose tag keys are known"));
                    self.problems.push(problem.help(format!("releases run from {first} to {last}")));
                }
            }
        }
        let mut keys = Vec::new();
        for (_, prefix) in &prefixes {
            for (_, version) in &versions {
                keys.extend(heads.iter().map(|head| KeyFormula::Md5(format!("{prefix}:{version}:{head}"))));
            }
        }
        keys
    }

    fn operation(&mut self, dialect: &Dialect) -> Option<Operation> {
        match dialect.operation {
            OperationForm::Unlink => Some(Operation::Unlink),
            OperationForm::UnlinkOrSet => {
                let set = Operation::Set { ttl: DJANGO_TAG_LIFE, existing: true };
                Some(self.word("mode", &[("unlink", Operation::Unlink), ("set", set)]).unwrap_or(Operation::Unlink))
            }
            OperationForm::Version => {
                let what = "a cache of dialect version";
                let ttl = self.fields.require("ttl", what, self.problems).and_then(|_| self.seconds("ttl"));
                let absent = self.fields.require("absent", what, self.problems);
                let existing = absent.and_then(|_| self.word("absent", &[("stale", true), ("valid", false)]));
                Some(Operation::Set { ttl: ttl?, existing: existing? })
            }
        }
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

    /// How long the client's own `set()` refuses. It hides a stale value from fills that are shorter; the others need the repeat.
    fn fence(&mut self, keys: &[KeyFormula], operation: Option<Operation>, repeat: &[Duration]) -> Option<Duration> {
        let (place, text) = self.text("fence")?;
        let wrong = |sentence: &str| place.error("option", sentence.to_owned());
        let problem = match quantity::duration(&text) {
            Err(sentence) => wrong(&sentence),
            Ok(delay) if delay.is_zero() || delay > LONGEST_FENCE => wrong("`fence` is at most 60s"),
            Ok(_) if operation == Some(Operation::Unlink) => wrong("`fence` needs `mode: set`"),
            Ok(_) if repeat.is_empty() => wrong("`fence` needs a `repeat` beside it, for fills that take longer"),
            Ok(_) if !keys.iter().all(|key| matches!(key, KeyFormula::Md5(head) if head.ends_with(LOCKING))) => {
                wrong("`fence` needs release 0.7.7.43 or later: the locks of earlier ones are others")
            }
            Ok(delay) => return Some(delay),
        };
        self.problems.push(problem);
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
