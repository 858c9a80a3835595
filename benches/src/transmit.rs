//! Frames from the driver to the peer.

use std::sync::Arc;

use virtio::net::F as NetF;
use virtqueue::mock::Buffer;
use vm_memory::{Bytes, GuestAddress};

use crate::frame::{FrameSize, HEADER_LEN, PROTOCOL_LEN};
use crate::nic::{Buffers, DATA};
use crate::{InstantPeer, Nic, Round};

/// A driver with frames to send. The work is: the kick arrives, the device hands the frames over,
/// publishes its used ring, and interrupts.
#[derive(Debug)]
pub struct Transmitter {
    nic: Nic,
    size: FrameSize,
    packed: bool,
    /// Where each frame of a batch lies, and, if it has one, its indirect table.
    chains: Vec<(Option<u64>, Vec<Buffer>)>,
    /// Counts what arrives, if it can.
    peer: Option<Arc<InstantPeer>>,
}

impl Transmitter {
    /// Frames to a peer that counts them.
    pub fn new(size: FrameSize, buffers: Buffers) -> Self {
        let peer = InstantPeer::new();
        let nic = Nic::new(peer.port().clone(), without(buffers));
        Self {
            peer: Some(peer),
            ..Self::on(nic, size, buffers)
        }
    }

    /// Frames to any backend.
    pub fn to(port: Arc<net_client::Port>, size: FrameSize, buffers: Buffers) -> Self {
        Self::on(Nic::new(port, without(buffers)), size, buffers)
    }

    fn on(nic: Nic, size: FrameSize, buffers: Buffers) -> Self {
        // To nobody: a host drops it as soon as it has looked.
        let bytes = size.bytes([0x02, 0, 0, 0, 0, 2]);
        let first = match size {
            FrameSize::Smallest | FrameSize::Full if buffers.is_mergeable() => bytes.len(),
            FrameSize::Smallest | FrameSize::Full => HEADER_LEN,
            FrameSize::Segmented => HEADER_LEN + PROTOCOL_LEN,
        };
        let mut chains = Vec::new();
        let mut place = DATA;
        for _ in 0..size.batch() {
            let table = place;
            // The header at an offset such as headroom in front of it makes, payload in pages.
            let mut at = table + 0x1000 + 52;
            let mut chain = Vec::new();
            let (start, rest) = bytes.split_at(first);
            let pieces = std::iter::once(start).chain(rest.chunks(PAGE));
            for piece in pieces {
                nic.memory.write_slice(piece, GuestAddress(at)).unwrap();
                chain.push(Buffer::readable(at, u32::try_from(piece.len()).unwrap()));
                at = (at + piece.len() as u64).next_multiple_of(PAGE as u64);
                if size != FrameSize::Segmented {
                    at += 52;
                }
            }
            place = at.next_multiple_of(PAGE as u64);
            chains.push(((buffers == Buffers::Indirect).then_some(table), chain));
        }
        Self {
            nic,
            size,
            packed: buffers == Buffers::Packed,
            chains,
            peer: None,
        }
    }
}

impl Round for Transmitter {
    fn batch(&self) -> u64 {
        self.size.batch()
    }

    fn prepare(&mut self, frames: u64) {
        let queue = self.nic.transmit_queue();
        for (_, (table, chain)) in (0..frames).zip(&self.chains) {
            match table {
                Some(table) => queue.driver.add_indirect(*table, chain),
                None => queue.driver.add(chain),
            };
        }
        // One interrupt a batch, at its end.
        let entries = if self.packed {
            (self.chains.iter())
                .take(usize::try_from(frames - 1).unwrap())
                .map(|(_, chain)| chain.len())
                .sum()
        } else {
            usize::try_from(frames - 1).unwrap()
        };
        queue.driver.want_interrupt(u16::try_from(entries).unwrap());
        assert!(queue.driver.kick_wanted(), "the device sleeps");
    }

    fn work(&mut self) {
        self.nic.transmit_queue().kick.write(1).unwrap();
        self.nic.turn();
    }

    fn conclude(&mut self, frames: u64) {
        let queue = self.nic.transmit_queue();
        for number in 0..frames {
            assert!(
                queue.driver.take_used().is_some(),
                "frame {number} is not sent"
            );
        }
        // The device's first is for whatever a driver before may have waited for.
        assert!((1..=2).contains(&queue.take_interrupts()));
        if let Some(peer) = &self.peer {
            let bytes = frames * (HEADER_LEN + self.size.frame_len()) as u64;
            assert_eq!(peer.take_counts(), (frames, bytes));
        }
        self.nic.check();
    }
}

pub(crate) fn without(buffers: Buffers) -> NetF {
    match buffers {
        Buffers::Indirect => NetF::RING_PACKED,
        Buffers::Direct | Buffers::Mergeable => NetF::INDIRECT_DESC | NetF::RING_PACKED,
        Buffers::Packed => NetF::INDIRECT_DESC,
    }
}

const PAGE: usize = 4096;
