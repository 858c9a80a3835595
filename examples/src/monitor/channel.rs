//! Where a monitor's lines come from: what `-monitor` names.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::FileTypeExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use keyval::Options;
use vmm_sys_util::eventfd::EventFd;

use crate::readiness::{borrow, wait_readable, wait_writable};

/// Where clients come from.
#[derive(Debug)]
pub struct Channel {
    kind: Kind,
    /// A client that came before it was asked for. A leaf lock.
    waiting: Mutex<Option<File>>,
}

#[derive(Debug)]
enum Kind {
    /// The terminal, or whatever standard input and output are.
    Stdio,
    Unix(UnixServer),
    Tcp(TcpListener),
    /// The VMM was told to connect: the one client is at the other end.
    Connected(File),
}

/// A listener at a path, whose name goes with it.
#[derive(Debug)]
struct UnixServer {
    listener: UnixListener,
    _file: SocketFile,
}

/// Why a channel cannot be had, in QEMU's words.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ChannelError {
    /// No such kind of channel.
    #[error("'{0}' is not a valid char driver")]
    UnknownKind(String),
    /// No address can be read from it.
    #[error("parse error: {0}")]
    Address(String),
    /// An option of the channel.
    #[error(transparent)]
    Option(#[from] keyval::Error),
    /// Two want the terminal.
    #[error("cannot use stdio by multiple character devices")]
    StdioTaken,
    /// No server there.
    #[error("Failed to connect to '{address}': {source}")]
    Connect {
        /// Path, or host and port.
        address: String,
        /// What the host said.
        source: io::Error,
    },
    /// The address is not to be had.
    #[error("Failed to bind socket to {address}: {source}")]
    Bind {
        /// Path, or host and port.
        address: String,
        /// What the host said.
        source: io::Error,
    },
}

impl Channel {
    /// Opens what `-monitor` names: `none`, `stdio`, `unix:PATH[,server=on[,wait=off]]` or
    /// `tcp:[HOST]:PORT[,server=on[,wait=off]]`. A server waits here for its first client unless it has
    /// `wait=off`, or until `interrupt` can be read.
    ///
    /// # Errors
    /// See [`ChannelError`].
    pub fn open(text: &str, interrupt: BorrowedFd<'_>) -> Result<Option<Self>, ChannelError> {
        let (kind, rest) = text.split_once(':').unwrap_or((text, ""));
        let channel = match kind {
            "none" if text == "none" => return Ok(None),
            "stdio" if text == "stdio" => Self::of(Kind::Stdio),
            "unix" => {
                let socket = Socket::parse(text, rest)?;
                if socket.server {
                    let path = PathBuf::from(&socket.address);
                    let server = UnixServer {
                        listener: bind_unix(&path).map_err(|source| socket.bind_error(source))?,
                        _file: SocketFile(path),
                    };
                    Self::of(Kind::Unix(server)).wait(&socket, "unix", interrupt)
                } else {
                    let stream = UnixStream::connect(&socket.address);
                    Self::connected(stream.map(OwnedFd::from), &socket)?
                }
            }
            "tcp" => {
                let socket = Socket::parse(text, rest)?;
                let (host, port) = socket.host_and_port(text)?;
                if socket.server {
                    let host = if host.is_empty() { "0.0.0.0" } else { host };
                    let listener = TcpListener::bind((host, port))
                        .map_err(|source| socket.bind_error(source))?;
                    Self::of(Kind::Tcp(listener)).wait(&socket, "tcp", interrupt)
                } else {
                    let host = if host.is_empty() { "localhost" } else { host };
                    let stream = TcpStream::connect((host, port));
                    Self::connected(stream.map(OwnedFd::from), &socket)?
                }
            }
            _ => {
                let kind = text.split([':', ',']).next().unwrap_or_default();
                return Err(ChannelError::UnknownKind(kind.into()));
            }
        };
        Ok(Some(channel))
    }

    /// Whether it is the terminal.
    pub fn is_stdio(text: &str) -> bool {
        text == "stdio"
    }

    fn of(kind: Kind) -> Self {
        Self {
            kind,
            waiting: Mutex::default(),
        }
    }

    fn connected(stream: io::Result<OwnedFd>, socket: &Socket) -> Result<Self, ChannelError> {
        match stream {
            Ok(stream) => Ok(Self::of(Kind::Connected(stream.into()))),
            Err(source) => Err(ChannelError::Connect {
                address: socket.address.clone(),
                source,
            }),
        }
    }

    /// Waits for a first client, if the socket's options say so.
    fn wait(self, socket: &Socket, kind: &str, interrupt: BorrowedFd<'_>) -> Self {
        if socket.wait {
            crate::output::complain(format_args!(
                "info: waiting for connection on: disconnected:{kind}:{},server=on",
                socket.address
            ));
            if let Some(listener) = self.listener()
                && matches!(
                    wait_readable([listener, interrupt], None),
                    Ok([true, false])
                )
            {
                *self.waiting.lock().unwrap_or_else(PoisonError::into_inner) = self.accept();
            }
        }
        self
    }

    /// Waits for a client; `None` when `stop` can be read first, or there is none to come.
    pub(super) fn next_client(&self, stop: &EventFd) -> Option<Stream> {
        match &self.kind {
            Kind::Stdio => {
                let input = io::stdin().as_fd().try_clone_to_owned().ok()?;
                let output = io::stdout().as_fd().try_clone_to_owned().ok()?;
                Some(Stream {
                    input: input.into(),
                    output: output.into(),
                })
            }
            Kind::Connected(stream) => Stream::both_ways(stream.try_clone().ok()?),
            Kind::Unix(_) | Kind::Tcp(_) => {
                let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
                let mut client = waiting.take();
                drop(waiting);
                while client.is_none() {
                    let listener = self.listener()?;
                    let Ok([true, false]) = wait_readable([listener, borrow(stop)], None) else {
                        return None;
                    };
                    // Who connected may be gone again.
                    client = self.accept();
                }
                Stream::both_ways(client?)
            }
        }
    }

    /// Whether another client may come after one has left.
    pub(super) fn has_more_clients(&self) -> bool {
        matches!(self.kind, Kind::Unix(_) | Kind::Tcp(_))
    }

    fn listener(&self) -> Option<BorrowedFd<'_>> {
        match &self.kind {
            Kind::Unix(server) => Some(server.listener.as_fd()),
            Kind::Tcp(listener) => Some(listener.as_fd()),
            Kind::Stdio | Kind::Connected(_) => None,
        }
    }

    fn accept(&self) -> Option<File> {
        let stream: OwnedFd = match &self.kind {
            Kind::Unix(server) => server.listener.accept().ok()?.0.into(),
            Kind::Tcp(listener) => listener.accept().ok()?.0.into(),
            Kind::Stdio | Kind::Connected(_) => return None,
        };
        Some(stream.into())
    }
}

/// A client: what it says, and what it is told.
#[derive(Debug)]
pub struct Stream {
    input: File,
    output: File,
}

impl Stream {
    fn both_ways(stream: File) -> Option<Self> {
        Some(Self {
            input: stream.try_clone().ok()?,
            output: stream,
        })
    }

    /// Waits for bytes; `None` when the client is gone or `stop` can be read.
    pub(super) fn read(&mut self, to: &mut [u8], stop: &EventFd) -> Option<usize> {
        loop {
            let Ok([true, false]) = wait_readable([self.input.as_fd(), borrow(stop)], None) else {
                return None;
            };
            match self.input.read(to) {
                Ok(0) => return None,
                Ok(count) => return Some(count),
                Err(error)
                    if matches!(
                        error.kind(),
                        io::ErrorKind::Interrupted | io::ErrorKind::WouldBlock
                    ) => {}
                Err(_) => return None,
            }
        }
    }

    /// Writes all of a text; false when the client is gone, or `stop` can be read and it takes nothing.
    pub(super) fn write(&mut self, text: &str, stop: &EventFd) -> bool {
        let mut rest = text.as_bytes();
        while !rest.is_empty() {
            // One that can be written takes a few bytes without waiting.
            if !matches!(wait_writable(self.output.as_fd(), TURN), Ok(true)) {
                if matches!(
                    wait_readable([borrow(stop)], Some(Duration::ZERO)),
                    Ok([true])
                ) {
                    return false;
                }
                continue;
            }
            let part = rest.get(..rest.len().min(CHUNK)).unwrap_or(rest);
            match self.output.write(part) {
                Ok(0) => return false,
                Ok(count) => rest = rest.get(count..).unwrap_or_default(),
                Err(error)
                    if matches!(
                        error.kind(),
                        io::ErrorKind::Interrupted | io::ErrorKind::WouldBlock
                    ) => {}
                Err(_) => return false,
            }
        }
        true
    }
}

/// A socket's address with its options.
struct Socket {
    address: String,
    server: bool,
    wait: bool,
}

impl Socket {
    fn parse(text: &str, rest: &str) -> Result<Self, ChannelError> {
        let mut options = Options::parse(rest, Some("address"));
        let address = options.take("address").unwrap_or_default();
        let server = options.take_bool("server")?.unwrap_or(false);
        let wait = options.take_bool("wait")?;
        options.finish()?;
        if address.is_empty() {
            return Err(ChannelError::Address(text.into()));
        }
        if let (false, Some(_)) = (server, wait) {
            return Err(keyval::Error::Unknown("wait".into()).into());
        }
        Ok(Self {
            address,
            server,
            wait: server && wait.unwrap_or(true),
        })
    }

    fn host_and_port(&self, text: &str) -> Result<(&str, u16), ChannelError> {
        let (host, port) = (self.address.rsplit_once(':'))
            .and_then(|(host, port)| Some((host, port.parse().ok()?)))
            .ok_or_else(|| ChannelError::Address(text.into()))?;
        let host = host
            .strip_prefix('[')
            .and_then(|host| host.strip_suffix(']'))
            .unwrap_or(host);
        Ok((host, port))
    }

    fn bind_error(&self, source: io::Error) -> ChannelError {
        ChannelError::Bind {
            address: self.address.clone(),
            source,
        }
    }
}

/// Listens at a path, in place of a server that is gone and has left its socket there.
fn bind_unix(path: &Path) -> io::Result<UnixListener> {
    let is_socket = fs::symlink_metadata(path).is_ok_and(|file| file.file_type().is_socket());
    let refused = |error: &io::Error| error.kind() == io::ErrorKind::ConnectionRefused;
    if is_socket && UnixStream::connect(path).is_err_and(|error| refused(&error)) {
        fs::remove_file(path)?;
    }
    UnixListener::bind(path)
}

/// A socket's name, which goes with the server.
#[derive(Debug)]
struct SocketFile(PathBuf);

impl Drop for SocketFile {
    fn drop(&mut self) {
        // Nothing is lost where somebody else has removed it.
        let _ = fs::remove_file(&self.0);
    }
}

/// How long a client that reads nothing is waited for before the monitor looks whether it is to end.
const TURN: Duration = Duration::from_millis(50);
/// What a socket or a pipe that can be written takes at once.
const CHUNK: usize = 1024;
