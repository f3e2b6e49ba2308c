//! One server address of a DSN. The SQL session and the replication stream must reach the same server, so both are opened
//! from the same [`Endpoint`].

use std::{fmt, path::PathBuf, time::Duration};

use tokio_postgres::Config;
use tokio_postgres::config::{ChannelBinding, Host, SslMode};

use super::dsn::{Error, Parameters, shown};
use super::login::{self, Methods};
use crate::tls::Mode;

/// A connection that is cut without a word is noticed by the kernel after this much silence ...
const KEEPALIVE_IDLE: Duration = Duration::from_secs(30);
/// ... and this many probes, this far apart; data that nobody acknowledges, after [`USER_TIMEOUT`].
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(10);
const KEEPALIVE_PROBES: u32 = 3;
const USER_TIMEOUT: Duration = Duration::from_secs(60);

/// A DSN narrowed to one host.
#[derive(Clone)]
pub struct Endpoint {
    config: Config,
    address: Address,
    tls: Option<Mode>,
    methods: Methods,
}

/// Where a server listens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Address {
    /// Host name or address, and port.
    Tcp(String, u16),
    /// The socket file itself.
    Unix(PathBuf),
}

/// Host and port: what else is in it may be secret.
impl fmt::Debug for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl PartialEq for Endpoint {
    fn eq(&self, other: &Endpoint) -> bool {
        self.address == other.address && self.config == other.config
    }
}

impl Endpoint {
    /// One endpoint per host of the parameters, in order; `password` finds that of one host.
    pub(super) fn all(
        parameters: &Parameters,
        tls: Option<Mode>,
        password: impl Fn(&str, u16) -> Option<String>,
    ) -> Result<Vec<Endpoint>, Error> {
        let list =
            |name: &str| parameters.get(name).map(|list| list.split(',').collect::<Vec<_>>()).unwrap_or_default();
        let (hosts, addresses, ports) = (list("host"), list("hostaddr"), list("port"));
        let methods = parameters.get("require_auth").map_or(Ok(None), |text| login::methods(text))?;
        let mut endpoints = Vec::new();
        for index in 0..hosts.len().max(addresses.len()) {
            let port = match ports.get(index).or(ports.first()) {
                None | Some(&"") => 5432,
                Some(text) => text.trim().parse().map_err(|_| Error::Syntax("a port is not a number".into()))?,
            };
            let name = hosts.get(index).copied().filter(|name| !name.is_empty());
            let mut config = shared(parameters)?;
            config.port(port);
            // `hostaddr` outranks `host`; the name then only picks the password, and is what the certificate must be for.
            let address = match (addresses.get(index).filter(|address| !address.is_empty()), name) {
                (Some(address), _) => {
                    let parsed = address.trim().parse();
                    config.hostaddr(parsed.map_err(|_| Error::Syntax("hostaddr is not an IP address".into()))?);
                    config.host(name.unwrap_or(address));
                    Address::Tcp(address.trim().to_owned(), port)
                }
                (None, Some(directory)) if directory.starts_with('/') => {
                    config.host_path(directory);
                    Address::Unix(PathBuf::from(directory).join(format!(".s.PGSQL.{port}")))
                }
                (None, name) => {
                    let name = name.unwrap_or("localhost").trim();
                    config.host(name);
                    Address::Tcp(name.to_owned(), port)
                }
            };
            let host = name.or(addresses.get(index).copied()).unwrap_or("localhost");
            if let Some(password) = password(host, port) {
                config.password(password);
            }
            // libpq, too, never encrypts a unix socket.
            let tls = tls.clone().filter(|_| matches!(address, Address::Tcp(..)));
            config.ssl_mode(match &tls {
                None => SslMode::Disable,
                Some(Mode { required: false, .. }) => SslMode::Prefer,
                Some(_) => SslMode::Require,
            });
            endpoints.push(Endpoint { config, address, tls, methods: methods.clone() });
        }
        Ok(endpoints)
    }

    /// Where it is.
    pub fn address(&self) -> &Address {
        &self.address
    }

    /// How the connection is encrypted; `None` if it is not.
    pub fn tls(&self) -> Option<&Mode> {
        self.tls.as_ref()
    }

    /// By which methods it may ask who we are.
    pub fn methods(&self) -> &Methods {
        &self.methods
    }

    /// The name that the server's certificate should be for.
    pub fn name(&self) -> &str {
        match (self.config.get_hosts().first(), &self.address) {
            (Some(Host::Tcp(name)), _) => name,
            (_, Address::Tcp(address, _)) => address,
            (_, Address::Unix(_)) => "localhost",
        }
    }

    /// Who logs in there, and how.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// How long opening a connection may take.
    pub fn connect_timeout(&self) -> Duration {
        self.config.get_connect_timeout().copied().unwrap_or(Duration::from_secs(10))
    }
}

/// Everything of the parameters but hosts, ports and password.
fn shared(parameters: &Parameters) -> Result<Config, Error> {
    let mut config = Config::new();
    let number = |name: &str| match parameters.get(name) {
        None => Ok(None),
        Some(text) => text.parse::<u64>().map(Some).map_err(|_| Error::Syntax(format!("{name} is not a number"))),
    };
    let seconds = |name: &str, default: Duration| Ok::<_, Error>(number(name)?.map_or(default, Duration::from_secs));
    if let Some(user) = parameters.get("user") {
        config.user(user);
    }
    if let Some(name) = parameters.get("dbname") {
        config.dbname(name);
    }
    config.channel_binding(match parameters.get("channel_binding").map(String::as_str) {
        None | Some("prefer") => ChannelBinding::Prefer,
        Some("disable") => ChannelBinding::Disable,
        Some("require") => ChannelBinding::Require,
        Some(other) => {
            let sentence = format!("channel_binding={} is not known: disable, prefer or require", shown(other));
            return Err(Error::Tls(sentence));
        }
    });
    if let Some(options) = parameters.get("options") {
        config.options(options);
    }
    config.connect_timeout(seconds("connect_timeout", Duration::from_secs(10))?.max(Duration::from_secs(1)));
    config.keepalives(number("keepalives")? != Some(0));
    config.keepalives_idle(seconds("keepalives_idle", KEEPALIVE_IDLE)?);
    config.keepalives_interval(seconds("keepalives_interval", KEEPALIVE_INTERVAL)?);
    config.keepalives_retries(number("keepalives_count")?.map_or(KEEPALIVE_PROBES, |probes| probes as u32));
    config.tcp_user_timeout(number("tcp_user_timeout")?.map_or(USER_TIMEOUT, Duration::from_millis));
    Ok(config)
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.address {
            Address::Tcp(host, port) => write!(f, "{host}:{port}"),
            Address::Unix(path) => write!(f, "{}", path.display()),
        }
    }
}
