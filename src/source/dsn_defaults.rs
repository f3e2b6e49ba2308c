//! What a DSN leaves open comes from libpq's service file, its variables and its defaults; a password from its password
//! file (manual: "Environment Variables", "The Connection Service File", "The Password File").

use std::path::{Path, PathBuf};

use super::dsn::{Environment, Error, Parameters};
use crate::files;

/// libpq's variables.
const VARIABLES: [(&str, &str); 16] = [
    ("host", "PGHOST"),
    ("hostaddr", "PGHOSTADDR"),
    ("port", "PGPORT"),
    ("user", "PGUSER"),
    ("dbname", "PGDATABASE"),
    ("password", "PGPASSWORD"),
    ("options", "PGOPTIONS"),
    ("connect_timeout", "PGCONNECT_TIMEOUT"),
    ("sslmode", "PGSSLMODE"),
    ("sslrootcert", "PGSSLROOTCERT"),
    ("sslcert", "PGSSLCERT"),
    ("sslkey", "PGSSLKEY"),
    ("channel_binding", "PGCHANNELBINDING"),
    ("require_auth", "PGREQUIREAUTH"),
    ("passfile", "PGPASSFILE"),
    ("servicefile", "PGSERVICEFILE"),
];

/// Completes the parameters in libpq's order: the DSN, the service, the variables, the defaults.
pub(super) fn complete(parameters: &mut Parameters, environment: Environment) -> Result<(), Error> {
    let service = parameters.get("service").cloned().or_else(|| environment("PGSERVICE"));
    if let Some(service) = service {
        for (name, value) in section(&service, parameters, environment)? {
            parameters.entry(name).or_insert(value);
        }
    }
    for (name, variable) in VARIABLES {
        if let (false, Some(value)) = (parameters.contains_key(name), environment(variable)) {
            parameters.insert(name.to_owned(), value);
        }
    }
    if !parameters.contains_key("user") {
        let user = environment("USER").or_else(|| environment("LOGNAME")).or_else(user_of_process);
        let missing = || Error::Syntax("it names no user, and the process has none".into());
        parameters.insert("user".to_owned(), user.ok_or_else(missing)?);
    }
    if let (false, Some(user)) = (parameters.contains_key("dbname"), parameters.get("user").cloned()) {
        parameters.insert("dbname".to_owned(), user);
    }
    if !parameters.contains_key("host") && !parameters.contains_key("hostaddr") {
        parameters.insert("host".to_owned(), default_host());
    }
    Ok(())
}

/// libpq's compiled-in default: Debian's socket directory, else upstream's, else TCP.
fn default_host() -> String {
    let directory = ["/var/run/postgresql", "/tmp"].into_iter().find(|directory| has_socket(Path::new(directory)));
    directory.unwrap_or("localhost").to_owned()
}

fn has_socket(directory: &Path) -> bool {
    std::fs::read_dir(directory).is_ok_and(|entries| {
        entries.flatten().any(|entry| {
            let name = entry.file_name().to_string_lossy().into_owned();
            name.starts_with(".s.PGSQL.") && !name.ends_with(".lock")
        })
    })
}

/// Containers often have no `USER`: the name is in the user database.
fn user_of_process() -> Option<String> {
    let own = std::os::unix::fs::MetadataExt::uid(&std::fs::metadata("/proc/self").ok()?).to_string();
    let users = std::fs::read_to_string("/etc/passwd").ok()?;
    let line = users.lines().find(|line| line.split(':').nth(2) == Some(&own))?;
    line.split(':').next().map(str::to_owned)
}

fn section(name: &str, parameters: &Parameters, environment: Environment) -> Result<Vec<(String, String)>, Error> {
    let user_file = parameters.get("servicefile").cloned().or_else(|| environment("PGSERVICEFILE")).map(PathBuf::from);
    let user_file = user_file.or_else(|| home(environment, ".pg_service.conf"));
    let system = PathBuf::from(environment("PGSYSCONFDIR").unwrap_or_else(|| "/etc/postgresql-common".into()));
    let places: Vec<PathBuf> = user_file.into_iter().chain([system.join("pg_service.conf")]).collect();
    for text in places.iter().flat_map(|place| files::read_text(place)) {
        let heading = format!("[{name}]");
        let mut lines = text.lines().map(str::trim).skip_while(|line| *line != heading);
        if lines.next().is_none() {
            continue;
        }
        let pairs = lines.take_while(|line| !line.starts_with('[')).filter(|line| !line.starts_with('#'));
        let pairs = pairs.filter_map(|line| line.split_once('='));
        return Ok(pairs.map(|(key, value)| (key.trim().to_owned(), value.trim().to_owned())).collect());
    }
    let searched: Vec<String> = places.iter().map(|place| place.display().to_string()).collect();
    Err(Error::Service(name.to_owned(), searched.join(", ")))
}

/// The password for one host: `host:port:database:user:password` lines, `*` matches anything, `\` escapes.
pub(super) fn password(parameters: &Parameters, host: &str, port: u16, environment: Environment) -> Option<String> {
    if let Some(password) = parameters.get("password") {
        return Some(password.clone());
    }
    let file = parameters.get("passfile").map(PathBuf::from).or_else(|| home(environment, ".pgpass"))?;
    // The default socket directories go by the name localhost.
    let host = if matches!(host, "/var/run/postgresql" | "/tmp") { "localhost" } else { host };
    let wanted = [host, &port.to_string(), parameters.get("dbname")?, parameters.get("user")?];
    files::read_text(&file).ok()?.lines().find_map(|line| {
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

pub(super) fn home(environment: Environment, file: &str) -> Option<PathBuf> {
    environment("HOME").map(|home| Path::new(&home).join(file))
}

#[cfg(test)]
mod tests {
    use super::super::dsn::{Dsn, Error};

    #[test]
    fn variables_service_and_password_file() {
        let directory = tempfile::tempdir().unwrap();
        let service = directory.path().join("service");
        let text =
            "[other]\nhost=no\n[shop]\nhost=db.example,b\nport=6000\n# c\ndbname=shop\n[tls]\nsslmode=verify-full\n";
        std::fs::write(&service, text).unwrap();
        let passwords = directory.path().join("pgpass");
        std::fs::write(&passwords, "x:*:*:*:no\nb:*:*:*:second\n*:6000:shop:u:pa\\:ss\n").unwrap();
        let environment = |name: &str| match name {
            "PGSERVICEFILE" => Some(service.display().to_string()),
            "PGPASSFILE" => Some(passwords.display().to_string()),
            "PGUSER" => Some("u".into()),
            "PGHOST" => Some("not-this".into()),
            "PGPORT" => Some("7000".into()),
            _ => None,
        };
        let dsn = Dsn::parse(Some("service=shop"), &environment).unwrap();
        let [first, second] = dsn.endpoints() else { panic!() };
        assert_eq!((first.to_string(), second.to_string()), ("db.example:6000".into(), "b:6000".into()));
        assert_eq!(first.config().get_password(), Some(&b"pa:ss"[..]));
        assert_eq!(second.config().get_password(), Some(&b"second"[..]));
        assert_eq!(dsn.database(), "shop");
        // A variable fills what the DSN leaves open, host or not.
        assert_eq!(Dsn::parse(Some("host=h"), &environment).unwrap().endpoints()[0].to_string(), "h:7000");
        // TLS that a service demands is not dropped.
        let demanded = Dsn::parse(Some("service=tls"), &environment).unwrap();
        assert_eq!(demanded.endpoints()[0].tls().unwrap().verify, crate::tls::Verify::Name);
        assert!(matches!(Dsn::parse(Some("service=none"), &environment), Err(Error::Service(..))));
    }
}
