//! What a driver has set, read out as a whole and set as a whole.

mod bytes;

use virtio::{DeviceStatus, F, le128};
use virtqueue::{QueueConfig, QueueIndex, QueueState};
use vm_memory::GuestAddressSpace;
use vmstate::Error;

use super::{Hold, Interface, VirtioCore, lend};
use crate::device::Activation;
use crate::health::Health;
use crate::slot::{QueueSlot, size_is_legal};

use bytes::SECTION;

/// What a driver has set of what each transport has: status, features, and the registers of its queues, with where
/// the queues stand that the device has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SavedCore {
    /// Which registers the driver uses.
    pub interface: Option<Interface>,
    /// The status field, without DEVICE_NEEDS_RESET.
    pub status: DeviceStatus,
    /// What the driver has chosen, or is about to.
    pub features: F,
    /// `device_feature_select`
    pub device_feature_select: u32,
    /// `driver_feature_select`
    pub driver_feature_select: u32,
    /// `queue_select`
    pub queue_select: u16,
    /// `config_generation`
    pub generation: u8,
    /// The configuration has changed since the generation was last looked at.
    pub config_changed: bool,
    /// Whether the device runs, is broken, is suspended, and owes a notification: the bits of [`Health`].
    pub health: u8,
    /// What the configuration space was when the driver suspended the device.
    pub suspended: Option<Vec<u8>>,
    /// The driver has taken away the right to access memory.
    pub held_by_bus_master: bool,
    /// All queues that the device can have.
    pub queues: Vec<SavedQueue>,
}

/// A queue of a [`SavedCore`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SavedQueue {
    /// Who has it.
    pub phase: QueuePhase,
    /// Its registers.
    pub config: QueueConfig,
    /// Where it stands. `None`: at its beginning.
    pub state: Option<QueueState>,
}

/// Who has a queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum QueuePhase {
    /// The driver, which is setting it up.
    Setup,
    /// Nobody: it is enabled and goes to the device at DRIVER_OK.
    Enabled,
    /// The device.
    Live,
}

impl<M: GuestAddressSpace> VirtioCore<M> {
    /// What the driver has set, and where the queues stand. The VMM holds the device meanwhile.
    ///
    /// `None` where the device has a queue and cannot say where it stands: such a device cannot be saved.
    pub fn save(&self) -> Option<SavedCore> {
        let queue = |(index, queue): (u16, &super::Queue)| {
            Some(SavedQueue {
                phase: queue.slot.phase(),
                config: *queue.slot.config(),
                state: if queue.slot.is_live() {
                    Some(self.device.queue_state(QueueIndex(index))?)
                } else {
                    queue.state
                },
            })
        };
        let queues = (0..=u16::MAX).zip(&self.queues).map(queue);
        let (health, config_changed) = self.health.save();
        Some(SavedCore {
            interface: self.interface,
            status: self.status,
            features: self.features.chosen,
            device_feature_select: self.features.device_select,
            driver_feature_select: self.features.driver_select,
            queue_select: self.queue_select,
            generation: self.generation,
            config_changed,
            health,
            suspended: self.suspended.as_deref().map(<[u8]>::to_vec),
            held_by_bus_master: self.held_by_bus_master,
            queues: queues.collect::<Option<_>>()?,
        })
    }

    /// Sets in the registers of a fresh device, which the VMM holds, what was saved of one that was made as it: the
    /// device has the queues that it had, and then takes over `device`, which [`VirtioDevice::save`] made. The transport
    /// then binds kicks and calls [`kick_live`](Self::kick_live).
    ///
    /// # Errors
    /// When the device is another, or the host or guest memory does not let it go on. To be
    /// [reset](Self::reset) then.
    ///
    /// [`VirtioDevice::save`]: crate::VirtioDevice::save
    pub fn restore(&mut self, saved: &SavedCore, device: &[u8]) -> Result<(), Error> {
        self.check(saved)?;
        self.interface = saved.interface;
        self.features.chosen = saved.features;
        self.features.device_select = saved.device_feature_select;
        self.features.driver_select = saved.driver_feature_select;
        self.queue_select = saved.queue_select;
        self.generation = saved.generation;
        for (mine, saved) in self.queues.iter_mut().zip(&saved.queues) {
            mine.slot = QueueSlot::restored(saved.phase, saved.config);
            mine.state = saved.state;
        }
        self.set_hold(Hold::BusMaster, saved.held_by_bus_master);
        let runs = saved.health & Health::LIVE != 0;
        if runs || saved.status.contains(DeviceStatus::FEATURES_OK) {
            self.restore_features(saved.interface)?;
        }
        if runs {
            self.restore_queues(saved)?;
        }
        self.device.restore(device)?;
        self.status = saved.status;
        self.suspended = saved.suspended.as_deref().map(Into::into);
        self.health.restore((saved.health, saved.config_changed));
        Ok(())
    }

    fn check(&self, saved: &SavedCore) -> Result<(), Error> {
        let refused = |field: &str, reason: String| Err(Error::refused(SECTION, field, reason));
        if saved.interface == Some(Interface::Legacy) && self.legacy.is_none() {
            return refused("interface", "the device has no legacy interface".into());
        }
        let known = DeviceStatus::all() - DeviceStatus::DEVICE_NEEDS_RESET;
        if !known.contains(saved.status) {
            return refused("status", format!("no status is {:#x}", saved.status.bits()));
        }
        let is = |bit| saved.health & bit != 0;
        let is_known = saved.health & !Health::KNOWN == 0;
        // A driver runs its device at DRIVER_OK, and only a legacy one before.
        let may_run = saved.status.contains(DeviceStatus::FEATURES_OK)
            || saved.interface == Some(Interface::Legacy);
        if !is_known || is(Health::LIVE) && !may_run {
            return refused("health", format!("no health is {:#x} then", saved.health));
        }
        let len = self.device.config_len();
        let suspended = saved.suspended.as_ref().map(Vec::len);
        if is(Health::SUSPENDED) != suspended.is_some() || suspended.is_some_and(|it| it != len) {
            let reason = format!("{suspended:?} bytes of {len}");
            return refused("suspended", reason);
        }
        let (theirs, mine) = (saved.queues.len(), self.queues.len());
        if theirs != mine {
            let reason = format!("{theirs} queues, and the device has {mine}");
            return refused("queues", reason);
        }
        let packed = saved.features.contains(F::RING_PACKED);
        for (index, (saved, mine)) in saved.queues.iter().zip(&self.queues).enumerate() {
            let QueueConfig { max_size, size, .. } = saved.config;
            let most = mine.slot.config().max_size;
            if max_size != most {
                let reason = format!("up to {max_size} entries, and the device's has up to {most}");
                return refused(&format!("queues[{index}].max_size"), reason);
            }
            // As a driver finds it, even where that is no size for split rings.
            if size != most && !size_is_legal(size, most, packed) {
                return refused(
                    &format!("queues[{index}].size"),
                    format!("no queue has {size} entries"),
                );
            }
            let is_live = saved.phase == QueuePhase::Live;
            if is_live && !is(Health::LIVE) || max_size == 0 && saved.phase != QueuePhase::Setup {
                return refused(
                    &format!("queues[{index}].phase"),
                    format!("{:?} in a device that does not run it", saved.phase),
                );
            }
        }
        Ok(())
    }

    fn restore_features(&self, interface: Option<Interface>) -> Result<(), Error> {
        let chosen = self.features.chosen;
        let offered = match (interface, self.legacy) {
            (Some(Interface::Legacy), Some(adds)) => {
                (self.features.offered | adds) & legacy_features()
            }
            _ => self.features.offered,
        };
        let refused = |reason: String| Error::refused(SECTION, "features", reason);
        let missing = chosen - offered;
        if !missing.is_empty() {
            return Err(refused(format!("the device does not offer {missing:?}")));
        }
        self.device
            .negotiate(chosen)
            .map_err(|error| refused(error.to_string()))
    }

    /// Gives the device the queues that it had.
    fn restore_queues(&mut self, saved: &SavedCore) -> Result<(), Error> {
        let had = |index: u16| {
            let saved = saved.queues.get(usize::from(index));
            saved.is_some_and(|saved| saved.phase == QueuePhase::Live)
        };
        let features = self.features.chosen;
        let queues: Vec<_> = (0..=u16::MAX)
            .zip(&mut self.queues)
            .filter(|(index, _)| had(*index))
            .filter_map(|(index, queue)| lend(QueueIndex(index), queue, features))
            .collect();
        if queues.is_empty() && saved.health & Health::BROKEN != 0 {
            // It did not start there either.
            return Ok(());
        }
        let activation = Activation {
            features,
            memory: self.memory.clone(),
            queues,
        };
        self.device.activate(activation).map_err(|refused| {
            for queue in refused.queues {
                if let Some(mine) = self.queues.get_mut(usize::from(queue.index.0)) {
                    mine.slot.give_back();
                }
            }
            Error::refused(SECTION, "queues", refused.error.to_string())
        })
    }
}

/// The features that the legacy interface shows.
fn legacy_features() -> F {
    F::from_bits_retain(le128::from_ne(u32::MAX.into()))
}
