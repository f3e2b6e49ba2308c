//! Files that are none: what never ends, never begins, or is too much to read. And files that cannot be read for a moment.

use std::fs;
use std::os::unix::fs::symlink;
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use crate::attacks::{SOON, answered, get, goes_stale, limited, mebibytes};
use crate::support::{RULES, World};

/// MiB that no command takes to say that it does not like a file.
const ENOUGH: u64 = 64;
/// So that a mistake ends this process and not the machine.
const BOUND: &str = "-v 3000000";
const TAKEN: Duration = Duration::from_secs(20);

const KINDS: [&str; 8] =
    ["fifo", "link to /dev/zero", "link to a fifo", "60 MB", "2 GB", "socket", "directory", "file without a size"];

/// Makes what it is called at `path`.
fn make(kind: &str, path: &Path) {
    let fifo = |path: &Path| assert!(Command::new("mkfifo").arg(path).status().unwrap().success());
    let sparse = |size: u64| fs::File::create(path).unwrap().set_len(size).unwrap();
    match kind {
        "fifo" => fifo(path),
        "link to /dev/zero" => symlink("/dev/zero", path).unwrap(),
        "link to a fifo" => {
            fifo(&path.with_extension("fifo"));
            symlink(path.with_extension("fifo"), path).unwrap();
        }
        "60 MB" => sparse(60 << 20),
        "2 GB" => sparse(2 << 30),
        // Whoever is gone leaves it behind.
        "socket" => drop(UnixListener::bind(path).unwrap()),
        "directory" => fs::create_dir(path).unwrap(),
        // A regular file of no bytes, by what stat says.
        "file without a size" => symlink("/proc/self/pagemap", path).unwrap(),
        other => panic!("{other}"),
    }
}

fn remove(path: &Path) {
    if path.is_dir() {
        fs::remove_dir(path).unwrap()
    } else {
        fs::remove_file(path).unwrap()
    }
    let _ = fs::remove_file(path.with_extension("fifo"));
}

/// What is wrong with how this ends: too late, with too much memory, or without a word on `file`.
fn fault(command: &Command, file: Option<&str>) -> Option<String> {
    let mut child = limited(BOUND, command).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let (deadline, mut peak) = (Instant::now() + SOON, 0);
    let ended = loop {
        let status = fs::read_to_string(format!("/proc/{}/status", child.id())).unwrap_or_default();
        let kilobytes =
            status.lines().find_map(|line| line.strip_prefix("VmHWM:")?.split_whitespace().next()?.parse().ok());
        peak = peak.max(kilobytes.unwrap_or(0_u64) >> 10);
        if child.try_wait().unwrap().is_some() || peak > 10 * ENOUGH {
            break true;
        }
        if Instant::now() > deadline {
            break false;
        }
        std::thread::sleep(Duration::from_millis(1));
    };
    let _ = child.kill();
    let output = child.wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
    let told = file.is_none_or(|file| {
        matches!(output.status.code(), Some(65 | 66 | 78)) && said.contains(file) && !said.contains("panicked")
    });
    match (ended, peak < ENOUGH, told) {
        (true, true, true) => None,
        (false, ..) => Some(format!("still runs after {SOON:?}, {peak} MiB")),
        (_, false, _) => Some(format!("took {peak} MiB")),
        _ => Some(format!("ended with {} and said {}", output.status, said.lines().next().unwrap_or_default())),
    }
}

fn waltag(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_waltag"));
    command.env("PATH", "/usr/bin:/bin").args(arguments);
    command
}

fn holds(faults: Vec<(String, Option<String>)>) {
    let faults: Vec<String> =
        faults.into_iter().filter_map(|(what, fault)| Some(format!("{what}: {}", fault?))).collect();
    assert!(faults.is_empty(), "{} faults:\n{}", faults.len(), faults.join("\n"));
}

/// As the rules, and as one of the rules.
#[test]
fn as_rules() {
    let mut faults = Vec::new();
    for kind in KINDS {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("odd.yaml");
        make(kind, &path);
        fs::write(directory.path().join("a.yaml"), "version: 1\n").unwrap();
        // A directory is searched.
        if kind != "directory" {
            let alone = fault(&waltag(&["check", "--rules", path.to_str().unwrap()]), Some("odd.yaml"));
            faults.push((format!("rules are a {kind}"), alone));
        }
        let among = fault(&waltag(&["check", "--rules", directory.path().to_str().unwrap()]), Some("odd.yaml"));
        faults.push((format!("{kind} among the rules"), among));
    }
    faults.push(("/dev/zero as rules".into(), fault(&waltag(&["check", "--rules", "/dev/zero"]), Some("/dev/zero"))));
    holds(faults);
}

/// As what rules refer to.
#[test]
fn as_files_that_rules_name() {
    let mut faults = Vec::new();
    for kind in KINDS {
        let directory = tempfile::tempdir().unwrap();
        let (rules, odd) = (directory.path().join("r.yaml"), directory.path().join("odd"));
        make(kind, &odd);
        for option in [
            "url: 'redis://${file:ODD}'",
            "url: 'rediss://h', cacert: 'ODD'",
            "url: 'rediss://h', cert: 'ODD', key: 'ODD'",
        ] {
            let option = option.replace("ODD", odd.to_str().unwrap());
            fs::write(&rules, format!("version: 1\ncaches: {{c: {{dialect: keys, {option}}}}}\n")).unwrap();
            let fault = fault(&waltag(&["check", "--rules", rules.to_str().unwrap()]), Some("odd"));
            faults.push((format!("{kind} as {option}"), fault));
        }
    }
    holds(faults);
}

/// As what the settings name.
#[test]
fn as_files_that_settings_name() {
    let mut faults = Vec::new();
    for kind in KINDS {
        let directory = tempfile::tempdir().unwrap();
        let (rules, odd) = (directory.path().join("r.yaml"), directory.path().join("odd"));
        make(kind, &odd);
        let odd = odd.to_str().unwrap();
        fs::write(&rules, "version: 1\ncaches: {c: {url: 'redis://h', dialect: keys}}\n").unwrap();
        let check = || waltag(&["check", "--rules", rules.to_str().unwrap()]);
        let tls = |name: &str| format!("postgres://u@h/d?sslmode=verify-full&{name}={odd}");
        let cases = [
            ("WALTAG_DATABASE_URL_FILE", odd.to_owned(), true),
            ("WALTAG_DATABASE_URL", tls("sslrootcert"), true),
            ("WALTAG_DATABASE_URL", tls("sslkey=/dev/null&sslcert"), true),
            // libpq passes over a password file that is none.
            ("PGPASSFILE", odd.to_owned(), false),
            ("PGSERVICEFILE", odd.to_owned(), false),
        ];
        for (variable, value, named) in cases {
            let mut command = check();
            command.env(variable, &value).env("PGSERVICE", if variable == "PGSERVICEFILE" { "shop" } else { "" });
            faults.push((format!("{kind} in {variable}={value}"), fault(&command, named.then_some("odd"))));
        }
        let mut typed = check();
        typed.args(["--database-url-file", odd]);
        faults.push((format!("{kind} as --database-url-file"), fault(&typed, Some("odd"))));
    }
    holds(faults);
}

/// A daemon refuses them, goes on with the rules that it has, and takes what is mended.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_daemon_goes_on_without_them() {
    let world = World::new().await;
    world.setup(RULES);
    let (sql, mut cache) = (world.sql().await, world.cache(1).await);
    let (mut faults, mut id) = (Vec::new(), 0);
    for kind in KINDS {
        let directory = tempfile::tempdir().unwrap();
        let odd = directory.path().join("odd.yaml");
        fs::copy(world.rules(RULES), directory.path().join("a.yaml")).unwrap();
        let mut command = world.waltag("waltag", &["run", "--listen", "127.0.0.1:0"]);
        let mut daemon = world.start(&mut limited(BOUND, command.env("WALTAG_RULES", directory.path())));
        daemon.wait_until_resynced();
        let address = daemon.address();
        let mut wrong = Vec::new();
        for mended in [false, true] {
            // As a whole, and not what it is before it is.
            make(kind, &odd);
            let deadline = Instant::now() + TAKEN;
            let mut told = None;
            while told.is_none() && Instant::now() < deadline && wrong.is_empty() {
                id += 1;
                if !goes_stale(&sql, &mut cache, id, SOON).await {
                    wrong.push(format!("a row is not stale after {SOON:?}"));
                }
                told = get(&address, "/readyz", SOON).filter(|(code, _)| *code == 503);
            }
            if !told.as_ref().is_some_and(|(_, body)| body.contains("odd.yaml")) {
                wrong.push(format!("/readyz says {told:?}"));
            }
            if let Some(end) = daemon.child.try_wait().unwrap() {
                wrong.push(format!("it ended with {end}"));
                break;
            }
            let peak = mebibytes(daemon.child.id(), "VmHWM");
            if peak > 2 * ENOUGH {
                wrong.push(format!("it took {peak} MiB"));
            }
            remove(&odd);
            if mended {
                let rules =
                    "version: 1\nrules: [{table: first_model, caches: [my_cache_alias], tags: [\"mended:<id>\"]}]\n";
                fs::write(directory.path().join("new"), rules).unwrap();
                fs::rename(directory.path().join("new"), &odd).unwrap();
                if answered(&address, "/metrics", 200, SOON).await.is_none() || !reaches(&address, 2).await {
                    wrong.push("what is mended is not taken".into());
                }
            } else if answered(&address, "/readyz", 200, TAKEN).await.is_none() {
                wrong.push("it is not ready once the file is gone".into());
            }
            if !wrong.is_empty() {
                break;
            }
        }
        faults.push((kind.to_owned(), (!wrong.is_empty()).then(|| wrong.join("; "))));
        drop(daemon);
        world.is_left(&sql).await;
    }
    holds(faults);
}

/// That many sets of rules were in force.
async fn reaches(address: &str, generation: u32) -> bool {
    let (line, deadline) = (format!("waltag_rules_generation {generation}"), Instant::now() + TAKEN);
    while Instant::now() < deadline {
        if get(address, "/metrics", SOON).is_some_and(|(_, body)| body.contains(&line)) {
            return true;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    false
}

/// Nothing tells of a file that can be read again, if what was in its way is not where anybody looks.
#[tokio::test]
async fn what_could_not_be_read_is_tried_again() {
    let world = World::new().await;
    world.setup(RULES);
    // Its log is not beside the rules: each line of it would be a change of their directory.
    let (place, elsewhere) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let rules = place.path().join("rules.yaml");
    fs::copy(world.rules(RULES), &rules).unwrap();
    let (target, secret) = (elsewhere.path().join("target"), elsewhere.path().join("secret"));
    let name = rules.with_file_name("secret");
    symlink(&secret, &name).unwrap();
    let mut command = world.waltag("waltag", &["run", "--listen", "127.0.0.1:0"]);
    let daemon = world.start(command.env("WALTAG_RULES", &rules));
    daemon.wait_until_resynced();
    let address = daemon.address();
    let text = fs::read_to_string(&rules).unwrap();
    let link = rules.with_extension("link");
    symlink(&target, &link).unwrap();
    fs::rename(&link, &rules).unwrap();
    assert!(answered(&address, "/readyz", 503, TAKEN).await.is_some(), "nothing is refused");
    // First rules that want a file which is not there either.
    let password = format!("redis://${{file:{}}}127.0.0.1", name.display());
    fs::write(&target, text.replacen("redis://127.0.0.1", &password, 1).replace("FirstModel", "Other")).unwrap();
    let deadline = Instant::now() + TAKEN;
    while !get(&address, "/readyz", SOON).is_some_and(|(_, body)| body.contains("secret")) {
        assert!(Instant::now() < deadline, "rules that can be read again are not read");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    fs::write(&secret, "\n").unwrap();
    assert!(reaches(&address, 2).await, "a file of the rules that can be read again is not read");
    assert!(answered(&address, "/readyz", 200, TAKEN).await.is_some());
}
