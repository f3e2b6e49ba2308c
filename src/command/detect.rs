//! `waltag detect URL`: what the keys of a live Redis say about its clients.

use super::show;
use crate::cache::detect::{Found, Sample, sample};
use crate::cache::dialect::Verified;
use crate::cache::dialects;
use crate::cache::location::{FORMS, Location};
use crate::cache::masters::Masters;
use crate::exit::Exit;
use crate::failure::Failure;

/// Prints a proposal.
pub async fn detect(url: &str) -> Result<(), Failure> {
    if url.rsplit_once('@').is_some_and(|(who, _)| who.split_once("://").map_or(who, |(_, who)| who).contains(':')) {
        tracing::warn!("the password in this URL can be seen by everybody on this machine in the process list");
    }
    let sample = look(url).await?;
    show("caches:");
    proposals(url, &sample).iter().for_each(show);
    if sample.found.is_empty() {
        show("  # none of the known clients' keys; `waltag dialects` lists them, `keys` and `prefix` need none");
    }
    Ok(())
}

/// Entries of `caches:` with their evidence.
pub(super) async fn caches(url: &str) -> Result<Vec<String>, Failure> {
    Ok(proposals(url, &look(url).await?))
}

async fn look(url: &str) -> Result<Sample, Failure> {
    let wrong = |sentence| Failure::new(Exit::Usage, format!("{sentence}: {FORMS}"));
    let location = Location::parse(url).map_err(wrong)?;
    let address = location.address();
    let away = |error: redis::RedisError| Failure::new(Exit::Unavailable, format!("Redis at {address}: {error}"));
    let mut masters = Masters::open(&location, [].into()).await.map_err(away)?;
    sample(&mut masters).await.map_err(away)
}

fn proposals(url: &str, sample: &Sample) -> Vec<String> {
    let part = if sample.size == 0 { 100 } else { (sample.seen * 100).div_ceil(sample.size).min(100) };
    let mut all = vec![format!(
        "  # {} keys, {part} % of the database, were looked at; nothing was read or written",
        sample.seen
    )];
    all.extend(sample.found.iter().enumerate().map(|(index, found)| proposal(url, index, found)));
    all
}

fn proposal(url: &str, index: usize, found: &Found) -> String {
    let name = if index == 0 { "default".to_owned() } else { format!("{}_{index}", found.dialect.replace('-', "_")) };
    let dialect = dialects::named(found.dialect);
    let mut lines = vec![
        format!("  {name}:"),
        format!("    # {} keys look like {}", found.keys, found.formula.escape_default()),
        format!("    url: {}", quoted(&without_password(url))),
        format!("    dialect: {}", found.dialect),
    ];
    lines.extend(found.options.iter().map(|(option, text)| format!("    {option}: {}", quoted(text))));
    let missing = dialect.into_iter().flat_map(|dialect| dialect.options).filter(|option| {
        option.default.is_none()
            && option.needed_if.is_none()
            && found.options.iter().all(|(known, _)| known != option.name)
    });
    lines.extend(missing.map(|option| format!("    {}:   # {}", option.name, option.about)));
    if dialect.is_some_and(|dialect| matches!(dialect.verified, Verified::Read(_))) {
        lines.push("    accept_unverified: true   # it was never run against this library: try it first".into());
    }
    lines.join("\n")
}

/// Passwords belong into a file: `${file:...}`.
fn without_password(url: &str) -> String {
    let url = match url.split_once("://").and_then(|(scheme, rest)| Some((scheme, rest.rsplit_once('@')?.1))) {
        Some((scheme, rest)) => format!("{scheme}://{rest}"),
        None => url.to_owned(),
    };
    // That of a socket has them behind it.
    let Some((place, query)) = url.split_once('?') else { return url };
    let kept: Vec<&str> = query.split('&').filter(|pair| pair.starts_with("db=")).collect();
    if kept.is_empty() { place.to_owned() } else { format!("{place}?{}", kept.join("&")) }
}

fn quoted(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}
