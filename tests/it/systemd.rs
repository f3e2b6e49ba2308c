//! What the service manager is told, over a socket as systemd makes it.

use std::os::unix::net::UnixDatagram;
use std::time::{Duration, Instant};

use crate::support::{LIMIT, RULES, World};

/// Receives until `wanted` was told; everything that was told.
fn told(socket: &UnixDatagram, wanted: &str) -> String {
    let (mut all, mut buffer, deadline) = (String::new(), [0; 4096], Instant::now() + LIMIT);
    while !all.contains(wanted) {
        assert!(Instant::now() < deadline, "never told {wanted}:\n{all}");
        if let Ok(length) = socket.recv(&mut buffer) {
            all.push_str(&String::from_utf8_lossy(&buffer[..length]));
            all.push('\n');
        }
    }
    all
}

#[tokio::test]
async fn ready_status_watchdog_and_stopping() {
    let world = World::new().await;
    world.setup(RULES);
    let path = world.directory.path().join("notify");
    let socket = UnixDatagram::bind(&path).unwrap();
    socket.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
    let start = || {
        let mut command = world.waltag("waltag", &["run"]);
        world.start(command.env("NOTIFY_SOCKET", &path).env("WATCHDOG_USEC", "2000000"))
    };
    let daemon = start();
    let said = told(&socket, "STATUS=streaming; 2 caches");
    assert!(said.contains("READY=1"), "{said}");
    told(&socket, "WATCHDOG=1");
    daemon.signal("HUP");
    let said = told(&socket, "RELOADING=1") + &told(&socket, "READY=1");
    assert!(said.contains("MONOTONIC_USEC="), "{said}");
    // A second one is up as well: it takes over by itself.
    let standby = start();
    let said = told(&socket, "STATUS=standby");
    assert!(said.contains("READY=1"), "{said}");
    assert_eq!(standby.stop(), Some(0));
    assert_eq!(daemon.stop(), Some(0));
    told(&socket, "STOPPING=1");
}

/// The unit holds what it promises, where systemd is there to say so.
#[test]
fn the_unit_is_clean_and_hardened() {
    let unit = crate::support::root().join("systemd/waltag.service");
    let Ok(output) =
        std::process::Command::new("systemd-analyze").args(["security", "--offline=true"]).arg(&unit).output()
    else {
        let text = std::fs::read_to_string(unit).unwrap();
        assert!(text.contains("RestartPreventExitStatus=64 65 66 77 78") && text.contains("Type=notify"));
        return;
    };
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    let level = said.lines().find(|line| line.contains("Overall exposure level")).unwrap_or_else(|| panic!("{said}"));
    let exposure: f32 = level.split(": ").nth(1).and_then(|rest| rest.split(' ').next()).unwrap().parse().unwrap();
    assert!(exposure <= 2.0, "{level}");
}
