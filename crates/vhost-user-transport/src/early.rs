//! SET_VRING_ENABLE before SET_FEATURES.
//!
//! The protocol has it only where `VHOST_USER_F_PROTOCOL_FEATURES` was negotiated, and QEMU takes that for having been
//! offered: its network front end says it of a ring right after it has connected, long before a guest's
//! driver chooses features. The crate that takes the messages apart ends the connection then, so this one message is
//! taken from the socket before it gets there.
#![expect(unsafe_code, reason = "a look at a socket without reading it")]

use std::io::{self, Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;

/// A message of the protocol's: code, flags, length of the rest, ring, 0 or 1; in the host's byte order.
const LEN: usize = 20;
const SET_VRING_ENABLE: u32 = 18;
const VERSION: u32 = 1;
const REPLY: u32 = 1 << 2;
const NEED_REPLY: u32 = 1 << 3;

/// What such a message says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Enable {
    pub(crate) ring: u32,
    pub(crate) enabled: bool,
    need_reply: bool,
}

impl Enable {
    /// Waits for a message, and takes it if it is such a one; any other stays where it is.
    pub(crate) fn take(stream: &mut UnixStream) -> io::Result<Option<Self>> {
        let mut bytes = [0; LEN];
        // SAFETY: `bytes` has room for as many bytes as the call is told of.
        let len = unsafe {
            libc::recv(
                stream.as_raw_fd(),
                bytes.as_mut_ptr().cast(),
                LEN,
                libc::MSG_PEEK,
            )
        };
        if usize::try_from(len) != Ok(LEN) {
            // Its end, an error, or another message, all of which are found again by whoever reads.
            return Ok(None);
        }
        let Some(enable) = Self::parse(bytes) else {
            return Ok(None);
        };
        stream.read_exact(&mut bytes)?;
        Ok(Some(enable))
    }

    /// Says that it was done, if an answer is wanted and `can_reply`, which is that `REPLY_ACK` was negotiated.
    pub(crate) fn acknowledge(self, stream: &mut UnixStream, can_reply: bool) -> io::Result<()> {
        if !(self.need_reply && can_reply) {
            return Ok(());
        }
        let words = [SET_VRING_ENABLE, VERSION | REPLY, 8, 0, 0];
        let reply: Vec<u8> = words.iter().flat_map(|word| word.to_ne_bytes()).collect();
        stream.write_all(&reply)
    }

    fn parse(bytes: [u8; LEN]) -> Option<Self> {
        let (words, _) = bytes.as_chunks();
        let words: [u32; 5] = words
            .iter()
            .map(|word| u32::from_ne_bytes(*word))
            .collect::<Vec<_>>()
            .try_into()
            .ok()?;
        let [code, flags, len, ring, enabled] = words;
        let is_it = code == SET_VRING_ENABLE && flags & !NEED_REPLY == VERSION && len == 8;
        (is_it && enabled <= 1).then_some(Self {
            ring,
            enabled: enabled == 1,
            need_reply: flags & NEED_REPLY != 0,
        })
    }
}
