//! Frames from the peer to the driver.

use std::sync::Arc;
use std::time::{Duration, Instant};

use net_client::{Drained, Port, Received};
use virtio::net::F as NetF;
use virtqueue::mock::{Buffer, Driver};
use vm_memory::{Bytes, GuestAddress};

use crate::frame::{FrameSize, HEADER_LEN, MAC, number_offset};
use crate::nic::{Buffers, DATA};
use crate::peer::Numbered;
use crate::transmit::without;
use crate::{InstantPeer, Nic, PacketSocket, Round};

/// A driver that keeps its receive queue full. The work is: frames are read into its buffers, the used
/// ring is published, and the device interrupts.
#[derive(Debug)]
pub struct Receiver {
    nic: Nic,
    size: FrameSize,
    mergeable: bool,
    /// Each chain's buffers and, if it has one, its indirect table.
    chains: Vec<(Option<u64>, Vec<Buffer>)>,
    /// By head: which chain it is.
    chain_of: Vec<usize>,
    origin: Origin,
    /// Frames that have been prepared, not concluded.
    due: u64,
    /// Used elements at which the batch is complete, as far as elements were counted before.
    complete_at: u16,
}

/// Where the frames come from.
#[derive(Debug)]
enum Origin {
    /// Read straight into the driver's buffers.
    Read {
        _peer: Arc<InstantPeer>,
        port: Arc<Port>,
        source: Numbered,
        first: u64,
    },
    /// Handed over in memory of the peer's, and copied once.
    HandedOver {
        _peer: Arc<InstantPeer>,
        port: Arc<Port>,
        frame: Vec<u8>,
    },
    /// From the host's stack through a tap.
    Tap {
        socket: PacketSocket,
        frame: Vec<u8>,
    },
}

impl Receiver {
    /// Frames that are read in place.
    pub fn new(size: FrameSize, buffers: Buffers) -> Self {
        let peer = InstantPeer::new();
        let port = peer.port().clone();
        let origin = Origin::Read {
            _peer: peer,
            port: port.clone(),
            source: Numbered::new(size),
            first: 0,
        };
        Self::on(port, size, buffers, origin)
    }

    /// Frames that are handed over, and copied.
    pub fn copied(size: FrameSize, buffers: Buffers) -> Self {
        let peer = InstantPeer::new();
        let port = peer.port().clone();
        let origin = Origin::HandedOver {
            _peer: peer,
            port: port.clone(),
            frame: size.bytes(MAC),
        };
        Self::on(port, size, buffers, origin)
    }

    /// Frames that the host sends through a tap, whose port is `port`.
    pub fn from_tap(
        port: Arc<Port>,
        socket: PacketSocket,
        size: FrameSize,
        buffers: Buffers,
    ) -> Self {
        let frame = size.bytes(MAC);
        Self::on(port, size, buffers, Origin::Tap { socket, frame })
    }

    fn on(port: Arc<Port>, size: FrameSize, buffers: Buffers, origin: Origin) -> Self {
        let mergeable = buffers.is_mergeable();
        let mut left_out = without(buffers);
        if !mergeable {
            left_out |= NetF::MRG_RXBUF;
        }
        if size != FrameSize::Segmented && !mergeable {
            // Else each buffer must hold the largest frame.
            left_out |= NetF::GUEST_TSO4
                | NetF::GUEST_TSO6
                | NetF::GUEST_ECN
                | NetF::GUEST_UFO
                | NetF::GUEST_USO4
                | NetF::GUEST_USO6;
        }
        let nic = Nic::new(port, left_out);
        let mut receiver = Self {
            nic,
            size,
            mergeable,
            chains: chains(size, buffers),
            chain_of: vec![usize::MAX; 1 << 16],
            origin,
            due: 0,
            complete_at: 0,
        };
        for chain in 0..receiver.chains.len() {
            receiver.give(chain);
        }
        receiver.invite();
        receiver
    }

    /// Makes a chain available.
    fn give(&mut self, chain: usize) {
        let (table, buffers) = &self.chains[chain];
        let driver = &mut self.nic.receive_queue().driver;
        let head = match table {
            Some(table) => driver.add_indirect(*table, buffers),
            None => driver.add(buffers),
        };
        self.chain_of[usize::from(head)] = chain;
    }

    /// Kicks, if the device wants to know of new buffers.
    fn invite(&mut self) {
        let queue = self.nic.receive_queue();
        if queue.driver.kick_wanted() {
            queue.kick.write(1).unwrap();
        }
        self.nic.settle();
        self.nic.receive_queue().take_interrupts();
    }

    /// Takes one frame out of the used ring, and gives its buffers back. Where it starts, and its length.
    fn take(&mut self) -> Option<(u64, usize)> {
        let (start, mut len) = self.take_buffer()?;
        if self.mergeable {
            let count: u16 = self
                .nic
                .memory
                .read_obj(GuestAddress(start + NUM_BUFFERS))
                .unwrap();
            for _ in 1..u16::from_le(count) {
                len += self.take_buffer().expect("the frame is whole").1;
            }
        }
        Some((start, len))
    }

    fn take_buffer(&mut self) -> Option<(u64, usize)> {
        let (head, len) = self.nic.receive_queue().driver.take_used()?;
        let chain = self.chain_of[usize::try_from(head).unwrap()];
        let start = self.chains[chain].1[0].address;
        // A chain's bytes lie in one piece, and stay as they are until the device gets it back with the
        // next batch.
        self.give(chain);
        Some((start, usize::try_from(len).unwrap()))
    }

    /// Elements of the used ring that a frame takes.
    fn elements(&self) -> u64 {
        let len = HEADER_LEN + self.size.frame_len();
        if self.mergeable {
            len.div_ceil(MERGEABLE_LEN) as u64
        } else {
            1
        }
    }
}

impl Round for Receiver {
    fn batch(&self) -> u64 {
        self.size.batch()
    }

    fn prepare(&mut self, frames: u64) {
        let elements = u16::try_from(frames * self.elements()).unwrap();
        let driver = &mut self.nic.receive_queue().driver;
        self.due = frames;
        if let Driver::Split(driver) = driver {
            self.complete_at = driver.taken().wrapping_add(elements);
        }
        driver.want_interrupt(elements - 1);
        match &mut self.origin {
            Origin::Read { source, first, .. } => *first = source.refill(frames),
            Origin::HandedOver { .. } => {}
            Origin::Tap { socket, frame } => {
                for _ in 0..frames {
                    socket.send(frame);
                }
            }
        }
    }

    fn work(&mut self) {
        match &mut self.origin {
            Origin::Read { port, source, .. } => {
                assert_eq!(port.offer(source), Drained::Empty);
            }
            Origin::HandedOver { port, frame, .. } => {
                for _ in 0..self.due {
                    assert_eq!(port.send_bytes(frame), Received::Taken);
                }
                port.flush(&mut |_| {});
            }
            Origin::Tap { .. } => {
                // One turn, unless the host is late.
                let complete_at = self.complete_at;
                self.nic.turn();
                let start = Instant::now();
                while (self.nic.receive_queue().driver.split().published())
                    .wrapping_sub(complete_at)
                    .cast_signed()
                    < 0
                {
                    self.nic.turn();
                    assert!(start.elapsed() < DEADLINE, "the host sent too few frames");
                }
            }
        }
    }

    fn conclude(&mut self, frames: u64) {
        let number_at = number_offset(self.size) as u64;
        let mut number = match &self.origin {
            Origin::Read { source, first, .. } => {
                assert_eq!(source.left(), 0);
                Some(*first)
            }
            _ => None,
        };
        let expected_len = HEADER_LEN + self.size.frame_len();
        let mut arrived = 0;
        while let Some((start, len)) = self.take() {
            let place = GuestAddress(start + HEADER_LEN as u64);
            let to: [u8; 6] = self.nic.memory.read_obj(place).unwrap();
            if to != MAC {
                // The host's own, by a tap.
                assert!(number.is_none());
                continue;
            }
            assert_eq!(len, expected_len);
            if let Some(number) = &mut number {
                let found: u64 = self
                    .nic
                    .memory
                    .read_obj(GuestAddress(start + number_at))
                    .unwrap();
                assert_eq!(u64::from_le(found), *number);
                *number += 1;
            }
            arrived += 1;
        }
        assert_eq!(arrived, frames, "frames that arrived");
        assert!(self.nic.receive_queue().take_interrupts() > 0);
        self.nic.check();
        self.invite();
    }
}

/// The chains of a full receive queue.
fn chains(size: FrameSize, buffers: Buffers) -> Vec<(Option<u64>, Vec<Buffer>)> {
    let (count, body) = match (buffers, size) {
        (buffers, _) if buffers.is_mergeable() => (256, MERGEABLE_LEN),
        (_, FrameSize::Segmented) => (14, LARGEST_LEN),
        _ => (128, 1514),
    };
    let mut place = DATA;
    (0..count)
        .map(|_| {
            let table = place;
            let chain = if buffers.is_mergeable() {
                place += MERGEABLE_LEN as u64;
                vec![Buffer::writable(table, 1536)]
            } else {
                // As behind the headroom that a driver leaves; the pieces end where pages do.
                let start = table + PAGE + 52;
                let mut pieces = vec![(start, HEADER_LEN as u64)];
                let (mut at, end) = (
                    start + HEADER_LEN as u64,
                    start + (HEADER_LEN + body) as u64,
                );
                while at < end {
                    let len = (PAGE - at % PAGE).min(end - at);
                    pieces.push((at, len));
                    at += len;
                }
                place = end.next_multiple_of(PAGE);
                pieces
                    .into_iter()
                    .map(|(at, len)| Buffer::writable(at, u32::try_from(len).unwrap()))
                    .collect()
            };
            ((buffers == Buffers::Indirect).then_some(table), chain)
        })
        .collect()
}

const PAGE: u64 = 4096;
/// Bytes of a buffer that others are merged with, as Linux makes them for an MTU of 1500.
const MERGEABLE_LEN: usize = 1536;
/// The largest frame that a driver has to have room for (virtio 1.4, 5.1.9.3.1).
const LARGEST_LEN: usize = 65550;
/// Where the header has `num_buffers`.
const NUM_BUFFERS: u64 = 10;
/// Only ends a bench that hangs.
const DEADLINE: Duration = Duration::from_secs(20);
