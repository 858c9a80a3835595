//! Every order of a driver's and a device's steps: neither sleeps while the other waits for it.
//!
//! The device is the real one, at the grain of its calls; the driver is written out here, at the grain of
//! its stores and loads. From each state that the two, memory and the two doorbells can be in, every
//! step that can be next is tried. A state in which no step can be next, though chains are left, is a
//! lost wakeup. What happens inside of a call of the device's is in [`buffers`](crate::buffers).
//!
//! This is the place where a vCPU meets the data path: what a vCPU's thread does at a kick is to ring
//! the device's doorbell, an eventfd, and nothing else.

use std::collections::{HashSet, VecDeque};
use std::ops::Range;

use virtio::F;
use virtqueue::{Chain, VirtQueue};

use crate::packed_ring::{PackedRing, Place};
use crate::ring::{Desc, Memory, Rings};

/// Chains that the driver sends.
const CHAINS: u16 = 3;

/// What is left out of a driver or a device, to see that it would be missed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fault {
    None,
    /// The device sleeps though its second look has found something.
    DeviceSleepsAnyway,
    /// It goes to sleep without asking for kicks.
    DeviceDoesNotAsk,
    /// It asks for kicks, then looks no more.
    DeviceDoesNotTell,
    /// The driver asks for an interrupt and sleeps without a second look.
    DriverDoesNotLookAgain,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum DeviceAt {
    Asleep,
    Awake,
    Popping,
    Publishing,
    Telling,
    Asking,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum DriverAt {
    Writing,
    Exposing,
    Kicking,
    Taking,
    Wanting,
    LookingAgain,
    Asleep,
    Done,
}

/// What the two share, in terms of chains: the first, the second, and so on from where the queue starts.
trait Shared {
    fn size(&self) -> u16;
    /// The device's half, with nothing available.
    fn begin(&self, event_idx: bool) -> VirtQueue<Memory>;
    fn write(&self, nth: u16);
    /// The store with which what was written is available.
    fn expose(&self, nth: u16);
    /// Whether the device wants a kick for one of these.
    fn wants_kick(&self, chains: Range<u16>, event_idx: bool) -> bool;
    fn is_used(&self, nth: u16) -> bool;
    /// What names the chain on the used ring.
    fn used_name(&self, nth: u16) -> u32;
    /// Asks for an interrupt when the chain is used.
    fn ask_for_interrupt(&self, nth: u16);
    fn bytes(&self) -> Vec<u8>;
}

/// Split rings, whose indices start here.
struct Split(Rings, u16);

impl Split {
    fn at(&self, nth: u16) -> u16 {
        self.1.wrapping_add(nth)
    }
}

impl Shared for Split {
    fn size(&self) -> u16 {
        self.0.size
    }

    fn begin(&self, event_idx: bool) -> VirtQueue<Memory> {
        let Self(rings, start) = self;
        rings.clear();
        for index in 0..rings.size {
            let desc = Desc {
                addr: 0x2000,
                len: 8,
                flags: 0,
                next: 0,
            };
            rings.set_desc(index, desc);
        }
        rings.set_avail_idx(*start);
        rings.set_used_idx(*start);
        rings.queue(features(event_idx), *start)
    }

    fn write(&self, nth: u16) {
        // Heads in turn: with as many in flight as there are entries, each is free again.
        self.0.set_avail_entry(self.at(nth), nth % self.0.size);
    }

    fn expose(&self, nth: u16) {
        self.0.set_avail_idx(self.at(nth + 1));
    }

    fn wants_kick(&self, mut chains: Range<u16>, event_idx: bool) -> bool {
        if event_idx {
            // The entry that the device waits for is one of the new ones.
            let event = self.0.avail_event();
            chains.any(|new| self.at(new) == event)
        } else {
            !self.0.no_notify()
        }
    }

    fn is_used(&self, nth: u16) -> bool {
        self.0.used_idx().wrapping_sub(self.1) > nth
    }

    fn used_name(&self, nth: u16) -> u32 {
        self.0.used_entry(self.at(nth)).0
    }

    fn ask_for_interrupt(&self, nth: u16) {
        self.0.set_used_event(self.at(nth));
    }

    fn bytes(&self) -> Vec<u8> {
        self.0.bytes()
    }
}

/// A packed ring, where the first chain goes here.
struct Packed(PackedRing, Place);

impl Packed {
    fn at(&self, nth: u16) -> Place {
        self.1.plus(nth, self.0.size)
    }
}

impl Shared for Packed {
    fn size(&self) -> u16 {
        self.0.size
    }

    fn begin(&self, event_idx: bool) -> VirtQueue<Memory> {
        let Self(ring, start) = self;
        ring.clear(*start);
        ring.queue(features(event_idx), *start, *start).unwrap()
    }

    fn write(&self, nth: u16) {
        self.0
            .set_buffer(self.at(nth), 0x2000, 8, nth % self.0.size);
    }

    fn expose(&self, nth: u16) {
        let place = self.at(nth);
        self.0.set_flags(place, place.available());
    }

    fn wants_kick(&self, mut chains: Range<u16>, event_idx: bool) -> bool {
        match self.0.device_event() {
            (event, 2) if event_idx => chains.any(|new| self.at(new).value() == event),
            (_, flags) => flags == 0,
        }
    }

    fn is_used(&self, nth: u16) -> bool {
        let place = self.at(nth);
        self.0.flags(place) & (1 << 7 | 1 << 15) == place.used()
    }

    fn used_name(&self, nth: u16) -> u32 {
        self.0.id(self.at(nth)).into()
    }

    fn ask_for_interrupt(&self, nth: u16) {
        self.0.set_driver_event(self.at(nth).value(), 2);
    }

    fn bytes(&self) -> Vec<u8> {
        self.0.bytes()
    }
}

fn features(event_idx: bool) -> F {
    let mut features = F::VERSION_1;
    features.set(F::EVENT_IDX, event_idx);
    features
}

struct World<'a> {
    shared: &'a dyn Shared,
    queue: VirtQueue<Memory>,
    event_idx: bool,
    /// The device publishes each chain, not a batch at a time.
    each: bool,
    fault: Fault,
    device: DeviceAt,
    driver: DriverAt,
    /// The doorbells: rung and not heard yet.
    kick: bool,
    call: bool,
    /// The driver's own: chains written, exposed, and when kicks were last thought of; chains taken back.
    written: u16,
    exposed: u16,
    considered: u16,
    taken: u16,
    /// What the device can have seen since it last looked for sure, which its state may depend on.
    seen: Vec<u16>,
}

impl<'a> World<'a> {
    fn new(shared: &'a dyn Shared, event_idx: bool, each: bool, fault: Fault) -> Self {
        Self {
            shared,
            queue: shared.begin(event_idx),
            event_idx,
            each,
            fault,
            device: DeviceAt::Asleep,
            driver: DriverAt::Writing,
            // Each queue is looked at once when it starts.
            kick: true,
            call: false,
            written: 0,
            exposed: 0,
            considered: 0,
            taken: 0,
            seen: Vec::new(),
        }
    }

    fn device_can_step(&self) -> bool {
        self.device != DeviceAt::Asleep || self.kick
    }

    fn driver_can_step(&self) -> bool {
        match self.driver {
            DriverAt::Done => false,
            DriverAt::Asleep => self.call,
            _ => true,
        }
    }

    fn step_device(&mut self) {
        use DeviceAt::*;
        self.device = match self.device {
            Asleep => {
                self.kick = false;
                Awake
            }
            Awake => {
                self.queue.disable_notifications();
                Popping
            }
            Popping => {
                let mut chain = Chain::new();
                self.seen.push(self.exposed);
                if self.queue.pop(&mut chain).unwrap() {
                    assert!(self.queue.in_flight() <= self.shared.size());
                    self.queue.push_used(chain.head(), 0).unwrap();
                    if self.each { Publishing } else { Popping }
                } else {
                    Publishing
                }
            }
            Publishing => {
                if self.queue.publish() > 0 {
                    Telling
                } else {
                    Asking
                }
            }
            Telling => {
                self.call |= self.queue.needs_notification();
                if self.each { Popping } else { Asking }
            }
            Asking => match self.fault {
                Fault::DeviceDoesNotAsk => Asleep,
                fault => {
                    self.seen = vec![self.exposed];
                    let more = self.queue.enable_notifications().unwrap();
                    if more && fault != Fault::DeviceSleepsAnyway {
                        Awake
                    } else {
                        Asleep
                    }
                }
            },
        };
        if self.fault == Fault::DeviceDoesNotTell {
            self.call = false;
        }
    }

    fn step_driver(&mut self) {
        use DriverAt::*;
        let shared = self.shared;
        self.driver = match self.driver {
            Writing => {
                shared.write(self.written);
                self.written += 1;
                Exposing
            }
            Exposing => {
                shared.expose(self.written - 1);
                self.exposed = self.written;
                Kicking
            }
            Kicking => {
                self.kick |= shared.wants_kick(self.considered..self.exposed, self.event_idx);
                self.considered = self.exposed;
                self.next()
            }
            Taking => {
                if shared.is_used(self.taken) {
                    assert!(self.taken < self.exposed, "used before it was available");
                    let name = shared.used_name(self.taken);
                    assert_eq!(name, u32::from(self.taken % shared.size()));
                    self.taken += 1;
                    self.next()
                } else {
                    Wanting
                }
            }
            Wanting => {
                if self.event_idx {
                    shared.ask_for_interrupt(self.taken);
                }
                if self.fault == Fault::DriverDoesNotLookAgain {
                    Asleep
                } else {
                    LookingAgain
                }
            }
            LookingAgain => {
                if shared.is_used(self.taken) {
                    Taking
                } else {
                    Asleep
                }
            }
            Asleep => {
                self.call = false;
                Taking
            }
            Done => Done,
        };
    }

    fn next(&self) -> DriverAt {
        if self.taken == CHAINS {
            DriverAt::Done
        } else if self.written < CHAINS && self.written - self.taken < self.shared.size() {
            DriverAt::Writing
        } else {
            DriverAt::Taking
        }
    }

    /// All that what comes next can depend on.
    fn state(&self) -> (Vec<u8>, String) {
        let own = format!(
            "{:?} {:?} {:?} {} {} {} {} {} {} {:?}",
            self.queue,
            self.device,
            self.driver,
            self.kick,
            self.call,
            self.written,
            self.exposed,
            self.considered,
            self.taken,
            self.seen,
        );
        (self.shared.bytes(), own)
    }
}

/// Whose step is next.
#[derive(Clone, Copy)]
enum Who {
    Device,
    Driver,
}

/// Tries all orders, until there is a state that nobody leaves: `None`. Else how many states there are.
fn explore<'a>(new: impl Fn() -> World<'a>) -> Option<usize> {
    let mut known = HashSet::new();
    let mut open = VecDeque::from([Vec::new()]);
    while let Some(path) = open.pop_front() {
        // A queue cannot be copied, so what has led here is done again.
        let mut world = new();
        for who in &path {
            match who {
                Who::Device => world.step_device(),
                Who::Driver => world.step_driver(),
            }
        }
        if !known.insert(world.state()) {
            continue;
        }
        assert!(path.len() < 200, "this goes on for ever");
        let mut leads_on = false;
        for (who, can) in [
            (Who::Device, world.device_can_step()),
            (Who::Driver, world.driver_can_step()),
        ] {
            if can {
                leads_on = true;
                let mut path = path.clone();
                path.push(who);
                open.push_back(path);
            }
        }
        if !leads_on && world.driver != DriverAt::Done {
            return None;
        }
    }
    Some(known.len())
}

/// All kinds of worlds, with what comes of each.
fn worlds(fault: Fault) -> impl Iterator<Item = Option<usize>> {
    let second_lap = Place {
        offset: 1,
        wrap: false,
    };
    let shared: [Box<dyn Shared>; 4] = [
        Box::new(Split(Rings::new(1), 0)),
        Box::new(Split(Rings::new(2), 0xfffe)),
        Box::new(Packed(PackedRing::new(1), Place::START)),
        Box::new(Packed(PackedRing::new(2), second_lap)),
    ];
    shared.into_iter().flat_map(move |shared| {
        let kinds = [(false, false), (false, true), (true, false), (true, true)];
        kinds.map(|(event_idx, each)| explore(|| World::new(&*shared, event_idx, each, fault)))
    })
}

#[test]
fn no_order_of_steps_leaves_both_asleep() {
    for states in worlds(Fault::None) {
        let states = states.unwrap();
        assert!(states > 30);
    }
}

#[test]
fn a_step_that_is_left_out_leaves_both_asleep_in_some_order() {
    for fault in [
        Fault::DeviceSleepsAnyway,
        Fault::DeviceDoesNotAsk,
        Fault::DeviceDoesNotTell,
        Fault::DriverDoesNotLookAgain,
    ] {
        let missed = worlds(fault).any(|states| states.is_none());
        assert!(missed, "{fault:?} is not missed");
    }
}
