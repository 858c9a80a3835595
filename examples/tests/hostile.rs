//! A guest that does what it must not while frames are under way: the whole NIC, its own thread and
//! all, through the machine's registers, with no KVM. What the registers alone must answer is tested
//! beside them. All that guests do, with the tests that there are for it, is in `hostile/README.md`.
#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "clippy takes only what is marked as a test for one"
)]

mod support;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use examples::machine::layout::{MIB, PCI_MMIO32};
use examples::machine::{DriverView, Machine};
use virtio::net::F;
use virtio_guest::pci::{Bar, CommonRegister, change_command};
use virtio_guest::{
    DmaRegion, Interrupts, NetConfig, PciAddress, Platform, VirtioPciTransport, Width, pci,
};
use vm_memory::{Bytes, GuestAddress};

use support::{DMA, Driver, MESSAGES, Rig, wait_until};

/// Registers of the first NIC, beside its driver's back.
struct Registers {
    view: DriverView,
    function: PciAddress,
    transport: VirtioPciTransport<DriverView>,
}

impl Registers {
    fn of(machine: &Arc<Machine>) -> Self {
        let view = DriverView::new(machine.clone());
        let function = pci::functions(&view, 0)
            .find(|function| pci::is_virtio_net(&view, *function))
            .expect("configuration space shows a virtio-net function");
        let transport = VirtioPciTransport::probe(view.clone(), function).unwrap();
        Self {
            view,
            function,
            transport,
        }
    }

    /// Where byte `at` of BAR 4 is, which begins with the common configuration.
    fn common(&self, at: u64) -> u64 {
        Bar::read(&self.view, self.function, 4).unwrap().address + at
    }

    fn notify_address(&self, queue: u16) -> u64 {
        self.common(0x3000) + 4 * u64::from(queue)
    }

    /// Where a capability is.
    fn capability(&self, id: u8) -> u16 {
        let read = |at| {
            self.view
                .config_read(self.function, at, Width::U8)
                .to_le_bytes()[0]
        };
        let mut at = read(0x34);
        while at != 0 && read(at.into()) != id {
            at = read(u16::from(at) + 1);
        }
        assert_ne!(at, 0, "there is no capability {id:#x}");
        at.into()
    }

    fn status(&self) -> u8 {
        self.transport.status().bits()
    }
}

/// Split rings, and packed ones.
const FORMATS: [F; 2] = [F::empty(), F::RING_PACKED];

/// A NIC that offers both formats.
fn rig() -> Rig {
    Rig::with_loopback(",packed=on")
}

/// The driver of the first NIC, with rings of this format.
fn driver_of(rig: &Rig, format: F) -> Driver {
    let config = NetConfig {
        interrupts: Interrupts::Messages(&MESSAGES),
        features: NetConfig::default().features | format,
        ..NetConfig::default()
    };
    let driver = rig.driver_like(0, DMA, &config);
    assert!(driver.net.features().contains(format));
    driver
}

/// A frame that tells its number.
fn frame(number: u8) -> [u8; 64] {
    let mut frame = [number; 64];
    frame[..6].fill(0xff);
    frame
}

/// Waits for the frames with these numbers, in this order and with none between.
fn expect_frames(driver: &mut Driver, numbers: impl IntoIterator<Item = u8>) {
    let mut buffer = [0; 2048];
    for number in numbers {
        let mut got = None;
        wait_until("a frame", || {
            let received = driver.net.receive(&mut buffer).unwrap();
            driver.net.flush_receive();
            got = received.map(|received| buffer[..received.len].to_vec());
            got.is_some()
        });
        assert_eq!(got.as_deref(), Some(&frame(number)[..]), "{number}");
    }
}

fn send(driver: &mut Driver, numbers: impl IntoIterator<Item = u8>) {
    for number in numbers {
        driver.net.transmit(&frame(number)).unwrap();
    }
}

/// The numbers of the frames that are there now.
fn received(driver: &mut Driver) -> Vec<u8> {
    let mut buffer = [0; 2048];
    let mut numbers = Vec::new();
    while let Some(received) = driver.net.receive(&mut buffer).unwrap() {
        numbers.push(buffer[..received.len][received.len - 1]);
    }
    numbers
}

/// Two NICs at work on one thread, and the driver of the second.
fn with_a_bystander(properties: &str) -> (Rig, Driver) {
    let rig = Rig::with_loopback(&format!(",packed=on{properties}"));
    rig.devices.netdev_add("loopback,id=other").unwrap();
    rig.devices
        .device_add("virtio-net-pci,netdev=other")
        .unwrap();
    rig.machine.assign_resources().unwrap();
    let elsewhere = DmaRegion {
        address: 8 * MIB,
        ..DMA
    };
    let bystander = rig.driver_of(1, Interrupts::Polled, elsewhere);
    (rig, bystander)
}

/// When this returns, the thread has done all that it was asked for before.
fn let_work(bystander: &mut Driver) {
    for _ in 0..2 {
        send(bystander, 0..16);
        expect_frames(bystander, 0..16);
    }
}

#[test]
fn frames_on_their_way_when_bus_mastering_goes_arrive_when_it_is_back() {
    let rig = rig();
    for format in FORMATS {
        let mut driver = driver_of(&rig, format);
        let registers = Registers::of(&rig.machine);
        for round in 0..50 {
            send(&mut driver, round..round + 8);
            change_command(&registers.view, registers.function, 0, BUS_MASTER);
            // These find nobody at work.
            send(&mut driver, round + 8..round + 16);
            change_command(&registers.view, registers.function, BUS_MASTER, 0);
            expect_frames(&mut driver, round..round + 16);
        }
    }
}

#[test]
fn without_bus_mastering_the_device_writes_nothing() {
    let (rig, mut bystander) = with_a_bystander("");
    for format in FORMATS {
        let mut driver = driver_of(&rig, format);
        let registers = Registers::of(&rig.machine);
        for round in 0..10 {
            send(&mut driver, round..round + 16);
            change_command(&registers.view, registers.function, 0, BUS_MASTER);
            let before = shared_memory(&rig);
            registers
                .view
                .mmio_write(registers.notify_address(1), Width::U16, 1);
            let_work(&mut bystander);
            assert!(shared_memory(&rig) == before, "{format:?} {round}");
            // Nor does it take what comes now.
            send(&mut driver, round + 16..round + 24);
            let_work(&mut bystander);
            let early = received(&mut driver);
            assert!(
                early.iter().copied().eq((round..).take(early.len())) && early.len() <= 16,
                "{format:?}: {early:?}"
            );
            change_command(&registers.view, registers.function, BUS_MASTER, 0);
            expect_frames(&mut driver, (round..round + 24).skip(early.len()));
        }
    }
}

#[test]
fn class_18_in_d3hot_the_device_writes_nothing_and_frames_on_their_way_arrive_in_d0() {
    let (rig, mut bystander) = with_a_bystander(",express=on");
    for format in FORMATS {
        let mut driver = driver_of(&rig, format);
        let registers = Registers::of(&rig.machine);
        let control = registers.capability(POWER_MANAGEMENT) + 4;
        let set_state = |state| {
            (registers.view).config_write(registers.function, control, Width::U16, state);
        };
        for round in 0..10 {
            send(&mut driver, round..round + 8);
            set_state(3);
            let before = shared_memory(&rig);
            let_work(&mut bystander);
            assert!(shared_memory(&rig) == before, "{format:?} {round}");
            // These find nobody at work, and their kicks no register.
            send(&mut driver, round + 8..round + 16);
            set_state(0);
            expect_frames(&mut driver, round..round + 16);
        }
    }
}

#[test]
fn class_18_after_a_function_level_reset_with_frames_on_their_way_the_device_writes_nothing() {
    let (rig, mut bystander) = with_a_bystander(",express=on");
    for round in 0..5 {
        for format in FORMATS {
            let mut driver = driver_of(&rig, format);
            let registers = Registers::of(&rig.machine);
            let bars = [1, 4].map(|bar| Bar::read(&registers.view, registers.function, bar));
            send(&mut driver, round..round + 32);
            let control = registers.capability(PCI_EXPRESS) + 8;
            (registers.view).config_write(registers.function, control, Width::U16, 0x8000);
            let gone = |bar: u8| {
                (registers.view).config_read(
                    registers.function,
                    0x10 + 4 * u16::from(bar),
                    Width::U32,
                ) & !0xf
            };
            assert_eq!([1, 4].map(gone), [0, 0], "BARs are as after power-on");
            // All of the memory that it had is somebody else's.
            let others = vec![0x5a; DMA.len as usize];
            rig.machine
                .memory()
                .write_slice(&others, GuestAddress(DMA.address))
                .unwrap();
            for queue in 0..3_u8 {
                let kick = bars[1].unwrap().address + 0x3000 + 4 * u64::from(queue);
                (registers.view).mmio_write(kick, Width::U16, queue.into());
            }
            let_work(&mut bystander);
            assert!(shared_memory(&rig) == others, "{format:?} {round}");
            // As the kernel does, which has saved them.
            for (bar, was) in [1, 4].into_iter().zip(bars) {
                Bar::assign(
                    &registers.view,
                    registers.function,
                    bar,
                    was.unwrap().address,
                );
            }
            change_command(&registers.view, registers.function, MEMORY | BUS_MASTER, 0);
            let mut driver = driver_of(&rig, format);
            send(&mut driver, 0..16);
            expect_frames(&mut driver, 0..16);
        }
    }
}

#[test]
fn after_a_reset_with_frames_on_their_way_the_device_writes_nothing() {
    let (rig, mut bystander) = with_a_bystander("");
    for round in 0..10 {
        let mut driver = driver_of(&rig, FORMATS[usize::from(round % 2)]);
        let registers = Registers::of(&rig.machine);
        send(&mut driver, round..round + 32);
        registers
            .view
            .mmio_write(registers.common(0x14), Width::U8, 0);
        assert_eq!(registers.status(), 0, "{round}");
        // All of the memory that it had is somebody else's.
        let others = vec![0x5a; DMA.len as usize];
        rig.machine
            .memory()
            .write_slice(&others, GuestAddress(DMA.address))
            .unwrap();
        for queue in 0..3 {
            registers
                .view
                .mmio_write(registers.notify_address(queue), Width::U16, queue.into());
        }
        let_work(&mut bystander);
        assert!(shared_memory(&rig) == others, "{round}");
    }
    let mut driver = rig.driver();
    send(&mut driver, 0..16);
    expect_frames(&mut driver, 0..16);
}

#[test]
fn what_a_live_driver_must_not_write_changes_nothing() {
    use CommonRegister as R;
    let rig = rig();
    let writes = [
        (R::QueueSize, 0),
        (R::QueueSize, 3),
        (R::QueueSize, 0xffff),
        (R::QueueSize, 8),
        (R::QueueEnable, 0),
        (R::QueueEnable, 1),
        (R::QueueNotifyOff, 7),
        (R::QueueDescLow, 0xffff_fff0),
        (R::QueueDescHigh, 0xffff_ffff),
        (R::QueueDriverLow, 0x1001),
        (R::QueueDriverHigh, 1),
        (R::QueueDeviceLow, 0),
        (R::QueueDeviceHigh, 0x8000_0000),
        (R::QueueReset, 1),
        (R::NumQueues, 0),
        (R::ConfigGeneration, 0xff),
        (R::DriverFeatureSelect, 1),
        (R::DriverFeature, 0),
        // FEATURES_OK taken back; all but ACKNOWLEDGE taken back.
        (R::DeviceStatus, 0x07),
        (R::DeviceStatus, 0x01),
    ];
    let queue = |registers: &Registers| {
        [
            R::QueueSize,
            R::QueueEnable,
            R::QueueNotifyOff,
            R::QueueDescLow,
            R::QueueDescHigh,
            R::QueueDriverLow,
            R::QueueDriverHigh,
            R::QueueDeviceLow,
            R::QueueDeviceHigh,
            R::NumQueues,
        ]
        .map(|register| registers.transport.read_common(register))
    };
    for format in FORMATS {
        let mut driver = driver_of(&rig, format);
        let mut registers = Registers::of(&rig.machine);
        for (number, index, (register, value)) in (0_u8..)
            .zip(writes)
            .flat_map(|(number, write)| [0, 1, 2].map(|index| (number, index, write)))
        {
            registers.transport.write_common(R::QueueSelect, index);
            let before = queue(&registers);
            send(&mut driver, number..number + 4);
            registers.transport.write_common(register, value);
            let case = format!("{register:?} = {value:#x} of queue {index}, {format:?}");
            assert_eq!(queue(&registers), before, "{case}");
            assert_eq!(registers.status(), 0x0f, "{case}");
            expect_frames(&mut driver, number..number + 4);
        }
    }
}

#[test]
fn frames_go_on_while_the_registers_move_and_at_the_place_where_they_went() {
    let rig = rig();
    for format in FORMATS {
        let mut driver = driver_of(&rig, format);
        let registers = Registers::of(&rig.machine);
        let home = registers.common(0);
        let elsewhere = PCI_MMIO32.end - 0x10_0000;
        for round in 0..20 {
            send(&mut driver, round..round + 8);
            // Decoding off, the move, decoding on: as Linux does.
            change_command(&registers.view, registers.function, 0, MEMORY);
            assert_eq!(registers.view.mmio_read(home + 0x14, Width::U8), 0xff);
            Bar::assign(&registers.view, registers.function, 4, elsewhere);
            change_command(&registers.view, registers.function, MEMORY, 0);
            assert_eq!(registers.view.mmio_read(home + 0x14, Width::U8), 0xff);
            assert_eq!(registers.view.mmio_read(elsewhere + 0x14, Width::U8), 0x0f);
            // The driver kicks where nobody is any more; then somebody kicks in its stead.
            send(&mut driver, round + 8..round + 16);
            for queue in 0..2 {
                let kick = registers.notify_address(queue);
                assert!(kick > elsewhere);
                registers.view.mmio_write(kick, Width::U16, queue.into());
            }
            expect_frames(&mut driver, round..round + 16);
            Bar::assign(&registers.view, registers.function, 4, home);
        }
    }
}

#[test]
fn no_storm_of_accesses_beside_a_driver_at_work_keeps_the_next_from_working() {
    let rig = rig();
    for seed in 1..=8 {
        let format = FORMATS[usize::from(seed % 2 == 0)];
        let mut driver = driver_of(&rig, format);
        let registers = Registers::of(&rig.machine);
        let done = AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                storm(&registers, seed);
                done.store(true, Ordering::Release);
            });
            let mut buffer = [0; 2048];
            while !done.load(Ordering::Acquire) {
                // Whatever comes of it.
                let _ = driver.net.transmit(&frame(0));
                let _ = driver.net.poll_receive(&mut buffer, |_| {});
            }
        });
        drop(driver);
        rig.devices.reset();
        rig.machine.reset().unwrap();
        assert_eq!(rig.interrupts.vectors().1, 0, "seed {seed}: still routed");
        rig.machine.assign_resources().unwrap();
        let mut driver = driver_of(&rig, format);
        send(&mut driver, 0..16);
        expect_frames(&mut driver, 0..16);
    }
}

/// Accesses of all widths to configuration space and to wherever BARs 1 and 4 are.
fn storm(registers: &Registers, seed: u64) {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    };
    for _ in 0..5_000 {
        let [kind, width, offset, value] = [next(), next(), next(), next()];
        let width = [Width::U8, Width::U16, Width::U32, Width::U64]
            [usize::from(width.to_le_bytes()[3] & 3)];
        // Mostly where the registers are.
        let [.., low, high] = offset.to_be_bytes();
        let in_bar = match kind >> 8 & 7 {
            0..4 => u64::from(low % 0x40),
            4 => 0x3000 + u64::from(low % 16),
            5 => 0x2000 + u64::from(low % 16),
            _ => u64::from(u16::from_be_bytes([low & 0x3f, high])),
        };
        let bar = if kind & 8 == 0 { 4 } else { 1 };
        let address = Bar::read(&registers.view, registers.function, bar)
            .map_or(0, |bar| bar.address)
            .wrapping_add(in_bar);
        match kind & 7 {
            0 => {
                let at = u16::from(low & 0xfc);
                let value = u32::from_le_bytes([low, high, 0, value.to_le_bytes()[0]]);
                registers
                    .view
                    .config_write(registers.function, at, Width::U32, value);
            }
            1 | 2 => drop(registers.view.mmio_read(address, width)),
            3 => {
                let on = u16::from(low & 7);
                change_command(&registers.view, registers.function, on, 7 & !on);
            }
            4 => change_status(registers, low),
            _ => registers.view.mmio_write(address, width, value),
        }
    }
}

/// One of the steps of a driver that starts.
fn change_status(registers: &Registers, choice: u8) {
    let status = [0, 1, 3, 0xb, 0xf, 0x4f, 0x80, 0xff][usize::from(choice & 7)];
    let at = registers.common(0x14);
    registers.view.mmio_write(at, Width::U8, status);
}

/// Everything that the driver shares with the device.
fn shared_memory(rig: &Rig) -> Vec<u8> {
    let mut bytes = vec![0; DMA.len as usize];
    rig.machine
        .memory()
        .read_slice(&mut bytes, GuestAddress(DMA.address))
        .unwrap();
    bytes
}

const POWER_MANAGEMENT: u8 = 1;
const PCI_EXPRESS: u8 = 0x10;
const MEMORY: u16 = 2;
const BUS_MASTER: u16 = 4;
