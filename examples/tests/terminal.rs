//! The terminal is given back on every way out.
#![expect(
    clippy::unwrap_used,
    reason = "clippy takes only what is marked as a test for one"
)]
#![expect(
    unsafe_code,
    reason = "pseudo-terminals and their settings are calls into the C library"
)]

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Command, Stdio};

use examples::readiness::wait_readable;
use examples::signals::EndSignals;
use examples::terminal::RawTerminal;

/// How a process may end.
const WAYS: [Way; 8] = [
    // Name, and the signal that it dies of or the status that it ends with.
    ("returns", Err(0)),
    ("panics", Err(101)),
    ("is asked to end", Err(3)),
    ("aborts", Ok(libc::SIGABRT)),
    ("faults", Ok(libc::SIGSEGV)),
    ("10", Ok(libc::SIGUSR1)),
    ("14", Ok(libc::SIGALRM)),
    ("60", Ok(60)),
];

type Way = (&'static str, Result<i32, i32>);

#[test]
fn the_terminal_is_restored_however_the_process_ends() {
    const NAME: &str = "the_terminal_is_restored_however_the_process_ends";
    if let Ok(way) = std::env::var(INSIDE) {
        leave(&way);
    }
    for (way, expected) in WAYS {
        let (master, slave) = open_pty();
        let before = settings(&slave);
        let mut command = Command::new(std::env::current_exe().unwrap());
        command
            .args(["--exact", NAME, "--nocapture", "--test-threads=1"])
            .env(INSIDE, way)
            .stdin(Stdio::from(slave.try_clone().unwrap()))
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        // SAFETY: what it calls is async-signal-safe.
        unsafe { command.pre_exec(take_terminal) };
        let mut child = command.spawn().unwrap();
        // The child says so when it has the terminal, and waits for a byte.
        let mut output = child.stdout.take().unwrap();
        let mut said = Vec::new();
        while !said.ends_with(b"raw.") {
            let mut byte = [0];
            assert_eq!(output.read(&mut byte).unwrap(), 1, "{way}: it never began");
            said.push(byte[0]);
        }
        let during = settings(&slave);
        assert_eq!(during.0 & (libc::ICANON | libc::ECHO | libc::ISIG), 0);
        assert_eq!(during.1, before.1, "output is processed as before");
        File::from(master.try_clone().unwrap())
            .write_all(b"x")
            .unwrap();

        // Read to the end, lest the child blocks.
        output.read_to_end(&mut said).unwrap();
        let status = child.wait().unwrap();
        let ended = status.signal().ok_or_else(|| status.code().unwrap());
        assert_eq!(ended, expected, "{way}");
        assert_eq!(settings(&slave), before, "{way}");
    }
}

/// Makes the terminal on descriptor 0 that of a session of the process's own.
fn take_terminal() -> std::io::Result<()> {
    // SAFETY: takes nothing and gives a number.
    unsafe { libc::setsid() };
    // SAFETY: takes numbers and gives one.
    match unsafe { libc::ioctl(0, libc::TIOCSCTTY, 0) } {
        0 => Ok(()),
        _ => Err(std::io::Error::last_os_error()),
    }
}

/// The child's part: takes the terminal, and leaves.
fn leave(way: &str) -> ! {
    let signals = EndSignals::take().unwrap();
    let terminal = RawTerminal::enter().unwrap();
    assert!(terminal.is_some(), "standard input is the terminal");
    print!("raw.");
    std::io::stdout().flush().unwrap();
    std::io::stdin().read_exact(&mut [0]).unwrap();
    match way {
        "returns" => {
            drop(terminal);
            std::process::exit(0)
        }
        "panics" => panic!("on purpose"),
        "is asked to end" => {
            // To this thread, which blocks it; those of the test's harness do not.
            // SAFETY: takes a number.
            unsafe { libc::raise(libc::SIGTERM) };
            assert_eq!(wait_readable([signals.as_fd()], None).unwrap(), [true]);
            assert_eq!(signals.next(), Some(libc::SIGTERM));
            drop(terminal);
            std::process::exit(3)
        }
        "aborts" => std::process::abort(),
        _ if way.parse::<i32>().is_ok() => {
            // SAFETY: takes a number.
            unsafe { libc::raise(way.parse().unwrap()) };
            unreachable!("the signal is not survived")
        }
        _ => {
            // SAFETY: takes a number. As a fault of the processor's would, it ends the process.
            unsafe { libc::raise(libc::SIGSEGV) };
            unreachable!("a fault is not survived")
        }
    }
}

fn open_pty() -> (OwnedFd, OwnedFd) {
    let (mut master, mut slave) = (-1, -1);
    let none = std::ptr::null_mut();
    // SAFETY: both numbers live across the call, and the rest may be null.
    let done = unsafe {
        libc::openpty(
            &raw mut master,
            &raw mut slave,
            none,
            none.cast(),
            none.cast(),
        )
    };
    assert_eq!(done, 0);
    // SAFETY: the call has just made it.
    let master = unsafe { OwnedFd::from_raw_fd(master) };
    // SAFETY: the call has just made it.
    let slave = unsafe { OwnedFd::from_raw_fd(slave) };
    (master, slave)
}

/// Local, output, input and control modes.
fn settings(terminal: &OwnedFd) -> (u32, u32, u32, u32) {
    // SAFETY: an all-zero `termios` is one, to be overwritten.
    let mut settings: libc::termios = unsafe { std::mem::zeroed() };
    // SAFETY: `settings` is a `termios` that lives across the call.
    let done = unsafe { libc::tcgetattr(terminal.as_raw_fd(), &raw mut settings) };
    assert_eq!(done, 0);
    (
        settings.c_lflag,
        settings.c_oflag,
        settings.c_iflag,
        settings.c_cflag,
    )
}

const INSIDE: &str = "EXAMPLES_TEST_LEAVES_BY";
