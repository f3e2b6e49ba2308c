//! `sslmode` and its files, as libpq takes them (manual: "SSL Support").

use std::path::{Path, PathBuf};

use super::dsn::{Environment, Error, Parameters, shown};
use super::dsn_defaults::home;
use crate::tls::{Files, Mode, Tls, Verify};

const MODES: &str = "disable, allow, prefer, require, verify-ca or verify-full";

/// How TCP connections are encrypted; `None` if they are not. Files that cannot be used are told here, not at the first
/// connection.
pub(super) fn mode(parameters: &Parameters, environment: Environment) -> Result<Option<Mode>, Error> {
    let given = |name: &str| parameters.get(name).map(String::as_str);
    // libpq's defaults, where they are there.
    let default = |file: &str| home(environment, &format!(".postgresql/{file}")).filter(|path| path.exists());
    let file = |name: &str, standard: &str| match given(name) {
        Some(path) => Some(located(path, environment)),
        None => default(standard),
    };
    let system = given("sslrootcert") == Some("system");
    let root = if system { None } else { file("sslrootcert", "root.crt") };
    let (required, verify) = match given("sslmode").unwrap_or("prefer") {
        "disable" => return Ok(None),
        "allow" | "prefer" => (false, Verify::Nothing),
        "require" if root.is_some() => (true, Verify::Chain),
        "require" => (true, Verify::Nothing),
        "verify-ca" => (true, Verify::Chain),
        "verify-full" => (true, Verify::Name),
        other => return Err(Error::Tls(format!("sslmode={} is not known: {MODES}", shown(other)))),
    };
    // Any authority of the system would do, for any name.
    if verify == Verify::Chain && root.is_none() && !system {
        return Err(Error::Tls("sslmode=verify-ca needs sslrootcert=FILE: the authority that must have signed".into()));
    }
    // Anybody can get a certificate from a public authority, for a name of their own.
    if system && verify != Verify::Name {
        return Err(Error::Tls("sslrootcert=system needs sslmode=verify-full".into()));
    }
    let certificate = file("sslcert", "postgresql.crt");
    let key = if certificate.is_some() { file("sslkey", "postgresql.key") } else { None };
    let mode = Mode { required, verify, files: Files { root, certificate, key } };
    Tls::new(&mode).map_err(|error| Error::Tls(error.sentence))?;
    Ok(Some(mode))
}

/// What libpq would enforce and waltag does not must not be dropped in silence: parameters by their names, and those of
/// libpq's variables.
pub(super) fn refuse_unenforced(parameters: &Parameters, environment: Environment) -> Result<(), Error> {
    let set = |(_, variable): &&(&str, &str)| environment(variable).is_some_and(|value| !value.is_empty());
    let of_environment = UNENFORCED.iter().filter(set).map(|(name, _)| *name);
    for name in parameters.keys().map(String::as_str).chain(of_environment) {
        let lower = name.to_ascii_lowercase();
        let weaker = lower.starts_with("ssl") || lower.starts_with("require");
        if weaker && !TAKEN.contains(&name) {
            return Err(Error::Tls(format!(
                "`{name}` is not enforced by waltag, so it is not ignored either: leave it out"
            )));
        }
    }
    match parameters.get("ssl_min_protocol_version").map(String::as_str) {
        // rustls speaks nothing older than 1.2.
        None | Some("" | "TLSv1" | "TLSv1.1" | "TLSv1.2") => Ok(()),
        Some(other) => Err(Error::Tls(format!("ssl_min_protocol_version={} is not enforced by waltag", shown(other)))),
    }
}

/// Names that begin like a demand and are taken, or change nothing.
const TAKEN: [&str; 10] = [
    "require_auth",
    "sslmode",
    "sslrootcert",
    "sslcert",
    "sslkey",
    "sslnegotiation",
    "ssl_min_protocol_version",
    "sslcompression",
    "sslsni",
    "ssl",
];
/// libpq's parameters that waltag does not enforce, with their variables.
const UNENFORCED: [(&str, &str); 6] = [
    ("sslcrl", "PGSSLCRL"),
    ("sslcrldir", "PGSSLCRLDIR"),
    ("sslcertmode", "PGSSLCERTMODE"),
    ("ssl_max_protocol_version", "PGSSLMAXPROTOCOLVERSION"),
    ("requirepeer", "PGREQUIREPEER"),
    ("requiressl", "PGREQUIRESSL"),
];

/// systemd puts credentials into a directory of their own.
fn located(path: &str, environment: Environment) -> PathBuf {
    let credential = environment("CREDENTIALS_DIRECTORY").map(|directory| Path::new(&directory).join(path));
    credential.filter(|path| path.exists()).unwrap_or_else(|| PathBuf::from(path))
}

#[cfg(test)]
mod tests {
    use super::super::dsn::Dsn;
    use super::*;

    fn mode_of(text: &str) -> Result<Option<Mode>, String> {
        let dsn = Dsn::parse(Some(text), &|_| None).map_err(|error| error.to_string())?;
        Ok(dsn.endpoints()[0].tls().cloned())
    }

    #[test]
    fn modes() {
        let of =
            |mode: &str| mode_of(&format!("postgres://u@h/d?sslmode={mode}")).map(|mode| mode.map(|mode| mode.verify));
        assert_eq!((of("disable"), of("prefer")), (Ok(None), Ok(Some(Verify::Nothing))));
        assert!(of("verify").unwrap_err().contains("sslmode=verify is not known"));
        assert!(!mode_of("host=h user=u").unwrap().unwrap().required, "libpq's default is prefer");
        assert!(mode_of("host=h user=u sslmode=require").unwrap().unwrap().required);
        assert_eq!(mode_of("host=/run/pg user=u sslmode=verify-full"), Ok(None), "a unix socket");
        assert!(mode_of("host=h user=u sslmode=require sslrootcert=/none").unwrap_err().contains("/none"));
        assert!(mode_of("host=h user=u sslmode=require sslrootcert=system").unwrap_err().contains("verify-full"));
        assert!(mode_of("host=h user=u sslmode=verify-ca").unwrap_err().contains("sslrootcert"));
        assert!(mode_of("postgres://u@h/d?ssl=true").unwrap().unwrap().required);
        for unenforced in ["sslcrl=/x", "sslMode=verify-full", "ssl_min_protocol_version=TLSv1.3"] {
            let said = mode_of(&format!("host=h user=u {unenforced}")).unwrap_err();
            assert!(said.contains("not enforced"), "{said}");
        }
        let variable = |name: &str| (name == "PGSSLCRL").then(|| "/x".to_owned());
        assert!(Dsn::parse(Some("host=h user=u"), &variable).is_err());
        assert!(mode_of("host=h user=u sslcert=/none sslkey=/none").unwrap_err().contains("/none"));
        assert!(mode_of("host=h user=u channel_binding=never").unwrap_err().contains("disable, prefer or require"));
    }
}
