//! The queue as its one holder uses it.

use std::fmt;
use std::ptr;
use std::sync::Arc;

use virtio::F;
use vm_memory::GuestMemory;

use crate::error::Fault;
use crate::in_flight::{InFlightRecord, Recorder};
use crate::in_order::InOrder;
use crate::memory::Translation;
use crate::packed::PackedQueue;
use crate::short::{Pieces, Short};
use crate::split::SplitQueue;
use crate::{Chain, QueueConfig, QueueError, QueueMemory, QueueState};

/// The most segments that a chain may have in one direction, whatever the size of the queue or of an
/// indirect table. Also what Linux takes in one `readv`. [QEMU: VIRTQUEUE_MAX_SIZE]
pub const MAX_SEGMENTS: usize = 1024;

/// The device's half of one queue. See the crate's text for how it is used.
///
/// Keeps a snapshot of guest memory, looked at anew whenever a batch begins, so that a change of the map is
/// seen at the next batch.
pub struct VirtQueue<M: QueueMemory> {
    config: QueueConfig,
    memory: M,
    /// What `ring` and `translation` point into.
    map: M::T,
    ring: Ring,
    translation: Translation,
    indirect: bool,
    /// By head: how many entries of the ring its chain has, while it is taken and not yet on the used ring.
    in_flight: Box<[u16]>,
    /// Chains that were popped and not completed.
    in_flight_count: u16,
    /// What few queues have.
    aside: Option<Box<Aside>>,
    broken: bool,
}

/// What is kept beside the queue, out of the way of those that have none of it.
#[derive(Default)]
struct Aside {
    /// With `VIRTIO_F_IN_ORDER`: what was completed before its turn.
    in_order: Option<InOrder>,
    /// With a record of what is in flight: that.
    recorder: Option<Recorder>,
}

/// The rings in the format that was negotiated, and where the device stands in them.
enum Ring {
    Split(SplitQueue),
    Packed(PackedQueue),
}

/// What a ring needs of its queue to take a chain.
pub(crate) struct Taking<'a, M: QueueMemory> {
    pub(crate) map: &'a M::T,
    pub(crate) translation: &'a mut Translation,
    pub(crate) in_flight: &'a mut [u16],
    /// `VIRTIO_F_INDIRECT_DESC` was negotiated.
    pub(crate) indirect: bool,
}

impl Aside {
    /// Something is to be taken again.
    fn is_recovering(&self) -> bool {
        (self.recorder.as_ref()).is_some_and(|recorder| recorder.next().is_some())
    }
}

impl<M: QueueMemory> VirtQueue<M> {
    /// Makes the queue that a driver has set up, to go on from `state`, in the format that `features` say:
    /// packed with `VIRTIO_F_RING_PACKED`, else split.
    ///
    /// # Errors
    /// When the size, the addresses or the state cannot be, or the rings are not in guest memory.
    pub fn new(
        config: &QueueConfig,
        state: QueueState,
        features: F,
        memory: M,
    ) -> Result<Self, QueueError> {
        // Cloned: the first may be a guard that is meant to be short-lived.
        let map = memory.memory().clone();
        let ring = if features.contains(F::RING_PACKED) {
            Ring::Packed(PackedQueue::new(config, state, features, &*map)?)
        } else {
            Ring::Split(SplitQueue::new(config, state, features, &*map)?)
        };
        let aside = features.contains(F::IN_ORDER).then(|| {
            Box::new(Aside {
                in_order: Some(InOrder::new(config.size, ring.next_position())),
                recorder: None,
            })
        });
        Ok(Self {
            config: *config,
            memory,
            map,
            ring,
            translation: Translation::NONE,
            indirect: features.contains(F::INDIRECT_DESC),
            in_flight: vec![0; usize::from(config.size)].into_boxed_slice(),
            in_flight_count: 0,
            aside,
            broken: false,
        })
    }

    /// Has the queue keep `record`, and take what is in flight by it before anything of the ring. The queue was made
    /// to go on from a state in which nothing is in flight: from where the used ring stands.
    #[must_use]
    pub fn with_record(mut self, record: Arc<dyn InFlightRecord>) -> Self {
        let recorder = Recorder::new(record, self.config.size);
        self.aside.get_or_insert_default().recorder = Some(recorder);
        self
    }

    /// Takes the next available chain into `chain`, replacing what it held. `false` when there is none.
    ///
    /// # Errors
    /// When what the driver wrote makes no sense. The queue is broken from then on: each further
    /// call is [`QueueError::Broken`], and the device asks for a reset.
    #[doc(alias = "virtqueue_pop")]
    #[inline(always)]
    pub fn pop(&mut self, chain: &mut Chain<M>) -> Result<bool, QueueError> {
        if self.broken {
            return Err(QueueError::Broken);
        }
        match self.try_pop(chain) {
            Ok(popped) => Ok(popped),
            Err(fault) => {
                self.broken = true;
                chain.clear();
                Err(*fault)
            }
        }
    }

    /// Looks at the next chain of a batch that [`pop`](Self::pop) has begun. `None`: it is to be popped, as there is none, or
    /// it is not a short one, or makes no sense, or completions may have to wait for others (`VIRTIO_F_IN_ORDER`), or a
    /// record is kept of what is in flight.
    ///
    /// What is shown has been checked, and each value of it was read once.
    #[inline(always)]
    pub fn peek(&mut self) -> Option<Short<'_, M>> {
        if self.broken || self.aside.is_some() {
            return None;
        }
        let pieces = match &self.ring {
            Ring::Split(split) => split.peek(&self.in_flight, &self.translation),
            Ring::Packed(packed) => packed.peek(&self.in_flight, &self.translation),
        }?;
        Some(Short::new(self, pieces))
    }

    /// Gives back the chain that was popped last, as if it had not been. `false`, and nothing done,
    /// when another one was popped after it or it is not in flight.
    #[doc(alias = "virtqueue_unpop")]
    pub fn undo_pop(&mut self, chain: &mut Chain<M>) -> bool {
        let head = chain.head();
        if chain.position() != self.next_position().wrapping_sub(1) || !self.is_in_flight(head) {
            return false;
        }
        let count = self.end_flight(head);
        match &mut self.ring {
            Ring::Split(split) => split.undo_pop(),
            Ring::Packed(packed) => packed.undo_pop(count),
        }
        self.in_flight_count -= 1;
        if let Some(recorder) = self.recorder() {
            recorder.undone(head);
            if recorder.next().is_some() {
                self.ring.set_drained();
            }
        }
        chain.clear();
        true
    }

    /// Says that the chain of `head` is done with, and that `len` bytes were written into it, from its first on.
    /// The driver sees it after [`publish`](Self::publish); with `VIRTIO_F_IN_ORDER`, after the first
    /// `publish` when all chains that were made available before it are done with too.
    ///
    /// # Errors
    /// [`QueueError::NotInFlight`] when `head` was not popped or was completed before.
    #[doc(alias = "virtqueue_fill")]
    #[inline(always)]
    pub fn push_used(&mut self, head: u16, len: u32) -> Result<(), QueueError> {
        if self.aside.is_some() {
            return self.push_aside(head, len);
        }
        match self.in_flight.get_mut(usize::from(head)) {
            Some(count) if *count != 0 => {
                self.in_flight_count -= 1;
                let count = std::mem::take(count);
                self.ring.write_used(head, len, count);
                Ok(())
            }
            _ => Err(QueueError::NotInFlight(head)),
        }
    }

    /// Publishes what was staged, and says how many elements that was.
    #[doc(alias = "virtqueue_flush")]
    #[inline]
    pub fn publish(&mut self) -> u16 {
        if self.aside.is_some() {
            return self.publish_aside();
        }
        self.ring.publish(&*self.map)
    }

    /// Whether the driver wants to hear of what was published since the last call (virtio 1.4, 2.7.7, 2.8.10).
    /// Asked once after each [`publish`](Self::publish).
    #[doc(alias = "virtio_should_notify")]
    pub fn needs_notification(&mut self) -> bool {
        match &mut self.ring {
            Ring::Split(split) => split.needs_notification(),
            Ring::Packed(packed) => packed.needs_notification(),
        }
    }

    /// Tells the driver that the device need not be notified. Advice: it may be all the same.
    pub fn disable_notifications(&mut self) {
        match &mut self.ring {
            Ring::Split(split) => split.disable_notifications(&*self.map),
            Ring::Packed(packed) => packed.disable_notifications(&*self.map),
        }
    }

    /// Asks for a notification when more chains become available, then looks once more: `true` when some
    /// already are, for which none may come.
    ///
    /// # Errors
    /// As [`pop`](Self::pop).
    #[doc(alias = "virtio_queue_set_notification")]
    pub fn enable_notifications(&mut self) -> Result<bool, QueueError> {
        if self.broken {
            return Err(QueueError::Broken);
        }
        if self.aside.as_deref().is_some_and(Aside::is_recovering) {
            return Ok(true);
        }
        let more = match &mut self.ring {
            Ring::Split(split) => split.enable_notifications(&*self.map),
            Ring::Packed(packed) => Ok(packed.enable_notifications(&*self.map)),
        };
        self.broken |= more.is_err();
        more.map_err(|fault| *fault)
    }

    /// Where the queue stands: what it takes to go on elsewhere. Staged elements are not in it, and
    /// chains in flight are lost to it, so both are settled first.
    pub fn state(&self) -> QueueState {
        match &self.ring {
            Ring::Split(split) => split.state(),
            Ring::Packed(packed) => packed.state(),
        }
    }

    /// The [`position`](Chain::position) that the chain popped next will have.
    pub fn next_position(&self) -> u16 {
        self.ring.next_position()
    }

    /// Size and addresses.
    pub fn config(&self) -> &QueueConfig {
        &self.config
    }

    /// Entries.
    pub fn size(&self) -> u16 {
        self.config.size
    }

    /// Whether the rings are packed.
    pub fn is_packed(&self) -> bool {
        matches!(self.ring, Ring::Packed(_))
    }

    /// Chains that were popped and not completed.
    pub fn in_flight(&self) -> u16 {
        self.in_flight_count
    }

    /// Whether an error has stopped the queue.
    pub fn is_broken(&self) -> bool {
        self.broken
    }

    #[inline(always)]
    fn try_pop(&mut self, chain: &mut Chain<M>) -> Result<bool, Fault> {
        let Self {
            config,
            memory,
            map,
            translation,
            ..
        } = self;
        // A batch begins where what was seen to be available is taken.
        let popped = match &mut self.ring {
            Ring::Split(split) => {
                if split.is_drained() {
                    follow_map(memory, map, translation, |now| split.follow(config, now))?;
                    // As long as something is to be taken again, the ring counts as drained.
                    if self.aside.as_deref().is_some_and(Aside::is_recovering) {
                        return self.take_again(chain);
                    }
                    if !split.look()? {
                        return Ok(false);
                    }
                }
                let taking = Taking {
                    map,
                    translation,
                    in_flight: &mut self.in_flight,
                    indirect: self.indirect,
                };
                Some(split.pop(taking, chain)?)
            }
            Ring::Packed(packed) => {
                if packed.is_drained() {
                    follow_map(memory, map, translation, |now| packed.follow(config, now))?;
                    if self.aside.as_deref().is_some_and(Aside::is_recovering) {
                        return self.take_again(chain);
                    }
                }
                let taking = Taking {
                    map,
                    translation,
                    in_flight: &mut self.in_flight,
                    indirect: self.indirect,
                };
                packed.pop(taking, chain)?
            }
        };
        let Some(head) = popped else {
            return Ok(false);
        };
        // At most `size` heads are in flight.
        self.in_flight_count += 1;
        if self.aside.is_some() {
            self.popped_aside(head, chain.position());
        }
        Ok(true)
    }

    /// Takes the next chain once more of those that are in flight by the record.
    #[cold]
    #[inline(never)]
    fn take_again(&mut self, chain: &mut Chain<M>) -> Result<bool, Fault> {
        let Some(aside) = &mut self.aside else {
            return Ok(false);
        };
        let Some(recorder) = &mut aside.recorder else {
            return Ok(false);
        };
        let Some(in_flight) = recorder.next().cloned() else {
            return Ok(false);
        };
        let taking = Taking {
            map: &self.map,
            translation: &mut self.translation,
            in_flight: &mut self.in_flight,
            indirect: self.indirect,
        };
        let head = match &mut self.ring {
            Ring::Split(split) => split.take_again(taking, in_flight.head, chain)?,
            Ring::Packed(packed) => packed.take_again(taking, &in_flight.descriptors, chain)?,
        };
        recorder.popped_again();
        self.in_flight_count += 1;
        if let Some(in_order) = &mut aside.in_order {
            in_order.popped(head, chain.position());
        }
        Ok(true)
    }

    /// What was popped, for those who want to know.
    #[inline(never)]
    fn popped_aside(&mut self, head: u16, position: u16) {
        let Some(aside) = &mut self.aside else {
            return;
        };
        if let Some(in_order) = &mut aside.in_order {
            in_order.popped(head, position);
        }
        if let Some(recorder) = &mut aside.recorder {
            if let Ring::Packed(packed) = &self.ring {
                let count = self.in_flight.get(usize::from(head));
                packed.taken_last(
                    count.copied().unwrap_or_default(),
                    &mut recorder.descriptors,
                );
            }
            recorder.popped(head);
        }
    }

    #[inline(never)]
    fn push_aside(&mut self, head: u16, len: u32) -> Result<(), QueueError> {
        if !self.is_in_flight(head) {
            return Err(QueueError::NotInFlight(head));
        }
        self.in_flight_count -= 1;
        let Some(mut aside) = self.aside.take() else {
            return Ok(());
        };
        match &mut aside.in_order {
            Some(in_order) => {
                in_order.complete(head, len);
                while let Some(next) = in_order.next() {
                    self.stage(&mut aside.recorder, next.head, next.len);
                }
            }
            None => self.stage(&mut aside.recorder, head, len),
        }
        self.aside = Some(aside);
        Ok(())
    }

    fn stage(&mut self, recorder: &mut Option<Recorder>, head: u16, len: u32) {
        let count = self.end_flight(head);
        self.ring.write_used(head, len, count);
        if let Some(recorder) = recorder {
            recorder.staged(head);
        }
    }

    #[inline(never)]
    fn publish_aside(&mut self) -> u16 {
        let next_used = self.ring.next_used_then();
        if let Some(recorder) = self.recorder() {
            recorder.publishing(next_used);
        }
        let published = self.ring.publish(&*self.map);
        if let Some(recorder) = self.recorder() {
            recorder.published(next_used);
        }
        published
    }

    #[inline]
    fn recorder(&mut self) -> Option<&mut Recorder> {
        self.aside.as_mut()?.recorder.as_mut()
    }

    /// Whether `head` was popped and not completed since.
    #[inline]
    fn is_in_flight(&self, head: u16) -> bool {
        let taken = self
            .in_flight
            .get(usize::from(head))
            .is_some_and(|n| *n != 0);
        // What was completed before its turn is not the driver's yet, and not the device's any more.
        taken
            && !self
                .aside
                .as_ref()
                .and_then(|aside| aside.in_order.as_ref())
                .is_some_and(|order| order.is_done(head))
    }

    /// Forgets a chain that is in flight; how many entries it has.
    #[inline]
    fn end_flight(&mut self, head: u16) -> u16 {
        self.in_flight
            .get_mut(usize::from(head))
            .map_or(0, std::mem::take)
    }
}

/// What is done with a [`Short`].
impl<M: QueueMemory> VirtQueue<M> {
    /// The chain that was shown is taken and done with.
    #[inline(always)]
    pub(crate) fn complete_next(&mut self, pieces: &Pieces, len: u32) {
        match &mut self.ring {
            Ring::Split(split) => {
                split.take_next();
                split.write_used(pieces.head, len);
            }
            Ring::Packed(packed) => {
                packed.take_next(pieces.count);
                packed.write_used(pieces.head, len, pieces.count);
            }
        }
    }

    /// The chain that was shown is taken into `chain`.
    pub(crate) fn take_next(&mut self, pieces: &Pieces, chain: &mut Chain<M>) {
        chain.set_pieces(pieces, self.next_position(), &self.map);
        let taken = match &mut self.ring {
            Ring::Split(split) => {
                split.take_next();
                1
            }
            Ring::Packed(packed) => {
                packed.take_next(pieces.count);
                pieces.count
            }
        };
        if let Some(entries) = self.in_flight.get_mut(usize::from(pieces.head)) {
            *entries = taken;
            self.in_flight_count += 1;
        }
    }

    #[inline(always)]
    pub(crate) fn map(&self) -> &M::M {
        &self.map
    }
}

/// Takes a new snapshot if the map of guest memory has changed, in which the ring is to `follow`.
#[inline(never)]
fn follow_map<M: QueueMemory>(
    memory: &M,
    map: &mut M::T,
    translation: &mut Translation,
    follow: impl FnOnce(&M::M) -> Result<(), QueueError>,
) -> Result<(), QueueError> {
    let now = memory.memory();
    // `map` is alive, so a new snapshot cannot have its address.
    if !ptr::eq(&*now, &**map) {
        let now = now.clone();
        follow(&*now)?;
        *translation = Translation::NONE;
        *map = now;
    }
    Ok(())
}

impl Ring {
    /// What is seen to be available is looked for anew, from where the device stands.
    fn set_drained(&mut self) {
        match self {
            Self::Split(split) => split.set_drained(),
            Self::Packed(packed) => packed.set_drained(),
        }
    }

    /// Where the used ring stands once what is staged is published.
    fn next_used_then(&self) -> u16 {
        match self {
            Self::Split(split) => split.next_used_then(),
            Self::Packed(packed) => packed.next_used_then(),
        }
    }

    #[inline]
    fn publish<G: GuestMemory>(&mut self, map: &G) -> u16 {
        match self {
            Self::Split(split) => split.publish(map),
            Self::Packed(packed) => packed.publish(map),
        }
    }

    /// Stages a chain of so many entries as used.
    #[inline]
    fn write_used(&mut self, head: u16, len: u32, count: u16) {
        match self {
            Self::Split(split) => split.write_used(head, len),
            Self::Packed(packed) => packed.write_used(head, len, count),
        }
    }

    #[inline]
    fn next_position(&self) -> u16 {
        match self {
            Self::Split(split) => split.next_position(),
            Self::Packed(packed) => packed.next_position(),
        }
    }

    fn staged(&self) -> u16 {
        match self {
            Self::Split(split) => split.staged(),
            Self::Packed(packed) => packed.staged(),
        }
    }
}

impl<M: QueueMemory> fmt::Debug for VirtQueue<M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("VirtQueue")
            .field("config", &self.config)
            .field("packed", &self.is_packed())
            .field("state", &self.state())
            .field("staged", &self.ring.staged())
            .field("in_flight", &self.in_flight_count)
            .field("broken", &self.broken)
            .finish_non_exhaustive()
    }
}
