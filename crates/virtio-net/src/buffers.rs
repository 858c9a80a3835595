//! The buffers that the driver has made available for reception.

mod chains;

use net_client::IoVec;
use virtio::net::{HdrF, HdrGso};
use virtio_bus::GuestNotifier;
use virtqueue::{Chain, MAX_SEGMENTS, QueueError, QueueMemory, Segment, VirtQueue};

pub(crate) use self::chains::Chains;
use crate::coalesce::Gate;
use crate::hash::{Hash, HashView, PEEK};
use crate::header::{FLAGS, GSO_NONE, GSO_SIZE, GSO_TYPE, HASH, MAX_HEADER, NUM_BUFFERS, TUNNEL};
use crate::kick::batch;
use crate::lend::{lend_from, lend_on, read_at, write_at, write_start};
use crate::pair::Layout;
use crate::statistics::{RxStatistics, count_bytes};

/// A receive queue, with those of its chains that were taken and hold no frame yet.
pub(crate) struct Buffers<M: QueueMemory> {
    pub(crate) queue: VirtQueue<M>,
    layout: Layout,
    mergeable: bool,
    hashes: HashView,
    pub(crate) gate: Gate,
    /// Frames counted when the driver was last told of some.
    told: u64,
    /// Buffers counted when the used ring was last published.
    shown: u64,
    /// Popped, checked and not used yet, in the order in which they were made available.
    pub(crate) ready: Chains<M>,
    batch: u64,
    /// The header that is read with a frame is as long as the driver's.
    same_header: bool,
    /// And it ends with `num_buffers`.
    pub(crate) is_plain: bool,
}

impl<M: QueueMemory> Buffers<M> {
    pub(crate) fn new(
        queue: VirtQueue<M>,
        layout: Layout,
        mergeable: bool,
        hashes: HashView,
    ) -> Self {
        let same_header = layout.header_len == layout.host_header_len;
        Self {
            batch: batch(queue.size()) as u64,
            same_header,
            is_plain: same_header && layout.header_len > NUM_BUFFERS && layout.header_len <= HASH,
            queue,
            layout,
            mergeable,
            hashes,
            gate: Gate::default(),
            told: 0,
            shown: 0,
            ready: Chains::new(),
        }
    }

    /// Puts available chains on `ready` until they have room for `want` bytes, or, where frames are not
    /// merged, until there is one.
    pub(crate) fn gather(
        &mut self,
        want: usize,
        statistics: &mut RxStatistics,
    ) -> Result<(), QueueError> {
        self.gather_now(want, statistics)
    }

    /// As [`gather`](Self::gather), at the one place where each frame's buffers are.
    #[inline(always)]
    pub(crate) fn gather_now(
        &mut self,
        want: usize,
        statistics: &mut RxStatistics,
    ) -> Result<(), QueueError> {
        let mut bad = 0;
        while self.ready.len() < want && (self.mergeable || self.ready.is_empty()) {
            let chain = self.ready.next();
            if !self.queue.pop(chain)? {
                return Ok(());
            }
            if chain.readable_len() == 0 && chain.writable_len() >= self.layout.header_len {
                self.ready.keep_next();
                continue;
            }
            statistics.bad_chains += 1;
            push_used(&mut self.queue, chain, 0);
            // A driver that makes them available as fast as they are given back gets no more of this turn.
            bad += 1;
            if bad == self.queue.size() {
                return Ok(());
            }
        }
        Ok(())
    }

    /// Fills `iov` with what is ready, as far as it takes to have room for `want` bytes, behind the room for the
    /// header where the source has none. Returns the guest bytes up to the end of it.
    #[inline(always)]
    pub(crate) fn lend(&self, iov: &mut Vec<IoVec>, want: usize) -> usize {
        iov.clear();
        if self.same_header
            && let Some(first) = self.ready.front()
            && let [segment] = first.writable()
            && (segment.len() >= want || !self.mergeable)
        {
            // As it is with most drivers and frames.
            iov.push(lend_from(segment, 0));
            return segment.len();
        }
        self.lend_more(iov, want)
    }

    #[inline(never)]
    fn lend_more(&self, iov: &mut Vec<IoVec>, want: usize) -> usize {
        let mut skip = self.layout.header_len - self.layout.host_header_len;
        let mut room = 0;
        for chain in self.ready.iter() {
            for segment in chain.writable() {
                // One is left for the overflow.
                if iov.len() + 1 >= MAX_SEGMENTS {
                    return room;
                }
                room += segment.len();
                if skip == 0 {
                    lend_on(iov, segment);
                    continue;
                }
                let here = skip.min(segment.len());
                skip -= here;
                if here < segment.len() {
                    iov.push(lend_from(segment, here));
                }
            }
            if room >= want || !self.mergeable {
                break;
            }
        }
        room
    }

    /// [`deliver`](Self::deliver)s a frame that lies in what is ready.
    #[inline(always)]
    pub(crate) fn deliver_ready(&mut self, guest_len: usize, statistics: &mut RxStatistics) {
        let Self {
            queue,
            layout,
            ready,
            is_plain,
            ..
        } = self;
        if !*is_plain || !deliver_plain(queue, layout, ready, guest_len, statistics) {
            self.deliver_ready_in_full(guest_len, statistics);
        }
    }

    #[inline(never)]
    fn deliver_ready_in_full(&mut self, guest_len: usize, statistics: &mut RxStatistics) {
        let Self {
            queue,
            layout,
            hashes,
            ready,
            ..
        } = self;
        if layout.header_len > HASH {
            write_hash(hashes, layout, ready, guest_len);
        }
        deliver(queue, layout, ready, guest_len, statistics);
    }

    /// Gives the driver a frame that lies in the first `guest_len` bytes of `chains`, header included.
    #[inline]
    pub(crate) fn deliver(
        &mut self,
        chains: &mut Chains<M>,
        guest_len: usize,
        statistics: &mut RxStatistics,
    ) {
        let Self {
            queue,
            layout,
            hashes,
            is_plain,
            ..
        } = self;
        if *is_plain && deliver_plain(queue, layout, chains, guest_len, statistics) {
            return;
        }
        if layout.header_len > HASH {
            write_hash(hashes, layout, chains, guest_len);
        }
        deliver(queue, layout, chains, guest_len, statistics);
    }

    /// Whether so much is used that a batch should end.
    #[inline]
    pub(crate) fn is_batch(&self, statistics: &RxStatistics) -> bool {
        statistics.buffers.wrapping_sub(self.shown) >= self.batch
    }

    /// Ends a batch: the driver sees what it was given.
    pub(crate) fn finish(&mut self, call: &dyn GuestNotifier, statistics: &mut RxStatistics) {
        self.shown = statistics.buffers;
        if self.queue.publish() == 0 {
            return;
        }
        statistics.batches += 1;
        let told = std::mem::replace(&mut self.told, statistics.frames);
        let frames = statistics.frames.wrapping_sub(told);
        if self.gate.passes(frames) {
            self.tell(call, statistics);
        }
    }

    /// Notifications are held back from now on by the frames that come from now on.
    pub(crate) fn count_from(&mut self, statistics: &RxStatistics) {
        self.told = statistics.frames;
    }

    /// Tells the driver of what was published, if it wants to hear of it.
    pub(crate) fn tell(&mut self, call: &dyn GuestNotifier, statistics: &mut RxStatistics) {
        if self.queue.needs_notification() {
            statistics.notifications += 1;
            call.notify();
        }
    }

    /// Gives back what is ready: to the available ring as long as it is the newest there, else used and empty.
    pub(crate) fn give_back(&mut self) {
        let end = self.queue.next_position();
        (self.ready).sort_by_key(|chain| end.wrapping_sub(chain.position()));
        while let Some(chain) = self.ready.pop_front() {
            if !self.queue.undo_pop(chain) {
                push_used(&mut self.queue, chain, 0);
            }
        }
    }

    /// Guest bytes of a frame of `len` bytes of the source's, unless it is shorter than its header.
    #[inline]
    pub(crate) fn guest_len(&self, len: usize) -> Option<usize> {
        len.checked_sub(self.layout.host_header_len)?
            .checked_add(self.layout.header_len)
    }

    /// Whether a frame fits into what is ready: all of it, or, where frames are not merged, the first.
    pub(crate) fn fits(&self, guest_len: usize) -> bool {
        let room = match self.ready.front() {
            Some(first) if !self.mergeable => first.writable_len(),
            _ => self.ready.len(),
        };
        room >= guest_len
    }

    /// Whether waiting cannot help: frames are not merged, or all entries of the queue are in hand.
    pub(crate) fn is_all(&self) -> bool {
        !self.mergeable || self.ready.count() >= usize::from(self.queue.size())
    }
}

/// [`deliver`]s a frame that is as most are: in one chain, and with a header that asks nothing of the driver. `false`,
/// and nothing done, if it is not. The header is the peer's, and ends with `num_buffers`.
#[inline(always)]
fn deliver_plain<M: QueueMemory>(
    queue: &mut VirtQueue<M>,
    layout: &Layout,
    chains: &mut Chains<M>,
    guest_len: usize,
    statistics: &mut RxStatistics,
) -> bool {
    let Some(first) = chains.front() else {
        return false;
    };
    if first.writable_len() < guest_len
        || read_at(first.writable(), FLAGS) != Some([0, GSO_NONE])
        || !write_at(first.writable(), NUM_BUFFERS, layout.count(1))
    {
        return false;
    }
    if layout.stats {
        statistics.csum_none += 1;
    }
    let frame_len = guest_len.saturating_sub(layout.header_len);
    first.mark_written(guest_len);
    push_used(queue, first, guest_len);
    chains.pop_front();
    statistics.frames += 1;
    count_bytes(&mut statistics.bytes, frame_len);
    statistics.buffers += 1;
    true
}

/// Completes the header of a frame that lies in `chains`, and puts these on the used ring.
fn deliver<M: QueueMemory>(
    queue: &mut VirtQueue<M>,
    layout: &Layout,
    chains: &mut Chains<M>,
    guest_len: usize,
    statistics: &mut RxStatistics,
) {
    let mut left = guest_len;
    let mut buffers = 0_u16;
    for chain in chains.iter() {
        if left == 0 {
            break;
        }
        left = left.saturating_sub(chain.writable_len());
        // A queue has at most 2^15 chains.
        buffers += 1;
    }
    if let Some(first) = chains.front() {
        let said = complete_header(layout, first, buffers);
        if layout.stats {
            count_header(
                said,
                guest_len.saturating_sub(layout.header_len),
                statistics,
            );
        }
    }
    let mut left = guest_len;
    for _ in 0..buffers {
        let Some(chain) = chains.pop_front() else {
            break;
        };
        let part = left.min(chain.writable_len());
        left -= part;
        chain.mark_written(part);
        push_used(queue, chain, part);
    }
    statistics.frames += 1;
    count_bytes(
        &mut statistics.bytes,
        guest_len.saturating_sub(layout.header_len),
    );
    statistics.buffers += u64::from(buffers);
}

/// Writes what of the header is the device's; returns its `flags` and `gso_type`.
fn complete_header<M: QueueMemory>(layout: &Layout, first: &Chain<M>, buffers: u16) -> [u8; 2] {
    let Layout {
        header_len,
        host_header_len,
        allowed,
        ..
    } = *layout;
    let write = |offset, bytes: &[u8]| {
        // Marked dirty with the frame.
        if !write_start(first.writable(), offset, bytes) {
            first.write(offset, bytes);
        }
    };
    let said = if host_header_len == 0 {
        let zeroes = [0; MAX_HEADER];
        // What is behind is there already.
        write(0, zeroes.get(..header_len.min(HASH)).unwrap_or_default());
        [0, GSO_NONE]
    } else {
        // The peer was told what the driver copes with; here it is seen to (virtio 1.4, 5.1.9.4.1).
        let [flags, gso_type] = read_start_of(first);
        let gso_size = || {
            let mut size = [0; 2];
            first.read_back(GSO_SIZE, &mut size);
            u16::from_ne_bytes(size)
        };
        let (told_flags, told_type) = allowed.told(flags, gso_type, gso_size);
        if told_flags != flags {
            write(FLAGS, &[told_flags]);
        }
        if told_type != gso_type {
            write(GSO_TYPE, &[told_type]);
        }
        [told_flags, told_type]
    };
    if header_len > NUM_BUFFERS {
        // With VERSION_1 it is 1 where frames are not merged (virtio 1.4, 5.1.9.3.2).
        write(NUM_BUFFERS, &layout.count(buffers));
    }
    said
}

/// Writes what is the device's of a header that the peer has written and that lies in the first of `segments`, of a frame that
/// takes one buffer; returns its `flags` and `gso_type`. `None`: it does not lie there.
#[inline(always)]
pub(crate) fn complete_in_place(layout: &Layout, segments: &[Segment]) -> Option<[u8; 2]> {
    let mut said: [u8; 2] = read_at(segments, FLAGS)?;
    if said != [0, GSO_NONE] {
        said = tell_in_place(layout, segments, said)?;
    }
    write_at(segments, NUM_BUFFERS, layout.count(1)).then_some(said)
}

/// Where a header says something, sees to it that the driver copes with that.
#[inline(never)]
fn tell_in_place(
    layout: &Layout,
    segments: &[Segment],
    [flags, gso_type]: [u8; 2],
) -> Option<[u8; 2]> {
    let gso_size = u16::from_ne_bytes(read_at(segments, GSO_SIZE)?);
    let (told_flags, told_type) = layout.allowed.told(flags, gso_type, || gso_size);
    let told = [told_flags, told_type];
    (told == [flags, gso_type] || write_at(segments, FLAGS, told)).then_some(told)
}

/// `flags` and `gso_type` of the header that was written.
#[inline]
fn read_start_of<M: QueueMemory>(first: &Chain<M>) -> [u8; 2] {
    read_at(first.writable(), FLAGS).unwrap_or_else(|| {
        let mut start = [0; 2];
        first.read_back(FLAGS, &mut start);
        start
    })
}

/// Counts a frame by what its header says.
#[inline]
pub(crate) fn count_header(
    [flags, gso_type]: [u8; 2],
    frame_len: usize,
    statistics: &mut RxStatistics,
) {
    let flags = HdrF::from_bits_retain(flags);
    if flags.contains(HdrF::NEEDS_CSUM) {
        statistics.csum_needed += 1;
    } else if flags.contains(HdrF::DATA_VALID) {
        statistics.csum_valid += 1;
    } else {
        statistics.csum_none += 1;
    }
    if gso_type != u8::from(HdrGso::None) {
        statistics.gso_frames += 1;
        count_bytes(&mut statistics.gso_bytes, frame_len);
    }
}

/// Writes the hash of a frame into its header, and nothing where a tunnel's fields are of a frame that is in none. The
/// driver can change the frame meanwhile: it fools itself.
fn write_hash<M: QueueMemory>(
    hashes: &mut HashView,
    layout: &Layout,
    chains: &Chains<M>,
    guest_len: usize,
) {
    let hashing = hashes.look();
    let hash = if !layout.hash || hashing.is_off() {
        Hash::NONE
    } else {
        let mut start = [0; PEEK];
        let there = guest_len.saturating_sub(layout.header_len).min(PEEK);
        let start = start.get_mut(..there).unwrap_or_default();
        chains.read_back(layout.header_len, start);
        hashing.hash(start)
    };
    chains.write(HASH, &hash.emit());
    if layout.header_len > TUNNEL {
        let mut start = [0; 6];
        if layout.host_header_len > 0 {
            chains.read_back(FLAGS, &mut start);
        }
        if !layout.allowed.is_tunnel(start) {
            chains.write(TUNNEL, &[0; MAX_HEADER - TUNNEL]);
        }
    }
}

#[inline(always)]
fn push_used<M: QueueMemory>(queue: &mut VirtQueue<M>, chain: &Chain<M>, len: usize) {
    // A frame is shorter than 2^32 bytes; where it were not, less is claimed than was written.
    let len = u32::try_from(len).unwrap_or(u32::MAX);
    let pushed = queue.push_used(chain.head(), len);
    debug_assert!(pushed.is_ok(), "{pushed:?}");
}
