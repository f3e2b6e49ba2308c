//! The database's address: a URL or a keyword string, completed as libpq would (manual: "Connection Strings",
//! "Environment Variables", "The Password File", "The Connection Service File").

use tokio_postgres::Config;

use super::dsn_defaults;
use super::endpoint::Endpoint;

/// Parameters that `tokio_postgres::Config` understands.
const KNOWN: [&str; 16] = [
    "user",
    "password",
    "dbname",
    "options",
    "application_name",
    "host",
    "hostaddr",
    "port",
    "connect_timeout",
    "tcp_user_timeout",
    "keepalives",
    "keepalives_idle",
    "keepalives_interval",
    "keepalives_retries",
    "target_session_attrs",
    "load_balance_hosts",
];

/// A parsed DSN. Its Debug and Display forms never show the password.
#[derive(Clone)]
pub struct Dsn {
    config: Config,
    /// Parameters of other drivers (`schema`, `pgbouncer`, ...): named in one warning, otherwise ignored.
    pub ignored: Vec<String>,
}

/// What is wrong with a DSN. Never quotes the DSN itself: it may hold a password.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Not a URL nor a keyword string.
    #[error(
        "the database URL cannot be read ({0}); expected postgres://user@host:5432/database or `host=... dbname=...`"
    )]
    Syntax(String),
    /// TLS is not spoken yet.
    #[error(
        "sslmode={0} needs TLS, which this version of waltag does not speak; use a unix socket, a local tunnel, or sslmode=prefer"
    )]
    Tls(String),
    /// `PGSERVICE` names a section that no file has.
    #[error("the connection service `{0}` (PGSERVICE) is in none of {1}")]
    Service(String, String),
}

/// Looks up an environment variable; a parameter so that tests need not touch the real one.
pub type Environment<'a> = &'a dyn Fn(&str) -> Option<String>;

impl Dsn {
    /// Parses `text` (none: only libpq's variables and defaults) and fills what it leaves open.
    pub fn parse(text: Option<&str>, environment: Environment) -> Result<Dsn, Error> {
        let (base, pairs) = text.map_or(Ok((None, Vec::new())), split)?;
        let mut ignored = Vec::new();
        let mut kept = String::new();
        let mut ssl_mode = environment("PGSSLMODE");
        for (key, value) in pairs {
            match key.as_str() {
                "sslmode" => ssl_mode = Some(value),
                "sslrootcert" | "sslcert" | "sslkey" | "channel_binding" | "sslnegotiation" => {}
                known if KNOWN.contains(&known) => {
                    let escaped = value.replace('\\', r"\\").replace('\'', r"\'");
                    kept.push_str(&format!("{key}='{escaped}' "));
                }
                _ => ignored.push(key),
            }
        }
        if let Some(mode) = ssl_mode.filter(|mode| matches!(mode.as_str(), "require" | "verify-ca" | "verify-full")) {
            return Err(Error::Tls(mode));
        }
        let syntax = |error: tokio_postgres::Error| {
            Error::Syntax(std::error::Error::source(&error).map_or_else(|| error.to_string(), ToString::to_string))
        };
        let mut config = match base {
            Some(url) => merge(url.parse().map_err(syntax)?, &kept.parse().map_err(syntax)?),
            None => kept.parse().map_err(syntax)?,
        };
        dsn_defaults::fill(&mut config, environment)?;
        Ok(Dsn { config, ignored })
    }

    /// Each host of the DSN, in order.
    pub fn endpoints(&self) -> Vec<Endpoint> {
        Endpoint::all(&self.config)
    }

    /// The database that is read.
    pub fn database(&self) -> &str {
        self.config.get_dbname().or(self.config.get_user()).unwrap_or_default()
    }
}

/// A URL without its query, and the parameters.
type Split = (Option<String>, Vec<(String, String)>);

fn split(text: &str) -> Result<Split, Error> {
    let text = text.trim();
    let Some((scheme, rest)) = text.split_once("://") else {
        return Ok((None, keywords(text)?));
    };
    // SQLAlchemy writes postgresql+asyncpg://, Django and Rails plugins postgis://.
    let driver = scheme.split('+').next().unwrap_or_default();
    if !matches!(driver, "postgres" | "postgresql" | "postgis" | "pgsql") {
        return Err(Error::Syntax(format!("its scheme is `{scheme}://`, not postgres://")));
    }
    let (address, query) = rest.split_once('?').unwrap_or((rest, ""));
    let pairs = query.split('&').filter(|pair| !pair.is_empty()).map(|pair| {
        let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
        (percent_decoded(key), percent_decoded(value))
    });
    Ok((Some(format!("postgres://{address}")), pairs.collect()))
}

/// Parameters of a URL's query win over its path, as in libpq.
fn merge(mut url: Config, query: &Config) -> Config {
    if let Some(user) = query.get_user() {
        url.user(user);
    }
    if let Some(password) = query.get_password() {
        url.password(password);
    }
    if let Some(name) = query.get_dbname() {
        url.dbname(name);
    }
    if let Some(options) = query.get_options() {
        url.options(options);
    }
    if let Some(limit) = query.get_connect_timeout() {
        url.connect_timeout(*limit);
    }
    for host in query.get_hosts() {
        match host {
            tokio_postgres::config::Host::Tcp(name) => url.host(name),
            tokio_postgres::config::Host::Unix(path) => url.host_path(path),
        };
    }
    for address in query.get_hostaddrs() {
        url.hostaddr(*address);
    }
    for port in query.get_ports() {
        url.port(*port);
    }
    url
}

/// `key = value` pairs; a value in single quotes may hold spaces, `\` escapes.
fn keywords(text: &str) -> Result<Vec<(String, String)>, Error> {
    let mut pairs = Vec::new();
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
            return Err(Error::Syntax(format!("the quote of `{}` is not closed", key.trim())));
        }
        pairs.push((key.trim().to_owned(), value));
        rest = body.get(end.unwrap_or(body.len())..).unwrap_or_default().trim_start();
    }
    Ok(pairs)
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

    #[test]
    fn urls_and_keywords() {
        let dsn = parse("postgres://u:p%40ss@db.example:6000/shop?connect_timeout=3").unwrap();
        assert_eq!(hosts(&dsn), ["db.example:6000"]);
        assert_eq!((dsn.config.get_user(), dsn.config.get_password()), (Some("u"), Some(&b"p@ss"[..])));
        assert_eq!(dsn.database(), "shop");
        let dsn = parse("host=/run/pg port=6000 dbname='my shop' user=u password='it\\'s'").unwrap();
        assert_eq!(hosts(&dsn), ["/run/pg/.s.PGSQL.6000"]);
        assert_eq!((dsn.database(), dsn.config.get_password()), ("my shop", Some(&b"it's"[..])));
        let dsn = parse("postgresql://u@a:1,b:2/shop").unwrap();
        assert_eq!(hosts(&dsn), ["a:1", "b:2"]);
        let dsn = parse("postgresql:///shop?host=%2Frun%2Fpg&user=u").unwrap();
        assert_eq!(hosts(&dsn), ["/run/pg/.s.PGSQL.5432"]);
    }

    #[test]
    fn other_drivers_parameters_are_named() {
        let dsn = parse("postgresql+asyncpg://u@a/shop?schema=public&pgbouncer=true&sslmode=prefer").unwrap();
        assert_eq!(dsn.ignored, ["schema", "pgbouncer"]);
    }

    #[test]
    fn errors_never_show_the_password() {
        for bad in ["mysql://u:MARKER@a/b", "postgres://u:MARKER@a:port/b", "host=a password='MARKER"] {
            let error = parse(bad).err().unwrap().to_string();
            assert!(!error.contains("MARKER"), "{error}");
        }
        assert!(matches!(parse("postgres://a/b?sslmode=verify-full"), Err(Error::Tls(_))));
    }
}
