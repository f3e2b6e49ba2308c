//! One server address of a DSN. The SQL session and the replication stream must reach the same server, so both are opened
//! from the same [`Endpoint`].

use std::{fmt, path::PathBuf};

use tokio_postgres::Config;
use tokio_postgres::config::Host;

/// A DSN narrowed to one host.
#[derive(Clone)]
pub struct Endpoint {
    config: Config,
    address: Address,
}

/// Where a server listens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Address {
    /// Host name or address, and port.
    Tcp(String, u16),
    /// The socket file itself.
    Unix(PathBuf),
}

impl Endpoint {
    /// Splits a configuration with several hosts into one endpoint per host, in order.
    pub fn all(config: &Config) -> Vec<Endpoint> {
        let ports = config.get_ports();
        let port = |index: usize| ports.get(index).or(ports.first()).copied().unwrap_or(5432);
        let hosts = config.get_hosts();
        let addresses = config.get_hostaddrs();
        (0..hosts.len().max(addresses.len()))
            .map(|index| {
                let mut narrowed = without_hosts(config);
                narrowed.port(port(index));
                // `hostaddr` outranks `host`, as in libpq; the name then only serves certificates.
                let address = match (addresses.get(index), hosts.get(index)) {
                    (Some(ip), _) => Address::Tcp(ip.to_string(), port(index)),
                    (None, Some(Host::Unix(directory))) => {
                        Address::Unix(directory.join(format!(".s.PGSQL.{}", port(index))))
                    }
                    (None, Some(Host::Tcp(name))) => Address::Tcp(name.clone(), port(index)),
                    (None, None) => Address::Tcp("localhost".into(), port(index)),
                };
                match (&address, hosts.get(index)) {
                    (_, Some(Host::Unix(directory))) => narrowed.host_path(directory),
                    (Address::Tcp(name, _), _) => narrowed.host(name),
                    (Address::Unix(path), _) => narrowed.host_path(path),
                };
                Endpoint { config: narrowed, address }
            })
            .collect()
    }

    /// Where it is.
    pub fn address(&self) -> &Address {
        &self.address
    }

    /// Who logs in there, and how.
    pub fn config(&self) -> &Config {
        &self.config
    }
}

/// Everything of a configuration but its hosts and ports: `Config` can add hosts and cannot remove them.
fn without_hosts(config: &Config) -> Config {
    let mut fresh = Config::new();
    if let Some(user) = config.get_user() {
        fresh.user(user);
    }
    if let Some(password) = config.get_password() {
        fresh.password(password);
    }
    if let Some(name) = config.get_dbname() {
        fresh.dbname(name);
    }
    if let Some(options) = config.get_options() {
        fresh.options(options);
    }
    if let Some(limit) = config.get_connect_timeout() {
        fresh.connect_timeout(*limit);
    }
    fresh.keepalives(config.get_keepalives()).keepalives_idle(config.get_keepalives_idle());
    fresh
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.address {
            Address::Tcp(host, port) => write!(f, "{host}:{port}"),
            Address::Unix(path) => write!(f, "{}", path.display()),
        }
    }
}
