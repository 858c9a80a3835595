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

use virtio::F;
use virtqueue::{Chain, VirtQueue};

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

struct World<'a> {
    rings: &'a Rings,
    queue: VirtQueue<Memory>,
    event_idx: bool,
    /// The device publishes each chain, not a batch at a time.
    each: bool,
    fault: Fault,
    start: u16,
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
    fn new(rings: &'a Rings, start: u16, event_idx: bool, each: bool, fault: Fault) -> Self {
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
        rings.set_avail_idx(start);
        rings.set_used_idx(start);
        let mut features = F::VERSION_1;
        features.set(F::EVENT_IDX, event_idx);
        let queue = rings.queue(features, start);
        Self {
            rings,
            queue,
            event_idx,
            each,
            fault,
            start,
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
                    assert!(self.queue.in_flight() <= self.rings.size);
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
        let size = self.rings.size;
        let at = |count: u16| self.start.wrapping_add(count);
        self.driver = match self.driver {
            Writing => {
                // Heads in turn: with as many in flight as there are entries, each is free again.
                self.rings
                    .set_avail_entry(at(self.written), self.written % size);
                self.written += 1;
                Exposing
            }
            Exposing => {
                self.rings.set_avail_idx(at(self.written));
                self.exposed = self.written;
                Kicking
            }
            Kicking => {
                let wanted = if self.event_idx {
                    // The entry that the device waits for is one of the new ones.
                    let event = self.rings.avail_event();
                    (self.considered..self.exposed).any(|new| at(new) == event)
                } else {
                    !self.rings.no_notify()
                };
                self.considered = self.exposed;
                self.kick |= wanted;
                self.next()
            }
            Taking => {
                let used = self.rings.used_idx().wrapping_sub(self.start);
                assert!(used <= self.exposed, "used before it was available");
                if used > self.taken {
                    let (head, _) = self.rings.used_entry(at(self.taken));
                    assert_eq!(head, u32::from(self.taken % size));
                    self.taken += 1;
                    self.next()
                } else {
                    Wanting
                }
            }
            Wanting => {
                if self.event_idx {
                    self.rings.set_used_event(at(self.taken));
                }
                if self.fault == Fault::DriverDoesNotLookAgain {
                    Asleep
                } else {
                    LookingAgain
                }
            }
            LookingAgain => {
                if self.rings.used_idx() == at(self.taken) {
                    Asleep
                } else {
                    Taking
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
        } else if self.written < CHAINS && self.written - self.taken < self.rings.size {
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
        (self.rings.bytes(), own)
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
    [(1, 0), (2, 0xfffe)]
        .into_iter()
        .flat_map(move |(size, start)| {
            let rings = Rings::new(size);
            let kinds = [(false, false), (false, true), (true, false), (true, true)];
            kinds.map(|(event_idx, each)| {
                explore(|| World::new(&rings, start, event_idx, each, fault))
            })
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
