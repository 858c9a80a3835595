//! A control of the running machine, in the words and the syntax of QEMU's human monitor.
//!
//! [`Channel`] is what `-monitor` names: a socket, or the terminal. A [`Monitor`] reads lines from it on
//! a thread of its own and answers each by [`Console::execute`]. It takes the locks that any thread takes
//! which adds or removes a device, and none of the data path's: frames move while it works.
//!
//! | module | holds |
//! |---|---|
//! | `channel` | where lines come from |
//! | `line` | a line taken apart |
//! | `commands` | the commands |
//! | `network` | `info network` |
//! | `qtree` | `info qtree` |

mod channel;
mod commands;
mod line;
mod network;
mod qtree;

pub use channel::{Channel, ChannelError, Stream};
pub use commands::Console;

use std::io;
use std::sync::Arc;
use std::thread::{self, JoinHandle};

use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

/// Serves one channel until it is dropped.
#[derive(Debug)]
pub struct Monitor {
    stop: Arc<EventFd>,
    thread: Option<JoinHandle<()>>,
}

impl Monitor {
    /// Starts to serve `channel`: one client at a time.
    ///
    /// # Errors
    /// When there is no thread or no descriptor to be had.
    pub fn start(channel: Arc<Channel>, console: Console) -> io::Result<Self> {
        let stop = Arc::new(EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)?);
        let asked = stop.clone();
        let thread = thread::Builder::new()
            .name("monitor".into())
            .spawn(move || serve(&channel, &console, &asked))?;
        Ok(Self {
            stop,
            thread: Some(thread),
        })
    }
}

impl Drop for Monitor {
    fn drop(&mut self) {
        // Fails only where the counter is full, and then it is set already.
        let _ = self.stop.write(1);
        if let Some(thread) = self.thread.take() {
            // It ends by itself; a panic in it has been printed.
            let _ = thread.join();
        }
    }
}

fn serve(channel: &Channel, console: &Console, stop: &EventFd) {
    while let Some(mut client) = channel.next_client(stop) {
        talk(&mut client, console, stop);
        if !channel.has_more_clients() {
            return;
        }
    }
}

/// Answers a client until it leaves.
fn talk(client: &mut Stream, console: &Console, stop: &EventFd) {
    if !client.write(&format!("{BANNER}{PROMPT}"), stop) {
        return;
    }
    let mut pending = Vec::new();
    let mut too_long = false;
    let mut input = [0; 512];
    while let Some(count) = client.read(&mut input, stop) {
        for &byte in input.get(..count).unwrap_or_default() {
            if byte != b'\n' {
                too_long |= pending.len() >= LINE_MAX;
                if !too_long {
                    pending.push(byte);
                }
                continue;
            }
            let mut answer = if std::mem::take(&mut too_long) {
                format!("Command line has more than {LINE_MAX} bytes\n")
            } else {
                let text = String::from_utf8_lossy(&pending);
                console.execute(text.trim_end_matches('\r'))
            };
            pending.clear();
            answer.push_str(PROMPT);
            if !client.write(&answer, stop) {
                return;
            }
        }
    }
}

const BANNER: &str = concat!(
    "vmm ",
    env!("CARGO_PKG_VERSION"),
    " monitor - type 'help' for more information\n"
);
const PROMPT: &str = "(vmm) ";
/// The longest line that is read.
const LINE_MAX: usize = 4096;
