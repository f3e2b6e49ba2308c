//! `--rules`: a file, a directory (`*.yaml`, `*.yml`, sorted, not recursive) or a glob.

use std::path::{Path, PathBuf};

/// Why a rule path gives no files (exit 66).
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Missing or not readable.
    #[error("cannot read the rules at {0}: {1}")]
    Unreadable(PathBuf, std::io::Error),
    /// A directory or glob without a rule file.
    #[error("there is no rule file at {0}; rules are files named *.yaml or *.yml")]
    Empty(PathBuf),
}

/// The files behind all paths, each once.
pub fn files(paths: &[String]) -> Result<Vec<PathBuf>, Error> {
    let mut files = Vec::new();
    for path in paths.iter().map(Path::new) {
        let found = if path.to_string_lossy().contains(['*', '?']) { glob(path)? } else { plain(path)? };
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
fn glob(pattern: &Path) -> Result<Vec<PathBuf>, Error> {
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
    matched.retain(|path| path.is_file());
    Ok(matched)
}

fn fits(pattern: &[u8], name: &[u8]) -> bool {
    match (pattern, name) {
        ([], []) => true,
        ([b'*', rest @ ..], _) => (0..=name.len()).any(|skip| fits(rest, name.get(skip..).unwrap_or_default())),
        ([b'?', rest @ ..], [_, tail @ ..]) => fits(rest, tail),
        ([first, rest @ ..], [byte, tail @ ..]) => first == byte && fits(rest, tail),
        _ => false,
    }
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
        assert!(matches!(found("c"), Err(Error::Empty(_))));
        assert!(matches!(found("x*/y"), Err(Error::Empty(_))));
        assert!(matches!(found("none.yaml"), Err(Error::Unreadable(..))));
    }
}
