//! A PCI bus: 256 places for functions, and how configuration accesses reach them.

use std::collections::BTreeMap;
use std::collections::btree_map;
use std::sync::{Arc, RwLock};

use crate::Error;
use crate::address::DevFn;
use crate::function::{Attachment, PciFunction};
use crate::intx::{IntxRouter, LineShare};
use crate::irq::IntxPin;
use crate::lock::Shared;
use crate::registers::{HEADER_TYPE, MULTI_FUNCTION};
use crate::windows::{FunctionWindows, Owner, WindowMap};

/// A PCI bus: functions come and go at any time, accesses come from any thread.
///
/// Its locks are held while it looks a function up, never while it calls one.
#[derive(Debug)]
pub struct PciBus {
    number: u8,
    is_express_port: bool,
    slots: RwLock<BTreeMap<DevFn, Slot>>,
    windows: Arc<WindowMap>,
    intx: IntxRouter,
}

/// A place that is not free.
#[derive(Debug)]
enum Slot {
    /// A function is on its way onto the bus; nobody sees it yet.
    Reserved,
    /// A function is there.
    Taken(Occupant),
}

#[derive(Clone, Debug)]
struct Occupant {
    function: Arc<dyn PciFunction>,
    owner: Owner,
    line: Arc<LineShare>,
}

impl PciBus {
    pub(crate) fn new(number: u8, windows: Arc<WindowMap>, intx: IntxRouter) -> Self {
        Self {
            number,
            is_express_port: false,
            slots: RwLock::default(),
            windows,
            intx,
        }
    }

    /// The number that configuration accesses have for this bus.
    pub fn number(&self) -> u8 {
        self.number
    }

    /// Whether the bus is the link below a PCI Express port, where functions are endpoints. A root bus is not,
    /// whatever its host.
    pub fn is_express_port(&self) -> bool {
        self.is_express_port
    }

    /// Puts `function` at `devfn`; software sees it from then on.
    ///
    /// # Errors
    /// [`Error::SlotInUse`], or what [`PciFunction::attached`] says; the place is free then.
    pub fn attach(&self, devfn: DevFn, function: Arc<dyn PciFunction>) -> Result<(), Error> {
        match self.slots.writing().entry(devfn) {
            btree_map::Entry::Occupied(_) => return Err(Error::SlotInUse(devfn)),
            btree_map::Entry::Vacant(entry) => entry.insert(Slot::Reserved),
        };
        let line = self.intx.share(devfn, function.interrupt_pin());
        let owner = self.windows.owner();
        let attachment = Attachment {
            devfn,
            intx: line.clone(),
            forwarding: Arc::new(FunctionWindows {
                map: Arc::downgrade(&self.windows),
                owner,
            }),
        };
        if let Err(error) = function.attached(attachment) {
            line.disconnect();
            self.slots.writing().remove(&devfn);
            return Err(error);
        }
        let place = (self.number, devfn);
        self.windows.add(owner, place, function.clone());
        let occupant = Occupant {
            function,
            owner,
            line,
        };
        self.slots.writing().insert(devfn, Slot::Taken(occupant));
        Ok(())
    }

    /// Takes the function at `devfn` off the bus and returns it.
    ///
    /// # Errors
    /// [`Error::SlotEmpty`].
    pub fn detach(&self, devfn: DevFn) -> Result<Arc<dyn PciFunction>, Error> {
        let occupant = {
            let mut slots = self.slots.writing();
            let Some(Slot::Taken(occupant)) = slots.get(&devfn) else {
                return Err(Error::SlotEmpty(devfn));
            };
            let occupant = occupant.clone();
            // The place is not free for the next one before this one has left it.
            slots.insert(devfn, Slot::Reserved);
            occupant
        };
        self.windows.remove(occupant.owner);
        occupant.function.detached();
        occupant.line.disconnect();
        self.slots.writing().remove(&devfn);
        Ok(occupant.function)
    }

    /// The function at `devfn`.
    pub fn function(&self, devfn: DevFn) -> Option<Arc<dyn PciFunction>> {
        self.occupant(devfn).map(|occupant| occupant.function)
    }

    /// All functions, by their places.
    pub fn slots(&self) -> Vec<(DevFn, Arc<dyn PciFunction>)> {
        let slots = self.slots.reading();
        let taken = slots.iter().filter_map(|(devfn, slot)| match slot {
            Slot::Reserved => None,
            Slot::Taken(occupant) => Some((*devfn, occupant.function.clone())),
        });
        taken.collect()
    }

    /// Function 0 of the lowest device number that no function has.
    ///
    /// # Errors
    /// [`Error::NoFreeSlot`].
    pub fn next_free_slot(&self) -> Result<DevFn, Error> {
        let slots = self.slots.reading();
        let taken = |device| slots.keys().any(|devfn| devfn.device() == device);
        let device = (0..32).find(|device| !taken(*device));
        DevFn::new(device.ok_or(Error::NoFreeSlot)?, 0)
    }

    /// Reads configuration space of the function at `devfn`: ones if there is none. The access
    /// keeps what [`PciFunction::config_read`] promises.
    pub(crate) fn config_read(&self, devfn: DevFn, offset: u16, data: &mut [u8]) {
        let Some(occupant) = self.occupant(devfn) else {
            data.fill(0xff);
            return;
        };
        occupant.function.config_read(offset, data);
        let header_type = HEADER_TYPE.checked_sub(offset).map(usize::from);
        if let Some(byte) = header_type.and_then(|at| data.get_mut(at))
            && self.has_siblings(devfn)
        {
            *byte |= MULTI_FUNCTION;
        }
    }

    /// Writes configuration space, under the same promises.
    pub(crate) fn config_write(&self, devfn: DevFn, offset: u16, data: &[u8]) {
        let Some(occupant) = self.occupant(devfn) else {
            return;
        };
        let effect = occupant.function.config_write(offset, data);
        if effect.windows_changed {
            self.windows
                .update(occupant.owner, occupant.function.as_ref());
        }
    }

    /// Resets the function at `devfn`, if there is one.
    pub fn reset_function(&self, devfn: DevFn) {
        if let Some(occupant) = self.occupant(devfn) {
            occupant.function.reset();
            self.windows
                .update(occupant.owner, occupant.function.as_ref());
        }
    }

    /// Resets all functions.
    pub(crate) fn reset(&self) {
        let occupants: Vec<_> = self
            .slots
            .reading()
            .values()
            .filter_map(|slot| match slot {
                Slot::Reserved => None,
                Slot::Taken(occupant) => Some(occupant.clone()),
            })
            .collect();
        for occupant in occupants {
            occupant.function.reset();
            self.windows
                .update(occupant.owner, occupant.function.as_ref());
        }
    }

    /// The interrupt line of the machine that `pin` of `devfn` ends in.
    pub(crate) fn gsi(&self, devfn: DevFn, pin: IntxPin) -> u32 {
        self.intx.gsi(devfn, pin)
    }

    fn occupant(&self, devfn: DevFn) -> Option<Occupant> {
        match self.slots.reading().get(&devfn)? {
            Slot::Reserved => None,
            Slot::Taken(occupant) => Some(occupant.clone()),
        }
    }

    /// Whether the device has functions besides this one.
    fn has_siblings(&self, devfn: DevFn) -> bool {
        let first = DevFn::from_byte(devfn.to_byte() & !7);
        let last = DevFn::from_byte(devfn.to_byte() | 7);
        let slots = self.slots.reading();
        let mut device = slots.range(first..=last);
        device.any(|(other, slot)| *other != devfn && matches!(slot, Slot::Taken(_)))
    }
}
