//! What a DSN leaves open comes from libpq's variables, its service file and its password file.

use std::path::{Path, PathBuf};

use tokio_postgres::Config;
use tokio_postgres::config::Host;

use super::dsn::{Environment, Error};

/// Completes `config` in libpq's order: the DSN, the service, the variables, the defaults; the password file last.
pub(super) fn fill(config: &mut Config, environment: Environment) -> Result<(), Error> {
    let service = service(environment)?;
    let value = |key: &str, variable: &str| {
        service.iter().find(|(name, _)| name == key).map(|(_, value)| value.clone()).or_else(|| environment(variable))
    };
    if config.get_user().is_none()
        && let Some(user) = value("user", "PGUSER").or_else(|| environment("USER")).or_else(|| environment("LOGNAME"))
    {
        config.user(user);
    }
    if config.get_dbname().is_none()
        && let Some(name) = value("dbname", "PGDATABASE").or_else(|| config.get_user().map(str::to_owned))
    {
        config.dbname(name);
    }
    if config.get_options().is_none()
        && let Some(options) = value("options", "PGOPTIONS")
    {
        config.options(options);
    }
    if config.get_hosts().is_empty() && config.get_hostaddrs().is_empty() {
        hosts(config, value("host", "PGHOST"), value("hostaddr", "PGHOSTADDR"));
        if config.get_ports().is_empty()
            && let Some(ports) = value("port", "PGPORT")
        {
            for port in ports.split(',').filter_map(|port| port.parse().ok()) {
                config.port(port);
            }
        }
    }
    if config.get_connect_timeout().is_none() {
        let seconds = value("connect_timeout", "PGCONNECT_TIMEOUT").and_then(|text| text.parse().ok()).unwrap_or(10);
        config.connect_timeout(std::time::Duration::from_secs(seconds));
    }
    if config.get_password().is_none()
        && let Some(password) = value("password", "PGPASSWORD").or_else(|| password_file(config, environment))
    {
        config.password(password);
    }
    Ok(())
}

fn hosts(config: &mut Config, names: Option<String>, addresses: Option<String>) {
    for address in addresses.iter().flat_map(|list| list.split(',')).filter_map(|text| text.parse().ok()) {
        config.hostaddr(address);
    }
    for name in names.iter().flat_map(|list| list.split(',')).filter(|name| !name.is_empty()) {
        config.host(name);
    }
    if !config.get_hosts().is_empty() || !config.get_hostaddrs().is_empty() {
        return;
    }
    // libpq's compiled-in default: Debian's socket directory, else upstream's, else TCP.
    match ["/var/run/postgresql", "/tmp"].into_iter().find(|directory| has_socket(Path::new(directory))) {
        Some(directory) => config.host_path(directory),
        None => config.host("localhost"),
    };
}

fn has_socket(directory: &Path) -> bool {
    std::fs::read_dir(directory).is_ok_and(|entries| {
        entries.flatten().any(|entry| {
            let name = entry.file_name();
            name.to_string_lossy().starts_with(".s.PGSQL.") && !name.to_string_lossy().ends_with(".lock")
        })
    })
}

fn service(environment: Environment) -> Result<Vec<(String, String)>, Error> {
    let Some(name) = environment("PGSERVICE") else { return Ok(Vec::new()) };
    let user_file = environment("PGSERVICEFILE").map(PathBuf::from).or_else(|| home(environment, ".pg_service.conf"));
    let system_file = PathBuf::from(environment("PGSYSCONFDIR").unwrap_or_else(|| "/etc/postgresql-common".into()));
    let files: Vec<PathBuf> = user_file.into_iter().chain([system_file.join("pg_service.conf")]).collect();
    for text in files.iter().flat_map(std::fs::read_to_string) {
        let section = format!("[{name}]");
        let mut lines = text.lines().map(str::trim).skip_while(|line| *line != section);
        if lines.next().is_none() {
            continue;
        }
        let mut pairs = Vec::new();
        for line in lines.take_while(|line| !line.starts_with('[')) {
            if let Some((key, value)) = line.split_once('=').filter(|_| !line.starts_with('#')) {
                pairs.push((key.trim().to_owned(), value.trim().to_owned()));
            }
        }
        return Ok(pairs);
    }
    let searched: Vec<String> = files.iter().map(|file| file.display().to_string()).collect();
    Err(Error::Service(name, searched.join(", ")))
}

/// `host:port:database:user:password` lines, `*` matches anything, `\` escapes.
fn password_file(config: &Config, environment: Environment) -> Option<String> {
    let file = environment("PGPASSFILE").map(PathBuf::from).or_else(|| home(environment, ".pgpass"))?;
    let host = match config.get_hosts().first() {
        Some(Host::Tcp(name)) => name.clone(),
        _ => "localhost".into(),
    };
    let port = config.get_ports().first().copied().unwrap_or(5432).to_string();
    let wanted = [host.as_str(), &port, config.get_dbname()?, config.get_user()?];
    std::fs::read_to_string(file).ok()?.lines().find_map(|line| {
        let fields = fields(line);
        let (password, pattern) = fields.split_last().filter(|(_, pattern)| pattern.len() == wanted.len())?;
        let matches = pattern.iter().zip(wanted).all(|(pattern, value)| pattern == "*" || pattern == value);
        matches.then(|| password.clone())
    })
}

fn fields(line: &str) -> Vec<String> {
    let mut fields = vec![String::new()];
    let mut characters = line.chars();
    while let Some(character) = characters.next() {
        match character {
            ':' if fields.len() < 5 => fields.push(String::new()),
            '\\' => fields.last_mut().into_iter().for_each(|field| field.extend(characters.next())),
            other => fields.last_mut().into_iter().for_each(|field| field.push(other)),
        }
    }
    fields
}

fn home(environment: Environment, file: &str) -> Option<PathBuf> {
    environment("HOME").map(|home| Path::new(&home).join(file))
}

#[cfg(test)]
mod tests {
    use super::super::dsn::Dsn;

    #[test]
    fn variables_service_and_password_file() {
        let directory = tempfile::tempdir().unwrap();
        let service = directory.path().join("service");
        std::fs::write(&service, "[other]\nhost=no\n[shop]\nhost=db.example\nport=6000\n# c\ndbname=shop\n").unwrap();
        let passwords = directory.path().join("pgpass");
        std::fs::write(&passwords, "x:*:*:*:no\n*:6000:shop:u:pa\\:ss\n").unwrap();
        let environment = |name: &str| match name {
            "PGSERVICE" => Some("shop".into()),
            "PGSERVICEFILE" => Some(service.display().to_string()),
            "PGPASSFILE" => Some(passwords.display().to_string()),
            "PGUSER" => Some("u".into()),
            "PGHOST" => Some("not-this".into()),
            _ => None,
        };
        let dsn = Dsn::parse(None, &environment).unwrap();
        let endpoint = dsn.endpoints().remove(0);
        assert_eq!(endpoint.to_string(), "db.example:6000");
        assert_eq!(endpoint.config().get_password(), Some(&b"pa:ss"[..]));
        assert_eq!(dsn.database(), "shop");
    }
}
