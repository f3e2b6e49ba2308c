//! Notices that rule files may have changed.
//!
//! Directories are watched, never files: a watch on a file goes deaf after an atomic rename, and the swap of a Kubernetes
//! volume never names the file at all. So any change in a directory counts, whatever it names, and the files are read again.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::Metadata;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::time::Duration;

use notify::{Event, EventKind, RecommendedWatcher, RecursiveMode, Watcher};
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};
use tokio::time::{Instant, sleep_until};

/// Editors and deployments write several files, or one in several steps.
const QUIET: Duration = Duration::from_millis(500);
/// Where it is never quiet, it is read this often.
const LONGEST: Duration = Duration::from_secs(5);
/// A directory that is not there (yet, or any more) is looked for this often.
const REARM: Duration = Duration::from_secs(5);

type Identity = (u64, Option<std::time::SystemTime>);

/// Watches on directories.
pub struct Watch {
    watcher: Option<RecommendedWatcher>,
    events: UnboundedReceiver<()>,
    wanted: BTreeSet<PathBuf>,
    /// By inode and birth: a directory that was replaced is another one, and the watch went with the first. (Inodes alone are
    /// used again at once.)
    watched: BTreeMap<PathBuf, Identity>,
    /// When directories are looked for again.
    rearm: Instant,
    /// What was read cannot be used: it is read again however quiet it is, because what was wrong may not be in a file (no file descriptor was left).
    pub retry: bool,
    /// Something changed: when first, and when last.
    pending: Option<(Instant, Instant)>,
}

impl Watch {
    /// Watches nothing yet. Where the system has no watches left, only SIGHUP makes waltag read its rules again.
    pub fn start() -> Watch {
        let (sender, events) = unbounded_channel();
        let told = move |event: notify::Result<Event>| {
            // Our own reading is an access, and would be read again for ever.
            if !matches!(&event, Ok(Event { kind: EventKind::Access(_), .. })) {
                let _ = sender.send(());
            }
        };
        let watcher = notify::recommended_watcher(told);
        let watcher = watcher.inspect_err(|error| {
            tracing::warn!("rule files cannot be watched ({error}): send SIGHUP after a change");
        });
        let (wanted, watched) = (BTreeSet::new(), BTreeMap::new());
        let rearm = Instant::now() + REARM;
        Watch { watcher: watcher.ok(), events, wanted, watched, rearm, retry: false, pending: None }
    }

    /// Watches these directories instead of those before.
    pub fn set(&mut self, directories: BTreeSet<PathBuf>) {
        self.wanted = directories;
        // What happened between the reading and the first watch was not seen.
        if self.arm() {
            self.note();
        }
    }

    /// Watches what is wanted and there; true if that is more than before.
    fn arm(&mut self) -> bool {
        let Some(watcher) = &mut self.watcher else { return false };
        let identity = |directory: &PathBuf| {
            let found = std::fs::metadata(directory).ok().filter(Metadata::is_dir)?;
            Some((found.ino(), found.created().ok()))
        };
        let there: BTreeMap<PathBuf, Identity> =
            self.wanted.iter().filter_map(|directory| Some((directory.clone(), identity(directory)?))).collect();
        self.watched.retain(|directory, identity| {
            let same = there.get(directory) == Some(identity);
            if !same {
                let _ = watcher.unwatch(directory);
            }
            same
        });
        let mut more = false;
        for (directory, identity) in there {
            if !self.watched.contains_key(&directory) && watcher.watch(&directory, RecursiveMode::NonRecursive).is_ok()
            {
                self.watched.insert(directory, identity);
                more = true;
            }
        }
        more
    }

    /// Ends when something has changed and it is quiet again. Cancel-safe.
    pub async fn changed(&mut self) {
        loop {
            let Some((first, last)) = self.pending else {
                tokio::select! {
                    // Without a watcher nothing will ever be told.
                    Some(()) = self.events.recv() => self.note(),
                    () = sleep_until(self.rearm) => {
                        self.rearm = Instant::now() + REARM;
                        // What came before the new watch was not seen.
                        if self.arm() || self.retry {
                            self.note();
                        }
                    }
                }
                continue;
            };
            tokio::select! {
                biased;
                Some(()) = self.events.recv() => self.note(),
                () = sleep_until((last + QUIET).min(first + LONGEST)) => {
                    self.pending = None;
                    return;
                }
            }
        }
    }

    fn note(&mut self) {
        let now = Instant::now();
        let first = self.pending.map_or(now, |(first, _)| first);
        self.pending = Some((first, now));
        // The events of one write come together.
        while self.events.try_recv().is_ok() {}
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::timeout;

    use super::*;

    /// Each way in which files are replaced is seen; reading them is not.
    #[tokio::test]
    async fn every_way_of_replacing_a_file() {
        let root = tempfile::tempdir().unwrap();
        let at = |name: &str| root.path().join(name);
        for version in ["v1", "v2"] {
            std::fs::create_dir_all(at(version)).unwrap();
            std::fs::write(at(version).join("rules.yaml"), version).unwrap();
        }
        std::os::unix::fs::symlink("v1", at("..data")).unwrap();
        std::os::unix::fs::symlink("..data/rules.yaml", at("rules.yaml")).unwrap();
        let mut watch = Watch::start();
        let directories = || super::super::paths::directories(&[at("rules.yaml").display().to_string()], []);
        watch.set(directories());
        let seen = async |watch: &mut Watch, what: &str| {
            timeout(Duration::from_secs(20), watch.changed()).await.unwrap_or_else(|_| panic!("not seen: {what}"));
            watch.set(directories());
        };
        std::fs::write(at("v1/rules.yaml"), "in place").unwrap();
        seen(&mut watch, "a write in place, behind a link").await;
        std::os::unix::fs::symlink("v2", at("..data_tmp")).unwrap();
        std::fs::rename(at("..data_tmp"), at("..data")).unwrap();
        seen(&mut watch, "the swap of a Kubernetes volume").await;
        std::fs::write(at("new"), "renamed").unwrap();
        std::fs::rename(at("new"), at("rules.yaml")).unwrap();
        seen(&mut watch, "an atomic rename").await;
        assert_eq!(std::fs::read(at("rules.yaml")).unwrap(), b"renamed");
        assert!(timeout(QUIET * 2, watch.changed()).await.is_err(), "reading is no change");
        std::fs::remove_dir_all(root.path()).unwrap();
        seen(&mut watch, "a directory that is removed").await;
        std::fs::create_dir(root.path()).unwrap();
        std::fs::write(at("rules.yaml"), "made again").unwrap();
        seen(&mut watch, "a directory that is made again").await;
        std::fs::write(at("rules.yaml"), "and watched").unwrap();
        seen(&mut watch, "a write there").await;
        // At once, so that the inode is used again before anybody looks.
        std::fs::remove_dir_all(root.path()).unwrap();
        std::fs::create_dir(root.path()).unwrap();
        std::fs::write(at("rules.yaml"), "made again at once").unwrap();
        seen(&mut watch, "a directory that is made again at once").await;
        while timeout(QUIET * 3, watch.changed()).await.is_ok() {
            watch.set(directories());
        }
        std::fs::write(at("rules.yaml"), "and watched").unwrap();
        seen(&mut watch, "a write there").await;
    }
}
