//! A PCI host with a virtio device on it, and what must hold between any two accesses.

use std::cell::Cell;
use std::io;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use arbitrary::Arbitrary;
use iothread::{AioContext, EventLoop};
use virtio::F;
use virtio_bus::{DeviceRef, KickAddress, KickBinder, KickSpace, VirtioDevice};
use virtio_net::{VirtioNet, VirtioNetConfig};
use virtio_pci::{VirtioPci, VirtioPciConfig};
use virtqueue::mock::{Descriptor, INDIRECT, NEXT, WRITE};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};
use vm_pci::registers::{CAP_EXPRESS, CAP_POWER_MANAGEMENT, CAPABILITIES_POINTER};
use vm_pci::test_utils::{RecordingIrqLines, RecordingMsiSink};
use vm_pci::{BarIndex, BarSpace, DevFn, Express, PciFunction, PciHost, PciHostConfig};
use vmm_sys_util::eventfd::EventFd;

use crate::peer::Peer;
use crate::toy::Toy;

/// Guest memory of the rig.
pub type Memory = Arc<GuestMemoryMmap<()>>;

const RAM: usize = 0x2_0000;
const DEVICE: (u8, u8) = (3, 0);
/// Entries of a queue that is set up by the book.
const SIZE: u16 = 16;
/// The BAR with the virtio structures, and where in it they are.
const MODERN_BAR: u8 = 4;
const NOTIFY: u64 = 0x3000;
/// Notify registers there.
const NOTIFY_REGISTERS: u64 = 1024;
/// The BAR with a notify register in ports.
const PIO_NOTIFY_BAR: u8 = 2;
/// Device status: live, or suspended.
const RUNS: u8 = 4 | 16;

/// Registers of the legacy interface in BAR 0 (virtio 1.4, 4.1.4.10).
mod legacy {
    pub(super) const BAR: u8 = 0;
    pub(super) const DEVICE_FEATURES: u64 = 0x00;
    pub(super) const DRIVER_FEATURES: u64 = 0x04;
    pub(super) const QUEUE_PFN: u64 = 0x08;
    pub(super) const QUEUE_SIZE: u64 = 0x0c;
    pub(super) const QUEUE_SELECT: u64 = 0x0e;
    pub(super) const QUEUE_NOTIFY: u64 = 0x10;
    pub(super) const STATUS: u64 = 0x12;
}

/// Registers of the common configuration structure (virtio 1.4, 4.1.4.3).
mod common {
    pub(super) const DEVICE_FEATURE_SELECT: u64 = 0x00;
    pub(super) const DEVICE_FEATURE: u64 = 0x04;
    pub(super) const DRIVER_FEATURE_SELECT: u64 = 0x08;
    pub(super) const DRIVER_FEATURE: u64 = 0x0c;
    pub(super) const STATUS: u64 = 0x14;
    pub(super) const QUEUE_SELECT: u64 = 0x16;
    pub(super) const QUEUE_SIZE: u64 = 0x18;
    pub(super) const QUEUE_ENABLE: u64 = 0x1c;
    pub(super) const QUEUE_DESC: u64 = 0x20;
    pub(super) const QUEUE_DRIVER: u64 = 0x28;
    pub(super) const QUEUE_DEVICE: u64 = 0x30;
    pub(super) const QUEUE_RESET: u64 = 0x3a;
    pub(super) const END: u64 = 0x40;
}

/// Up to eight bytes to read, or to write.
#[derive(Arbitrary, Clone, Copy, Debug)]
struct Access {
    width: Width,
    write: Option<Value>,
}

#[derive(Arbitrary, Clone, Copy, Debug)]
enum Width {
    One,
    Two,
    Four,
    Eight,
    Odd(u8),
}

#[derive(Arbitrary, Clone, Copy, Debug)]
enum Value {
    Zero,
    Ones,
    Small(u8),
    Bytes([u8; 8]),
}

impl Access {
    fn write(bytes: &[u8]) -> Self {
        let mut value = [0; 8];
        value[..bytes.len()].copy_from_slice(bytes);
        Self {
            width: Width::Odd(bytes.len() as u8),
            write: Some(Value::Bytes(value)),
        }
    }

    fn len(self) -> usize {
        match self.width {
            Width::One => 1,
            Width::Two => 2,
            Width::Four => 4,
            Width::Eight => 8,
            Width::Odd(len) => usize::from(len % 9),
        }
    }

    fn bytes(self) -> Option<[u8; 8]> {
        Some(match self.write? {
            Value::Zero => [0; 8],
            Value::Ones => [0xff; 8],
            Value::Small(byte) => u64::from(byte).to_le_bytes(),
            Value::Bytes(bytes) => bytes,
        })
    }
}

/// Where an access goes.
#[derive(Arbitrary, Clone, Copy, Debug)]
enum Place {
    /// Configuration space of the device, or now and then of another.
    Config { ecam: bool, other: u8, offset: u16 },
    /// A register of the common configuration structure, through its BAR.
    Common { offset: u8 },
    /// A BAR, where it is now.
    Bar { bar: u8, offset: u16 },
    /// The data register of the PCI configuration access capability and what is before it.
    Window { offset: u8 },
    /// Memory that is not RAM.
    Memory(u64),
    /// Ports.
    Port(u16),
}

/// How the function looks and works, a bit each; without any as unless told.
#[derive(Arbitrary, Clone, Copy, Debug)]
struct Form(u16);

impl Form {
    const EXPRESS: u16 = 1;
    const PAGE_PER_VQ: u16 = 2;
    const PIO_NOTIFY: u16 = 4;
    const NOTIFICATION_DATA: u16 = 8;
    const NOTIF_CONFIG_DATA: u16 = 16;
    const SUSPEND: u16 = 32;
    const NO_LEGACY: u16 = 64;
    const NO_IOEVENTFD: u16 = 128;
    const NO_VECTORS: u16 = 256;
    const ALL_OF_EXPRESS: u16 = 512;

    fn has(self, bit: u16) -> bool {
        self.0 & bit != 0
    }

    fn config(self) -> VirtioPciConfig {
        let express = Express {
            advanced_error_reporting: self.has(Self::ALL_OF_EXPRESS),
            address_translation: self.has(Self::ALL_OF_EXPRESS),
            ..Express::default()
        };
        VirtioPciConfig {
            vectors: self.has(Self::NO_VECTORS).then_some(0),
            ioeventfd: !self.has(Self::NO_IOEVENTFD),
            legacy: !self.has(Self::NO_LEGACY),
            page_per_vq: self.has(Self::PAGE_PER_VQ),
            modern_pio_notify: self.has(Self::PIO_NOTIFY),
            notification_data: self.has(Self::NOTIFICATION_DATA),
            notif_config_data: self.has(Self::NOTIF_CONFIG_DATA),
            suspend: self.has(Self::SUSPEND),
            express: self.has(Self::EXPRESS).then_some(express),
            ..VirtioPciConfig::default()
        }
    }

    /// Bytes from one notify register to the next.
    fn notify_multiplier(self) -> u64 {
        if self.has(Self::PAGE_PER_VQ) {
            0x1000
        } else {
            4
        }
    }
}

/// What is on the bus, and what happens to it.
#[derive(Arbitrary, Clone, Debug)]
pub struct Story {
    form: Form,
    nic: bool,
    ops: Vec<Op>,
}

/// Runs it, with a reset at the end, as each driver can at any time.
pub fn check(story: &Story) {
    let rig = if story.nic {
        Rig::with_nic(story.form)
    } else {
        Rig::with_toy(story.form)
    };
    for op in &story.ops {
        rig.run(op);
    }
    rig.pci.bar_write(modern_bar(), common::STATUS, &[0]);
    rig.check_reset();
}

/// What happens next.
#[derive(Arbitrary, Clone, Debug)]
enum Op {
    /// The guest reads or writes.
    Access(Place, Access),
    /// The driver goes to DRIVER_OK by the book: through the legacy interface, where there is one, if the top bit
    /// of `queues` is set.
    Start {
        features: u128,
        queues: u8,
    },
    /// It resets the device.
    Reset,
    /// It resets and enables one queue; or, from 0x80 on, the function goes to some power state, and from 0xc0 on
    /// is reset, in the PCI Express form.
    ResetQueue {
        queue: u8,
    },
    /// It writes a descriptor of a queue that it has set up by the book.
    Describe {
        queue: bool,
        index: u8,
        address: u32,
        len: u16,
        flags: u8,
        next: u8,
    },
    /// It makes a head available in one, and notifies.
    Offer {
        queue: bool,
        head: u8,
    },
    /// It writes memory.
    Ram {
        at: u16,
        bytes: [u8; 8],
    },
    /// The device serves its queues.
    Turn,
    /// A frame comes to the card.
    Frame {
        len: u8,
    },
    /// The device tells the driver something.
    ConfigChanged {
        up: bool,
    },
    NeedsReset,
    /// An interrupt is delivered.
    Deliver,
    /// Resets from outside, each followed by what firmware does.
    ResetHost {
        assign: bool,
    },
    ResetFunction,
    /// The device leaves the PCI bus and comes back.
    Reattach,
}

/// Binds as KVM does, and does not take what makes no sense.
#[derive(Debug, Default)]
struct Binder(Mutex<Vec<(KickAddress, Arc<EventFd>)>>);

impl KickBinder for Binder {
    fn bind(&self, at: KickAddress, kick: &Arc<EventFd>) -> io::Result<()> {
        let mut bound = self.0.lock().unwrap();
        assert!(!bound.iter().any(|(there, _)| *there == at), "bound twice");
        bound.push((at, Arc::clone(kick)));
        Ok(())
    }

    fn unbind(&self, at: KickAddress, kick: &Arc<EventFd>) -> io::Result<()> {
        let mut bound = self.0.lock().unwrap();
        let place = (bound.iter())
            .position(|(there, fd)| *there == at && Arc::ptr_eq(fd, kick))
            .expect("what is unbound was bound");
        bound.remove(place);
        Ok(())
    }
}

/// One queue's registers.
#[derive(Debug, Default, PartialEq, Eq)]
struct Registers {
    enabled: bool,
    size: [u8; 2],
    addresses: [u8; 24],
}

/// What is on the bus.
enum Model {
    Toy(Arc<Toy>),
    Nic {
        nic: Arc<VirtioNet<Memory>>,
        peer: Arc<Peer>,
        context: Arc<EventLoop>,
    },
}

impl Model {
    fn device(&self) -> DeviceRef<Memory> {
        match self {
            Self::Toy(toy) => toy.clone(),
            Self::Nic { nic, .. } => nic.clone(),
        }
    }
}

/// The machine.
struct Rig {
    memory: Memory,
    host: PciHost,
    msi: Arc<RecordingMsiSink>,
    binder: Arc<Binder>,
    model: Model,
    form: Form,
    pci: Arc<VirtioPci<Memory>>,
    /// Entries of both queues, while the driver uses the legacy interface by the book.
    legacy: Cell<Option<[u16; 2]>>,
}

impl Rig {
    fn with_toy(form: Form) -> Self {
        Self::new(form, Model::Toy(Arc::default()))
    }

    fn with_nic(form: Form) -> Self {
        let context = EventLoop::new().expect("an event loop");
        let peer = Peer::new(true);
        peer.set_moods(0b10_10_01_10);
        let nic = VirtioNet::new(
            VirtioNetConfig::default(),
            vec![peer.port().clone()],
            vec![context.clone() as Arc<dyn AioContext>],
        );
        let nic = nic.expect("a card");
        Self::new(form, Model::Nic { nic, peer, context })
    }

    /// Makes it, with addresses assigned.
    fn new(form: Form, model: Model) -> Self {
        let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), RAM)]).expect("memory");
        let memory = Arc::new(memory);
        let msi = RecordingMsiSink::new();
        let binder = Arc::new(Binder::default());
        let host = PciHost::new(PciHostConfig::default(), RecordingIrqLines::new()).expect("host");
        let pci = VirtioPci::new(form.config(), memory.clone(), msi.clone(), binder.clone());
        let pci = pci.expect("a transport");
        pci.bus().plug(model.device()).expect("an empty bus");
        host.bus()
            .attach(devfn(), pci.clone())
            .expect("an empty slot");
        host.assign_resources().expect("room for the BARs");
        Self {
            memory,
            host,
            msi,
            binder,
            model,
            form,
            pci,
            legacy: Cell::new(None),
        }
    }

    /// One step.
    fn run(&self, op: &Op) {
        match *op {
            Op::Access(place, access) => self.access(place, access),
            Op::Start { features, queues } if queues & 0x80 != 0 && self.has_legacy() => {
                self.start_legacy(features, queues);
            }
            Op::Start { features, queues } => self.start(features, queues),
            Op::Reset => self.reset(),
            Op::ResetQueue { queue: 0xc0.. } => {
                if let Some(at) = self.capability(CAP_EXPRESS) {
                    self.set_config(at + 9, 0x80);
                }
            }
            Op::ResetQueue {
                queue: state @ 0x80..,
            } => {
                if let Some(at) = self.capability(CAP_POWER_MANAGEMENT) {
                    self.set_config(at + 4, state & 3);
                }
            }
            Op::ResetQueue { queue } => {
                self.set_common(common::QUEUE_SELECT, &[queue % 3, 0]);
                self.set_common(common::QUEUE_RESET, &[1, 0]);
                self.set_common(common::QUEUE_ENABLE, &[1, 0]);
            }
            Op::Describe {
                queue,
                index,
                address,
                len,
                flags,
                next,
            } => {
                let flags = u16::from(flags) & (NEXT | WRITE | INDIRECT);
                let address = u64::from(address) % (RAM as u64 + 0x1000);
                let descriptor = Descriptor::new(address, len.into(), flags, next.into());
                let at = self.descriptors(queue) + 16 * u64::from(index % 64);
                (self.memory)
                    .write_obj(descriptor, GuestAddress(at))
                    .expect("rings are in memory");
            }
            Op::Offer { queue, head } => {
                let (size, avail) = self.avail(queue);
                let at = GuestAddress(avail + 2);
                let index: u16 = self.memory.read_obj(at).expect("rings are in memory");
                let slot = GuestAddress(avail + 4 + 2 * u64::from(index % size));
                self.ram(slot, &[head, 0]);
                self.ram(at, &index.wrapping_add(1).to_le_bytes());
                let (bar, offset) = match self.legacy.get() {
                    Some(_) => (legacy::BAR, legacy::QUEUE_NOTIFY),
                    None => {
                        let register = self.form.notify_multiplier() * u64::from(queue);
                        (MODERN_BAR, NOTIFY + register)
                    }
                };
                let place = Place::Bar {
                    bar,
                    offset: offset as u16,
                };
                self.access(place, Access::write(&[queue.into(), 0]));
            }
            Op::Ram { at, bytes } => self.ram(GuestAddress(at.into()), &bytes),
            Op::Turn => match &self.model {
                Model::Toy(toy) => toy.turn(),
                Model::Nic { context, .. } => drop(context.turn(Some(Duration::ZERO))),
            },
            Op::Frame { len } => {
                if let Model::Nic { peer, .. } = &self.model {
                    peer.offer([len.into(); 4], len & 1);
                }
            }
            Op::ConfigChanged { up } => match &self.model {
                Model::Toy(toy) => toy.transport().expect("plugged").config_changed(),
                Model::Nic { peer, .. } => peer.port().set_link(up),
            },
            Op::NeedsReset => {
                if let Model::Toy(toy) = &self.model {
                    toy.transport().expect("plugged").needs_reset("fuzz");
                }
            }
            Op::Deliver => drop(self.msi.deliver()),
            Op::ResetHost { assign } => {
                self.host.reset();
                self.check_reset();
                if assign {
                    self.host.assign_resources().expect("room for the BARs");
                }
            }
            Op::ResetFunction => {
                self.host.bus().reset_function(devfn());
                self.check_reset();
            }
            Op::Reattach => {
                let function = self.host.bus().detach(devfn()).expect("it is there");
                self.check_reset();
                self.host
                    .bus()
                    .attach(devfn(), function)
                    .expect("an empty slot");
            }
        }
        self.check();
    }

    /// One access, which leaves the registers of enabled queues alone.
    fn access(&self, place: Place, access: Access) {
        let before = self.registers();
        let mut data = [0xa5; 8];
        let data = &mut data[..access.len()];
        let is_write = if let Some(bytes) = access.bytes() {
            data.copy_from_slice(&bytes[..data.len()]);
            true
        } else {
            false
        };
        match place {
            Place::Config {
                ecam,
                other,
                offset,
            } => {
                // One in sixteen goes to any function.
                let devfn = if other < 16 {
                    DevFn::from_byte(other)
                } else {
                    devfn()
                };
                self.config(ecam, devfn, offset, data, is_write);
            }
            Place::Window { offset } => {
                self.config(
                    false,
                    devfn(),
                    u16::from(offset % 0xc0) + 0x40,
                    data,
                    is_write,
                );
            }
            Place::Common { offset } => {
                let offset = u64::from(offset) % (common::END + 4);
                self.bar(MODERN_BAR, offset, data, is_write);
            }
            Place::Bar { bar, offset } => self.bar(bar % 6, offset.into(), data, is_write),
            Place::Memory(address) => self.memory_access(address, data, is_write),
            Place::Port(port) => drop(if is_write {
                self.host.port_write(port, data)
            } else {
                self.host.port_read(port, data)
            }),
        }
        for (queue, (before, after)) in before.iter().zip(self.registers()).enumerate() {
            if before.enabled && after.enabled {
                assert_eq!(
                    *before, after,
                    "queue {queue} moved: {place:x?} {access:x?}"
                );
            }
        }
    }

    fn config(&self, ecam: bool, devfn: DevFn, offset: u16, data: &mut [u8], write: bool) {
        if ecam {
            let at = u64::from(devfn.to_byte()) << 12 | u64::from(offset & 0xfff);
            self.memory_access(self.host.config().ecam.base + at, data, write);
            return;
        }
        let dword = u32::from(offset & 0xfc);
        let address = 1 << 31 | u32::from(devfn.to_byte()) << 8 | dword;
        assert!(self.host.port_write(0xcf8, &address.to_le_bytes()));
        let port = 0xcfc + (offset & 3);
        let handled = if write {
            self.host.port_write(port, data)
        } else {
            self.host.port_read(port, data)
        };
        assert!(handled);
    }

    fn bar(&self, bar: u8, offset: u64, data: &mut [u8], write: bool) {
        let windows = self.pci.windows();
        if let Some(window) = windows.iter().find(|window| window.bar.get() == bar) {
            let address = window.base.wrapping_add(offset % (window.size + 8));
            if window.space == BarSpace::Memory {
                self.memory_access(address, data, write);
            } else if write {
                self.host.port_write(address as u16, data);
            } else {
                self.host.port_read(address as u16, data);
            }
        }
    }

    fn memory_access(&self, address: u64, data: &mut [u8], write: bool) {
        let _ = if write {
            self.host.mmio_write(address, data)
        } else {
            self.host.mmio_read(address, data)
        };
    }

    fn set_common(&self, offset: u64, bytes: &[u8]) {
        let place = Place::Common {
            offset: offset as u8,
        };
        self.access(place, Access::write(bytes));
    }

    fn start(&self, features: u128, queues: u8) {
        self.legacy.set(None);
        let command = Place::Config {
            ecam: true,
            other: 0xff,
            offset: 4,
        };
        self.access(command, Access::write(&[7, 0]));
        self.reset();
        for status in [1, 3] {
            self.set_common(common::STATUS, &[status]);
        }
        let wanted = F::from_bits_retain(virtio::le128::from(features));
        let offered = [0, 1].map(|word: u8| {
            self.set_common(common::DEVICE_FEATURE_SELECT, &[word, 0, 0, 0]);
            let mut bits = [0; 4];
            self.pci
                .bar_read(modern_bar(), common::DEVICE_FEATURE, &mut bits);
            u32::from_le_bytes(bits)
        });
        let bits = (wanted | F::VERSION_1).bits().to_ne();
        let (low, high) = (bits as u32 & offered[0], (bits >> 32) as u32 & offered[1]);
        for (word, bits) in [(0, low), (1, high)] {
            self.set_common(common::DRIVER_FEATURE_SELECT, &[word, 0, 0, 0]);
            self.set_common(common::DRIVER_FEATURE, &bits.to_le_bytes());
        }
        self.set_common(common::STATUS, &[0xb]);
        for queue in [0, 1] {
            if queues & 1 << queue != 0 {
                continue;
            }
            let base = ring(queue == 1);
            self.set_common(common::QUEUE_SELECT, &[queue, 0]);
            self.set_common(common::QUEUE_SIZE, &SIZE.to_le_bytes());
            self.set_common(common::QUEUE_DESC, &base.to_le_bytes());
            self.set_common(common::QUEUE_DRIVER, &(base + 0x400).to_le_bytes());
            self.set_common(common::QUEUE_DEVICE, &(base + 0x800).to_le_bytes());
            self.ram(GuestAddress(base + 0x400), &[0; 4]);
            self.set_common(common::QUEUE_ENABLE, &[1, 0]);
        }
        self.set_common(common::STATUS, &[0xf]);
    }

    fn has_legacy(&self) -> bool {
        !self.form.has(Form::NO_LEGACY)
    }

    /// As drivers do from before version 1 of the specification.
    fn start_legacy(&self, features: u128, queues: u8) {
        let command = Place::Config {
            ecam: true,
            other: 0xff,
            offset: 4,
        };
        self.access(command, Access::write(&[7, 0]));
        for status in [0, 1, 3] {
            self.set_legacy(legacy::STATUS, &[status]);
        }
        let mut offered = [0; 4];
        self.get_legacy(legacy::DEVICE_FEATURES, &mut offered);
        let chosen = u32::from_le_bytes(offered) & features as u32;
        self.set_legacy(legacy::DRIVER_FEATURES, &chosen.to_le_bytes());
        let mut sizes = [1; 2];
        for queue in [0_u8, 1] {
            self.set_legacy(legacy::QUEUE_SELECT, &[queue, 0]);
            let mut size = [0; 2];
            self.get_legacy(legacy::QUEUE_SIZE, &mut size);
            // Not where there is no such register now.
            sizes[usize::from(queue)] = match u16::from_le_bytes(size) {
                size @ 1..=256 => size,
                _ => 1,
            };
            if queues & 1 << queue != 0 {
                continue;
            }
            let base = legacy_ring(queue == 1);
            self.ram(
                GuestAddress(base + 16 * u64::from(sizes[usize::from(queue)])),
                &[0; 4],
            );
            self.set_legacy(legacy::QUEUE_PFN, &((base >> 12) as u32).to_le_bytes());
        }
        self.set_legacy(legacy::STATUS, &[7]);
        self.legacy.set(Some(sizes));
    }

    fn set_legacy(&self, offset: u64, bytes: &[u8]) {
        let place = Place::Bar {
            bar: legacy::BAR,
            offset: offset as u16,
        };
        self.access(place, Access::write(bytes));
    }

    /// Past the address decoder.
    fn get_legacy(&self, offset: u64, data: &mut [u8]) {
        let bar = BarIndex::new(legacy::BAR).expect("one of six");
        self.pci.bar_read(bar, offset, data);
    }

    fn descriptors(&self, queue: bool) -> u64 {
        match self.legacy.get() {
            Some(_) => legacy_ring(queue),
            None => ring(queue),
        }
    }

    /// Entries and address of the available ring.
    fn avail(&self, queue: bool) -> (u16, u64) {
        match self.legacy.get() {
            Some(sizes) => {
                let size = sizes[usize::from(queue)];
                (size, legacy_ring(queue) + 16 * u64::from(size))
            }
            None => (SIZE, ring(queue) + 0x400),
        }
    }

    /// Where a capability is, if it is there.
    fn capability(&self, id: u8) -> Option<u16> {
        let read = |offset: u16| {
            let mut byte = [0];
            self.host.config_read(0, devfn(), offset, &mut byte);
            byte[0]
        };
        let mut at = read(CAPABILITIES_POINTER);
        for _ in 0..48 {
            match at {
                0 => break,
                _ if read(at.into()) == id => return Some(at.into()),
                _ => at = read(u16::from(at) + 1),
            }
        }
        None
    }

    fn set_config(&self, offset: u16, byte: u8) {
        let place = Place::Config {
            ecam: true,
            other: 0xff,
            offset,
        };
        self.access(place, Access::write(&[byte]));
    }

    fn reset(&self) {
        // A guest whose BAR is not decoded, is where the host routes nothing, or has another on top of it,
        // does not reach the device.
        const MARK: [u8; 2] = [0x5a, 0xa5];
        self.set_common(common::QUEUE_SELECT, &MARK);
        let mut select = [0; 2];
        (self.pci).bar_read(modern_bar(), common::QUEUE_SELECT, &mut select);
        self.set_common(common::STATUS, &[0]);
        if select == MARK {
            self.check_reset();
        }
    }

    /// Whatever was, a device that was reset has no queue.
    fn check_reset(&self) {
        assert_eq!(self.status(), 0);
        match &self.model {
            Model::Toy(toy) => assert_eq!(toy.lent(), 0, "queues come back at reset"),
            Model::Nic { nic, peer, .. } => {
                assert_eq!(peer.held(), 0, "the peer still has guest memory");
                assert!(nic.reset().is_empty(), "queues come back at reset");
            }
        }
        assert!(self.queues().iter().all(|queue| !queue.enabled));
        // That look at its registers was the first thing that a driver of the modern interface did.
        self.pci.bar_write(modern_bar(), common::STATUS, &[0]);
        assert!(self.binder.0.lock().unwrap().is_empty());
        self.check();
    }

    fn check(&self) {
        let bound = self.binder.0.lock().unwrap();
        if let Model::Toy(toy) = &self.model {
            let lent = toy.lent();
            assert!(
                lent == 0 || self.status() & RUNS != 0,
                "lent before DRIVER_OK"
            );
            // Memory, and ports.
            assert!(bound.len() <= 2 * lent, "more kicks than live queues");
        }
        if bound.is_empty() {
            return;
        }
        assert!(self.status() & RUNS != 0, "bound before DRIVER_OK");
        let modern = NOTIFY..NOTIFY + self.form.notify_multiplier() * NOTIFY_REGISTERS;
        let windows = self.pci.windows();
        for (at, _) in bound.iter() {
            let of_window = |window: &vm_pci::BarWindow| {
                let offset = at.address.checked_sub(window.base);
                let offset = offset.filter(|offset| *offset < window.size);
                offset.map(|offset| (window.bar.get(), offset))
            };
            let memory = at.space == KickSpace::Mmio;
            // A guest may lay one window over another.
            let places: Vec<_> = (windows.iter())
                .filter(|window| (window.space == BarSpace::Memory) == memory)
                .filter_map(of_window)
                .collect();
            let is_notify = |place: &(u8, u64)| match *place {
                (MODERN_BAR, offset) => modern.contains(&offset),
                (PIO_NOTIFY_BAR, offset) => offset == 0,
                place => place == (legacy::BAR, legacy::QUEUE_NOTIFY),
            };
            assert!(places.iter().any(is_notify), "{at:?} is at {places:?}");
        }
    }

    fn status(&self) -> u8 {
        let mut status = [0];
        self.pci.bar_read(modern_bar(), common::STATUS, &mut status);
        status[0]
    }

    /// The registers of both queues, unless the device is as after a reset: then a look at them would decide which
    /// interface the driver uses.
    fn registers(&self) -> [Registers; 2] {
        if self.status() == 0 {
            return Default::default();
        }
        self.queues()
    }

    /// The registers of both queues, seen past the address decoder and put back as they were.
    fn queues(&self) -> [Registers; 2] {
        let bar = modern_bar();
        let mut select = [0; 2];
        self.pci.bar_read(bar, common::QUEUE_SELECT, &mut select);
        let registers = [0, 1].map(|queue| {
            self.pci.bar_write(bar, common::QUEUE_SELECT, &[queue, 0]);
            let mut selected = [0; 2];
            self.pci.bar_read(bar, common::QUEUE_SELECT, &mut selected);
            if selected != [queue, 0] {
                // The driver uses the legacy interface.
                return Registers::default();
            }
            let (mut enabled, mut size, mut addresses) = ([0; 2], [0; 2], [0; 24]);
            self.pci.bar_read(bar, common::QUEUE_ENABLE, &mut enabled);
            self.pci.bar_read(bar, common::QUEUE_SIZE, &mut size);
            self.pci.bar_read(bar, common::QUEUE_DESC, &mut addresses);
            Registers {
                enabled: enabled != [0; 2],
                size,
                addresses,
            }
        });
        self.pci.bar_write(bar, common::QUEUE_SELECT, &select);
        registers
    }

    fn ram(&self, at: GuestAddress, bytes: &[u8]) {
        (self.memory).write_slice(bytes, at).expect("low memory");
    }
}

fn devfn() -> DevFn {
    DevFn::new(DEVICE.0, DEVICE.1).expect("a place on the bus")
}

fn modern_bar() -> BarIndex {
    BarIndex::new(MODERN_BAR).expect("one of six")
}

/// The same through the legacy interface, whose rings lie one behind the other and are as long as the device says.
fn legacy_ring(second: bool) -> u64 {
    if second { 0x1_4000 } else { 0x1_0000 }
}

/// Where a queue that is set up by the book has its descriptors.
fn ring(second: bool) -> u64 {
    if second { 0x1_1000 } else { 0x1_0000 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_driver_by_the_book_has_its_chains_served_in_any_form() {
        for form in [0, 0x1ff, 0x3ff, 1, 2, 4, 8, 16, 32, 64, 128, 256].map(Form) {
            for rig in [Rig::with_toy(form), Rig::with_nic(form)] {
                rig.run(&Op::Start {
                    features: 0,
                    queues: 0,
                });
                assert_eq!(rig.status(), 0xf);
                let bound = match form.0 & (Form::NO_IOEVENTFD | Form::PIO_NOTIFY) {
                    0 => 2,
                    Form::PIO_NOTIFY => 4,
                    _ => 0,
                };
                assert_eq!(rig.binder.0.lock().unwrap().len(), bound, "{form:?}");
                served(&rig, ring(true) + 0x802);
                rig.run(&Op::ResetHost { assign: true });
            }
        }
    }

    #[test]
    fn a_legacy_driver_by_the_book_has_its_chains_served() {
        for form in [0, Form::EXPRESS].map(Form) {
            for rig in [Rig::with_toy(form), Rig::with_nic(form)] {
                rig.run(&Op::Start {
                    features: 0,
                    queues: 0x80,
                });
                assert_eq!(rig.status(), 7);
                assert_eq!(rig.binder.0.lock().unwrap().len(), 2, "{form:?}");
                let (size, avail) = rig.avail(true);
                let used = (avail + 6 + 2 * u64::from(size)).next_multiple_of(0x1000);
                served(&rig, used + 2);
                rig.run(&Op::ResetHost { assign: true });
            }
        }
    }

    #[test]
    fn in_express_form_the_guest_resets_the_function_and_switches_power() {
        let rig = Rig::with_nic(Form(Form::EXPRESS));
        let start = Op::Start {
            features: 0,
            queues: 0,
        };
        rig.run(&start);
        rig.run(&Op::ResetQueue { queue: 0x83 });
        assert!(rig.pci.windows().is_empty());
        rig.run(&Op::ResetQueue { queue: 0x80 });
        assert!(!rig.pci.windows().is_empty());
        assert_eq!(rig.status(), 0xf);
        rig.run(&Op::ResetQueue { queue: 0xc0 });
        rig.check_reset();
    }

    /// One chain on the second queue.
    fn served(rig: &Rig, used_idx: u64) {
        rig.run(&Op::Describe {
            queue: true,
            index: 3,
            address: 0x1000,
            len: 60,
            flags: 0,
            next: 0,
        });
        let head = 3;
        rig.run(&Op::Offer { queue: true, head });
        rig.run(&Op::Turn);
        let used: u16 = rig.memory.read_obj(GuestAddress(used_idx)).unwrap();
        assert_eq!(used, 1, "{:?}", rig.form);
    }
}
