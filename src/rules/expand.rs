//! `${NAME}`, `${NAME:-default}` and `${file:PATH}` within the scalars of `caches:`, after YAML was parsed: a secret can
//! hold any character without breaking the file.

use std::cell::{Cell, RefCell};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::{Path, PathBuf};

use crate::files;

/// Where the parts come from; parameters so that tests need not touch the real environment.
pub struct Surroundings<'a> {
    /// Looks up a variable.
    variable: &'a dyn Fn(&str) -> Option<String>,
    /// `$CREDENTIALS_DIRECTORY`: where relative paths are looked up.
    credentials: Option<PathBuf>,
    /// Files that were looked for, found or not.
    pub files: RefCell<Vec<PathBuf>>,
    /// Stands for everything that came out: a secret that was changed is a change.
    pub fingerprint: Cell<u64>,
}

impl<'a> Surroundings<'a> {
    /// With these variables and this directory for relative paths.
    pub fn new(variable: &'a dyn Fn(&str) -> Option<String>, credentials: Option<PathBuf>) -> Surroundings<'a> {
        Surroundings { variable, credentials, files: RefCell::default(), fingerprint: Cell::default() }
    }

    /// The content of a file that a rule file names. The error is a sentence.
    pub fn read(&self, path: &str) -> Result<Vec<u8>, String> {
        let path = match &self.credentials {
            Some(directory) if Path::new(path).is_relative() => directory.join(path),
            _ => PathBuf::from(path),
        };
        let read = files::read(&path).map_err(|error| format!("cannot read {}: {error}", path.display()));
        self.files.borrow_mut().push(path);
        let content = read?;
        self.note(&content);
        Ok(content)
    }

    fn note(&self, content: &[u8]) {
        let mut hasher = DefaultHasher::new();
        (self.fingerprint.get(), content).hash(&mut hasher);
        self.fingerprint.set(hasher.finish());
    }
}

/// `text` with every `${...}` replaced; `$$` is a `$`. The error is a sentence.
pub fn expand(text: &str, around: &Surroundings) -> Result<String, String> {
    let (mut out, mut rest) = (String::new(), text);
    while let Some((before, after)) = rest.split_once('$') {
        out.push_str(before);
        if let Some(tail) = after.strip_prefix('$') {
            out.push('$');
            rest = tail;
        } else if let Some(body) = after.strip_prefix('{') {
            let (name, tail) =
                body.split_once('}').ok_or("`${` is not closed by `}`; a literal `$` is written `$$`")?;
            out.push_str(&value(name, around)?);
            rest = tail;
        } else {
            out.push('$');
            rest = after;
        }
    }
    out.push_str(rest);
    Ok(out)
}

/// Secrets that no rule file has a use for.
const OURS: [&str; 2] = ["WALTAG_DATABASE_URL", "WALTAG_LISTEN_TOKEN"];

fn value(name: &str, around: &Surroundings) -> Result<String, String> {
    if let Some(path) = name.strip_prefix("file:") {
        let content = String::from_utf8(around.read(path)?).map_err(|_| format!("{path} is not UTF-8"))?;
        return Ok(content.trim_end_matches(['\n', '\r']).to_owned());
    }
    if OURS.iter().any(|ours| name == *ours || name.strip_prefix(ours).is_some_and(|rest| rest.starts_with(":-"))) {
        return Err(format!(
            "`{}` is a setting of waltag itself: who edits rules must not read it",
            name.split(":-").next().unwrap_or_default()
        ));
    }
    let (name, default) = name.split_once(":-").map_or((name, None), |(name, default)| (name, Some(default)));
    match (around.variable)(name).filter(|value| !value.is_empty()).or(default.map(str::to_owned)) {
        Some(value) => Ok(value),
        None => Err(format!("the environment variable {name} is not set; a default is written ${{{name}:-default}}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn forms() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), "se$cret\n").unwrap();
        let variable = |name: &str| (name == "HOST").then(|| "db".to_owned());
        let credentials = file.path().parent().map(Path::to_path_buf);
        let around = Surroundings::new(&variable, credentials);
        let short = file.path().file_name().unwrap().to_string_lossy().into_owned();
        for (text, expected) in [
            ("redis://${HOST}:1", "redis://db:1".to_owned()),
            ("${NONE:-x:-y}$$${HOST}", "x:-y$db".to_owned()),
            ("$HOST", "$HOST".to_owned()),
            (&format!("a${{file:{short}}}b"), "ase$cretb".to_owned()),
        ] {
            assert_eq!(expand(text, &around), Ok(expected));
        }
        let (before, missing) = (around.fingerprint.get(), "${file:none}");
        std::fs::write(file.path(), "other").unwrap();
        assert!(expand(&format!("${{file:{short}}}"), &around).is_ok() && around.fingerprint.get() != before);
        assert!(expand(missing, &around).is_err());
        assert_eq!(around.files.borrow().last(), Some(&file.path().with_file_name("none")), "it may come");
        assert!(expand("${NONE}", &around).unwrap_err().contains("NONE"));
        assert!(expand("${HOST", &around).is_err());
    }
}
