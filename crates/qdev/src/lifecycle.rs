//! Realize, unplug, unrealize and reset: the order of hooks, and its undoing.
//!
//! Each step that succeeds pushes what undoes it, so a failure anywhere leaves nothing behind. A new step
//! goes between its neighbours together with its undoing.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use qom::{Object, Step};

use crate::device::Claim;
use crate::{BusState, DeviceClass, DeviceState, Error, Machine, Phase, UnplugAnswer};

/// Undoes what stands, last first, unless all went well.
pub(crate) struct Undo<'a>(Vec<Box<dyn FnOnce() + 'a>>);

impl<'a> Undo<'a> {
    pub(crate) fn new() -> Self {
        Self(Vec::new())
    }

    /// What undoes the step that was just done.
    pub(crate) fn push(&mut self, undo: impl FnOnce() + 'a) {
        self.0.push(Box::new(undo));
    }

    pub(crate) fn disarm(mut self) {
        self.0.clear();
    }
}

impl Drop for Undo<'_> {
    fn drop(&mut self) {
        while let Some(undo) = self.0.pop() {
            undo();
        }
    }
}

impl Machine {
    /// Realizes a device and plugs it into a bus, if it goes on one: [`pre_plug`], [`realize`] of
    /// each level, [`plug`]. A device that nobody owns is owned by `/machine/unattached` from here
    /// on.
    ///
    /// # Errors
    /// What the bus or a level reports, after what stood was undone in reverse;
    /// [`Error::WrongBus`], [`Error::BusFull`], [`Error::Busy`], and [`Error::IllegalMove`] if the
    /// device is realized already.
    ///
    /// [`pre_plug`]: crate::HotplugHandler::pre_plug
    /// [`realize`]: crate::DeviceLevel::realize
    /// [`plug`]: crate::HotplugHandler::plug
    #[doc(alias = "qdev_realize")]
    pub fn realize(
        self: &Arc<Self>,
        device: &Arc<Object>,
        bus: Option<&Arc<Object>>,
    ) -> Result<(), Error> {
        let state = DeviceState::of(device)?;
        let claim = state.claim(device)?;
        let phase = state.phase();
        if phase != Phase::Created {
            let device = device.type_name().to_string();
            return Err(Error::IllegalMove {
                device,
                from: phase,
                to: Phase::Realized,
            });
        }
        let levels = levels(device);
        let mut undo = Undo::new();
        if device.parent().is_none() {
            let number = self.next_unattached.fetch_add(1, Ordering::Relaxed);
            self.unattached
                .add_child(&format!("device[{number}]"), device.clone())?;
            undo.push(|| device.unparent());
        }
        state.set_hotplugged(self.is_running());
        device.freeze(state.id().as_deref());
        undo.push(|| device.thaw());

        let bus = match bus {
            None => None,
            Some(bus) => {
                check_bus(device, bus)?;
                let bus_state = BusState::of(bus)?;
                bus_state.attach(bus, device)?;
                let on_bus = (bus, bus_state.clone());
                undo.push(move || bus_state.detach(bus, device));
                device.set_link(DeviceState::PARENT_BUS, Some(bus))?;
                undo.push(|| forget_bus(device));
                self.observe(Step::PrePlug, bus.type_name(), device);
                on_bus.1.role().pre_plug(device, self)?;
                let role = on_bus.1.role().clone();
                undo.push(move || {
                    self.observe(Step::Withdraw, bus.type_name(), device);
                    role.withdraw(device, self);
                });
                Some(on_bus)
            }
        };

        undo.push(|| remove_buses(device, &state));
        for level in &levels {
            // What a level left on the buses that it made goes before the level itself.
            self.observe(Step::Realize, &level.name, device);
            level
                .role
                .realize(device, self)
                .inspect_err(|_| self.clear_buses(&state))?;
            undo.push(|| {
                self.observe(Step::Unrealize, &level.name, device);
                level.role.unrealize(device, self);
            });
        }
        undo.push(|| self.clear_buses(&state));
        claim.advance(Phase::Realized)?;
        undo.push(|| reverted(claim.advance(Phase::Created)));
        if let Some((bus, bus_state)) = bus {
            self.observe(Step::Plug, bus.type_name(), device);
            bus_state.role().plug(device, self)?;
            claim.advance(Phase::Plugged)?;
        }
        undo.disarm();
        Ok(())
    }

    /// Takes a device off its bus, if it is on one, and unrealizes it: devices on its own buses
    /// first, then its levels, children first. It may be realized again. Does nothing to a device
    /// that is not realized.
    ///
    /// # Errors
    /// [`Error::Busy`].
    #[doc(alias = "qdev_unrealize")]
    pub fn unrealize(self: &Arc<Self>, device: &Arc<Object>) -> Result<(), Error> {
        let state = DeviceState::of(device)?;
        let claim = state.claim(device)?;
        self.take_down(device, &state, &claim)
    }

    /// As [`unrealize`](Self::unrealize), of a device below one that this thread moves.
    fn unrealize_below(self: &Arc<Self>, device: &Arc<Object>) -> Result<(), Error> {
        let state = DeviceState::of(device)?;
        let claim = state.claim_below(device)?;
        self.take_down(device, &state, &claim)
    }

    fn take_down(
        self: &Arc<Self>,
        device: &Arc<Object>,
        state: &DeviceState,
        claim: &Claim<'_>,
    ) -> Result<(), Error> {
        let phase = state.phase();
        if phase == Phase::Created {
            return Ok(());
        }
        let bus = DeviceState::bus_of(device)
            .and_then(|bus| BusState::of(&bus).ok().map(|state| (bus, state)));
        if phase != Phase::Realized {
            if let Some((bus, bus_state)) = &bus {
                self.observe(Step::Unplug, bus.type_name(), device);
                bus_state.role().unplug(device, self);
            }
            claim.advance(Phase::Unplugged)?;
        }
        self.clear_buses(state);
        for level in levels(device).iter().rev() {
            self.observe(Step::Unrealize, &level.name, device);
            level.role.unrealize(device, self);
        }
        remove_buses(device, state);
        if let Some((bus, bus_state)) = &bus {
            self.observe(Step::Withdraw, bus.type_name(), device);
            bus_state.role().withdraw(device, self);
            forget_bus(device);
            bus_state.detach(bus, device);
        }
        device.thaw();
        claim.advance(Phase::Created)
    }

    /// Unrealizes the devices on all buses of a device, last come first.
    fn clear_buses(self: &Arc<Self>, state: &DeviceState) {
        for bus in state.buses().iter().rev() {
            let Ok(bus_state) = BusState::of(bus) else {
                continue;
            };
            for child in bus_state.devices().iter().rev() {
                reverted(self.unrealize_below(child));
            }
        }
    }

    /// Asks that a device may leave its bus, and removes it if the bus lets it go at once.
    /// `device_del` does this.
    ///
    /// # Errors
    /// [`Error::UnplugPending`] if that was asked before, [`Error::DeviceNotHotpluggable`],
    /// [`Error::BusNotHotpluggable`], [`Error::IllegalMove`] if it is not plugged, and what the bus
    /// reports.
    #[doc(alias = "qdev_unplug")]
    pub fn request_unplug(self: &Arc<Self>, device: &Arc<Object>) -> Result<UnplugAnswer, Error> {
        let state = DeviceState::of(device)?;
        let name = || {
            state
                .id()
                .map_or_else(|| device.type_name().to_string(), |id| id.to_string())
        };
        let Some(bus) = DeviceState::bus_of(device) else {
            return Err(Error::DeviceNotHotpluggable(name()));
        };
        let bus_state = BusState::of(&bus)?;
        if !bus_state.role().is_hotpluggable() {
            return Err(Error::BusNotHotpluggable(bus_state.name().to_owned()));
        }
        if !device
            .class()
            .part::<DeviceClass>()
            .is_some_and(|class| class.hotpluggable)
        {
            return Err(Error::DeviceNotHotpluggable(name()));
        }
        {
            let claim = state.claim(device)?;
            if state.phase() == Phase::UnplugRequested {
                return Err(Error::UnplugPending(name()));
            }
            claim.advance(Phase::UnplugRequested)?;
        }
        self.observe(Step::UnplugRequest, bus.type_name(), device);
        match bus_state.role().unplug_request(device, self) {
            Ok(UnplugAnswer::Now) => self.finish_unplug(device).map(|()| UnplugAnswer::Now),
            Ok(UnplugAnswer::WaitForGuest) => Ok(UnplugAnswer::WaitForGuest),
            Err(error) => {
                reverted(self.cancel_unplug(device));
                Err(error)
            }
        }
    }

    /// Removes a device: off its bus, unrealized, out of the tree. A bus calls this when the guest
    /// has let go; it may also be called without a request, as when somebody pulls a card.
    ///
    /// # Errors
    /// [`Error::Busy`].
    pub fn finish_unplug(self: &Arc<Self>, device: &Arc<Object>) -> Result<(), Error> {
        self.unrealize(device)?;
        device.unparent();
        Ok(())
    }

    /// The guest does not let go: the device stays, and may be asked again.
    ///
    /// # Errors
    /// [`Error::IllegalMove`] if it was not asked.
    pub fn cancel_unplug(&self, device: &Arc<Object>) -> Result<(), Error> {
        let state = DeviceState::of(device)?;
        let claim = state.claim(device)?;
        if state.phase() == Phase::UnplugRequested {
            claim.advance(Phase::Plugged)
        } else {
            let device = device.type_name().to_string();
            Err(Error::IllegalMove {
                device,
                from: state.phase(),
                to: Phase::Plugged,
            })
        }
    }

    /// Resets everything, as the machine's reset button does: the devices on a bus, then the bus,
    /// and the buses that a device has before the device.
    #[doc(alias = "qemu_devices_reset")]
    pub fn reset(self: &Arc<Self>) {
        for bus in self.buses() {
            if !bus.parent().is_some_and(|owner| owner.is_a(crate::DEVICE)) {
                self.reset_bus(&bus);
            }
        }
        for device in self.objects_of(crate::DEVICE) {
            if DeviceState::bus_of(&device).is_none() {
                self.reset_device(&device);
            }
        }
    }

    /// Resets a bus: the devices on it, then the bus itself.
    #[doc(alias = "bus_cold_reset")]
    pub fn reset_bus(&self, bus: &Arc<Object>) {
        let Ok(state) = BusState::of(bus) else { return };
        for device in state.devices() {
            self.reset_device(&device);
        }
        state.role().reset(bus);
    }

    /// Resets a device, if it is realized: its buses, then its levels, children first. A device
    /// that another thread is moving at this moment is left alone, as it comes or goes anyway.
    #[doc(alias = "device_cold_reset")]
    pub fn reset_device(&self, device: &Arc<Object>) {
        let Ok(state) = DeviceState::of(device) else {
            return;
        };
        let Ok(_claim) = state.claim(device) else {
            return;
        };
        if !state.phase().is_realized() {
            return;
        }
        for bus in state.buses() {
            self.reset_bus(&bus);
        }
        for level in levels(device).iter().rev() {
            self.observe(Step::Reset, &level.name, device);
            level.role.reset(device);
        }
    }
}

fn levels(device: &Object) -> Vec<crate::device::Level> {
    device
        .class()
        .part::<DeviceClass>()
        .map(|class| class.levels.clone())
        .unwrap_or_default()
}

/// Whether the device may go on this bus.
pub(crate) fn check_bus(device: &Object, bus: &Object) -> Result<(), Error> {
    let wanted = device
        .class()
        .part::<DeviceClass>()
        .and_then(|class| class.bus_type);
    if wanted.is_some_and(|wanted| bus.is_a(wanted)) {
        return Ok(());
    }
    let device = device.type_name().to_string();
    Err(Error::WrongBus {
        device,
        bus: bus.type_name().to_string(),
    })
}

/// Removes the buses that levels added while they realized.
fn remove_buses(device: &Object, state: &DeviceState) {
    for bus in state.take_buses_of_realize().iter().rev() {
        if let Some(name) = bus.name() {
            device.remove_child(&name);
        }
    }
}

fn forget_bus(device: &Object) {
    reverted(
        device
            .set_link(DeviceState::PARENT_BUS, None)
            .map_err(Error::from),
    );
}

/// The way back has nobody to report to; it fails only if a hook moves the very device that is
/// being moved.
fn reverted(result: Result<(), Error>) {
    if let Err(error) = result {
        tracing::error!(%error, "a device could not be taken back");
    }
}
