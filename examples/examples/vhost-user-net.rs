//! The network card for guests of other VMMs: the same model and the same tap, behind a vhost-user socket.
//!
//! ```text
//! cargo run --release --example vhost-user-net -- --socket /tmp/net0.sock \
//!     -netdev tap,id=n0,ifname=tap0 [--queue-pairs N]
//!
//! qemu-system-x86_64 -machine q35,memory-backend=mem -m 1G \
//!     -object memory-backend-memfd,id=mem,size=1G,share=on \
//!     -chardev socket,id=c0,path=/tmp/net0.sock -netdev vhost-user,id=n0,chardev=c0 \
//!     -device virtio-net-pci,netdev=n0
//! ```
//!
//! It serves one front end after the other until it is asked to end; the tap stays. Each queue pair has a
//! thread of its own.

use std::error::Error;
use std::io::{self, Write};
use std::net::Shutdown;
use std::os::fd::AsFd;
use std::os::unix::fs::FileTypeExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::thread;

use examples::log::StderrLog;
use examples::output::{print, say};
use examples::readiness::{borrow, wait_readable};
use examples::signals::EndSignals;
use iothread::IoThread;
use net_client::NetClients;
use vhost_user_transport::VhostUserTransport;
use virtio_bus::signal;
use virtio_net::{VirtioNet, VirtioNetConfig};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

const HELP: &str = "\
usage: vhost-user-net --socket PATH -netdev tap,id=ID[,...] [--queue-pairs N]

  --socket PATH      where front ends connect; one that nobody listens at is made anew
  -netdev tap,...    the wire, with QEMU's options; queues=N for several pairs
  --queue-pairs N    of the netdev's queues use the first N (default: all)
";

/// The largest ring that a front end may ask for.
const QUEUE_SIZE: u16 = 32768;

struct Options {
    socket: PathBuf,
    netdev: String,
    queue_pairs: Option<usize>,
}

fn main() -> ExitCode {
    let options = match parse(std::env::args().skip(1)) {
        Ok(Some(options)) => options,
        Ok(None) => {
            print(HELP);
            return ExitCode::SUCCESS;
        }
        Err(error) => {
            complain(error);
            return ExitCode::FAILURE;
        }
    };
    StderrLog::install();
    match run(&options) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            complain(error);
            ExitCode::FAILURE
        }
    }
}

fn parse(mut args: impl Iterator<Item = String>) -> Result<Option<Options>, String> {
    let (mut socket, mut netdev, mut queue_pairs) = (None, None, None);
    while let Some(arg) = args.next() {
        let mut value = || args.next().ok_or(format!("{arg}: requires an argument"));
        match arg.trim_start_matches('-') {
            "socket" => socket = Some(PathBuf::from(value()?)),
            "netdev" => netdev = Some(value()?),
            "queue-pairs" => {
                let text = value()?;
                let pairs = text.parse().ok().filter(|pairs| (1..=128).contains(pairs));
                let pairs = pairs.ok_or(format!("--queue-pairs {text}: takes 1 to 128"))?;
                queue_pairs = Some(pairs);
            }
            "help" | "h" => return Ok(None),
            _ => return Err(format!("{arg}: invalid option; --help lists them")),
        }
    }
    Ok(Some(Options {
        socket: socket.ok_or("--socket PATH is missing: where front ends connect")?,
        netdev: netdev.ok_or("-netdev tap,id=ID is missing: the wire")?,
        queue_pairs,
    }))
}

fn run(options: &Options) -> Result<(), Box<dyn Error>> {
    // Before any thread is made.
    let signals = EndSignals::take()?;

    let netdevs = NetClients::new();
    net_tap::register(&netdevs);
    let netdev = netdevs
        .add(&options.netdev)
        .map_err(|error| format!("-netdev {}: {error}", options.netdev))?;
    let mut ports = netdev.ports().to_vec();
    let pairs = options.queue_pairs.unwrap_or(ports.len());
    if pairs > ports.len() {
        let queues = ports.len();
        return Err(format!("--queue-pairs {pairs}: the netdev has queues={queues}").into());
    }
    ports.truncate(pairs);

    let threads = (0..pairs)
        .map(|i| IoThread::new(format!("pair{i}")))
        .collect::<io::Result<Vec<_>>>()?;
    let contexts = threads.iter().map(IoThread::context).collect();
    let config = VirtioNetConfig {
        ctrl_by_front_end: true,
        mq: pairs > 1,
        packed: true,
        in_order: true,
        rx_queue_size: QUEUE_SIZE,
        tx_queue_size: QUEUE_SIZE,
        ..VirtioNetConfig::default()
    };
    let nic = VirtioNet::new(config, ports, contexts)?;
    let transport = VhostUserTransport::new();
    transport.bus().plug(nic)?;

    let socket = Socket::bind(&options.socket)?;
    say(format!(
        "waiting for a front end at {}",
        options.socket.display()
    ));
    let served = EventFd::new(EFD_NONBLOCK)?;
    loop {
        let [asked_to_end, _] = wait_readable([signals.as_fd(), socket.listener.as_fd()], None)?;
        if asked_to_end && signals.next().is_some() {
            break;
        }
        let (stream, _) = socket.listener.accept()?;
        let control = stream.try_clone()?;
        thread::scope(|scope| -> io::Result<()> {
            scope.spawn(|| {
                say("front end connected");
                match transport.serve(stream) {
                    Ok(()) => say("front end gone"),
                    Err(error) => complain(format!("front end sent away: {error}")),
                }
                signal(&served);
            });
            let [asked_to_end, _] = wait_readable([signals.as_fd(), borrow(&served)], None)?;
            if asked_to_end {
                control.shutdown(Shutdown::Both)?;
            }
            Ok(())
        })?;
        // Read empty for the next one.
        let _ = served.read();
    }
    transport.bus().unplug();
    Ok(())
}

/// The listening socket, which leaves nothing behind.
struct Socket {
    listener: UnixListener,
    path: PathBuf,
}

impl Socket {
    fn bind(path: &Path) -> Result<Self, String> {
        // Of a back end that ended without cleaning up: a socket at which nobody listens. Whatever else is there
        // stays, and binding says so.
        let is_socket = std::fs::symlink_metadata(path).is_ok_and(|at| at.file_type().is_socket());
        if is_socket && UnixStream::connect(path).is_err() {
            let _ = std::fs::remove_file(path);
        }
        let listener = UnixListener::bind(path)
            .map_err(|error| format!("--socket {}: {error}", path.display()))?;
        Ok(Self {
            listener,
            path: path.to_owned(),
        })
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.path);
    }
}

/// Says a line about what went wrong on standard error.
fn complain(line: impl std::fmt::Display) {
    let _ = writeln!(io::stderr(), "vhost-user-net: {line}");
}
