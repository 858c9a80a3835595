//! What a net client does: the two doors a frame can come through, and back-pressure.

use std::fmt;
use std::io;
use std::sync::Arc;

use iothread::AioContext;

use crate::iovec::IoVec;
use crate::vnet::VnetHeader;

/// Names one lent frame or buffer until it is completed; chosen by the lender, returned as it was.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Token(pub u32);

impl Token {
    /// The token of the reads that a [`Port`](crate::Port) does itself, for a client that lends no
    /// buffers. No client chooses it.
    pub const PORT: Self = Self(u32::MAX);
}

/// A frame on its way to the peer, still in its sender's memory.
///
/// It begins with a `virtio_net_hdr` of the length that the two clients agreed on
/// ([`VnetHeader::set_header_len`]), or with none where the length is 0; the Ethernet frame follows.
///
/// The slice `iov` lives for the call. The memory that it points to is lent: when the receiver says
/// [`Received::Lent`] it stays valid until the receiver completes the token.
#[derive(Clone, Copy, Debug)]
pub struct Frame<'a> {
    /// Names the frame in its completion. `None`: the memory is not lent, the sender has it back when
    /// the call returns, so the receiver copies what it wants to keep and never answers
    /// [`Received::Lent`].
    pub token: Option<Token>,
    /// Header and frame, in order.
    pub iov: &'a [IoVec],
    /// Bytes in `iov`, header included.
    pub len: usize,
}

/// What became of a frame that was offered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum Received {
    /// Done with: sent on, copied, or dropped and counted. Its memory is the sender's again.
    Taken,
    /// Kept until [`NetClient::sent`] (or the closure given to [`NetClient::flush`]) names its token.
    Lent,
    /// No room. The sender keeps the frame and stops; [`NetClient::room`] says when to try again.
    Busy,
}

/// How an offer to read frames into the peer's buffers ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum Drained {
    /// The source has no more frames for now.
    Empty,
    /// The turn's budget is used up; the source may have more and asks again in its next turn.
    Budget,
    /// The client has no buffers (or does not run): the source stops until [`NetClient::room`].
    NoRoom,
    /// The client cannot lend buffers; frames go through [`NetClient::receive`] instead.
    CannotLend,
}

/// What came of reading one frame into lent buffers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum Read {
    /// A frame of so many bytes (header included) was written into the buffers.
    Frame(usize),
    /// The read goes on; [`NetClient::read_done`] will name its token.
    Pending,
    /// There is no frame for now; the buffers are untouched.
    Empty,
    /// The source failed and counted it; the buffers are untouched. The turn ends as with `Empty`.
    Failed,
}

/// Where frames come from: handed to the peer by a backend that has frames to read, so that the
/// peer can have each read straight into its own buffers.
pub trait FrameSource {
    /// The most bytes a frame of this source may have, header included. The reader offers at least
    /// so many, or as many as it ever will.
    fn max_frame(&self) -> usize;

    /// Reads the next frame into `iov`. The memory is lent for the call, and after
    /// [`Read::Pending`] until the token is completed.
    fn read(&mut self, token: Token, iov: &[IoVec]) -> Read;

    /// How many reads the source does best at once now. Above 1 the reader may [`queue`](Self::queue) up
    /// to so many, then has them done by one [`submit`](Self::submit); it may as well go on with
    /// [`read`](Self::read). Asked before each batch.
    fn batch(&mut self) -> usize {
        1
    }

    /// Puts a read into the batch. The memory is lent until [`submit`](Self::submit) has named the token,
    /// or the source is dropped. Only called where [`batch`](Self::batch) is above 1, and at most so often.
    fn queue(&mut self, token: Token, iov: &[IoVec]) {
        let _ = (token, iov);
    }

    /// Does the reads of the batch, in order, and names each to `done` before it returns. None of them is
    /// [`Read::Pending`]. One that finds no frame may be followed by one that does: a frame may come
    /// meanwhile.
    fn submit(&mut self, done: &mut dyn FnMut(Token, Read)) {
        let _ = done;
    }
}

/// One queue of a net client: one end of a link. [QEMU: NetClientState and NetClientInfo]
///
/// A client is called by its peer, through the peer's [`Port`](crate::Port), on the context that
/// both share. It may be called on another thread only for `link_status_changed`, `attach`,
/// `detach`, `revoke`, `set_enabled` and what [`VnetHeader`] has. No method is called while the caller
/// holds a lock that the other direction takes; a client may hold its own lock of one direction while
/// it calls its port in that direction.
///
/// `revoke`, `set_enabled` and what [`VnetHeader`] has may be called while the NIC holds its control
/// locks: the client does not call the NIC from inside them, but for the completions that `revoke` is
/// there for, which take no control lock.
///
/// # Before its memory goes
///
/// Whoever has memory of another's is the only one who knows which. So a client completes all tokens
/// that its peer has lent to it before its port drops: its `Drop` does what
/// [`revoke`](Self::revoke) does. Else the peer waits for ever for what nobody will complete. A
/// client that lends takes back what it has lent before it lets go of the memory: its `Drop` calls
/// [`Port::disconnect`](crate::Port::disconnect). A port that drops does the rest: it has the peer revoke
/// what was lent to that, ends the connection, and tells the peer that it waits for nothing any more.
#[doc(alias = "NetClientInfo")]
pub trait NetClient: Send + Sync + fmt::Debug {
    /// Offers one frame. Called by the peer, many times a batch, then [`flush`](Self::flush) once.
    #[doc(alias = "receive_iov")]
    fn receive(&self, frame: &Frame<'_>) -> Received;

    /// The sender's batch is complete: whatever was kept back for batching goes out now. Frames that
    /// are finished within this call are named to `done`, not to [`sent`](Self::sent), so that a
    /// sender may hold its transmit lock across the call.
    fn flush(&self, done: &mut dyn FnMut(Token)) {
        let _ = done;
    }

    /// The peer has frames to read: take them, up to the client's budget for one turn. Called by
    /// the peer on its context.
    fn receive_from(&self, source: &mut dyn FrameSource) -> Drained {
        let _ = source;
        Drained::CannotLend
    }

    /// A frame that the peer answered with [`Received::Lent`] is finished, in whatever order.
    #[doc(alias = "NetPacketSent")]
    fn sent(&self, token: Token) {
        let _ = token;
    }

    /// A read that was [`Read::Pending`] has ended with a frame of `len` bytes, or (0) without one.
    fn read_done(&self, token: Token, len: usize) {
        let _ = (token, len);
    }

    /// The peer has room again after [`Received::Busy`] or [`Drained::NoRoom`]. May come without a
    /// cause; a client that waits for nothing ignores it.
    #[doc(alias = "qemu_flush_queued_packets")]
    fn room(&self) {}

    /// Finish or cancel everything that the peer has lent: when this returns, each token of a lent
    /// frame and of a pending read has been completed. Called before the lender takes its memory
    /// back: reset, ring reset, pause, unplug, removal of the peer.
    #[doc(alias = "qemu_purge_queued_packets")]
    fn revoke(&self) {}

    /// End every read that is [`Read::Pending`], with the frame that has come or without one: when
    /// this returns, the token of each has been completed. Called on the context when a filter comes
    /// to stand between the peers, since frames that are read in place would pass it by. Part of
    /// [`revoke`](Self::revoke); a client whose reads end at once has nothing to do.
    fn cancel_reads(&self) {}

    /// The link went up or down, by either end.
    fn link_status_changed(&self, up: bool) {
        let _ = up;
    }

    /// Work on this context from now on. Called when a peer is connected, and to move to another
    /// context while paused.
    ///
    /// # Errors
    /// When the client's descriptors cannot be watched.
    fn attach(&self, context: &Arc<dyn AioContext>) -> io::Result<()> {
        let _ = context;
        Ok(())
    }

    /// Stop working on the context: no frame leaves the client until the next
    /// [`attach`](Self::attach). May be called twice.
    fn detach(&self) {}

    /// Take part in the work of the backend that this is one queue of, or rest. A backend of many
    /// queues spreads the frames that it has over those that are enabled. Its first queue is enabled
    /// from the start, the others rest. Called by the peer at run time, on any thread, as a NIC's
    /// driver takes queues into use: on those that it takes, then off those that it leaves; at its reset
    /// off all but the first. May be called twice.
    ///
    /// A queue that rests gets no frames from the host; those that it has already, and what it is sent,
    /// pass as ever. A client that is the only
    /// queue of its backend is always at work and ignores this.
    ///
    /// # Errors
    /// When the host refuses; the queue is as it was.
    #[doc(alias = "tap_enable")]
    #[doc(alias = "tap_disable")]
    #[doc(alias = "peer_attach")]
    #[doc(alias = "peer_detach")]
    fn set_enabled(&self, enabled: bool) -> io::Result<()> {
        let _ = enabled;
        Ok(())
    }

    /// The client's ability to carry `virtio_net_hdr` in front of each frame, where it has one.
    fn vnet_header(&self) -> Option<&dyn VnetHeader> {
        None
    }
}
