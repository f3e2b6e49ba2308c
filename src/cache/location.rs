//! Where the Redis of a cache is: one server, the nodes by which a Cluster is found, or the Sentinels that know the master.

use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use redis::{ConnectionAddr, ConnectionInfo, IntoConnectionInfo};

/// How a URL is written.
pub const FORMS: &str = "write redis://[user:password@]host:6379/DB, rediss:// for TLS, redis+unix:///path/redis.sock?db=DB, redis+cluster://host:6379,host:6379 for a Cluster, or redis+sentinel://host:26379,host:26379/NAME[/DB] for the master that Sentinels know by that name (rediss+cluster://, rediss+sentinel:// with TLS)";

/// Where a Redis is, with credentials: never printed; [`Location::address`] is for people.
#[derive(Clone, Debug)]
pub struct Location {
    /// Servers that are asked one after the other. Never empty.
    seeds: Vec<ConnectionInfo>,
    topology: Topology,
}

/// What the seeds are.
#[derive(Clone, Debug)]
enum Topology {
    /// The server itself.
    Server,
    /// Some nodes of a Cluster.
    Cluster,
    /// Sentinels.
    Sentinels(Box<Service>),
}

/// A master that Sentinels watch.
#[derive(Clone, Debug)]
pub struct Service {
    /// What they call it.
    pub name: String,
    /// Database and credentials of the master; where it is, they say.
    pub master: ConnectionInfo,
    /// The newest configuration that this process has heard of.
    pub epoch: Arc<AtomicU64>,
}

impl Location {
    /// Reads a URL. The error says what is wrong with it and does not quote it: it may hold a password.
    pub fn parse(text: &str) -> Result<Location, &'static str> {
        let (scheme, rest) = text.split_once("://").unwrap_or((text, ""));
        // What the servers themselves are spoken to in.
        let (plain, kind) = scheme.split_once('+').unwrap_or((scheme, ""));
        match (plain, kind) {
            ("redis" | "rediss" | "unix", "") | ("redis", "unix") => {
                Ok(Location { seeds: vec![server(text)?], topology: Topology::Server })
            }
            ("redis" | "rediss", "cluster") => cluster(plain, rest),
            ("redis" | "rediss", "sentinel") => sentinels(plain, rest),
            _ => {
                Err("a Redis URL starts with redis://, rediss://, redis+unix://, redis+cluster:// or redis+sentinel://")
            }
        }
    }

    /// The servers that are asked.
    pub fn seeds(&self) -> &[ConnectionInfo] {
        &self.seeds
    }

    /// Are keys spread over several servers?
    pub fn is_cluster(&self) -> bool {
        matches!(self.topology, Topology::Cluster)
    }

    /// The master that the seeds know, if they are Sentinels.
    pub fn service(&self) -> Option<&Service> {
        match &self.topology {
            Topology::Sentinels(service) => Some(service),
            Topology::Server | Topology::Cluster => None,
        }
    }

    /// Is it spoken to in TLS?
    pub fn is_encrypted(&self) -> bool {
        self.seeds.iter().any(|seed| matches!(seed.addr(), ConnectionAddr::TcpTls { .. }))
    }

    /// With something done to each server.
    pub fn each<E>(mut self, change: impl Fn(ConnectionInfo) -> Result<ConnectionInfo, E>) -> Result<Location, E> {
        self.seeds = self.seeds.into_iter().map(&change).collect::<Result<_, _>>()?;
        if let Topology::Sentinels(service) = &mut self.topology {
            service.master = change(service.master.clone())?;
        }
        Ok(self)
    }

    /// With credentials for the Sentinels, which do not have those of the master.
    #[must_use]
    pub fn with_sentinel_credentials(mut self, username: Option<&str>, password: Option<&str>) -> Location {
        for seed in &mut self.seeds {
            let mut settings = seed.redis_settings().clone();
            if let Some(username) = username {
                settings = settings.set_username(username);
            }
            if let Some(password) = password {
                settings = settings.set_password(password);
            }
            *seed = seed.clone().set_redis_settings(settings);
        }
        self
    }

    /// Hosts and database, without credentials: `host:6379/1`, of Sentinels `host:26379,host:26379/name/1`.
    pub fn address(&self) -> String {
        let with_database = |place: String, info: &ConnectionInfo| match info.redis_settings().db() {
            0 => place,
            database => format!("{place}/{database}"),
        };
        let hosts = |seed: &ConnectionInfo| with_database(seed.addr().to_string(), seed);
        let hosts = self.seeds.iter().map(hosts).collect::<Vec<_>>().join(",");
        match self.service() {
            Some(service) => with_database(format!("{hosts}/{}", service.name), &service.master),
            None => hosts,
        }
    }
}

/// The same credentials, database and certificates, at another place; without a host at the same one, by its other port.
pub fn moved(info: &ConnectionInfo, host: &str, port: u16) -> ConnectionInfo {
    let named = |own: &str| if host.is_empty() || host == "?" { own.to_owned() } else { host.to_owned() };
    let place = match info.addr() {
        ConnectionAddr::TcpTls { host, insecure, tls_params, .. } => {
            let (insecure, tls_params) = (*insecure, tls_params.clone());
            ConnectionAddr::TcpTls { host: named(host), port, insecure, tls_params }
        }
        ConnectionAddr::Tcp(host, _) => ConnectionAddr::Tcp(named(host), port),
        other => other.clone(),
    };
    info.clone().set_addr(place)
}

fn server(url: &str) -> Result<ConnectionInfo, &'static str> {
    url.into_connection_info().map_err(|_| "this is not a Redis URL")
}

fn cluster(scheme: &str, rest: &str) -> Result<Location, &'static str> {
    let (who, hosts) = who_and_hosts(rest);
    let hosts = hosts.strip_suffix("/0").or_else(|| hosts.strip_suffix('/')).unwrap_or(hosts);
    if hosts.contains(['/', '?', '#']) {
        return Err("a Redis Cluster has one database, and its URL nothing behind the hosts");
    }
    let seeds =
        hosts.split(',').map(|host| server(&format!("{scheme}://{who}{}", host.trim()))).collect::<Result<_, _>>()?;
    Ok(Location { seeds, topology: Topology::Cluster })
}

fn sentinels(scheme: &str, rest: &str) -> Result<Location, &'static str> {
    const NAMELESS: &str = "Sentinels know a master by its name, which stands behind the hosts: /NAME, or /NAME/DB";
    /// Where no port is given.
    const PORT: u16 = 26_379;
    let (who, hosts) = who_and_hosts(rest);
    let (hosts, behind) = hosts.split_once('/').ok_or(NAMELESS)?;
    let (name, database) = behind.split_once('/').unwrap_or((behind, ""));
    if name.is_empty() || name.contains(['?', '#']) {
        return Err(NAMELESS);
    }
    let seed = |host: &str| {
        let host = host.trim();
        let has_port = host.rsplit_once(':').is_some_and(|(_, port)| !port.is_empty() && !port.ends_with(']'));
        let port = if has_port { String::new() } else { format!(":{PORT}") };
        server(&format!("{scheme}://{host}{port}"))
    };
    let seeds: Vec<ConnectionInfo> = hosts.split(',').map(seed).collect::<Result<_, _>>()?;
    let master = server(&format!("{scheme}://{who}master/{database}"))?;
    Ok(Location {
        seeds,
        topology: Topology::Sentinels(Box::new(Service { name: name.to_owned(), master, epoch: Arc::default() })),
    })
}

/// `user:password@a:1,b:2` is `user:password@` and `a:1,b:2`.
fn who_and_hosts(rest: &str) -> (String, &str) {
    rest.rsplit_once('@').map_or((String::new(), rest), |(who, hosts)| (format!("{who}@"), hosts))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_and_what_it_means() {
        let read = |text: &str| Location::parse(text).map(|location| (location.address(), location.is_cluster()));
        assert_eq!(read("redis://u:p@h/3"), Ok(("h:6379/3".into(), false)));
        assert_eq!(read("redis+cluster://u:p@a:7000, b"), Ok(("a:7000,b:6379".into(), true)));
        assert_eq!(read("redis+cluster://a:7000/0"), Ok(("a:7000".into(), true)));
        assert!(Location::parse("rediss+cluster://a:7000/").unwrap().is_encrypted());
        assert!(read("redis+cluster://a:7000/3").unwrap_err().contains("one database"));
        assert!(read("redis+cluster://a:7000?x=1").unwrap_err().contains("nothing behind"));
        assert!(read("redis+cluster://").unwrap_err().contains("not a Redis URL"));
        assert!(read("http://a").unwrap_err().contains("starts with"));
        assert!(read("redis+other://a").unwrap_err().contains("starts with"));
        let sentinels = Location::parse("redis+sentinel://u:p%40x@a,b:7000, [::1]/my_master/3").unwrap();
        assert_eq!(
            (sentinels.address(), sentinels.is_cluster()),
            ("a:26379,b:7000,::1:26379/my_master/3".into(), false)
        );
        let service = sentinels.service().unwrap();
        let found = moved(&service.master, "h", 6380);
        assert_eq!((service.name.as_str(), found.addr().to_string()), ("my_master", "h:6380".into()));
        let settings = found.redis_settings();
        assert_eq!((settings.username(), settings.password(), settings.db()), (Some("u"), Some("p@x"), 3));
        assert!(sentinels.seeds().iter().all(|seed| seed.redis_settings().password().is_none()));
        assert!(
            Location::parse("rediss+sentinel://a/m")
                .unwrap()
                .service()
                .is_some_and(|service| matches!(service.master.addr(), ConnectionAddr::TcpTls { .. }))
        );
        assert_eq!(read("redis+sentinel://a/m"), Ok(("a:26379/m".into(), false)));
        for nameless in ["redis+sentinel://a:1,b:2", "redis+sentinel://a/", "redis+sentinel://a/?x=y"] {
            assert!(read(nameless).unwrap_err().contains("by its name"), "{nameless}");
        }
        assert!(read("redis+sentinel://a/m/x").unwrap_err().contains("not a Redis URL"));
    }

    #[test]
    fn every_node_has_the_credentials() {
        let location = Location::parse("redis+cluster://u:p%40x@a:7000,b:7001").unwrap();
        let names: Vec<_> = location.seeds().iter().map(|seed| seed.redis_settings().username()).collect();
        assert_eq!(names, [Some("u"), Some("u")]);
    }
}
