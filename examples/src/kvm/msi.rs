//! Message-signalled interrupts: one irqfd and one route a vector.

use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use kvm_bindings::{
    KVM_IRQ_ROUTING_IRQCHIP, KVM_IRQ_ROUTING_MSI, KVM_IRQCHIP_IOAPIC, KVM_IRQCHIP_PIC_MASTER,
    KVM_IRQCHIP_PIC_SLAVE, KvmIrqRouting, kvm_irq_routing_entry,
};
use kvm_ioctls::{Cap, VmFd};
use vm_pci::{DevFn, MsiMessage, MsiSink, MsiVector};
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use super::KvmError;
use crate::machine::layout::IOAPIC_PINS;

/// The VM's one table of interrupt routes. KVM takes it as a whole only.
#[derive(Debug)]
pub(super) struct Routing {
    vm: Arc<VmFd>,
    /// Numbers that messages may have.
    last_gsi: u32,
    /// The message of each number in use (`None`: not routed yet). Held while KVM is given the table;
    /// taken after a vector's lock.
    messages: Mutex<BTreeMap<u32, Option<MsiMessage>>>,
}

impl Routing {
    pub(super) fn new(vm: Arc<VmFd>) -> Result<Self, KvmError> {
        // 1024 in kernels that do not say.
        let limit = u32::try_from(vm.check_extension_int(Cap::IrqRouting))
            .unwrap_or(0)
            .max(1024);
        let routing = Self {
            vm,
            last_gsi: limit - 1,
            messages: Mutex::default(),
        };
        routing.give(&routing.lock()).map_err(|source| KvmError {
            what: "KVM_SET_GSI_ROUTING",
            source,
        })?;
        Ok(routing)
    }

    /// Takes a number that no one uses.
    fn take_gsi(&self) -> io::Result<u32> {
        let mut messages = self.lock();
        let free = (IOAPIC_PINS..=self.last_gsi).find(|gsi| !messages.contains_key(gsi));
        let gsi = free.ok_or_else(|| io::Error::other("all interrupt routes are in use"))?;
        messages.insert(gsi, None);
        Ok(gsi)
    }

    fn free_gsi(&self, gsi: u32) {
        self.lock().remove(&gsi);
    }

    /// Routes `gsi` to `message`.
    fn route(&self, gsi: u32, message: MsiMessage) -> io::Result<()> {
        let mut messages = self.lock();
        let before = messages.insert(gsi, Some(message)).flatten();
        if before == Some(message) {
            return Ok(());
        }
        self.give(&messages).inspect_err(|_| {
            messages.insert(gsi, before);
        })
    }

    fn give(&self, messages: &BTreeMap<u32, Option<MsiMessage>>) -> io::Result<()> {
        let mut entries = chip_routes();
        entries.extend(
            messages
                .iter()
                .filter_map(|(&gsi, message)| message.map(|message| msi_route(gsi, message))),
        );
        let table = KvmIrqRouting::from_entries(&entries)
            .map_err(|error| io::Error::other(format!("{error:?}")))?;
        self.vm
            .set_gsi_routing(&table)
            .map_err(|errno| io::Error::from_raw_os_error(errno.errno()))
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<u32, Option<MsiMessage>>> {
        self.messages.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Makes vectors of irqfds.
#[derive(Debug)]
pub(super) struct KvmMsiSink {
    routing: Arc<Routing>,
}

impl KvmMsiSink {
    pub(super) fn new(routing: Arc<Routing>) -> Self {
        Self { routing }
    }
}

impl MsiSink for KvmMsiSink {
    fn vector(&self, _requester: DevFn) -> io::Result<Arc<dyn MsiVector>> {
        let event = EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)?;
        let gsi = self.routing.take_gsi()?;
        Ok(Arc::new(KvmMsiVector {
            routing: self.routing.clone(),
            gsi,
            event,
            bound: Mutex::new(false),
        }))
    }
}

#[derive(Debug)]
struct KvmMsiVector {
    routing: Arc<Routing>,
    gsi: u32,
    event: EventFd,
    /// Whether KVM reads the descriptor. Held while that changes.
    bound: Mutex<bool>,
}

impl MsiVector for KvmMsiVector {
    fn event_fd(&self) -> &EventFd {
        &self.event
    }

    fn route(&self, message: Option<MsiMessage>) -> io::Result<()> {
        let mut bound = self.bound.lock().unwrap_or_else(PoisonError::into_inner);
        let vm = &self.routing.vm;
        let result = match message {
            Some(message) => self.routing.route(self.gsi, message).and_then(|()| {
                if *bound {
                    return Ok(());
                }
                // KVM looks at the descriptor when it is bound, so a signal that waits in it is
                // delivered now.
                vm.register_irqfd(&self.event, self.gsi)
                    .map_err(|errno| io::Error::from_raw_os_error(errno.errno()))
            }),
            None => Ok(()),
        };
        let bind = message.is_some() && result.is_ok();
        if *bound && !bind {
            // The route stays in the table, unused, so that unmasking finds it.
            let _ = vm.unregister_irqfd(&self.event, self.gsi);
        }
        *bound = bind;
        result
    }
}

impl Drop for KvmMsiVector {
    fn drop(&mut self) {
        if *self.bound.get_mut().unwrap_or_else(PoisonError::into_inner) {
            let _ = self.routing.vm.unregister_irqfd(&self.event, self.gsi);
        }
        self.routing.free_gsi(self.gsi);
    }
}

/// The routes of a PC's lines: the first 16 to both controllers, all 24 to the I/O APIC.
fn chip_routes() -> Vec<kvm_irq_routing_entry> {
    let mut entries = Vec::new();
    for gsi in 0..16 {
        let chip = if gsi < 8 {
            KVM_IRQCHIP_PIC_MASTER
        } else {
            KVM_IRQCHIP_PIC_SLAVE
        };
        entries.push(chip_route(gsi, chip, gsi % 8));
    }
    for gsi in 0..IOAPIC_PINS {
        entries.push(chip_route(gsi, KVM_IRQCHIP_IOAPIC, gsi));
    }
    entries
}

fn chip_route(gsi: u32, irqchip: u32, pin: u32) -> kvm_irq_routing_entry {
    let mut entry = kvm_irq_routing_entry {
        gsi,
        type_: KVM_IRQ_ROUTING_IRQCHIP,
        ..Default::default()
    };
    entry.u.irqchip.irqchip = irqchip;
    entry.u.irqchip.pin = pin;
    entry
}

fn msi_route(gsi: u32, message: MsiMessage) -> kvm_irq_routing_entry {
    let mut entry = kvm_irq_routing_entry {
        gsi,
        type_: KVM_IRQ_ROUTING_MSI,
        ..Default::default()
    };
    #[expect(clippy::cast_possible_truncation, reason = "the low half")]
    let low = message.address as u32;
    entry.u.msi.address_lo = low;
    let high = (message.address >> 32) as u32;
    entry.u.msi.address_hi = high;
    entry.u.msi.data = message.data;
    entry
}
