//! What a tap is made of.

use std::os::fd::RawFd;
use std::str::FromStr;

use keyval::Options;

use crate::address::HostAddress;
use crate::error::TapError;

/// Options of QEMU's tap that are not built yet, whatever their value.
const NOT_SUPPORTED: [&str; 5] = ["helper", "br", "vhostfd", "vhostfds", "poll-us"];

/// How a tap is made. The default makes an interface under a name that the kernel chooses.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TapConfig {
    /// Descriptors that this process was started with, by number, one a queue: taps or macvtaps that are
    /// open already. They are taken over, and closed when the tap is dropped. Not empty: `ifname`,
    /// `queues` and `vnet_hdr` mean nothing.
    pub fds: Vec<RawFd>,
    /// The interface's name. One that exists is taken as it is; else one is made, and is gone when
    /// the tap is dropped. `None`: `tap0`, `tap1`, ..., the first that is free.
    pub ifname: Option<String>,
    /// Whether frames carry a `virtio_net_hdr`. `None`: if the kernel can.
    pub vnet_hdr: Option<bool>,
    /// Gives the host's side this address and brings it up. `None`: the interface is left as it is.
    pub address: Option<HostAddress>,
    /// How many queues it has. `None`: 1. The kernel takes up to 256.
    pub queues: Option<u32>,
    /// Bytes that were sent and that the host has not dealt with yet, at most. `None` or 0: no limit.
    pub sndbuf: Option<u64>,
    /// How frames get in and out of it.
    pub engine: EngineKind,
    /// Run by the netdev with the interface's name when it is open. `None`: nothing is run.
    pub script: Option<String>,
    /// Run by the netdev with the interface's name before it is closed. `None`: nothing is run.
    pub downscript: Option<String>,
}

impl TapConfig {
    /// Takes the options of `-netdev tap` out of `options`.
    ///
    /// No script is run unless one is named; `no` and the empty string name none.
    ///
    /// # Errors
    /// When a value is not one that its option takes, or asks for what is not built.
    pub fn from_options(options: &mut Options) -> Result<Self, OptionError> {
        check_together(options)?;
        let fds = match (options.take("fd"), options.take("fds")) {
            (Some(fd), _) => vec![descriptor(&fd)?],
            (None, Some(fds)) => fds.split(':').map(descriptor).collect::<Result<_, _>>()?,
            (None, None) => Vec::new(),
        };
        let script = |path: &String| !path.is_empty() && path != "no";
        let config = Self {
            fds,
            ifname: options.take("ifname"),
            vnet_hdr: options.take_bool("vnet_hdr")?,
            address: options.take("ip").map(|ip| ip.parse()).transpose()?,
            queues: options.take_u32("queues")?,
            sndbuf: options.take_size("sndbuf")?,
            engine: match options.take("engine") {
                Some(engine) => engine.parse()?,
                None => EngineKind::default(),
            },
            script: options.take("script").filter(script),
            downscript: options.take("downscript").filter(script),
        };
        if let Some(name) = &config.ifname {
            check_name(name)?;
        }
        if config.queues == Some(0) {
            return Err(TapError::NoQueues.into());
        }
        for switch in ["vhost", "vhostforce"] {
            if options.take_bool(switch)? == Some(true) {
                return Err(TapError::NotSupported(switch).into());
            }
        }
        match NOT_SUPPORTED
            .into_iter()
            .find(|key| options.get(key).is_some())
        {
            Some(key) => Err(TapError::NotSupported(key).into()),
            None => Ok(config),
        }
    }
}

/// How frames get in and out of a tap. (QEMU has no such choice.)
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum EngineKind {
    /// What is faster here: [`IoUring`](Self::IoUring) where the kernel has it and a system call is dear,
    /// else [`Sync`](Self::Sync).
    #[default]
    Auto,
    /// One system call a frame.
    Sync,
    /// Batches of frames by io_uring, one system call each; a lone frame is a plain one.
    IoUring,
}

impl FromStr for EngineKind {
    type Err = TapError;

    fn from_str(name: &str) -> Result<Self, TapError> {
        match name {
            "auto" => Ok(Self::Auto),
            "sync" => Ok(Self::Sync),
            "io_uring" => Ok(Self::IoUring),
            _ => Err(TapError::BadEngine(name.into())),
        }
    }
}

/// Why options do not describe a tap.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OptionError {
    /// A value that its option does not take.
    #[error(transparent)]
    Option(#[from] keyval::Error),
    /// A value that a tap does not take.
    #[error(transparent)]
    Tap(#[from] TapError),
}

/// What names an interface does not go with descriptors that are open already.
fn check_together(options: &Options) -> Result<(), TapError> {
    let given = |keys: &[&str]| keys.iter().any(|key| options.get(key).is_some());
    let names = [
        "ifname",
        "script",
        "downscript",
        "vnet_hdr",
        "helper",
        "queues",
    ];
    if given(&["fd"]) && (given(&names) || given(&["fds", "vhostfds"])) {
        return Err(TapError::InvalidWithFd);
    }
    if given(&["fds"]) && (given(&names) || given(&["vhostfd"])) {
        return Err(TapError::InvalidWithFds);
    }
    // The interface may be in another network namespace, and its name mean another one here.
    if given(&["fd", "fds"]) && given(&["ip"]) {
        return Err(TapError::AddressWithFd);
    }
    Ok(())
}

/// The number of a descriptor.
fn descriptor(text: &str) -> Result<RawFd, TapError> {
    let digits = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    let number = text.parse().ok().filter(|_| digits);
    number.ok_or_else(|| TapError::BadDescriptor(text.into()))
}

/// Whether the kernel would take `name` whole: it would cut a longer one off.
pub(crate) fn check_name(name: &str) -> Result<(), TapError> {
    let fits = (1..=crate::sys::NAME_MAX).contains(&name.len());
    let bad = |b: u8| b == 0 || b == b'/' || b == b':' || b.is_ascii_whitespace();
    if !fits || name == "." || name == ".." || name.bytes().any(bad) {
        return Err(TapError::BadName(name.into()));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_are_taken_or_refused_by_name() {
        let table = [
            ("", Ok(())),
            ("ifname=tap0,vnet_hdr=on,ip=10.0.2.2/24,queues=1", Ok(())),
            ("script=no,downscript=no,vhost=off", Ok(())),
            ("ifname=abcdefghijklmno", Ok(())),
            (
                "ifname=abcdefghijklmnop",
                Err("'abcdefghijklmnop' cannot name an interface"),
            ),
            ("ifname=", Err("'' cannot name an interface")),
            ("ifname=a/b", Err("'a/b' cannot name an interface")),
            (
                "vnet_hdr=maybe",
                Err("Parameter 'vnet_hdr' expects 'on' or 'off'"),
            ),
            (
                "ip=10.0.2.2",
                Err("Parameter 'ip' expects an address and a prefix length"),
            ),
            ("queues=0", Err("Parameter 'queues' expects at least 1")),
            ("queues=x", Err("Parameter 'queues' expects")),
            ("queues=2,script=/etc/ifup,downscript=x,sndbuf=1M", Ok(())),
            ("sndbuf=x", Err("Parameter 'sndbuf' expects a size value")),
            ("fd=3,sndbuf=0", Ok(())),
            ("fds=3:4", Ok(())),
            ("fd=x", Err("Invalid file descriptor number 'x'")),
            ("fd=+3", Err("Invalid file descriptor number '+3'")),
            (
                "fd=99999999999",
                Err("Invalid file descriptor number '99999999999'"),
            ),
            ("fds=3:", Err("Invalid file descriptor number ''")),
            (
                "fd=3,ifname=x",
                Err(
                    "ifname=, script=, downscript=, vnet_hdr=, helper=, queues=, fds=, and \
                     vhostfds= are invalid with fd=",
                ),
            ),
            (
                "fd=3,fds=4:5",
                Err(
                    "ifname=, script=, downscript=, vnet_hdr=, helper=, queues=, fds=, and \
                     vhostfds= are invalid with fd=",
                ),
            ),
            (
                "fds=3:4,queues=2",
                Err(
                    "ifname=, script=, downscript=, vnet_hdr=, helper=, queues=, and vhostfd= are \
                     invalid with fds=",
                ),
            ),
            (
                "fd=3,ip=10.0.2.2/24",
                Err("ip= is invalid with fd= and fds="),
            ),
            ("engine=auto", Ok(())),
            ("engine=sync,fd=3", Ok(())),
            ("engine=io_uring", Ok(())),
            (
                "engine=uring",
                Err("Parameter 'engine' does not accept value 'uring'"),
            ),
            ("br=br0", Err("Parameter 'br' is not supported")),
            ("vhost=on", Err("Parameter 'vhost' is not supported")),
            ("vhost=no,vhostforce=off", Ok(())),
            ("vhost=x", Err("Parameter 'vhost' expects 'on' or 'off'")),
            (
                "vhostforce=y",
                Err("Parameter 'vhostforce' is not supported"),
            ),
        ];
        for (text, expected) in table {
            let mut options = Options::parse(text, None);
            match (TapConfig::from_options(&mut options), expected) {
                (Ok(_), Ok(())) => assert!(options.is_empty(), "{text:?} leaves {options:?}"),
                (Err(error), Err(words)) => {
                    assert!(error.to_string().starts_with(words), "{text:?}: {error}");
                }
                (got, _) => panic!("{text:?}: {got:?}"),
            }
        }
    }
}
