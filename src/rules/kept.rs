//! The last good rule set, kept over restarts: a daemon that is started with broken rules goes on with these. Values of
//! `${...}` are not in it, they are looked up again.

use std::io::{self, Write};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::Files;

/// Rule files have 16 MiB at most, and each character may be escaped.
const LARGEST: u64 = 128 << 20;

/// A place for one rule set.
pub struct Kept(PathBuf);

#[derive(Serialize, Deserialize)]
struct Content {
    format: u32,
    files: Vec<(PathBuf, String)>,
}

impl Kept {
    /// In `directory` (`$STATE_DIRECTORY`), for the daemon that reads `slot`.
    pub fn at(directory: &Path, slot: &str) -> Kept {
        Kept(directory.join(format!("rules-{slot}.json")))
    }

    /// What was kept last; nothing if it cannot be read.
    pub fn read(&self) -> Option<Files> {
        parse(&self.content()?)
    }

    /// It holds all files, and so may be larger than one.
    fn content(&self) -> Option<Vec<u8>> {
        std::fs::metadata(&self.0).ok().filter(|found| found.is_file() && found.len() <= LARGEST)?;
        std::fs::read(&self.0).ok()
    }

    /// Keeps this set, whole or not at all. Only the owner may read it: a URL may have been written with its password.
    pub fn write(&self, files: &Files) -> io::Result<()> {
        let content = print(files)?;
        let mut file = tempfile::NamedTempFile::new_in(self.0.parent().unwrap_or(Path::new(".")))?;
        file.write_all(&content)?;
        file.as_file().sync_all()?;
        file.persist(&self.0)?;
        Ok(())
    }
}

/// The files of a set that was kept; nothing if it cannot be read.
pub fn parse(bytes: &[u8]) -> Option<Files> {
    let content: Content = serde_json::from_slice(bytes).ok()?;
    let file = |(path, text): (PathBuf, String)| (path, text.into_bytes());
    (content.format == 1).then(|| content.files.into_iter().map(file).collect())
}

/// What is kept of them.
pub fn print(files: &Files) -> io::Result<Vec<u8>> {
    let text = |(path, bytes): &(PathBuf, Vec<u8>)| (path.clone(), String::from_utf8_lossy(bytes).into_owned());
    let content = Content { format: 1, files: files.iter().map(text).collect() };
    Ok(serde_json::to_vec(&content)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kept_and_read_back_by_the_owner_only() {
        use std::os::unix::fs::PermissionsExt;
        let directory = tempfile::tempdir().unwrap();
        let kept = Kept::at(directory.path(), "waltag");
        assert!(kept.read().is_none());
        let files = vec![(PathBuf::from("a.yaml"), b"version: 1".to_vec())];
        kept.write(&files).unwrap();
        assert_eq!(kept.read(), Some(files));
        assert_eq!(std::fs::metadata(&kept.0).unwrap().permissions().mode() & 0o777, 0o600);
        std::fs::write(&kept.0, "{").unwrap();
        assert!(kept.read().is_none());
    }
}
