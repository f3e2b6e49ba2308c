//! The database's address: a URL or a keyword string (manual: "Connection Strings"), as parameters by libpq's names.
//! `dsn_defaults` completes them; [`super::endpoint`] makes one configuration per host of them.

use std::collections::BTreeMap;

use super::endpoint::Endpoint;
use super::{dsn_defaults, dsn_tls};

/// libpq's parameters that waltag takes.
const KNOWN: [&str; 23] = [
    "user",
    "password",
    "dbname",
    "options",
    "host",
    "hostaddr",
    "port",
    "connect_timeout",
    "tcp_user_timeout",
    "keepalives",
    "keepalives_idle",
    "keepalives_interval",
    "keepalives_count",
    "passfile",
    "service",
    "servicefile",
    "sslmode",
    "sslrootcert",
    "sslcert",
    "sslkey",
    "channel_binding",
    "require_auth",
    "application_name",
];
/// libpq's parameters that change nothing here: which server is taken, and how TLS begins, is decided otherwise.
const WITHOUT_EFFECT: [&str; 9] = [
    "target_session_attrs",
    "load_balance_hosts",
    "ssl",
    "sslnegotiation",
    "sslcompression",
    "sslsni",
    "ssl_min_protocol_version",
    "gssencmode",
    "client_encoding",
];

/// Parameters of other drivers that are met, in lower case.
const OTHERS: [&str; 30] = [
    "schema",
    "pgbouncer",
    "connection_limit",
    "pool_timeout",
    "socket_timeout",
    "statement_cache_size",
    "sslaccept",
    "sslidentity",
    "sslpassword",
    "preparethreshold",
    "currentschema",
    "applicationname",
    "rewritebatchedinserts",
    "stringtype",
    "tcpkeepalive",
    "logintimeout",
    "targetservertype",
    "prepared_statements",
    "pool_size",
    "pool",
    "timeout",
    "encoding",
    "reconnect",
    "charset",
    "serverversion",
    "driver",
    "search_path",
    "fallback_application_name",
    "max_connections",
    "replication",
];

/// Parameters by libpq's names.
pub type Parameters = BTreeMap<String, String>;

/// A parsed DSN. Nothing of it is ever shown but hosts and the database's name.
#[derive(Clone)]
pub struct Dsn {
    endpoints: Vec<Endpoint>,
    /// Parameters of other drivers (`schema`, `pgbouncer`, ...): named in one warning, otherwise ignored.
    pub ignored: Vec<String>,
}

/// What is wrong with a DSN. Never quotes the DSN itself: it may hold a password.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Not a URL nor a keyword string.
    #[error(
        "the database URL cannot be read: {0}; expected postgres://user@host:5432/database or `host=... dbname=...`"
    )]
    Syntax(String),
    /// A parameter of TLS.
    #[error("{0}")]
    Tls(String),
    /// `PGSERVICE` names a section that no file has.
    #[error("the connection service `{0}` is in none of {1}")]
    Service(String, String),
}

/// Looks up an environment variable; a parameter so that tests need not touch the real one.
pub type Environment<'a> = &'a dyn Fn(&str) -> Option<String>;

impl Dsn {
    /// Parses `text` (none: only libpq's variables and defaults) and fills what it leaves open.
    pub fn parse(text: Option<&str>, environment: Environment) -> Result<Dsn, Error> {
        let mut parameters = text.map_or(Ok(Parameters::new()), parameters)?;
        dsn_tls::refuse_unenforced(&parameters, environment)?;
        // As JDBC writes it, and libpq takes it.
        if parameters.get("ssl").is_some_and(|value| value == "true") {
            parameters.entry("sslmode".into()).or_insert("require".into());
        }
        let mut ignored = Vec::new();
        parameters.retain(|name, value| {
            let known = KNOWN.contains(&name.as_str());
            if !known && !WITHOUT_EFFECT.contains(&name.as_str()) {
                // What nobody knows may be the rest of a password that had to be escaped.
                let name = if OTHERS.contains(&name.to_ascii_lowercase().as_str()) {
                    name.as_str()
                } else {
                    "one that nobody knows"
                };
                ignored.push(name.to_owned());
            }
            known && !value.is_empty()
        });
        dsn_defaults::complete(&mut parameters, environment)?;
        // A service may have brought more.
        dsn_tls::refuse_unenforced(&parameters, environment)?;
        let tls = dsn_tls::mode(&parameters, environment)?;
        let endpoints =
            Endpoint::all(&parameters, tls, |host, port| dsn_defaults::password(&parameters, host, port, environment))?;
        Ok(Dsn { endpoints, ignored })
    }

    /// Does this text hold a password?
    pub fn names_password(text: &str) -> bool {
        parameters(text).is_ok_and(|parameters| parameters.contains_key("password"))
    }

    /// Each host of the DSN, in order; at least one.
    pub fn endpoints(&self) -> &[Endpoint] {
        &self.endpoints
    }

    /// The database that is read.
    pub fn database(&self) -> &str {
        self.endpoints.first().and_then(|endpoint| endpoint.config().get_dbname()).unwrap_or_default()
    }
}

/// What a text says by itself.
pub fn parameters(text: &str) -> Result<Parameters, Error> {
    let text = text.trim();
    match text.split_once("://") {
        // A password within a keyword string may hold `://` as well.
        Some((scheme, rest)) if scheme.bytes().all(|b| b.is_ascii_alphanumeric() || b"+.-".contains(&b)) => {
            // SQLAlchemy writes postgresql+asyncpg://, Django and Rails plugins postgis://.
            match scheme.split('+').next().unwrap_or_default() {
                "postgres" | "postgresql" | "postgis" | "pgsql" => url(rest),
                _ => Err(Error::Syntax(format!("its scheme is `{scheme}://`, not postgres://"))),
            }
        }
        _ => keywords(text),
    }
}

/// A value for a message, if it is one word: behind one that ends too late stands the rest of the DSN, and with it perhaps the password.
pub(super) fn shown(value: &str) -> &str {
    if is_name(value) { value } else { "..." }
}

fn is_name(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|b| b.is_ascii_alphanumeric() || b"_.-".contains(&b))
}

/// `[user[:password]@][host[:port],...][/dbname][?name=value&...]`; a parameter of the query outranks what stands before it.
fn url(rest: &str) -> Result<Parameters, Error> {
    let mut parameters = Parameters::new();
    let (address, query) = rest.split_once('?').unwrap_or((rest, ""));
    let (authority, database) = address.split_once('/').unwrap_or((address, ""));
    let (user, hosts) = authority.rsplit_once('@').map_or((None, authority), |(user, hosts)| (Some(user), hosts));
    if database.contains('@') {
        let help = "an `@` stands behind a `/`; within a user or password a `/` is written %2F, within a database's name an `@` %40";
        return Err(Error::Syntax(help.into()));
    }
    if let Some(user) = user {
        let (name, password) = user.split_once(':').unwrap_or((user, ""));
        parameters.insert("user".into(), percent_decoded(name));
        parameters.insert("password".into(), percent_decoded(password));
    }
    let (mut names, mut ports) = (Vec::new(), Vec::new());
    for host in hosts.split(',') {
        let (name, port) = match host.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
            Some((address, after)) => (address, after.strip_prefix(':').unwrap_or_default()),
            None => host.split_once(':').unwrap_or((host, "")),
        };
        if !port.is_empty() && port.parse::<u16>().is_err() {
            return Err(Error::Syntax("a port is not a number".into()));
        }
        names.push(percent_decoded(name));
        ports.push(port);
    }
    if names.iter().any(|name| !name.is_empty()) {
        parameters.insert("host".into(), names.join(","));
    }
    if ports.iter().any(|port| !port.is_empty()) {
        parameters.insert("port".into(), ports.join(","));
    }
    parameters.insert("dbname".into(), percent_decoded(database));
    parameters.retain(|_, value| !value.is_empty());
    for pair in query.split('&').filter(|pair| !pair.is_empty()) {
        let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
        let name = percent_decoded(name);
        if !is_name(&name) {
            let help = "a parameter is not a name; within a user or password a `?` is written %3F and a `&` %26";
            return Err(Error::Syntax(help.into()));
        }
        parameters.insert(name, percent_decoded(value));
    }
    Ok(parameters)
}

/// `key = value` pairs; a value in single quotes may hold spaces, `\` escapes.
fn keywords(text: &str) -> Result<Parameters, Error> {
    let mut parameters = Parameters::new();
    let mut rest = text.trim_start();
    while !rest.is_empty() {
        let (key, after) = rest.split_once('=').ok_or_else(|| Error::Syntax("a keyword has no `=`".into()))?;
        let after = after.trim_start();
        let (quoted, body) = after.strip_prefix('\'').map_or((false, after), |body| (true, body));
        let (mut value, mut end, mut escaped) = (String::new(), None, false);
        for (index, character) in body.char_indices() {
            match character {
                _ if escaped => {
                    value.push(character);
                    escaped = false;
                }
                '\\' => escaped = true,
                '\'' if quoted => end = Some(index + 1),
                space if !quoted && space.is_whitespace() => end = Some(index),
                other => value.push(other),
            }
            if end.is_some() {
                break;
            }
        }
        if quoted && end.is_none() {
            return Err(Error::Syntax("a quote is not closed".into()));
        }
        let key = key.trim();
        // Most likely a value with a space and no quotes, and the rest of a password must not be shown as a name.
        if !is_name(key) {
            return Err(Error::Syntax("a keyword is not a name; values with spaces want single quotes".into()));
        }
        parameters.insert(key.to_owned(), value);
        rest = body.get(end.unwrap_or(body.len())..).unwrap_or_default().trim_start();
    }
    Ok(parameters)
}

fn percent_decoded(text: &str) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let [first, tail @ ..] = rest {
        let hex = |digits: &[u8]| std::str::from_utf8(digits).ok().and_then(|d| u8::from_str_radix(d, 16).ok());
        match (first, tail) {
            (b'%', [high, low, after @ ..]) if hex(&[*high, *low]).is_some() => {
                bytes.extend(hex(&[*high, *low]));
                rest = after;
            }
            _ => {
                bytes.push(*first);
                rest = tail;
            }
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Dsn, Error> {
        Dsn::parse(Some(text), &|_| None)
    }

    fn hosts(dsn: &Dsn) -> Vec<String> {
        dsn.endpoints().iter().map(ToString::to_string).collect()
    }

    fn password(dsn: &Dsn) -> Option<&[u8]> {
        dsn.endpoints()[0].config().get_password()
    }

    #[test]
    fn urls_and_keywords() {
        let dsn = parse("postgres://u:p%40ss@db.example:6000/shop?connect_timeout=3").unwrap();
        assert_eq!((hosts(&dsn), dsn.database()), (vec!["db.example:6000".to_owned()], "shop"));
        assert_eq!((dsn.endpoints()[0].config().get_user(), password(&dsn)), (Some("u"), Some(&b"p@ss"[..])));
        let dsn = parse("host=/run/pg port=6000 dbname='my shop' user=u password='it\\'s'").unwrap();
        assert_eq!(hosts(&dsn), ["/run/pg/.s.PGSQL.6000"]);
        assert_eq!((dsn.database(), password(&dsn)), ("my shop", Some(&b"it's"[..])));
        assert_eq!(hosts(&parse("postgresql://u@a:1,b:2/shop").unwrap()), ["a:1", "b:2"]);
        assert_eq!(hosts(&parse("postgresql://u@a,b/shop?port=7").unwrap()), ["a:7", "b:7"]);
        assert_eq!(hosts(&parse("postgres://u@[::1]:6000/shop").unwrap()), ["::1:6000"]);
        assert_eq!(hosts(&parse("postgres://u@db/shop?port=6000&host=other").unwrap()), ["other:6000"]);
        assert_eq!(hosts(&parse("postgresql:///shop?host=%2Frun%2Fpg&user=u").unwrap()), ["/run/pg/.s.PGSQL.5432"]);
        // A comma was taken for a list of hosts without a name, whatever it was.
        assert_eq!(password(&parse("postgres://u:%2C@a/shop").unwrap()), Some(&b","[..]));
        assert_eq!(hosts(&parse("postgres://u@a,b/,").unwrap()), ["a:5432", "b:5432"]);
        assert_eq!(hosts(&parse("hostaddr=10.0.0.1 host=name user=u").unwrap()), ["10.0.0.1:5432"]);
    }

    #[test]
    fn other_drivers_parameters_are_named() {
        let dsn = parse("postgresql+asyncpg://u@a/shop?schema=public&pgbouncer=true&sslmode=prefer").unwrap();
        assert_eq!(dsn.ignored, ["pgbouncer", "schema"]);
    }

    #[test]
    fn errors_never_show_the_password() {
        for bad in [
            "mysql://u:MARKER@a/b",
            "postgres://u:MARKER@a:port/b",
            "host=a password='MARKER",
            "host=a password=MARKER:// x",
            "host=a port=MARKER",
            "host=a password=my MARKER dbname=x",
            // Passwords that are not encoded, and begin like a port.
            "postgres://u:12?MARKER@h/d",
            "postgres://u:12/MARKER@h/d",
            "postgres://u@h/d?sslmode=prefer password=MARKER",
            "postgres://u@h/d?channel_binding=x password=MARKER",
        ] {
            let error = parse(bad).err().unwrap_or_else(|| panic!("{bad}")).to_string();
            assert!(!error.contains("MARKER"), "{error}");
        }
        assert_eq!(password(&parse("host=h user=u password=a://b").unwrap()), Some(&b"a://b"[..]));
    }
}
