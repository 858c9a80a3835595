//! The registers of a transport, driven against a device that records what it is asked.
#![expect(clippy::unwrap_used, reason = "a test ends when its scaffold fails")]

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, Weak};

use virtio::{DeviceStatus, F, Id, le128};
use virtio_bus::{
    ActivateError, Activation, ActiveQueue, BusTransport, DeviceRef, FeaturesRefused,
    GuestNotifier, Half, Health, Hold, NotActivated, PlugError, QueueArea, StatusEffect, Transport,
    TransportFeatures, VirtioBus, VirtioCore, VirtioDevice,
};
use virtqueue::{QueueIndex, QueueState};
use vm_memory::{GuestAddress, GuestMemoryMmap};
use vmm_sys_util::eventfd::EventFd;

type Memory = Arc<GuestMemoryMmap<()>>;

/// A feature of the toy that it never accepts without `TOY_PARTNER`.
const TOY_NEEDY: u128 = 1 << 3;
const TOY_PARTNER: u128 = 1 << 70;

fn features(bits: u128) -> F {
    F::from_bits_retain(le128::from_ne(bits))
}

#[derive(Debug, Default)]
struct Toy {
    calls: Mutex<Vec<&'static str>>,
    queues: Mutex<Vec<ActiveQueue>>,
    refuse_activation: AtomicBool,
    transport: Mutex<Option<Weak<dyn Transport>>>,
}

impl Toy {
    fn note(&self, call: &'static str) {
        self.calls.lock().unwrap().push(call);
    }

    fn take_calls(&self) -> Vec<&'static str> {
        std::mem::take(&mut *self.calls.lock().unwrap())
    }
}

impl VirtioDevice<Memory> for Toy {
    fn device_type(&self) -> Id {
        Id::Rng
    }
    fn queue_max_sizes(&self) -> Vec<u16> {
        vec![256, 64, 0]
    }
    fn offered_features(&self) -> F {
        F::RING_RESET | F::SR_IOV | features(TOY_NEEDY | TOY_PARTNER)
    }
    fn plugged(&self, transport: Weak<dyn Transport>) {
        *self.transport.lock().unwrap() = Some(transport);
        self.note("plugged");
    }
    fn unplugged(&self) {
        self.note("unplugged");
    }
    fn config_len(&self) -> usize {
        6
    }
    fn read_config(&self, offset: usize, data: &mut [u8]) {
        assert!(offset + data.len() <= 6);
        data.fill(0xc0);
    }
    fn write_config(&self, offset: usize, data: &[u8]) {
        assert!(offset + data.len() <= 6);
        self.note("write_config");
    }
    fn negotiate(&self, chosen: F) -> Result<(), FeaturesRefused> {
        let bits = chosen.bits().to_ne();
        if bits & TOY_NEEDY != 0 && bits & TOY_PARTNER == 0 {
            return Err(FeaturesRefused {
                features: bits,
                reason: "the needy bit without its partner",
            });
        }
        Ok(())
    }
    fn activate(&self, activation: Activation<Memory>) -> Result<(), NotActivated> {
        if self.refuse_activation.load(Ordering::Relaxed)
            || activation.queues.iter().any(|queue| queue.config.desc == 0)
        {
            return Err(NotActivated {
                queues: activation.queues,
                error: ActivateError::QueueMissing(QueueIndex(0)),
            });
        }
        self.note("activate");
        self.queues.lock().unwrap().extend(activation.queues);
        Ok(())
    }
    fn start_queue(&self, queue: ActiveQueue) -> Result<(), NotActivated> {
        self.note("start_queue");
        self.queues.lock().unwrap().push(queue);
        Ok(())
    }
    fn stop_queue(&self, index: QueueIndex) -> Option<ActiveQueue> {
        self.note("stop_queue");
        let mut queues = self.queues.lock().unwrap();
        let at = queues.iter().position(|queue| queue.index == index)?;
        Some(queues.remove(at))
    }
    fn reset(&self) -> Vec<ActiveQueue> {
        self.note("reset");
        std::mem::take(&mut *self.queues.lock().unwrap())
    }
    fn pause(&self) {
        self.note("pause");
    }
    fn resume(&self) {
        self.note("resume");
    }
}

/// A transport that counts the configuration notifications a driver would get.
#[derive(Debug, Default)]
struct Wire {
    health: Arc<Health>,
    told: AtomicUsize,
}

impl Transport for Wire {
    fn config_changed(&self) {
        self.health.set_config_changed();
        self.told.fetch_add(1, Ordering::Relaxed);
    }
    fn needs_reset(&self, reason: &str) {
        self.health.log_broken("toy", reason);
        if self.health.set_broken() {
            self.told.fetch_add(1, Ordering::Relaxed);
        }
    }
}

#[derive(Debug)]
struct NoCall;

impl GuestNotifier for NoCall {
    fn notify(&self) {}
    fn event_fd(&self) -> Option<&EventFd> {
        None
    }
}

struct Rig {
    toy: Arc<Toy>,
    wire: Arc<Wire>,
    core: VirtioCore<Memory>,
}

impl Rig {
    fn new() -> Self {
        let toy = Arc::new(Toy::default());
        let wire = Arc::new(Wire::default());
        let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 0x1_0000)]).unwrap();
        let backlink: Weak<Wire> = Arc::downgrade(&wire);
        let core = VirtioCore::new(
            Arc::clone(&toy) as DeviceRef<Memory>,
            Arc::new(memory),
            &TransportFeatures {
                adds: F::VERSION_1,
                withholds: F::SR_IOV,
            },
            backlink,
            Arc::clone(&wire.health),
            |_| Arc::new(NoCall),
        )
        .unwrap();
        toy.take_calls();
        Self { toy, wire, core }
    }

    fn choose(&mut self, bits: u128) {
        for select in 0..4_u32 {
            self.core.set_driver_feature_select(select);
            self.core
                .set_driver_feature((bits >> (select * 32) & 0xffff_ffff) as u32);
        }
    }

    /// Up to FEATURES_OK with these features beside VERSION_1.
    fn negotiate(&mut self, bits: u128) -> DeviceStatus {
        let _ = self.core.write_status(3);
        self.choose(F::VERSION_1.bits().to_ne() | bits);
        let _ = self.core.write_status(0xb);
        self.core.status()
    }

    fn enable(&mut self, queue: u16) {
        self.core.set_queue_select(queue);
        self.core
            .set_queue_address(QueueArea::Descriptor, Half::Low, 0x1000);
        assert!(!self.core.enable_queue());
    }

    fn told(&self) -> usize {
        self.wire.told.load(Ordering::Relaxed)
    }
}

#[test]
fn the_transport_adds_and_withholds_features() {
    let mut rig = Rig::new();
    let mut words = Vec::new();
    for select in 0..5 {
        rig.core.set_device_feature_select(select);
        words.push(rig.core.device_feature());
    }
    assert_eq!(words, [1 << 3, 1 | 1 << 8, 1 << 6, 0, 0]);
}

#[test]
fn features_ok_stays_clear_for_a_choice_that_is_not_offered_or_makes_no_sense() {
    // (features beside VERSION_1, accepted)
    let table = [
        (0, true),
        (TOY_PARTNER, true),
        (TOY_PARTNER | TOY_NEEDY, true),
        (TOY_NEEDY, false),
        (1 << 4, false),
        (1 << 127, false),
        (F::SR_IOV.bits().to_ne(), false),
    ];
    for (bits, accepted) in table {
        let status = Rig::new().negotiate(bits);
        assert_eq!(
            status.contains(DeviceStatus::FEATURES_OK),
            accepted,
            "{bits:#x}"
        );
    }
    let mut rig = Rig::new();
    let _ = rig.core.write_status(0xb);
    assert_eq!(rig.core.status().bits(), 3, "VERSION_1 was not accepted");
}

#[test]
fn a_refused_driver_may_choose_again() {
    let mut rig = Rig::new();
    assert_eq!(rig.negotiate(TOY_NEEDY).bits(), 3);
    assert_eq!(rig.negotiate(TOY_NEEDY | TOY_PARTNER).bits(), 0xb);
}

#[test]
fn features_written_after_features_ok_are_ignored() {
    let mut rig = Rig::new();
    rig.negotiate(TOY_PARTNER);
    rig.choose(u128::MAX);
    rig.core.set_driver_feature_select(0);
    assert_eq!(rig.core.driver_feature(), 0);
    assert_eq!(
        rig.core.negotiated().bits().to_ne(),
        F::VERSION_1.bits().to_ne() | TOY_PARTNER
    );
}

#[test]
fn driver_ok_without_features_ok_does_not_start_the_device() {
    let mut rig = Rig::new();
    rig.enable(0);
    assert_eq!(rig.core.write_status(7), StatusEffect::Noted);
    assert_eq!(rig.core.status().bits(), 3);
    assert!(!rig.toy.take_calls().contains(&"activate"));
}

#[test]
fn only_enabled_queues_are_lent_and_they_come_back_at_reset() {
    let mut rig = Rig::new();
    rig.negotiate(0);
    rig.enable(1);
    rig.core.set_queue_select(2);
    assert!(!rig.core.enable_queue() && !rig.core.queue_enabled());
    assert_eq!(rig.core.write_status(0xf), StatusEffect::Live);
    let live: Vec<_> = rig.core.live_queues().map(|(index, _)| index).collect();
    assert_eq!(live, [QueueIndex(1)]);
    rig.core.kick_live();
    assert_eq!(rig.toy.queues.lock().unwrap()[0].kick.read().unwrap(), 1);

    assert_eq!(rig.core.write_status(0), StatusEffect::Reset);
    assert_eq!(rig.core.live_queues().count(), 0);
    rig.core.set_queue_select(1);
    assert!(!rig.core.queue_enabled());
    assert_eq!(rig.core.queue_address(QueueArea::Descriptor), 0);
    assert_eq!(rig.core.status(), DeviceStatus::empty());
    assert_eq!(rig.toy.take_calls(), ["activate", "reset"]);
}

#[test]
fn the_registers_of_an_enabled_queue_do_not_move() {
    for go_live in [false, true] {
        let mut rig = Rig::new();
        rig.negotiate(0);
        rig.core.set_queue_select(0);
        rig.core.set_queue_size(128);
        rig.enable(0);
        if go_live {
            assert_eq!(rig.core.write_status(0xf), StatusEffect::Live);
        }
        rig.core.set_queue_size(64);
        rig.core
            .set_queue_address(QueueArea::Descriptor, Half::High, 1);
        assert!(!rig.core.enable_queue());
        assert_eq!(rig.core.queue_size(), 128, "live: {go_live}");
        assert_eq!(rig.core.queue_address(QueueArea::Descriptor), 0x1000);
        assert_eq!(
            rig.core.live_queues().count(),
            usize::from(go_live),
            "enabled twice"
        );
    }
}

#[test]
fn a_queue_enabled_after_driver_ok_is_ignored_unless_rings_can_be_reset() {
    for ring_reset in [false, true] {
        let mut rig = Rig::new();
        rig.negotiate(if ring_reset {
            F::RING_RESET.bits().to_ne()
        } else {
            0
        });
        rig.enable(0);
        assert_eq!(rig.core.write_status(0xf), StatusEffect::Live);
        rig.core.set_queue_select(1);
        assert_eq!(rig.core.enable_queue(), ring_reset);
        assert_eq!(
            rig.core.live_queues().count(),
            1 + usize::from(ring_reset),
            "ring_reset {ring_reset}"
        );
    }
}

#[test]
fn a_ring_reset_takes_one_queue_back_and_it_can_be_enabled_anew() {
    let mut rig = Rig::new();
    rig.negotiate(F::RING_RESET.bits().to_ne());
    rig.enable(0);
    rig.enable(1);
    let _ = rig.core.write_status(0xf);
    rig.toy.take_calls();
    rig.core.reset_queue();
    assert!(!rig.core.queue_enabled());
    rig.core.set_queue_size(32);
    assert_eq!(rig.core.queue_size(), 32);
    assert!(rig.core.enable_queue());
    assert_eq!(rig.toy.take_calls(), ["stop_queue", "start_queue"]);
    assert_eq!(rig.core.live_queues().count(), 2);
}

#[test]
fn a_queue_enabled_on_a_live_device_is_kicked_once_for_what_was_queued_before() {
    let mut rig = Rig::new();
    rig.negotiate(F::RING_RESET.bits().to_ne());
    let _ = rig.core.write_status(0xf);
    rig.core.set_queue_select(1);
    assert!(rig.core.enable_queue());
    assert_eq!(rig.toy.queues.lock().unwrap()[0].kick.read().unwrap(), 1);
}

#[test]
fn a_queue_starts_where_it_is_told_and_where_it_stopped_can_be_read() {
    let state = |next_avail, next_used| QueueState {
        next_avail,
        next_used,
    };
    let ring_reset = F::RING_RESET.bits().to_ne();
    for whole in [false, true] {
        let mut rig = Rig::new();
        rig.negotiate(ring_reset);
        assert!(!rig.core.set_queue_state(QueueIndex(9), state(1, 1)));
        assert!(rig.core.set_queue_state(QueueIndex(1), state(7, 5)));
        rig.enable(0);
        rig.enable(1);
        let _ = rig.core.write_status(0xf);
        let lent: Vec<_> = (rig.toy.queues.lock().unwrap().iter_mut())
            .map(|queue| std::mem::replace(&mut queue.state, state(20, 19)))
            .collect();
        assert_eq!(lent, [state(0, 0), state(7, 5)]);
        assert!(
            !rig.core.set_queue_state(QueueIndex(1), state(1, 1)),
            "live"
        );
        assert_eq!(rig.core.returned_state(QueueIndex(1)), None);

        if whole {
            let _ = rig.core.write_status(0);
            rig.negotiate(ring_reset);
            let _ = rig.core.write_status(0xf);
            rig.core.set_queue_select(1);
        } else {
            assert!(rig.core.reset_queue());
        }
        assert_eq!(rig.core.returned_state(QueueIndex(1)), Some(state(20, 19)));
        let other = whole.then_some(state(20, 19));
        assert_eq!(rig.core.returned_state(QueueIndex(0)), other);

        assert!(rig.core.enable_queue());
        let queues = rig.toy.queues.lock().unwrap();
        let anew = queues.last().unwrap();
        assert_eq!((anew.index, anew.state), (QueueIndex(1), state(0, 0)));
    }
}

#[test]
fn a_ring_reset_that_was_not_negotiated_is_ignored() {
    let mut rig = Rig::new();
    rig.negotiate(0);
    rig.enable(0);
    let _ = rig.core.write_status(0xf);
    rig.core.reset_queue();
    assert!(rig.core.queue_enabled());
    assert!(!rig.toy.take_calls().contains(&"stop_queue"));
}

#[test]
fn a_device_that_cannot_start_shows_needs_reset_and_tells_the_driver_once() {
    let mut rig = Rig::new();
    rig.negotiate(0);
    rig.core.set_queue_select(0);
    assert!(!rig.core.enable_queue(), "with no addresses");
    assert_eq!(rig.core.write_status(0xf), StatusEffect::Noted);
    assert_eq!(rig.core.status().bits(), 0x4f);
    assert_eq!(rig.told(), 1);
    assert_eq!(rig.core.live_queues().count(), 0);
    assert_eq!(rig.core.write_status(0xf), StatusEffect::Noted);
    assert_eq!(rig.told(), 1, "told again");

    let _ = rig.core.write_status(0);
    assert_eq!(rig.negotiate(0).bits(), 0xb, "a reset cures it");
    rig.enable(0);
    assert_eq!(rig.core.write_status(0xf), StatusEffect::Live);
}

#[test]
fn a_device_that_breaks_before_driver_ok_shows_it_and_does_not_start() {
    let mut rig = Rig::new();
    rig.negotiate(0);
    rig.wire.needs_reset("toy test");
    assert_eq!(rig.told(), 0);
    assert_eq!(rig.core.status().bits(), 0x4b);
    assert_eq!(rig.core.write_status(0xf), StatusEffect::Noted);
    assert_eq!(rig.core.status().bits(), 0x4b);
}

#[test]
fn registers_of_a_queue_that_does_not_exist_read_zero_and_ignore_writes() {
    let mut rig = Rig::new();
    for select in [2, 3, 0xffff] {
        rig.core.set_queue_select(select);
        rig.core.set_queue_size(16);
        assert!(!rig.core.enable_queue());
        rig.core.reset_queue();
        assert_eq!(rig.core.queue_size(), 0, "{select}");
        assert!(!rig.core.queue_enabled(), "{select}");
    }
    assert_eq!(rig.core.selected(), None);
}

#[test]
fn configuration_space_past_its_end_reads_zero_and_ignores_writes() {
    let mut rig = Rig::new();
    // (offset, what eight bytes read)
    let table = [
        (0, [0xc0, 0xc0, 0xc0, 0xc0, 0xc0, 0xc0, 0, 0]),
        (4, [0xc0, 0xc0, 0, 0, 0, 0, 0, 0]),
        (6, [0; 8]),
        (u64::MAX, [0; 8]),
    ];
    for (offset, expected) in table {
        let mut data = [0xa5; 8];
        rig.core.read_config(offset, &mut data);
        assert_eq!(data, expected, "{offset}");
        rig.core.write_config(offset, &data);
    }
    assert_eq!(rig.toy.take_calls(), ["write_config"; 2]);
}

#[test]
fn the_generation_moves_when_the_driver_looks_after_a_change() {
    let mut rig = Rig::new();
    let before = rig.core.config_generation();
    assert_eq!(rig.core.config_generation(), before);
    for _ in 0..256 {
        rig.wire.config_changed();
    }
    rig.core.read_config(0, &mut [0; 4]);
    assert_ne!(rig.core.config_generation(), before, "256 changes");
}

#[test]
fn a_device_goes_on_only_when_nothing_holds_it_any_more() {
    let mut rig = Rig::new();
    rig.core.set_hold(Hold::Vmm, true);
    rig.core.set_hold(Hold::BusMaster, true);
    rig.core.set_hold(Hold::BusMaster, true);
    rig.core.set_hold(Hold::Vmm, false);
    assert_eq!(rig.toy.take_calls(), ["pause"]);
    rig.core.reset();
    assert!(rig.core.is_held(), "a reset let it go");
    rig.core.set_hold(Hold::BusMaster, false);
    assert_eq!(rig.toy.take_calls(), ["reset", "resume"]);
}

#[derive(Debug, Default)]
struct Slot {
    refuse: AtomicBool,
    calls: Mutex<Vec<&'static str>>,
}

impl BusTransport<Memory> for Slot {
    fn pre_plug(&self, _device: &DeviceRef<Memory>) -> Result<(), PlugError> {
        self.calls.lock().unwrap().push("pre_plug");
        Ok(())
    }
    fn device_plugged(&self, _device: &DeviceRef<Memory>) -> Result<(), PlugError> {
        self.calls.lock().unwrap().push("device_plugged");
        if self.refuse.load(Ordering::Relaxed) {
            return Err(PlugError::Unsuitable("not this one".into()));
        }
        Ok(())
    }
    fn device_unplugged(&self, _device: &DeviceRef<Memory>) {
        self.calls.lock().unwrap().push("device_unplugged");
    }
}

#[test]
fn a_bus_takes_one_device_and_forgets_one_that_its_transport_refuses() {
    let transport = Arc::new(Slot::default());
    let backlink: Weak<Slot> = Arc::downgrade(&transport);
    let bus = VirtioBus::new("virtio-bus", backlink);
    let toy = Arc::new(Toy::default());

    transport.refuse.store(true, Ordering::Relaxed);
    let refused = bus.plug(Arc::clone(&toy) as DeviceRef<Memory>);
    assert!(matches!(refused, Err(PlugError::Unsuitable(_))));
    assert!(bus.device().is_none());
    assert_eq!(Arc::strong_count(&toy), 1, "a refused device is kept");

    transport.refuse.store(false, Ordering::Relaxed);
    bus.plug(Arc::clone(&toy) as DeviceRef<Memory>).unwrap();
    let second = bus.plug(Arc::new(Toy::default()));
    assert_eq!(second.unwrap_err().to_string(), "Bus 'virtio-bus' is full");
    assert!(bus.unplug().is_some());
    assert!(bus.unplug().is_none());
    assert_eq!(Arc::strong_count(&toy), 1);
    assert_eq!(
        *transport.calls.lock().unwrap(),
        [
            "pre_plug",
            "device_plugged",
            "pre_plug",
            "device_plugged",
            "device_unplugged"
        ]
    );

    drop(transport);
    let orphan = bus.plug(toy as DeviceRef<Memory>);
    assert!(matches!(orphan, Err(PlugError::NoTransport(_))));
}
