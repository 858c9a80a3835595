//! What is run: the card, and the steps of all who have to do with it.

use arbitrary::Arbitrary;

use super::PAIRS;

/// What is run, and how.
#[derive(Arbitrary, Debug)]
pub struct Story {
    pub(super) ways: Ways,
    pub(super) peers: [Kind; PAIRS],
    /// Queue pairs: one more than this, of three.
    pub(super) more_pairs: u8,
    pub(super) mq: bool,
    /// The driver is older than version 1 of the specification.
    pub(super) legacy: bool,
    pub(super) features: u128,
    pub(super) burst: u8,
    /// What the backend says no to: see [`Peer::refuse`].
    pub(super) refused: u8,
    /// Queues that the driver does not enable, a bit each.
    pub(super) left_out: u8,
    /// Where the rings of one queue are instead of where they belong.
    pub(super) odd: Option<Odd>,
    pub(super) steps: Vec<Step>,
}

/// What the card has beyond what it has unless told, a bit each. The driver may do without.
#[derive(Arbitrary, Clone, Copy, Debug)]
pub(super) struct Ways(pub(super) u16);

impl Ways {
    pub(super) const PACKED: u16 = 1;
    pub(super) const IN_ORDER: u16 = 2;
    pub(super) const RSS: u16 = 4;
    /// Of what is in tunnels too.
    pub(super) const HASH: u16 = 8;
    pub(super) const ANTI_SPOOF: u16 = 16;
    pub(super) const LIMITS: u16 = 32;
    pub(super) const NO_MERGEABLE: u16 = 64;
    /// With `failover`, which is but a bit.
    pub(super) const RSC: u16 = 128;
    /// What is sent waits for a time after the kick.
    pub(super) const TX_TIMER: u16 = 256;

    pub(super) fn has(self, way: u16) -> bool {
        self.0 & way != 0
    }
}

#[derive(Arbitrary, Clone, Copy, Debug)]
pub(super) enum Kind {
    /// No backend at all, if it is the first; else as a loopback.
    None,
    Loopback,
    Plain,
    Vnet,
}

#[derive(Arbitrary, Clone, Copy, Debug)]
pub(super) struct Odd {
    pub(super) queue: u8,
    pub(super) desc: u16,
    pub(super) driver: u16,
    pub(super) device: u16,
    pub(super) next_avail: u16,
}

/// A step of the driver, the peer, the machine or the clock.
#[derive(Arbitrary, Clone, Copy, Debug)]
pub(super) enum Step {
    /// Steps by the book, and the peer's, are about this pair from here on.
    Pair(u8),
    Ram {
        at: u16,
        bytes: [u8; 8],
    },
    Describe {
        queue: u8,
        index: u8,
        address: u32,
        len: Len,
        flags: u8,
        next: u8,
    },
    Offer {
        queue: u8,
        head: u8,
    },
    MoveAvailIdx {
        queue: u8,
        to: u16,
    },
    /// A transmit chain by the book, except for what its header says.
    Frame {
        header: [u8; 12],
        len: u16,
        cut: u16,
    },
    /// Frames by the book, all at once.
    Frames {
        count: u8,
    },
    /// Receive buffers by the book.
    Buffers {
        count: u8,
        len: u16,
    },
    /// A command by the book, except for what it says: any with a class below 0x80, else one that there is, with
    /// as much data as it has.
    Command {
        class: u8,
        command: u8,
        data: [u8; 8],
        len: u16,
    },
    /// As many pairs as this, or any number of them.
    UsePairs(u8),
    Kick {
        queue: u8,
    },
    Turn,
    Moods(u8),
    Complete(u8),
    OfferFrames {
        lens: [u16; 4],
        later: u8,
    },
    SendFrame {
        len: u16,
    },
    FinishRead {
        nth: u8,
        len: u16,
    },
    PeerHasRoom,
    Link(bool),
    /// A filter comes to stand between the card and its peer, or the one that stands there goes.
    Filter {
        verdict: u8,
        at_peer: bool,
    },
    /// It lets go what it holds.
    Release,
    /// The backend goes for good.
    Disconnect,
    Refuse(u8),
    Pause,
    Resume,
    StopQueue {
        queue: u8,
    },
    Reset,
    Wait {
        milliseconds: u8,
    },
}

#[derive(Arbitrary, Clone, Copy, Debug)]
pub(super) enum Len {
    Short(u8),
    Entries(u8),
    Any(u32),
}
