//! One ring, as a front end sets it up message by message.

use std::sync::Arc;

use virtio::F;
use virtio_bus::ActiveQueue;
use virtqueue::{QueueConfig, QueueIndex, QueueState};
use vm_memory::{Bytes, GuestAddress, GuestMemory};
use vmm_sys_util::eventfd::EventFd;

use crate::error::Refusal;
use crate::inflight::Inflight;
use crate::memory::Regions;
use crate::notify::Call;

/// Where the ring's three parts are for the front end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Addresses {
    pub(crate) descriptor: u64,
    pub(crate) available: u64,
    pub(crate) used: u64,
}

/// One ring's settings. Those of a ring that runs are frozen but for its call, its error descriptor and
/// whether it is enabled.
#[derive(Debug)]
pub(crate) struct Ring {
    pub(crate) max_size: u16,
    pub(crate) size: u16,
    pub(crate) addresses: Option<Addresses>,
    /// SET_VRING_BASE's number, or where it was stopped.
    pub(crate) base: Option<u32>,
    pub(crate) kick: Option<Arc<EventFd>>,
    pub(crate) call: Arc<Call>,
    /// SET_VRING_ENABLE's word.
    pub(crate) enabled: bool,
    /// The device has it.
    pub(crate) running: bool,
}

impl Ring {
    pub(crate) fn new(max_size: u16) -> Self {
        Self {
            max_size,
            size: max_size,
            addresses: None,
            base: None,
            kick: None,
            call: Arc::default(),
            enabled: false,
            running: false,
        }
    }

    /// Where it goes on from: where a ring begins, if nobody has said so.
    pub(crate) fn base(&self, packed: bool) -> u32 {
        let features = if packed { F::RING_PACKED } else { F::empty() };
        (self.base).unwrap_or_else(|| base(QueueState::initial(features), packed))
    }

    /// What the device needs to run ring `index`.
    pub(crate) fn activation<G: GuestMemory>(
        &self,
        index: u16,
        packed: bool,
        regions: &Regions,
        inflight: Option<&Inflight>,
        map: &G,
    ) -> Result<ActiveQueue, Refusal> {
        let missing = |missing| Refusal::NotSetUp {
            index: index.into(),
            missing,
        };
        let kick = self.kick.clone().ok_or(missing("SET_VRING_KICK"))?;
        let addresses = self.addresses.ok_or(missing("SET_VRING_ADDR"))?;
        let find = |area, address| {
            let index = index.into();
            regions.guest_address(address).ok_or(Refusal::Address {
                index,
                area,
                address,
            })
        };
        let config = QueueConfig {
            max_size: self.max_size,
            size: self.size,
            desc: find("descriptor", addresses.descriptor)?,
            driver: find("driver", addresses.available)?,
            device: find("device", addresses.used)?,
        };
        let base = self.base(packed);
        let state = if packed {
            packed_state(base)
        } else {
            split_state(base, config.device, map).map_err(|reason| Refusal::Base {
                index: index.into(),
                base,
                reason,
            })?
        };
        let (in_flight, state) = match inflight {
            None => (None, state),
            Some(inflight) => {
                let (record, state) = inflight.record(index, &config, packed, state, map)?;
                (Some(record), state)
            }
        };
        Ok(ActiveQueue {
            index: QueueIndex(index),
            config,
            state,
            kick,
            call: self.call.clone(),
            in_flight,
        })
    }
}

/// The base of a split ring is where the available ring stands; where the used ring does, its own memory
/// says.
fn split_state<G: GuestMemory>(base: u32, used: u64, map: &G) -> Result<QueueState, &'static str> {
    let next_avail = u16::try_from(base).map_err(|_| "a split ring's is 16 bits")?;
    let index = used.checked_add(2).map(GuestAddress);
    let next_used = index.and_then(|at| map.read_obj::<u16>(at).ok());
    Ok(QueueState {
        next_avail,
        next_used: u16::from_le(next_used.ok_or("the used index is not in guest memory")?),
    })
}

/// The base of a packed ring has where each side stands in 16 bits, with the wrap counter on top: the
/// driver's in the low half, the device's in the high half.
fn packed_state(base: u32) -> QueueState {
    let start = QueueState::initial(F::RING_PACKED);
    // Where a ring begins both halves are the same, and DPDK's virtio-user says the driver's alone, as it never
    // goes on from elsewhere. No ring stops so: all of it would be taken and nothing used.
    if base == u32::from(start.next_avail) {
        return start;
    }
    let [a, b, c, d] = base.to_le_bytes();
    QueueState {
        next_avail: u16::from_le_bytes([a, b]),
        next_used: u16::from_le_bytes([c, d]),
    }
}

/// What GET_VRING_BASE answers for a ring that stood at `state`.
pub(crate) fn base(state: QueueState, packed: bool) -> u32 {
    if packed {
        u32::from(state.next_used) << 16 | u32::from(state.next_avail)
    } else {
        state.next_avail.into()
    }
}

#[cfg(test)]
mod tests {
    use vm_memory::GuestMemoryMmap;

    use super::*;

    #[test]
    fn a_packed_ring_goes_on_from_the_base_that_it_gave() {
        let state = QueueState {
            next_avail: 0x8005,
            next_used: 0x0003,
        };
        assert_eq!(base(state, true), 0x0003_8005);
        assert_eq!(packed_state(0x0003_8005), state);
    }

    #[test]
    fn a_packed_ring_begins_where_virtio_user_says_half_of_it() {
        let start = QueueState {
            next_avail: 0x8000,
            next_used: 0x8000,
        };
        for base in [0x8000, 0x8000_8000] {
            assert_eq!(packed_state(base), start, "{base:#x}");
        }
        assert_eq!(packed_state(0), QueueState::default(), "after a lap");
    }

    #[test]
    fn a_split_ring_goes_on_from_its_base_and_the_used_index_in_memory() {
        let map = GuestMemoryMmap::<()>::from_ranges(&[(GuestAddress(0), 0x1000)]).unwrap();
        map.write_obj(7_u16.to_le(), GuestAddress(0x102)).unwrap();
        let state = QueueState {
            next_avail: 9,
            next_used: 7,
        };
        assert_eq!(split_state(9, 0x100, &map), Ok(state));
        assert_eq!(base(state, false), 9);
        assert!(split_state(0x1_0000, 0x100, &map).is_err(), "17 bits");
        assert!(split_state(9, 0x2000, &map).is_err(), "no memory");
        assert!(split_state(9, u64::MAX, &map).is_err(), "no address");
    }
}
