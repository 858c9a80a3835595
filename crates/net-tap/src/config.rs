//! What a tap is made of.

use keyval::Options;

use crate::address::HostAddress;
use crate::error::TapError;

/// Options of QEMU's tap that are not built yet; the last switches the kernel's data plane on.
const NOT_SUPPORTED: [&str; 10] = [
    "fd",
    "fds",
    "helper",
    "br",
    "sndbuf",
    "vhostfd",
    "vhostfds",
    "vhostforce",
    "poll-us",
    "vhost",
];

/// How a tap is made. The default makes an interface under a name that the kernel chooses.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TapConfig {
    /// The interface's name. One that exists is taken as it is; else one is made, and is gone when
    /// the tap is dropped. `None`: `tap0`, `tap1`, ..., the first that is free.
    pub ifname: Option<String>,
    /// Whether frames carry a `virtio_net_hdr`. `None`: if the kernel can.
    pub vnet_hdr: Option<bool>,
    /// Gives the host's side this address and brings it up. `None`: the interface is left as it is.
    pub address: Option<HostAddress>,
}

impl TapConfig {
    /// Takes the options of `-netdev tap` out of `options`.
    ///
    /// `script` and `downscript` are taken as `no`, which is also their default here: no script is
    /// ever run.
    ///
    /// # Errors
    /// When a value is not one that its option takes, or asks for what is not built.
    pub fn from_options(options: &mut Options) -> Result<Self, OptionError> {
        let config = Self {
            ifname: options.take("ifname"),
            vnet_hdr: options.take_bool("vnet_hdr")?,
            address: options.take("ip").map(|ip| ip.parse()).transpose()?,
        };
        if let Some(name) = &config.ifname {
            check_name(name)?;
        }
        match options.take_u32("queues")? {
            None | Some(1) => {}
            Some(0) => return Err(TapError::NoQueues.into()),
            Some(_) => return Err(TapError::NotSupported("queues").into()),
        }
        for script in ["script", "downscript"] {
            if options.take(script).is_some_and(|path| path != "no") {
                return Err(TapError::NotSupported(script).into());
            }
        }
        if options.get("vhost") == Some("off") {
            options.take("vhost");
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
            ("queues=2", Err("Parameter 'queues' is not supported")),
            (
                "script=/etc/ifup",
                Err("Parameter 'script' is not supported"),
            ),
            (
                "downscript=x",
                Err("Parameter 'downscript' is not supported"),
            ),
            ("fd=3", Err("Parameter 'fd' is not supported")),
            ("sndbuf=0", Err("Parameter 'sndbuf' is not supported")),
            ("vhost=on", Err("Parameter 'vhost' is not supported")),
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
