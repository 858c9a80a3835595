//! Parses the option strings that `-netdev` and `-device` take.
//!
//! An option string is a list of `key=value` pairs separated by commas, such as
//! `tap,id=tap0,ifname=x`. It becomes an ordered list of pairs, [`Options`], from which each
//! consumer *takes* what it knows, typed; what nobody took is an error at the end, so that a
//! misspelt option is never silently accepted.
//!
//! - The first word may stand without its key: `tap` is `type=tap` for `-netdev`, and `driver=...`
//!   for `-device`.
//! - A comma inside a value is written twice: `ifname=a,,b`.
//! - `key` alone is `key=on`, and `nokey` alone is `key=off`; QEMU warns of both, see
//!   [`Options::short_forms`].
//! - Of a key given twice the last value counts, except for `id`, where the first does.
//!
//! The rules and the words of the errors are those that QEMU 7.2 shows from outside.
//!
//! ```
//! use keyval::Options;
//!
//! let mut options = Options::parse("tap,id=tap0,ifname=x,queues=0x10,sndbuf=64k", Some("type"));
//! assert_eq!(options.take("type").as_deref(), Some("tap"));
//! assert_eq!(options.take_id()?, Some("tap0".to_owned()));
//! assert_eq!(options.take_u32("queues")?, Some(16));
//! assert_eq!(options.take_size("sndbuf")?, Some(65536));
//!
//! // `ifname` was left over.
//! let error = options.finish().unwrap_err();
//! assert_eq!(error.to_string(), "Invalid parameter 'ifname'");
//! # Ok::<(), keyval::Error>(())
//! ```
//!
//! | module | holds |
//! |---|---|
//! | [`help`] | the lines that help prints of options |
//! | [`scalar`] | the text of one value: switches, integers, sizes, identifiers |

mod error;
pub mod help;
mod options;
pub mod scalar;

pub use error::Error;
pub use help::OptionInfo;
pub use options::Options;

// The README's example runs with the documentation's.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
mod readme {}
