//! [`SavedCore`] as bytes.

use virtio::{DeviceStatus, F, le128};
use virtqueue::{QueueConfig, QueueState};
use vmstate::{Error, Fields, Reader, Section, Writer};

use super::{QueuePhase, SavedCore, SavedQueue};
use crate::core::Interface;

/// The section that [`SavedCore::write`] writes.
pub(super) const SECTION: &str = "virtio";
const VERSION: u16 = 1;

impl SavedCore {
    /// Adds the section `virtio`.
    pub fn write(&self, to: &mut Writer) {
        let Self {
            interface,
            status,
            features,
            device_feature_select,
            driver_feature_select,
            queue_select,
            generation,
            config_changed,
            health,
            suspended,
            held_by_bus_master,
            queues,
        } = self;
        to.section(SECTION, VERSION, |fields| {
            fields.u8(match interface {
                None => 0,
                Some(Interface::Modern) => 1,
                Some(Interface::Legacy) => 2,
            });
            fields.u8(status.bits());
            fields.u128(features.bits().to_ne());
            fields.u32(*device_feature_select);
            fields.u32(*driver_feature_select);
            fields.u16(*queue_select);
            fields.u8(*generation);
            fields.bool(*config_changed);
            fields.u8(*health);
            fields.option(suspended.as_ref(), |fields, config| fields.bytes(config));
            fields.bool(*held_by_bus_master);
            fields.list(queues, |fields, queue| queue.write(fields));
        });
    }

    /// Takes the section `virtio`.
    ///
    /// # Errors
    /// When it is missing, or not as [`write`](Self::write) writes it.
    pub fn read(from: &mut Reader<'_>) -> Result<Self, Error> {
        let mut section = from.section(SECTION, VERSION)?;
        let saved = Self {
            interface: match section.u8("interface")? {
                0 => None,
                1 => Some(Interface::Modern),
                2 => Some(Interface::Legacy),
                other => {
                    return Err(section.refused("interface", format!("no interface is {other}")));
                }
            },
            status: DeviceStatus::from_bits_retain(section.u8("status")?),
            features: F::from_bits_retain(le128::from_ne(section.u128("features")?)),
            device_feature_select: section.u32("device_feature_select")?,
            driver_feature_select: section.u32("driver_feature_select")?,
            queue_select: section.u16("queue_select")?,
            generation: section.u8("generation")?,
            config_changed: section.bool("config_changed")?,
            health: section.u8("health")?,
            suspended: section.option("suspended", |section| {
                section.bytes("suspended").map(<[u8]>::to_vec)
            })?,
            held_by_bus_master: section.bool("held_by_bus_master")?,
            queues: section.list("queues", usize::from(u16::MAX), SavedQueue::read)?,
        };
        section.finish()?;
        Ok(saved)
    }
}

impl SavedQueue {
    fn write(&self, fields: &mut Fields<'_>) {
        let Self {
            phase,
            config,
            state,
        } = self;
        let QueueConfig {
            max_size,
            size,
            desc,
            driver,
            device,
        } = config;
        fields.u8(match phase {
            QueuePhase::Setup => 0,
            QueuePhase::Enabled => 1,
            QueuePhase::Live => 2,
        });
        fields.u16(*max_size);
        fields.u16(*size);
        fields.u64(*desc);
        fields.u64(*driver);
        fields.u64(*device);
        fields.option(*state, |fields, state| {
            fields.u16(state.next_avail);
            fields.u16(state.next_used);
        });
    }

    fn read(section: &mut Section<'_>) -> Result<Self, Error> {
        Ok(Self {
            phase: match section.u8("queues.phase")? {
                0 => QueuePhase::Setup,
                1 => QueuePhase::Enabled,
                2 => QueuePhase::Live,
                other => {
                    return Err(section.refused("queues.phase", format!("no phase is {other}")));
                }
            },
            config: QueueConfig {
                max_size: section.u16("queues.max_size")?,
                size: section.u16("queues.size")?,
                desc: section.u64("queues.desc")?,
                driver: section.u64("queues.driver")?,
                device: section.u64("queues.device")?,
            },
            state: section.option("queues.state", |section| {
                Ok(QueueState {
                    next_avail: section.u16("queues.next_avail")?,
                    next_used: section.u16("queues.next_used")?,
                })
            })?,
        })
    }
}
