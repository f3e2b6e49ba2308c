//! `waltag demo` tells its story, ends by itself, and leaves nothing behind.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use crate::support::{LIMIT, signal};

fn start(directory: &Path, arguments: &[&str]) -> Child {
    let mut command = Command::new(env!("CARGO_BIN_EXE_waltag"));
    command.arg("demo").args(arguments).env("TMPDIR", directory).env_remove("RUST_LOG");
    command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().unwrap()
}

/// A directory that the servers' user may enter.
fn temporary() -> tempfile::TempDir {
    let directory = tempfile::tempdir().unwrap();
    std::fs::set_permissions(directory.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    directory
}

fn is_clean(directory: &Path) {
    let left: Vec<_> = std::fs::read_dir(directory).unwrap().flatten().map(|entry| entry.path()).collect();
    assert!(left.is_empty(), "{left:?}");
    let path = directory.display().to_string();
    let commands = std::fs::read_dir("/proc").unwrap().flatten().map(|entry| entry.path().join("cmdline"));
    let running: Vec<_> = commands.flat_map(std::fs::read_to_string).filter(|line| line.contains(&path)).collect();
    assert!(running.is_empty(), "{running:?}");
}

#[test]
fn tells_its_story_and_cleans_up() {
    let directory = temporary();
    let begin = Instant::now();
    let output = start(directory.path(), &[]).wait_with_output().unwrap();
    let said = String::from_utf8(output.stdout).unwrap();
    println!("{said}");
    assert!(output.status.success());
    assert!(begin.elapsed() < Duration::from_secs(120));
    for words in [
        "UNLINK :1:tag_07743_",
        "CategoryModel.pk:2.TypeModel.pk:3",
        "page:8 lists category 2: a miss too",
        "0 commands",
        "sent nothing",
        "stool",
    ] {
        assert!(said.contains(words), "{words}");
    }
    is_clean(directory.path());
}

#[test]
fn ctrl_c_while_it_is_kept() {
    let directory = temporary();
    let mut child = start(directory.path(), &["--keep"]);
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines().map_while(Result::ok);
    assert!(lines.any(|line| line.contains("until Ctrl-C")));
    signal(child.id(), "INT");
    assert!(child.wait().unwrap().success());
    is_clean(directory.path());
}

#[test]
fn ctrl_c_in_the_middle() {
    let directory = temporary();
    let mut child = start(directory.path(), &[]);
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines().map_while(Result::ok);
    assert!(lines.any(|line| line.contains("2. A row moves")));
    signal(child.id(), "INT");
    let deadline = Instant::now() + LIMIT;
    while child.try_wait().unwrap().is_none() {
        assert!(Instant::now() < deadline);
        std::thread::yield_now();
    }
    is_clean(directory.path());
}

#[test]
fn a_reader_that_hangs_up_is_no_panic() {
    let directory = temporary();
    let mut child = start(directory.path(), &[]);
    drop(child.stdout.take());
    assert!(child.wait().unwrap().success());
    is_clean(directory.path());
}
