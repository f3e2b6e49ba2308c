//! `--rules`: a file, a directory (`*.yaml`, `*.yml`, sorted, not recursive) or a glob.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use super::tables::fits;

/// Why a rule path gives no files (exit 66).
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Missing or not readable.
    #[error("cannot read the rules at {0}: {1}")]
    Unreadable(PathBuf, std::io::Error),
    /// One file too many.
    #[error("with {0} the rule files have more than 16 MiB together")]
    TooMany(PathBuf),
    /// A directory or glob without a rule file.
    #[error("there is no rule file at {0}; rules are files named *.yaml or *.yml")]
    Empty(PathBuf),
}

/// The files behind all paths, each once.
pub fn files(paths: &[String]) -> Result<Vec<PathBuf>, Error> {
    let mut files = Vec::new();
    for path in paths.iter().map(Path::new) {
        let found = if path.to_string_lossy().contains(['*', '?']) { glob(path) } else { plain(path)? };
        if found.is_empty() {
            return Err(Error::Empty(path.to_path_buf()));
        }
        for file in found {
            if !files.contains(&file) {
                files.push(file);
            }
        }
    }
    Ok(files)
}

/// The directories in which a change can change what [`files`] finds, or what stands there: those of the files, of what they
/// are links to, those that a glob looks into, and the parents of directories (which may be replaced as a whole).
pub fn directories<'a>(paths: &[String], others: impl IntoIterator<Item = &'a PathBuf>) -> BTreeSet<PathBuf> {
    let mut directories = BTreeSet::new();
    let parent = |path: &Path| match path.parent() {
        Some(parent) if parent.as_os_str().is_empty() => PathBuf::from("."),
        Some(parent) => parent.to_path_buf(),
        None => path.to_path_buf(),
    };
    for path in paths.iter().map(Path::new) {
        if path.to_string_lossy().contains(['*', '?']) {
            let looked_into = |ancestor: &&Path| ancestor.to_string_lossy().contains(['*', '?']);
            for pattern in path.ancestors().take_while(looked_into) {
                let above = parent(pattern);
                match above.to_string_lossy().contains(['*', '?']) {
                    true => directories.extend(matches(&above).into_iter().filter(|found| found.is_dir())),
                    false => drop(directories.insert(above)),
                }
            }
        } else {
            directories.extend(path.is_dir().then(|| path.to_path_buf()));
            directories.insert(parent(path));
        }
    }
    let found = files(paths).unwrap_or_default();
    let mut file = |file: &Path| {
        directories.insert(parent(file));
        directories.extend(file.canonicalize().ok().map(|target| parent(&target)));
    };
    found.iter().for_each(|found| file(found));
    others.into_iter().for_each(|other| file(other));
    directories
}

fn plain(path: &Path) -> Result<Vec<PathBuf>, Error> {
    let unreadable = |error| Error::Unreadable(path.to_path_buf(), error);
    if !std::fs::metadata(path).map_err(unreadable)?.is_dir() {
        return Ok(vec![path.to_path_buf()]);
    }
    let is_rule_file = |file: &PathBuf| {
        let hidden = file.file_name().is_none_or(|name| name.to_string_lossy().starts_with('.'));
        !hidden && file.extension().is_some_and(|ending| ending == "yaml" || ending == "yml")
    };
    Ok(entries(path).map_err(unreadable)?.into_iter().filter(is_rule_file).collect())
}

fn entries(directory: &Path) -> std::io::Result<Vec<PathBuf>> {
    let listed: std::io::Result<Vec<_>> = std::fs::read_dir(directory)?.map(|entry| Ok(entry?.path())).collect();
    let mut listed = listed?;
    listed.sort();
    Ok(listed)
}

/// `*` and `?` match within one component and not a leading dot.
fn glob(pattern: &Path) -> Vec<PathBuf> {
    let mut matched = matches(pattern);
    matched.retain(|path| path.is_file());
    matched
}

fn matches(pattern: &Path) -> Vec<PathBuf> {
    let mut matched = vec![PathBuf::new()];
    for component in pattern.components() {
        let text = component.as_os_str().to_string_lossy().into_owned();
        if !text.contains(['*', '?']) {
            matched.iter_mut().for_each(|path| path.push(component));
            matched.retain(|path| path.exists());
            continue;
        }
        let mut next = Vec::new();
        for directory in matched {
            let directory = if directory.as_os_str().is_empty() { PathBuf::from(".") } else { directory };
            for path in entries(&directory).unwrap_or_default() {
                let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
                if !name.starts_with('.') && fits(text.as_bytes(), name.as_bytes()) {
                    next.push(path);
                }
            }
        }
        matched = next;
    }
    matched
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn file_directory_glob() {
        let root = tempfile::tempdir().unwrap();
        let at = |name: &str| root.path().join(name);
        for name in ["a/waltag.yaml", "b/waltag.yaml", "b/other.yml", "b/.hidden.yaml", "c/readme.md"] {
            std::fs::create_dir_all(at(name).parent().unwrap()).unwrap();
            std::fs::write(at(name), "").unwrap();
        }
        let found = |path: &str| files(&[at(path).display().to_string()]);
        assert_eq!(found("a/waltag.yaml").unwrap(), [at("a/waltag.yaml")]);
        assert_eq!(found("b").unwrap(), [at("b/other.yml"), at("b/waltag.yaml")]);
        assert_eq!(found("*/waltag.yaml").unwrap(), [at("a/waltag.yaml"), at("b/waltag.yaml")]);
        let directories = |path: &str| directories(&[at(path).display().to_string()], []);
        let all = |names: &[&str]| names.iter().map(|name| at(name)).collect::<BTreeSet<_>>();
        assert_eq!(directories("a/waltag.yaml"), all(&["a"]));
        assert_eq!(directories("b"), BTreeSet::from([root.path().to_path_buf(), at("b")]));
        assert_eq!(directories("none/r.yaml"), all(&["none"]), "it may come");
        let glob = [root.path().to_path_buf()].into_iter().chain(all(&["a", "b", "c"])).collect();
        assert_eq!(directories("*/waltag.yaml"), glob);
        std::os::unix::fs::symlink(at("b/other.yml"), at("c/link.yaml")).unwrap();
        assert_eq!(directories("c/link.yaml"), all(&["b", "c"]), "a link and what it points to");
        std::fs::remove_file(at("c/link.yaml")).unwrap();
        assert!(matches!(found("c"), Err(Error::Empty(_))));
        assert!(matches!(found("x*/y"), Err(Error::Empty(_))));
        assert!(matches!(found("none.yaml"), Err(Error::Unreadable(..))));
    }
}
