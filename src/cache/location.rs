//! Where the Redis of a cache is: one server, or the nodes by which a Cluster is found.

use redis::{ConnectionAddr, ConnectionInfo, IntoConnectionInfo};

/// How a URL is written.
pub const FORMS: &str = "write redis://[user:password@]host:6379/DB, rediss:// for TLS, redis+unix:///path/redis.sock?db=DB, or redis+cluster://host:6379,host:6379 (rediss+cluster://) for a Cluster";

/// Schemes of a Cluster, and of its nodes.
const CLUSTERS: [(&str, &str); 2] = [("redis+cluster", "redis"), ("rediss+cluster", "rediss")];

/// Where a Redis is, with credentials: never printed; [`Location::address`] is for people.
#[derive(Clone, Debug)]
pub struct Location {
    /// One server; of a Cluster, each is asked for the others until one answers. Never empty.
    seeds: Vec<ConnectionInfo>,
    cluster: bool,
}

impl Location {
    /// Reads a URL. The error says what is wrong with it and does not quote it: it may hold a password.
    pub fn parse(text: &str) -> Result<Location, &'static str> {
        let (scheme, rest) = text.split_once("://").unwrap_or((text, ""));
        let node = CLUSTERS.iter().find(|(cluster, _)| *cluster == scheme).map(|(_, node)| *node);
        let texts = match node {
            Some(node) => nodes(node, rest)?,
            None if matches!(scheme, "redis" | "rediss" | "unix" | "redis+unix") => vec![text.to_owned()],
            None => return Err("a Redis URL starts with redis://, rediss://, redis+unix:// or redis+cluster://"),
        };
        let seeds = texts.iter().map(|text| text.as_str().into_connection_info()).collect::<Result<Vec<_>, _>>();
        let seeds = seeds.map_err(|_| "this is not a Redis URL")?;
        Ok(Location { seeds, cluster: node.is_some() })
    }

    /// The servers that are asked.
    pub fn seeds(&self) -> &[ConnectionInfo] {
        &self.seeds
    }

    /// Are keys spread over several servers?
    pub fn is_cluster(&self) -> bool {
        self.cluster
    }

    /// Is it spoken to in TLS?
    pub fn is_encrypted(&self) -> bool {
        self.seeds.iter().any(|seed| matches!(seed.addr(), ConnectionAddr::TcpTls { .. }))
    }

    /// With something done to each server.
    pub fn each<E>(mut self, change: impl Fn(ConnectionInfo) -> Result<ConnectionInfo, E>) -> Result<Location, E> {
        self.seeds = self.seeds.into_iter().map(change).collect::<Result<_, _>>()?;
        Ok(self)
    }

    /// Hosts and database, without credentials.
    pub fn address(&self) -> String {
        let address = |seed: &ConnectionInfo| match seed.redis_settings().db() {
            0 => seed.addr().to_string(),
            database => format!("{}/{database}", seed.addr()),
        };
        self.seeds.iter().map(address).collect::<Vec<_>>().join(",")
    }
}

/// A URL for each node: `user:password@a:1,b:2/` with `redis` is `redis://user:password@a:1` and `redis://user:password@b:2`.
fn nodes(scheme: &str, rest: &str) -> Result<Vec<String>, &'static str> {
    let (who, hosts) = rest.rsplit_once('@').map_or((String::new(), rest), |(who, hosts)| (format!("{who}@"), hosts));
    let hosts = hosts.strip_suffix("/0").or_else(|| hosts.strip_suffix('/')).unwrap_or(hosts);
    if hosts.contains(['/', '?', '#']) {
        return Err("a Redis Cluster has one database, and its URL nothing behind the hosts");
    }
    Ok(hosts.split(',').map(|host| format!("{scheme}://{who}{}", host.trim())).collect())
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
    }

    #[test]
    fn every_node_has_the_credentials() {
        let location = Location::parse("redis+cluster://u:p%40x@a:7000,b:7001").unwrap();
        let names: Vec<_> = location.seeds().iter().map(|seed| seed.redis_settings().username()).collect();
        assert_eq!(names, [Some("u"), Some("u")]);
    }
}
