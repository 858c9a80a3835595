//! A tap interface as a net client: what `-netdev tap` makes.
//!
//! [`TapNetdev`] is the netdev, [`TapQueue`] the client behind each of its ports, [`Tap`] the bare
//! interface. [`register`] makes the kind known to a netdev table:
//!
//! ```no_run
//! use net_client::NetClients;
//!
//! let netdevs = NetClients::new();
//! net_tap::register(&netdevs);
//! let tap = netdevs.add("tap,id=tap0,ifname=vm0,ip=10.0.2.2/24")?;
//! assert_eq!(tap.info(), "ifname=vm0,script=no,downscript=no");
//! # Ok::<(), net_client::NetdevError>(())
//! ```
//!
//! or, without an option string:
//!
//! ```no_run
//! use net_tap::{TapConfig, TapNetdev};
//!
//! let config = TapConfig { ifname: Some("vm0".into()), ..TapConfig::default() };
//! let tap = TapNetdev::open("tap0", &config)?;
//! # Ok::<(), net_tap::TapError>(())
//! ```
//!
//! # The interface
//!
//! It is made when the netdev is, and gone when the netdev is dropped and its context has turned
//! once more. One that exists under the name (`ip tuntap add dev vm0 mode tap user $USER`) is taken,
//! which needs no privilege of its owner, and stays. `ip=` sets the host's address and brings the
//! interface up; a script is run if one is named. Every error names the interface, the system call,
//! and what can be done without privilege.
//!
//! A tap or macvtap that is open already is taken over by its descriptor: by number, if this process was
//! started with it, else as an `OwnedFd` ([`Tap::from_fd`], [`TapNetdev::from_taps`]).
//!
//! Of several queues the first is enabled from the start, and the host spreads its frames over those
//! that are: see [`NetClient::set_enabled`](net_client::NetClient::set_enabled).
//!
//! # Frames
//!
//! Frames are written from, and read into, the memory that the peer lends. With
//! `vnet_hdr` (the default) each has a `virtio_net_hdr` in front, which carries checksum and
//! segmentation offloads both ways; [`VnetHeader`](net_client::VnetHeader) sets its length and what
//! the peer copes with.
//!
//! How they are moved is the choice of `engine=` ([`EngineKind`]):
//!
//! - `sync`: one system call a frame.
//! - `io_uring`: what the peer sends in one turn goes out in batches of up to 32, by one system call each. Frames
//!   that come are read in batches as large as frames have come lately; so a lone frame, either way, is a
//!   plain system call, and nothing waits for a batch to fill. All that a batch was lent is given back in the
//!   call that ends it, so there is nothing to cancel when the peer takes its memory back. A kernel that fails
//!   later on is done without, which is said once.
//! - `auto`: whichever is faster here. A batch spares the system call and has a price of its own; what either costs
//!   is measured once a process, in some 50 us, and said in the log with what was chosen.
//!
//! Where the peer copes with no segments, it need have no more room for a frame than the interface's MTU, as it
//! was when the driver said so. A larger MTU is noticed by the first frame that was cut off for it, which is
//! dropped and counted.
//!
//! What the host says of a frame that is written:
//!
//! | it says | the frame |
//! |---|---|
//! | EAGAIN | stays with the peer until there is room ([`Received::Busy`](net_client::Received::Busy)); only with `sndbuf`, which keeps frames that are sent out of batches |
//! | EINVAL, EFAULT, EMSGSIZE | is dropped as malformed: its header does not fit it |
//! | EIO | is dropped, the link being down: the interface is not up |
//! | ENOBUFS, ENOMEM, others; or takes a part of it | is dropped for the backend's error |
//! | EBADFD, EBADF, ENODEV, ENXIO | as those; the interface is gone, which is said once, and is not watched any more |
//!
//! A macvtap whose interface is gone says nothing of it: its frames are lost in the kernel.
//!
//! Of a read: EAGAIN ends the turn; EFAULT, EINVAL, ENOMEM and ENOBUFS lose one frame; any other error
//! ends the watch as above.
//!
//! | option | means |
//! |---|---|
//! | `ifname` | the interface; by default the first free of `tap0`, `tap1`, ... |
//! | `vnet_hdr` | `on`, `off`; by default on where the kernel can |
//! | `ip` | address and prefix length of the host's side (not in QEMU) |
//! | `queues` | how many; 1 by default |
//! | `engine` | `auto` (the default), `sync`, `io_uring`: how frames are moved (not in QEMU) |
//! | `fd`, `fds` | numbers of descriptors that are open already, instead of the above |
//! | `sndbuf` | bytes on their way to the host at most; 0, the default, for no limit |
//! | `script`, `downscript` | run with the interface's name as argument, when it is open and before it is closed; `no`, the default here, for none |
//! | `vhost` | `off` |
//!
//! Not supported, and refused by name: `helper`, `br`, vhost.
//!
//! | module | holds |
//! |---|---|
//! | `config` | the options |
//! | `tap` | the interface |
//! | `queue` | the net client |
//! | `engine` | how frames get in and out |
//! | `address` | the host's address, over netlink |
//! | `netdev` | the netdev, its registration |
//! | `help` | what `-netdev tap,help` prints |
//! | `sys` | system calls |

mod address;
mod config;
mod engine;
mod error;
mod help;
mod netdev;
mod queue;
mod sys;
mod tap;

pub use address::HostAddress;
pub use config::{EngineKind, OptionError, TapConfig};
pub use error::TapError;
pub use netdev::{TapNetdev, register};
pub use queue::TapQueue;
pub use tap::{INITIAL_HEADER_LEN, Tap};

// The README's example runs with the documentation's.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
mod readme {}
