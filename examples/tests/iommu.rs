//! A NIC whose machine has an IOMMU, `iommu_platform=on` (virtio 1.4, 6.1, VIRTIO_F_ACCESS_PLATFORM), over its real PCI
//! registers: the driver gives addresses that guest memory is not at, each page behind one is somewhere else, and
//! mappings go while the card works.
#![expect(clippy::unwrap_used, reason = "a test ends where its set-up fails")]

use std::sync::atomic::{Ordering, fence};
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard};
use std::time::Duration;

use iothread::EventLoop;
use net_client::Loopback;
use virtio::net::F;
use virtio_bus::NoKickBinder;
use virtio_guest::{
    DmaMemory, DmaRegion, Error, NetConfig, NetDriver, Platform, VirtioPciTransport, Width, net,
    pci,
};
use virtio_net::{VirtioNet, VirtioNetConfig};
use virtio_pci::{VirtioPci, VirtioPciConfig};
use vm_memory::iommu::{Error as IommuError, Iotlb, IotlbIterator, IovaRange};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap, Iommu, IommuMemory, Permissions};
use vm_pci::test_utils::{RecordingIrqLines, RecordingMsiSink};
use vm_pci::{DevFn, PciHost, PciHostConfig};

/// All that is mapped, and nothing behind it: what is not there is a fault.
#[derive(Debug, Default)]
struct Mappings(RwLock<Iotlb>);

impl Iommu for Mappings {
    type IotlbGuard<'a> = RwLockReadGuard<'a, Iotlb>;

    fn translate(
        &self,
        iova: GuestAddress,
        length: usize,
        access: Permissions,
    ) -> Result<IotlbIterator<Self::IotlbGuard<'_>>, IommuError> {
        let iotlb = self.0.read().unwrap_or_else(PoisonError::into_inner);
        Iotlb::lookup(iotlb, iova, length, access).map_err(|_| IommuError::CannotResolve {
            iova_range: IovaRange { base: iova, length },
            reason: "a fault".to_owned(),
        })
    }
}

type Translating = IommuMemory<GuestMemoryMmap<()>, Mappings>;

const PAGE: u64 = 0x1000;
const PAGES: u64 = 32;
const RAM: usize = 0x40_0000;
/// Where the driver's memory is for the device: no guest memory is there.
const IOVA: u64 = 0xffff_0000_0000;
/// Entries of the rings, each of whose parts is then within a page.
const ENTRIES: u16 = 16;

/// Where a page of the driver's memory is: neighbours lie apart, and backwards.
fn physical(page: u64) -> u64 {
    0x20_0000 - 2 * page * PAGE
}

/// The machine, and a driver's accesses to it: its own view of memory has no faults.
struct Machine {
    host: PciHost,
    memory: Arc<Translating>,
    events: Arc<EventLoop>,
    /// The card knows its port, and no more.
    _peer: Arc<Loopback>,
}

impl Machine {
    fn new() -> Self {
        let ram = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), RAM)]).unwrap();
        let memory = Arc::new(IommuMemory::new(ram, Mappings::default(), true, ()));
        let events = EventLoop::new().unwrap();
        let config = VirtioNetConfig {
            packed: true,
            ..VirtioNetConfig::default()
        };
        let peer = Loopback::new("peer");
        let card = VirtioNet::new(config, vec![peer.port().clone()], vec![events.clone()]).unwrap();
        let config = VirtioPciConfig {
            iommu_platform: true,
            legacy: false,
            ..VirtioPciConfig::default()
        };
        let function = VirtioPci::new(
            config,
            memory.clone(),
            RecordingMsiSink::new(),
            Arc::new(NoKickBinder),
        )
        .unwrap();
        function.bus().plug(card).unwrap();
        let host = PciHost::new(PciHostConfig::default(), RecordingIrqLines::new()).unwrap();
        host.bus()
            .attach(DevFn::new(3, 0).unwrap(), function)
            .unwrap();
        host.assign_resources().unwrap();
        let machine = Self {
            host,
            memory,
            events,
            _peer: peer,
        };
        for page in 0..PAGES {
            machine.map(page, Permissions::ReadWrite);
        }
        machine
    }

    fn map(&self, page: u64, access: Permissions) {
        let (iova, to) = (IOVA + page * PAGE, physical(page));
        let mut iotlb = self.memory.iommu().0.write().unwrap();
        iotlb
            .set_mapping(GuestAddress(iova), GuestAddress(to), 0x1000, access)
            .unwrap();
    }

    fn unmap(&self, page: u64) {
        let mut iotlb = self.memory.iommu().0.write().unwrap();
        iotlb.invalidate_mapping(GuestAddress(IOVA + page * PAGE), 0x1000);
    }

    fn page(&self, page: u64) -> Vec<u8> {
        let mut bytes = vec![0; 0x1000];
        let at = GuestAddress(physical(page));
        self.memory
            .get_backend()
            .read_slice(&mut bytes, at)
            .unwrap();
        bytes
    }

    /// Lets the card work until nothing is left to do.
    fn turn(&self) {
        while self.events.turn(Some(Duration::ZERO)).unwrap() > 0 {}
    }

    fn driver(&self, features: F) -> Result<NetDriver<&Self, 64>, Error> {
        let address = pci::functions(&self, 0)
            .find(|function| pci::is_virtio_net(&self, *function))
            .unwrap();
        let transport = VirtioPciTransport::probe(self, address)?;
        let region = DmaRegion {
            address: IOVA,
            len: u32::try_from(PAGES * PAGE).unwrap(),
        };
        let config = NetConfig {
            features: NetConfig::default().features | features,
            queue_size: ENTRIES,
            ..NetConfig::default()
        };
        let driver = NetDriver::new(transport, DmaMemory::new(region), &config)?;
        self.turn();
        Ok(driver)
    }

    /// Each piece of what the driver sees as one: offset in it, address in guest memory, length.
    fn pieces(address: u64, len: usize) -> impl Iterator<Item = (usize, GuestAddress, usize)> {
        let mut done = 0;
        std::iter::from_fn(move || {
            let at = address - IOVA + u64::try_from(done).unwrap();
            let (page, offset) = (at / PAGE, at % PAGE);
            let part = usize::try_from(PAGE - offset).unwrap().min(len - done);
            assert!(page < PAGES, "the driver leaves its memory: {address:#x}");
            let piece = (done, GuestAddress(physical(page) + offset), part);
            done += part;
            (part > 0).then_some(piece)
        })
    }

    fn one(address: u64, len: usize) -> GuestAddress {
        let (_, at, part) = Self::pieces(address, len).next().unwrap();
        assert_eq!(part, len, "an access across pages");
        at
    }
}

impl Platform for Machine {
    fn mmio_read(&self, address: u64, width: Width) -> u64 {
        let mut bytes = [0; 8];
        let data = &mut bytes[..usize::from(width.bytes())];
        assert!(self.host.mmio_read(address, data), "{address:#x}");
        u64::from_le_bytes(bytes)
    }

    fn mmio_write(&self, address: u64, width: Width, value: u64) {
        let data = &value.to_le_bytes()[..usize::from(width.bytes())];
        assert!(self.host.mmio_write(address, data), "{address:#x}");
    }

    fn port_read(&self, port: u16, width: Width) -> u32 {
        let mut bytes = [0; 4];
        let data = &mut bytes[..usize::from(width.bytes())];
        assert!(self.host.pio_read(port, data), "{port:#x}");
        u32::from_le_bytes(bytes)
    }

    fn port_write(&self, port: u16, width: Width, value: u32) {
        let data = &value.to_le_bytes()[..usize::from(width.bytes())];
        assert!(self.host.pio_write(port, data), "{port:#x}");
    }

    fn memory_read(&self, address: u64, data: &mut [u8]) {
        for (offset, at, len) in Self::pieces(address, data.len()) {
            let ram = self.memory.get_backend();
            ram.read_slice(&mut data[offset..][..len], at).unwrap();
        }
    }

    fn memory_write(&self, address: u64, data: &[u8]) {
        for (offset, at, len) in Self::pieces(address, data.len()) {
            let ram = self.memory.get_backend();
            ram.write_slice(&data[offset..][..len], at).unwrap();
        }
    }

    fn memory_load_u16(&self, address: u64) -> u16 {
        let ram = self.memory.get_backend();
        u16::from_le(ram.load(Self::one(address, 2), Ordering::Acquire).unwrap())
    }

    fn memory_store_u16(&self, address: u64, value: u16) {
        let ram = self.memory.get_backend();
        ram.store(value.to_le(), Self::one(address, 2), Ordering::Release)
            .unwrap();
    }

    fn barrier(&self) {
        fence(Ordering::SeqCst);
    }
}

/// Split and packed.
fn kinds() -> [F; 2] {
    [F::ACCESS_PLATFORM, F::ACCESS_PLATFORM | F::RING_PACKED]
}

fn frame(number: usize) -> Vec<u8> {
    // All lengths from the least to the most, in no order.
    let len = 60 + number * 677 % 1455;
    let mut frame = vec![0xff; 12];
    frame.extend((12..len).map(|at| u8::try_from((at + number) % 251).unwrap()));
    frame
}

/// Sends a frame and returns what came back of it.
fn round_trip(
    machine: &Machine,
    driver: &mut NetDriver<&Machine, 64>,
    sent: &[u8],
) -> Vec<Vec<u8>> {
    driver.transmit(sent).unwrap();
    machine.turn();
    let mut buffer = [0; 2048];
    let mut got = Vec::new();
    driver
        .poll_receive(&mut buffer, |frame| got.push(frame.to_vec()))
        .unwrap();
    machine.turn();
    got
}

#[test]
fn frames_come_and_go_through_pages_that_are_no_neighbours() {
    for kind in kinds() {
        let machine = Machine::new();
        let mut driver = machine.driver(kind | F::CTRL_RX).unwrap();
        assert!(driver.features().contains(kind));
        for number in 0..200 {
            let sent = frame(number);
            assert_eq!(round_trip(&machine, &mut driver, &sent), [sent], "{number}");
        }
        assert!(!driver.needs_reset());
        // A command as well: promiscuous mode, on.
        assert!(
            driver
                .control(0, 0, &[1], || {
                    machine.turn();
                    true
                })
                .unwrap()
        );
        // Guest memory was written where the pages of the receive buffers are, and nowhere between.
        assert!((0..6).all(|page| machine.page(page).iter().any(|byte| *byte != 0)));
        let ram = machine.memory.get_backend();
        let mut between = vec![0; 0x1000];
        for page in 0..PAGES {
            let at = GuestAddress(physical(page) + PAGE);
            ram.read_slice(&mut between, at).unwrap();
            assert!(between.iter().all(|byte| *byte == 0), "behind page {page}");
        }
    }
}

/// 6.2: "A device MAY fail to operate further if VIRTIO_F_ACCESS_PLATFORM is not accepted."
#[test]
fn a_driver_that_knows_nothing_of_the_iommu_is_refused() {
    let machine = Machine::new();
    assert!(matches!(
        machine.driver(F::empty()).err(),
        Some(Error::FeaturesRefused)
    ));
    assert!(machine.driver(F::ACCESS_PLATFORM).is_ok());
}

#[test]
fn a_page_that_is_withdrawn_or_without_permission_ends_the_queue_and_the_next_driver_works() {
    /// What becomes of a page's mapping.
    #[derive(Clone, Copy, Debug)]
    enum Change {
        Withdrawn,
        Only(Permissions),
    }
    use Change::{Only, Withdrawn};
    // In the order in which the driver takes its memory: rings, 16 buffers to receive into, rings, 16 to send from.
    let (received, sent) = (3, 8);
    for kind in kinds() {
        for (page, change) in [
            (received, Withdrawn),
            (received, Only(Permissions::Read)),
            (sent, Withdrawn),
            (sent, Only(Permissions::Write)),
        ] {
            let machine = Machine::new();
            let mut driver = machine.driver(kind).unwrap();
            // All buffers are used once, and are back.
            for number in 0..usize::from(ENTRIES) {
                let sent = frame(number);
                assert_eq!(round_trip(&machine, &mut driver, &sent), [sent]);
            }
            match change {
                Withdrawn => machine.unmap(page),
                Only(access) => machine.map(page, access),
            }
            let before = machine.page(page);
            // One for each buffer there is.
            let frames: Vec<_> = (0..usize::from(ENTRIES))
                .map(|number| vec![0xee; 60 + number * 90])
                .collect();
            for frame in &frames {
                driver
                    .queue_transmit(&net::Header::default(), frame)
                    .unwrap();
            }
            driver.flush_transmit();
            machine.turn();
            let mut came = 0;
            let mut buffer = [0; 2048];
            // Up to the page they come back, whole.
            let polled = driver.poll_receive(&mut buffer, |frame| {
                assert_eq!(frame, frames[came], "{change:?}");
                came += 1;
            });
            polled.unwrap();
            assert!(
                driver.needs_reset(),
                "{kind:?} {page} {change:?}: {came} came"
            );
            assert!(came < frames.len(), "{change:?}");
            if page == received {
                assert_eq!(machine.page(page), before, "written through no mapping");
            }

            machine.map(page, Permissions::ReadWrite);
            let mut driver = machine.driver(kind).unwrap();
            for number in 0..40 {
                let sent = frame(number);
                assert_eq!(round_trip(&machine, &mut driver, &sent), [sent]);
            }
        }
    }
}

#[test]
fn rings_without_a_mapping_leave_the_card_waiting_for_a_reset() {
    for kind in kinds() {
        for (change, access) in [(false, Permissions::ReadWrite), (true, Permissions::Read)] {
            let machine = Machine::new();
            machine.unmap(0);
            if change {
                // The device has to write a part of each ring.
                machine.map(0, access);
            }
            let driver = machine.driver(kind).unwrap();
            assert!(driver.needs_reset(), "{kind:?} {access:?}");
            machine.map(0, Permissions::ReadWrite);
            let mut driver = machine.driver(kind).unwrap();
            assert_eq!(round_trip(&machine, &mut driver, &frame(1)), [frame(1)]);
        }
    }
}
