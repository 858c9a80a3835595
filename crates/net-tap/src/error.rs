//! What can go wrong with a tap, said so that its user can act.

use std::io;
use std::os::fd::RawFd;

/// Why a tap could not be made or set up.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TapError {
    /// `/dev/net/tun` cannot be opened.
    #[error("could not open /dev/net/tun: {source}{}", hint_to_open(.source))]
    Open {
        /// What the host said.
        source: io::Error,
    },
    /// A name that no interface can have.
    #[error("'{0}' cannot name an interface: it takes 1 to 15 bytes without '/', ':' and spaces")]
    BadName(String),
    /// An ioctl on the interface failed.
    #[error("could not configure /dev/net/tun ({interface}): {ioctl}: {source}{}", hint(.interface, .ioctl, .source))]
    Ioctl {
        /// The interface.
        interface: String,
        /// The ioctl's name.
        ioctl: &'static str,
        /// What the host said.
        source: io::Error,
    },
    /// More queues than the kernel gives an interface.
    #[error(
        "could not configure /dev/net/tun ({interface}): TUNSETIFF: {source}; {wanted} queues are too many: the kernel \
         lets the interface have {most}"
    )]
    TooManyQueues {
        /// The interface.
        interface: String,
        /// How many were asked for.
        wanted: usize,
        /// How many could be had.
        most: usize,
        /// What the host said.
        source: io::Error,
    },
    /// The interface did not get its address, or did not come up.
    #[error("could not {action} ({interface}): {source}{}", hint_to_address(.interface, .source))]
    Netlink {
        /// The interface.
        interface: String,
        /// What was being done: `add 10.0.2.2/24`.
        action: String,
        /// What the host said.
        source: io::Error,
    },
    /// `ip=` was not an address and a prefix length.
    #[error("Parameter 'ip' expects an address and a prefix length, such as 10.0.2.2/24")]
    BadAddress,
    /// A descriptor that this process was not started with.
    #[error("Can't use file descriptor {number}: {source}{}", hint_to_inherit(.source))]
    Descriptor {
        /// Its number.
        number: RawFd,
        /// What the host said.
        source: io::Error,
    },
    /// A descriptor of something else.
    #[error("Unable to query TUNGETIFF on FD {number}: {source}")]
    NotATap {
        /// Its number.
        number: RawFd,
        /// What the host said.
        source: io::Error,
    },
    /// A descriptor of a tun, whose packets have no Ethernet header.
    #[error("file descriptor {number} is a tun (IFF_TUN), not a tap (IFF_TAP)")]
    Tun {
        /// Its number.
        number: RawFd,
    },
    /// Some of the descriptors have a `virtio_net_hdr`, some have none.
    #[error("vnet_hdr not consistent across given tap fds")]
    HeadersDiffer,
    /// `fd=` was not a number.
    #[error("Invalid file descriptor number '{0}'")]
    BadDescriptor(String),
    /// `fd=` with an option that it settles.
    #[error(
        "ifname=, script=, downscript=, vnet_hdr=, helper=, queues=, fds=, and vhostfds= are \
         invalid with fd="
    )]
    InvalidWithFd,
    /// `fds=` with an option that it settles.
    #[error(
        "ifname=, script=, downscript=, vnet_hdr=, helper=, queues=, and vhostfd= are invalid with \
         fds="
    )]
    InvalidWithFds,
    /// `ip=` for an interface that may be elsewhere.
    #[error("ip= is invalid with fd= and fds=")]
    AddressWithFd,
    /// A script could not be started.
    #[error("could not launch network script {script}: {source}")]
    Launch {
        /// The script.
        script: String,
        /// What the host said.
        source: io::Error,
    },
    /// A script failed.
    #[error("network script {script} failed with status {status}")]
    Script {
        /// The script.
        script: String,
        /// What `wait` said: 256 times its exit status, or the signal that ended it.
        status: i32,
    },
    /// An option of QEMU's that is not built yet.
    #[error("Parameter '{0}' is not supported by this tap")]
    NotSupported(&'static str),
    /// `engine=` was none of those that there are.
    #[error("Parameter 'engine' does not accept value '{0}': it is auto, sync or io_uring")]
    BadEngine(String),
    /// `engine=io_uring` where there is none.
    #[error("engine=io_uring: the kernel refuses it: {source}{}", hint_to_uring(.source))]
    IoUring {
        /// What the host said.
        source: io::Error,
    },
    /// `queues=0`.
    #[error("Parameter 'queues' expects at least 1")]
    NoQueues,
}

impl TapError {
    /// As it is to be told where so many queues of those that are wanted were had before it.
    pub(crate) fn after_queues(self, most: usize, wanted: usize) -> Self {
        match self {
            Self::Ioctl {
                interface, source, ..
            } if source.raw_os_error() == Some(libc::E2BIG) => Self::TooManyQueues {
                interface,
                wanted,
                most,
                source,
            },
            other => other,
        }
    }
}

const OWN_NAMESPACE: &str =
    "run in a user and network namespace of your own (unshare -Urn), or with CAP_NET_ADMIN";

fn hint_to_open(source: &io::Error) -> String {
    match source.raw_os_error() {
        Some(libc::ENOENT | libc::ENODEV | libc::ENXIO) => {
            "; the kernel has no tun driver loaded (modprobe tun), or this container has no \
             device node for it"
                .into()
        }
        Some(libc::EACCES | libc::EPERM) => {
            "; its permissions keep you out: as root, chmod 0666 /dev/net/tun (an interface \
             still takes CAP_NET_ADMIN or one made for you), or run with privilege"
                .into()
        }
        _ => String::new(),
    }
}

fn hint(interface: &str, ioctl: &str, source: &io::Error) -> String {
    // The kernel would have put a number in the place of the second.
    let interface = interface.replace("%d", "0");
    match (ioctl, source.raw_os_error()) {
        ("TUNSETIFF", Some(libc::EPERM)) => format!(
            "; without the privilege to make interfaces, have root make this one for you \
             (ip tuntap add dev {interface} mode tap user $USER) and name it with ifname=, \
             or {OWN_NAMESPACE}"
        ),
        ("TUNSETIFF", Some(libc::E2BIG)) => "; it has as many queues as the kernel allows".into(),
        ("TUNSETIFF", Some(libc::EBUSY)) => "; another process has the interface open".into(),
        ("TUNSETIFF", Some(libc::EINVAL)) => {
            "; an interface of that name exists and is not a tap, or was made for one queue and is \
             to have several, or the other way round (multi_queue)"
                .into()
        }
        _ => String::new(),
    }
}

fn hint_to_inherit(source: &io::Error) -> &'static str {
    match source.raw_os_error() {
        Some(libc::EBUSY) => {
            "; it is named twice, or in use by this process, or was not left open (close-on-exec) by \
             whoever started it"
        }
        _ => "",
    }
}

fn hint_to_uring(source: &io::Error) -> &'static str {
    match source.raw_os_error() {
        Some(libc::EPERM) => {
            "; it is disabled for this process (/proc/sys/kernel/io_uring_disabled, or a filter of \
             system calls); engine=sync does without"
        }
        Some(libc::ENOSYS | libc::EINVAL) | None => {
            "; it takes Linux 6.1 or newer; engine=sync does without"
        }
        _ => "",
    }
}

fn hint_to_address(interface: &str, source: &io::Error) -> String {
    match source.raw_os_error() {
        Some(libc::EPERM | libc::EACCES) => format!(
            "; without the privilege to set addresses, leave ip= out and have root set them \
             (ip addr add ADDRESS/PREFIX dev {interface}; ip link set {interface} up), \
             or {OWN_NAMESPACE}"
        ),
        _ => String::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failed_ioctl_names_interface_ioctl_errno_and_a_way_out() {
        let hint = hint(
            "tap%d",
            "TUNSETIFF",
            &io::Error::from_raw_os_error(libc::EPERM),
        );
        assert!(hint.contains("dev tap0 mode tap"), "{hint}");
        let table: [(&str, i32, &[&str]); 4] = [
            (
                "TUNSETIFF",
                libc::EPERM,
                &[
                    "could not configure /dev/net/tun (tap7)",
                    "TUNSETIFF: Operation not permitted (os error 1)",
                    "ip tuntap add dev tap7 mode tap user $USER",
                    "unshare -Urn",
                    "CAP_NET_ADMIN",
                ],
            ),
            ("TUNSETIFF", libc::EBUSY, &["another process"]),
            ("TUNSETIFF", libc::EINVAL, &["not a tap"]),
            (
                "TUNSETVNETHDRSZ",
                libc::EINVAL,
                &["(tap7): TUNSETVNETHDRSZ: Invalid argument (os error 22)"],
            ),
        ];
        for (ioctl, errno, expected) in table {
            let error = TapError::Ioctl {
                interface: "tap7".into(),
                ioctl,
                source: io::Error::from_raw_os_error(errno),
            };
            for words in expected {
                assert!(
                    error.to_string().contains(words),
                    "{words:?} not in {error}"
                );
            }
        }
    }

    #[test]
    fn a_device_node_that_keeps_one_out_is_named_as_qemu_names_it() {
        let error = TapError::Open {
            source: io::Error::from_raw_os_error(libc::EACCES),
        };
        let text = error.to_string();
        assert!(
            text.starts_with("could not open /dev/net/tun: Permission denied"),
            "{text}"
        );
        assert!(text.contains("chmod 0666 /dev/net/tun"), "{text}");
    }
}
