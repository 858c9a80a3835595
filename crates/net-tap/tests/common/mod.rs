//! A network namespace for each test, and a tap in it.
#![allow(dead_code, reason = "each test file uses its own part of it")]

use std::env;
use std::io;
use std::os::unix::process::CommandExt;
use std::panic;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use iothread::EventLoop;
use net_tap::{TapConfig, TapNetdev};

/// Only ends a hung test.
pub(crate) const DEADLINE: Duration = Duration::from_secs(20);
/// Set in the process that runs a test inside its namespace.
pub(crate) const INSIDE: &str = "NET_TAP_TEST_INSIDE";

/// Runs `body` in a process of its own with an empty network namespace; `test` is the caller's name.
/// Where there cannot be one the test says so and passes, unless CI=true.
pub(crate) fn in_namespace(test: &str, body: impl FnOnce()) {
    if env::var_os(INSIDE).is_some() {
        return body();
    }
    let mut command = Command::new(env::current_exe().unwrap());
    command
        .args([test, "--exact", "--nocapture", "--test-threads=1"])
        .env(INSIDE, "1");
    // SAFETY: takes nothing and cannot fail.
    let (uid, gid) = (unsafe { libc::getuid() }, unsafe { libc::getgid() });
    let maps = [
        ("/proc/self/setgroups", "deny".to_owned()),
        ("/proc/self/uid_map", format!("0 {uid} 1")),
        ("/proc/self/gid_map", format!("0 {gid} 1")),
    ];
    let unshare = move || {
        // SAFETY: takes flags alone; called in a process that has one thread.
        if unsafe { libc::unshare(libc::CLONE_NEWNET) } == 0 {
            return Ok(());
        }
        // SAFETY: as above.
        if unsafe { libc::unshare(libc::CLONE_NEWUSER | libc::CLONE_NEWNET) } != 0 {
            return Err(io::Error::last_os_error());
        }
        // Without being root inside, the capabilities would be gone after exec.
        maps.iter()
            .try_for_each(|(file, map)| std::fs::write(file, map))
    };
    // SAFETY: `unshare` makes system calls and allocates nothing.
    unsafe { command.pre_exec(unshare) };
    let missing = match command.output() {
        _ if !Path::new("/dev/net/tun").exists() => "no /dev/net/tun".to_owned(),
        Err(error) => format!("no network namespace: {error}"),
        Ok(output) => {
            print!("{}", String::from_utf8_lossy(&output.stdout));
            eprint!("{}", String::from_utf8_lossy(&output.stderr));
            match output.status.code() {
                Some(0) => return,
                Some(NO_TUN) => "/dev/net/tun may not be opened".to_owned(),
                other => panic!("{test} failed in its namespace: {other:?}"),
            }
        }
    };
    not_run(&format!("{test}: {missing}"));
}

/// Says why a test, or a part of one, cannot be run here; with CI=true that is a failure.
pub(crate) fn not_run(missing: &str) {
    assert!(env::var("CI").as_deref() != Ok("true"), "{missing}");
    println!("not run: {missing}");
}

/// The exit status of a test process that may not open `/dev/net/tun`.
pub(crate) const NO_TUN: i32 = 77;

pub(crate) fn config(ifname: &str) -> TapConfig {
    TapConfig {
        ifname: Some(ifname.into()),
        ..TapConfig::default()
    }
}

/// Opens a tap, or ends this process saying that it may not.
pub(crate) fn open(config: &TapConfig) -> Arc<TapNetdev> {
    match TapNetdev::open("tap0", config) {
        Ok(tap) => tap,
        Err(net_tap::TapError::Open { .. }) => std::process::exit(NO_TUN),
        Err(error) => panic!("{error}"),
    }
}

/// Turns until there is nothing to do, which must come soon.
pub(crate) fn run_dry(context: &EventLoop) {
    let mut turns = (0..100).map(|_| context.turn(Some(Duration::ZERO)).unwrap());
    assert!(turns.any(|calls| calls == 0), "the loop stays busy");
}

pub(crate) fn exists(ifname: &str) -> bool {
    // Unlike /sys, /proc/net follows the namespace of the process that looks.
    let interfaces = std::fs::read_to_string("/proc/net/dev").unwrap();
    interfaces.contains(&format!("{ifname}:"))
}

/// Whether there is iproute2; if not, the test that asks is not run.
pub(crate) fn has_ip() -> bool {
    let there = Command::new("ip").arg("-V").output().is_ok();
    if !there {
        not_run("no `ip`");
    }
    there
}

/// Runs a command of iproute2; `false` where there is none, or it fails.
pub(crate) fn ip(arguments: &str) -> bool {
    let status = Command::new("ip").args(arguments.split(' ')).status();
    status.is_ok_and(|status| status.success())
}
