//! The user's terminal as the machine's serial line.
//!
//! [`RawTerminal`] takes the terminal for the guest and gives it back on every way out: when it is
//! dropped, when a thread panics, and on each signal that ends a process, but for those that ask it to
//! end: they are left to its main loop ([`signals`](crate::signals)), which drops it.
#![expect(
    unsafe_code,
    reason = "termios and signal handlers are calls into the C library"
)]

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsFd, BorrowedFd, RawFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Once, OnceLock};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use crate::machine::{Event, Machine};
use crate::readiness::{borrow, wait_readable, wait_writable};

/// The terminal on standard input, in raw mode while this lives.
#[derive(Debug)]
pub struct RawTerminal(());

impl RawTerminal {
    /// Puts the terminal on standard input into raw mode. `None` where there is none, or where it is
    /// another job's at the moment.
    ///
    /// # Errors
    /// When the terminal refuses.
    pub fn enter() -> io::Result<Option<Self>> {
        if Input::now() != Input::Terminal {
            return Ok(None);
        }
        // SAFETY: an all-zero `termios` is one, to be overwritten.
        let mut settings: libc::termios = unsafe { std::mem::zeroed() };
        // SAFETY: `settings` is a `termios` that lives across the call.
        if unsafe { libc::tcgetattr(STDIN, &raw mut settings) } != 0 {
            return Err(io::Error::last_os_error());
        }
        // The first settings seen are those to go back to, however often the terminal is taken.
        let saved = SAVED.get_or_init(|| settings);
        let mut raw = *saved;
        // SAFETY: `raw` is a `termios` that lives across the call.
        unsafe { libc::cfmakeraw(&raw mut raw) };
        // What the VMM itself prints still gets its carriage returns, as does the guest.
        raw.c_oflag = saved.c_oflag;
        restore_on_signals()?;
        ACTIVE.store(true, Ordering::SeqCst);
        let terminal = Self(());
        // SAFETY: `raw` is a `termios` that lives across the call.
        if unsafe { libc::tcsetattr(STDIN, libc::TCSANOW, &raw const raw) } != 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(Some(terminal))
    }
}

impl Drop for RawTerminal {
    fn drop(&mut self) {
        restore();
    }
}

/// What standard input is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Input {
    /// A terminal, and this process is in its foreground.
    Terminal,
    /// A terminal of which another job is in the foreground: touching it would stop the process.
    TerminalOfOthers,
    /// A file, a pipe, or nothing.
    Other,
}

impl Input {
    fn now() -> Self {
        // SAFETY: takes a number and gives one.
        if unsafe { libc::isatty(STDIN) } != 1 {
            return Self::Other;
        }
        // SAFETY: takes a number and gives one.
        let foreground = unsafe { libc::tcgetpgrp(STDIN) };
        // SAFETY: takes nothing and gives a number.
        if foreground == unsafe { libc::getpgrp() } {
            Self::Terminal
        } else {
            Self::TerminalOfOthers
        }
    }
}

/// Gives the terminal back if it was taken. Safe in a signal handler.
fn restore() {
    if let (true, Some(saved)) = (ACTIVE.swap(false, Ordering::SeqCst), SAVED.get()) {
        // SAFETY: `saved` is a `termios` that lives for ever, and the call is async-signal-safe.
        unsafe { libc::tcsetattr(STDIN, libc::TCSANOW, saved) };
    }
}

/// Restores before a panic's message, and before a signal ends the process.
fn restore_on_signals() -> io::Result<()> {
    static HOOK: Once = Once::new();
    HOOK.call_once(|| {
        let next = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            restore();
            next(info);
        }));
    });

    extern "C" fn on_signal(signal: libc::c_int) {
        restore();
        // The disposition is the default again, so this ends the process as if nobody had looked.
        // SAFETY: the call is async-signal-safe.
        unsafe { libc::raise(signal) };
    }
    // The first of the real-time signals takes vCPUs out of the guest.
    for signal in FATAL
        .into_iter()
        .chain(libc::SIGRTMIN() + 1..=libc::SIGRTMAX())
    {
        // SAFETY: all-zero is a `sigaction` with an empty mask and no flags.
        let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
        action.sa_sigaction = on_signal as extern "C" fn(libc::c_int) as usize;
        action.sa_flags = libc::SA_RESETHAND | libc::SA_NODEFER | libc::SA_ONSTACK;
        // SAFETY: `action` is complete, and its handler makes async-signal-safe calls only.
        if unsafe { libc::sigaction(signal, &raw const action, std::ptr::null_mut()) } != 0 {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(())
}

/// Standard output as the end of the serial line. A byte that nobody takes holds up its writer, as a
/// line with flow control does, but never one that is to stop.
#[derive(Debug)]
pub struct ConsoleOutput {
    /// Not `std::io::Stdout`, which would try again and again when a signal comes.
    file: File,
    leaving: Arc<AtomicBool>,
}

impl ConsoleOutput {
    /// Gives up what it is about to write when `leaving` is set and a signal comes.
    ///
    /// # Errors
    /// When there is no descriptor to be had.
    pub fn new(leaving: Arc<AtomicBool>) -> io::Result<Self> {
        let file = io::stdout().as_fd().try_clone_to_owned()?.into();
        Ok(Self::on(file, leaving))
    }

    fn on(file: File, leaving: Arc<AtomicBool>) -> Self {
        Self { file, leaving }
    }
}

impl Write for ConsoleOutput {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        loop {
            match self.file.write(bytes) {
                Err(error) if self.leaving.load(Ordering::Relaxed) => return Err(error),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                // Whoever shares the terminal may have made it non-blocking.
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    wait_writable(self.file.as_fd(), TURN)?;
                }
                other => return other,
            }
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }

    /// Unlike the provided one, does not try again after an interruption.
    fn write_all(&mut self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            match self.write(bytes)? {
                0 => return Err(io::ErrorKind::WriteZero.into()),
                count => bytes = bytes.get(count..).unwrap_or_default(),
            }
        }
        Ok(())
    }
}

/// Types what comes from standard input into a machine's serial port, until the input ends or this
/// is dropped.
#[derive(Debug)]
pub struct Keyboard {
    stop: Arc<EventFd>,
    thread: Option<JoinHandle<()>>,
}

impl Keyboard {
    /// Starts to read standard input.
    ///
    /// # Errors
    /// When there is no descriptor or thread to be had.
    pub fn connect(machine: Arc<Machine>) -> io::Result<Self> {
        let stop = Arc::new(EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)?);
        let stopped = stop.clone();
        let thread = thread::Builder::new()
            .name("keyboard".into())
            .spawn(move || type_all(&machine, &stopped))?;
        Ok(Self {
            stop,
            thread: Some(thread),
        })
    }
}

impl Drop for Keyboard {
    fn drop(&mut self) {
        // Cannot fail: the counter is 0.
        let _ = self.stop.write(1);
        if let Some(thread) = self.thread.take() {
            // It ends by itself; a panic in it has been printed.
            let _ = thread.join();
        }
    }
}

fn type_all(machine: &Machine, stop: &EventFd) {
    let mut escape = Escape::default();
    let mut input = [0; 256];
    while Input::now() != Input::TerminalOfOthers && wait_for(io::stdin().as_fd(), stop) {
        // Not `std::io::stdin`, which would hold back in its buffer what `poll` then knows nothing of.
        // SAFETY: `input` is as long as is said, and lives across the call.
        let count = unsafe { libc::read(STDIN, input.as_mut_ptr().cast(), input.len()) };
        // No more input: the guest goes on without.
        let Some(read) = usize::try_from(count)
            .ok()
            .and_then(|count| input.get(..count))
            .filter(|read| !read.is_empty())
        else {
            return;
        };
        let mut typed = Vec::with_capacity(read.len());
        for &byte in read {
            match escape.next(byte) {
                Typed::Byte(byte) => typed.push(byte),
                Typed::Nothing => {}
                Typed::Quit => {
                    machine.control().report(Event::Quit);
                    return;
                }
            }
        }
        let mut rest = &typed[..];
        loop {
            rest = &rest[machine.serial().type_in(rest)..];
            if rest.is_empty() {
                break;
            }
            // The guest has to read first. A signal left from before only makes one more round.
            if !wait_for(borrow(machine.serial().room()), stop) {
                return;
            }
            let _ = machine.serial().room().read();
        }
    }
}

/// Waits until `fd` can be read (true), or the thread is to end (false).
fn wait_for(fd: BorrowedFd<'_>, stop: &EventFd) -> bool {
    matches!(wait_readable([fd, borrow(stop)], None), Ok([true, false]))
}

/// Ctrl-A and what follows it.
#[derive(Clone, Copy, Debug, Default)]
struct Escape {
    seen: bool,
}

/// What a byte of input means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Typed {
    Byte(u8),
    Nothing,
    Quit,
}

impl Escape {
    fn next(&mut self, byte: u8) -> Typed {
        match (std::mem::replace(&mut self.seen, false), byte) {
            (false, CTRL_A) => {
                self.seen = true;
                Typed::Nothing
            }
            (false, byte) => Typed::Byte(byte),
            (true, b'x' | b'X') => Typed::Quit,
            (true, CTRL_A | b'a') => Typed::Byte(CTRL_A),
            (true, _) => Typed::Nothing,
        }
    }
}

/// Signals that end a process that does nothing about them. Not among them: those of
/// [`EndSignals`](crate::signals::EndSignals), SIGPIPE, which a Rust program ignores, and SIGKILL.
const FATAL: [libc::c_int; 17] = [
    libc::SIGSEGV,
    libc::SIGBUS,
    libc::SIGILL,
    libc::SIGFPE,
    libc::SIGABRT,
    libc::SIGTRAP,
    libc::SIGSYS,
    libc::SIGUSR1,
    libc::SIGUSR2,
    libc::SIGALRM,
    libc::SIGVTALRM,
    libc::SIGPROF,
    libc::SIGIO,
    libc::SIGPWR,
    libc::SIGSTKFLT,
    libc::SIGXCPU,
    libc::SIGXFSZ,
];
const STDIN: RawFd = 0;
const CTRL_A: u8 = 1;
/// How long output that is not taken waits before it looks whether it is to give up.
const TURN: Duration = Duration::from_millis(10);
static SAVED: OnceLock<libc::termios> = OnceLock::new();
static ACTIVE: AtomicBool = AtomicBool::new(false);

#[cfg(test)]
mod tests {
    use std::os::fd::{AsRawFd, OwnedFd};

    use super::*;

    #[test]
    fn output_that_nobody_takes_is_given_up_when_told_to() {
        let (unread, pipe) = io::pipe().unwrap();
        // SAFETY: takes numbers; the descriptor is a pipe's.
        unsafe { libc::fcntl(pipe.as_raw_fd(), libc::F_SETFL, libc::O_NONBLOCK) };
        let leaving = Arc::new(AtomicBool::new(false));
        let mut output = ConsoleOutput::on(OwnedFd::from(pipe).into(), leaving.clone());
        thread::scope(|scope| {
            let writer = scope.spawn(move || output.write_all(&vec![0; 1 << 20]));
            wait_readable([unread.as_fd()], None).unwrap();
            leaving.store(true, Ordering::Relaxed);
            assert!(writer.join().unwrap().is_err());
        });
    }

    #[test]
    fn control_a_escapes_as_in_qemu() {
        // Input, what is typed, whether the user leaves.
        let table: [(&[u8], &[u8], bool); 6] = [
            (b"ls\n", b"ls\n", false),
            (b"\x01x", b"", true),
            (b"a\x01X", b"a", true),
            (b"\x01\x01x", b"\x01x", false),
            (b"\x01ab", b"\x01b", false),
            (b"\x01qx", b"x", false),
        ];
        for (input, typed, quits) in table {
            let mut escape = Escape::default();
            let answers: Vec<_> = input.iter().map(|byte| escape.next(*byte)).collect();
            let bytes: Vec<_> = answers
                .iter()
                .filter_map(|answer| match answer {
                    Typed::Byte(byte) => Some(*byte),
                    _ => None,
                })
                .collect();
            assert_eq!(bytes, typed, "{input:?}");
            assert_eq!(answers.contains(&Typed::Quit), quits, "{input:?}");
        }
    }
}
