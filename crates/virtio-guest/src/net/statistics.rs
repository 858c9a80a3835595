//! What a device counts of a queue, as it tells its driver (virtio 1.4, 5.1.9.5.11).

/// One kind of statistics of one queue.
pub trait QueueStatistics: Sized {
    /// The number of the kind; in bitmaps it is the bit of that number.
    const TYPE: u8;

    /// From the reply about `queue`, header and all; `None` if it is one about something else, or too short.
    fn from_reply(queue: u16, reply: &[u8]) -> Option<Self>;
}

macro_rules! statistics {
    ($(
        $(#[$meta:meta])*
        $name:ident = $number:literal { $($(#[$field_meta:meta])* $field:ident,)* }
    )*) => {$(
        $(#[$meta])*
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
        pub struct $name {
            $($(#[$field_meta])* pub $field: u64,)*
        }

        impl QueueStatistics for $name {
            const TYPE: u8 = $number;

            fn from_reply(queue: u16, reply: &[u8]) -> Option<Self> {
                let mut counters = counters(Self::TYPE, queue, reply)?;
                Some(Self { $($field: counters.next()?,)* })
            }
        }
    )*};
}

statistics! {
    /// Of the control queue.
    #[doc(alias = "virtio_net_stats_cvq")]
    ControlStatistics = 32 {
        /// Commands, the one that asks for this among them.
        commands,
        /// Those that were answered with OK.
        acknowledged,
    }

    /// Of a receive queue.
    #[doc(alias = "virtio_net_stats_rx_basic")]
    ReceiveStatistics = 0 {
        /// Notifications from the driver.
        notifications,
        /// Frames.
        packets,
        /// Their bytes.
        bytes,
        /// Interrupts.
        interrupts,
        /// Frames dropped.
        drops,
        /// Of those, for want of buffers.
        drop_overruns,
    }

    /// Of a transmit queue.
    #[doc(alias = "virtio_net_stats_tx_basic")]
    TransmitStatistics = 16 {
        /// Notifications from the driver.
        notifications,
        /// Frames.
        packets,
        /// Their bytes.
        bytes,
        /// Interrupts.
        interrupts,
        /// Frames dropped.
        drops,
        /// Of those, because the driver put them together wrongly.
        drop_malformed,
    }

    /// Checksums of a receive queue.
    #[doc(alias = "virtio_net_stats_rx_csum")]
    ReceiveChecksums = 1 {
        /// Frames told as valid.
        valid,
        /// Frames that need one.
        needed,
        /// Frames of which nothing is told.
        none,
        /// Frames whose checksum was wrong.
        bad,
    }

    /// Checksums of a transmit queue.
    #[doc(alias = "virtio_net_stats_tx_csum")]
    TransmitChecksums = 17 {
        /// Frames that came with theirs.
        none,
        /// Frames that wanted one.
        needed,
    }
}

/// The counters behind the header of a reply, if it is what was asked for.
fn counters(kind: u8, queue: u16, reply: &[u8]) -> Option<impl Iterator<Item = u64>> {
    let (&[number, _, q0, q1, _, _, s0, s1], _) = reply.split_first_chunk::<HEADER>()?;
    let size = usize::from(u16::from_le_bytes([s0, s1]));
    if number != kind || u16::from_le_bytes([q0, q1]) != queue {
        return None;
    }
    // A later device may have more of them; a reply that ends before its size is none.
    let (counters, _) = reply.get(HEADER..size)?.as_chunks::<8>();
    Some(counters.iter().map(|bytes| u64::from_le_bytes(*bytes)))
}

/// Bytes of `struct virtio_net_stats_reply_hdr`: type, reserved, queue, reserved, size.
const HEADER: usize = 8;

#[cfg(test)]
mod tests {
    use super::*;

    const REPLY: [u8; 24] = [
        17, 0, 3, 0, 0, 0, 24, 0, //
        1, 2, 0, 0, 0, 0, 0, 0, //
        5, 0, 0, 0, 0, 0, 0, 0x80,
    ];

    #[test]
    fn a_reply_is_taken_for_what_it_says() {
        let checksums = TransmitChecksums {
            none: 0x201,
            needed: 0x8000_0000_0000_0005,
        };
        assert_eq!(TransmitChecksums::from_reply(3, &REPLY), Some(checksums));
        // One of a later device, with more behind it.
        let mut longer = [0xff; 32];
        longer[..24].copy_from_slice(&REPLY);
        longer[6] = 32;
        assert_eq!(TransmitChecksums::from_reply(3, &longer), Some(checksums));
    }

    #[test]
    fn a_reply_about_something_else_or_cut_short_is_none() {
        assert_eq!(TransmitChecksums::from_reply(2, &REPLY), None, "queue");
        assert_eq!(ReceiveChecksums::from_reply(3, &REPLY), None, "type");
        for len in 0..REPLY.len() {
            assert_eq!(
                TransmitChecksums::from_reply(3, &REPLY[..len]),
                None,
                "{len}"
            );
        }
        for size in 0..24 {
            let mut reply = REPLY;
            reply[6] = size;
            assert_eq!(TransmitChecksums::from_reply(3, &reply), None, "{size}");
        }
    }
}
