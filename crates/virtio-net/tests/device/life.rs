//! The device's life: negotiation, activation, stop, and what is left of it.

use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, Weak};

use iothread::{AioContext, EventLoop, IoThread};
use net_client::{Drained, DropReason, Loopback, Offloads, Port};
use virtio::F;
use virtio::net::F as NetF;
use virtio_bus::{Activation, VirtioDevice};
use virtio_net::{VirtioNet, VirtioNetConfig, VirtioNetError};
use virtqueue::{QueueConfig, QueueIndex, QueueState};

use crate::harness::{Answer, CTRL, HEADER, Memory, Nic, PLAIN, Peer, RX, Revoking, TX, frame};

/// Of a queue in its first lap.
fn state(next: u16) -> QueueState {
    let wrap = if crate::harness::packed() { 1 << 15 } else { 0 };
    let next = next | wrap;
    QueueState {
        next_avail: next,
        next_used: next,
    }
}

#[test]
fn a_nic_with_no_peer_offers_no_offload_and_drops_what_it_sends() {
    let context = EventLoop::new().unwrap();
    let nic = VirtioNet::<Memory>::new(VirtioNetConfig::default(), vec![], vec![context]).unwrap();
    let features = NetF::from(nic.offered_features());
    assert!(!features.intersects(NetF::CSUM | NetF::GUEST_CSUM | NetF::HOST_TSO4));
    assert_eq!(nic.queue_max_sizes(), [256, 256, 64]);
    assert_eq!(nic.config_len(), 8);
    let mut config = [0; 8];
    nic.read_config(0, &mut config);
    assert_eq!(config, [0x52, 0x54, 0, 0x12, 0x34, 0x56, 1, 0]);
}

#[test]
fn what_cannot_be_is_refused_at_creation_and_leaves_the_backend_free() {
    let good = VirtioNetConfig::default;
    let peer = Peer::new();
    let context: Arc<dyn AioContext> = EventLoop::new().unwrap();
    let make = |config, ports: Vec<Arc<Port>>, contexts| {
        VirtioNet::<Memory>::new(config, ports, contexts).map(drop)
    };
    let one = || vec![peer.port.clone()];
    for size in [0, 64, 128, 255, 300, 3000, 32767, 65535] {
        let rx = VirtioNetConfig {
            rx_queue_size: size,
            ..good()
        };
        let tx = VirtioNetConfig {
            tx_queue_size: size,
            ..good()
        };
        assert!(
            matches!(make(rx, one(), vec![context.clone()]), Err(VirtioNetError::RxQueueSize(s)) if s == size)
        );
        assert!(
            matches!(make(tx, one(), vec![context.clone()]), Err(VirtioNetError::TxQueueSize(s)) if s == size)
        );
    }
    for size in [256, 512, 1024, 2048, 4096, 8192, 16384, 32768] {
        let config = VirtioNetConfig {
            rx_queue_size: size,
            tx_queue_size: size,
            ..good()
        };
        let nic = VirtioNet::<Memory>::new(config, one(), vec![context.clone()]).unwrap();
        assert_eq!(nic.queue_max_sizes(), [size, size, 64]);
    }
    let mtu = VirtioNetConfig {
        host_mtu: 67,
        ..good()
    };
    assert!(matches!(
        make(mtu, one(), vec![context.clone()]),
        Err(VirtioNetError::HostMtu(67))
    ));
    assert!(matches!(
        make(good(), one(), vec![]),
        Err(VirtioNetError::Contexts { .. })
    ));
    let speed = VirtioNetConfig {
        speed: Some(0x8000_0000),
        ..good()
    };
    assert!(matches!(
        make(speed, one(), vec![context.clone()]),
        Err(VirtioNetError::Speed(0x8000_0000))
    ));
    let ports = |count: usize| {
        let others = (1..count).map(|_| Peer::new().port.clone());
        [peer.port.clone()].into_iter().chain(others).collect()
    };
    assert!(matches!(
        make(good(), ports(257), vec![context.clone()]),
        Err(VirtioNetError::QueuePairs(257))
    ));
    assert!(matches!(
        make(good(), ports(3), vec![context.clone(), context.clone()]),
        Err(VirtioNetError::Contexts {
            contexts: 2,
            pairs: 3
        })
    ));
    // A pair that cannot be connected leaves those before it free.
    let taken = Peer::new();
    let other = VirtioNet::<Memory>::new(good(), vec![taken.port.clone()], vec![context.clone()]);
    let two = vec![peer.port.clone(), taken.port.clone()];
    assert!(matches!(
        make(good(), two, vec![context.clone()]),
        Err(VirtioNetError::Connect(_))
    ));
    drop(other);
    assert!(peer.port.peer().is_none());
    let nic = VirtioNet::<Memory>::new(good(), one(), vec![context.clone()]).unwrap();
    assert!(matches!(
        make(good(), one(), vec![context]),
        Err(VirtioNetError::Connect(_))
    ));
    assert!(peer.port.peer().is_some());
    drop(nic);
    assert!(peer.port.peer().is_none());
}

#[test]
fn the_backend_is_set_up_at_negotiation_and_back_at_reset() {
    let nic = Nic::idle(&|_| {}, NetF::all() - NetF::GUEST_TSO6);
    nic.device.negotiate(nic.features).unwrap();
    assert_eq!(nic.peer.state().header_len, Some(HEADER));
    let expected = Offloads {
        csum: true,
        tso4: true,
        ecn: true,
        ..Default::default()
    };
    assert_eq!(nic.peer.state().offloads, [expected]);
    nic.device.reset();
    assert_eq!(nic.peer.state().offloads, [expected, Offloads::default()]);
}

/// Features that make no sense together.
#[test]
fn features_that_need_others_are_refused_without_them() {
    let nic = Nic::idle(&|_| {}, NetF::all());
    let table = [
        (NetF::VERSION_1, true),
        (NetF::VERSION_1 | NetF::HOST_TSO4, false),
        (NetF::VERSION_1 | NetF::HOST_TSO4 | NetF::CSUM, true),
        (NetF::VERSION_1 | NetF::GUEST_TSO4, false),
        (NetF::VERSION_1 | NetF::GUEST_ECN | NetF::GUEST_CSUM, false),
        (NetF::VERSION_1 | NetF::RING_PACKED, true),
    ];
    for (features, good) in table {
        let result = nic.device.negotiate(F::from(features));
        assert_eq!(result.is_ok(), good, "{features:?}: {result:?}");
    }
    nic.peer.state().refuses_offloads = true;
    assert!(nic.device.negotiate(F::VERSION_1).is_err());
}

/// Kicks before DRIVER_OK, and of queues that are not there.
#[test]
fn kicks_and_frames_before_driver_ok_do_nothing() {
    let nic = Nic::idle(&|_| {}, NetF::all());
    for kick in &nic.kicks {
        kick.write(1).unwrap();
    }
    nic.turn();
    assert_eq!(nic.peer.give_frames([frame(PLAIN, 60, 0)]), Drained::NoRoom);
    nic.peer.port.room();
    assert!(nic.device.reset().is_empty());
    nic.device.pause();
    nic.device.resume();
    assert!(nic.device.stop_queue(QueueIndex(1)).is_none());
    // The frame was not lost, and the peer hears of room once the driver runs.
    nic.device.negotiate(nic.features).unwrap();
    let rooms = nic.peer.state().rooms;
    nic.activate();
    assert_eq!(nic.peer.state().rooms, rooms + 1);
    assert_eq!(nic.peer.state().to_give.len(), 1);
}

/// 2.5.2: "The device MUST allow reading of any device-specific configuration field before FEATURES_OK is set by the driver.
/// This includes fields which are conditional on feature bits".
#[test]
fn every_field_is_there_before_negotiation() {
    let config = VirtioNetConfig {
        mq: true,
        rss: true,
        hash: true,
        host_mtu: 0x5dc,
        speed: Some(0x1234),
        duplex: Some(virtio_net::Duplex::Full),
        ..Default::default()
    };
    let nic = Nic::idle_pairs(2, config, &|_| {}, NetF::all());
    assert_eq!(nic.device.config_len(), 24);
    let mut read = [0xa5; 24];
    nic.device.read_config(0, &mut read);
    let (before_types, _) = read.split_at(20);
    assert_eq!(before_types[..6], [0x52, 0x54, 0, 0x12, 0x34, 0x56], "mac");
    assert_eq!(before_types[6..10], [1, 0, 2, 0], "status, pairs");
    assert_eq!(before_types[10..12], [0xdc, 5], "mtu");
    assert_eq!(before_types[12..17], [0x34, 0x12, 0, 0, 1], "speed, duplex");
    assert_eq!(before_types[17..], [40, 128, 0], "key and table");
    nic.device.negotiate(nic.features).unwrap();
    let mut after = [0x5a; 24];
    nic.device.read_config(0, &mut after);
    assert_eq!(read, after, "nothing was missing");
}

/// 2.7.10.2: "The device MUST handle spurious notifications from the driver."
#[test]
fn kicks_for_nothing_do_nothing() {
    let mut nic = Nic::new();
    let calls = |nic: &Nic| -> Vec<usize> { nic.calls.iter().map(|call| call.count()).collect() };
    for _ in 0..3 {
        for kick in &nic.kicks {
            kick.write(1).unwrap();
        }
        nic.turn();
    }
    assert_eq!(calls(&nic), [0; 3]);
    assert_eq!(nic.peer.state().offers, 0);
    // What comes then is served as ever, and a kick too many after it is for nothing as well.
    nic.add_tx(&frame(PLAIN, 60, 0), &[]);
    assert!(nic.kick(TX));
    assert_eq!(nic.peer.take().len(), 1);
    let told = calls(&nic);
    assert_eq!(told, [0, 1, 0]);
    nic.kicks[TX].write(5).unwrap();
    nic.turn();
    assert_eq!(calls(&nic), told);
    assert_eq!(nic.used(TX).len(), 1);
    assert!(nic.resets().is_empty());
}

#[test]
fn what_was_queued_before_driver_ok_is_sent_at_the_first_kick() {
    let mut nic = Nic::idle(&|_| {}, NetF::all());
    nic.device.negotiate(nic.features).unwrap();
    nic.add_tx(&frame(PLAIN, 60, 0), &[]);
    nic.activate();
    assert_eq!(nic.peer.take().len(), 1);
}

#[test]
fn a_queue_that_cannot_be_leaves_the_device_stopped_and_gives_all_back() {
    let nic = Nic::idle(&|_| {}, NetF::all());
    nic.device.negotiate(nic.features).unwrap();
    let mut queues: Vec<_> = (0..3).map(|i| nic.loan(i, nic.fresh())).collect();
    queues[TX].config = QueueConfig {
        desc: u64::MAX,
        ..queues[TX].config
    };
    let failed = nic
        .device
        .activate(Activation {
            features: nic.features,
            memory: nic.memory.clone(),
            queues,
        })
        .unwrap_err();
    assert_eq!(failed.queues.len(), 3);
    assert!(
        failed.error.to_string().starts_with("queue 1: "),
        "{}",
        failed.error
    );
    assert!(nic.device.reset().is_empty());
    // An unknown queue, of which the device knows only when it is to be run.
    let mut stranger = nic.loan(CTRL, nic.fresh());
    stranger.index = QueueIndex(9);
    let queues = vec![nic.loan(RX, nic.fresh()), stranger];
    let failed = nic
        .device
        .activate(Activation {
            features: nic.features,
            memory: nic.memory.clone(),
            queues,
        })
        .unwrap_err();
    assert_eq!(failed.queues.len(), 2);
    // Nothing is left under watch: the same descriptors can be used again.
    nic.device.negotiate(nic.features).unwrap();
    nic.activate();
}

/// Frames and reads that are in flight at a reset.
#[test]
fn reset_takes_everything_back_from_a_peer_whenever_it_answers() {
    for revoking in [Revoking::Backwards, Revoking::Late] {
        let mut nic = Nic::with(
            &|peer| {
                peer.answer = Answer::Keep;
                peer.revoking = revoking;
            },
            NetF::all(),
        );
        for i in 0..5 {
            nic.add_tx(&frame(PLAIN, 60, i), &[]);
        }
        for _ in 0..5 {
            nic.add_rx(1600);
        }
        nic.kick(TX);
        nic.kick(RX);
        nic.peer.state().slow = true;
        let _ = nic.peer.give();
        assert_eq!(nic.peer.state().kept.len(), 5);
        assert_eq!(nic.peer.state().reads.len(), 5);
        let queues = nic.device.reset();
        assert_eq!(nic.peer.state().kept.len(), 0, "{revoking:?}");
        assert_eq!(nic.peer.state().reads.len(), 0);
        let states: Vec<_> = queues.iter().map(|queue| queue.state).collect();
        assert_eq!(states[TX], state(5));
        // Not used, so still available.
        assert_eq!(states[RX], state(0));
        assert_eq!(nic.used(TX).len(), 5);
        assert!(nic.used(RX).is_empty());
        assert!(nic.device.reset().is_empty());
        // Late completions of what is gone by now change nothing.
        nic.peer.port.sent(net_client::Token(0));
        nic.peer.port.read_done(net_client::Token(0), 72);
        nic.turn();
    }
}

#[test]
fn a_frame_without_room_is_available_again_after_a_stop() {
    let mut nic = Nic::with(&|peer| peer.room = 1, NetF::all());
    for i in 0..3 {
        nic.add_tx(&frame(PLAIN, 60, i), &[]);
    }
    nic.kick(TX);
    let stopped = nic.device.stop_queue(QueueIndex(1)).unwrap();
    assert_eq!(stopped.state, state(1));
    nic.peer.state().room = 10;
    nic.device.start_queue(stopped).unwrap();
    nic.kicks[TX].write(1).unwrap();
    nic.turn();
    let got: Vec<u8> = nic.peer.take().iter().map(|f| f[HEADER]).collect();
    assert_eq!(got, [0, 1, 2]);
    assert_eq!(nic.used(TX).len(), 3);
}

/// Heads that are in the device's hands at a stop: none is lost.
#[test]
fn buffers_given_out_of_order_come_back_one_way_or_the_other() {
    let mut nic = Nic::new();
    let placed: Vec<_> = (0..3).map(|_| nic.add_rx(1600)).collect();
    nic.kick(RX);
    nic.peer.state().slow = true;
    let _ = nic.peer.give();
    // The second is used; the first can then not be made available again, the third can.
    nic.peer.end_read(1, &frame(PLAIN, 60, 0));
    let stopped = nic.device.stop_queue(QueueIndex(0)).unwrap();
    assert_eq!(
        nic.used(RX),
        [(u32::from(placed[1].0), 72), (u32::from(placed[0].0), 0)]
    );
    assert_eq!(stopped.state, state(2));
}

#[test]
fn a_paused_device_does_nothing_and_goes_on_where_it_stopped() {
    let mut nic = Nic::with(&|peer| peer.answer = Answer::Keep, NetF::all());
    nic.add_tx(&frame(PLAIN, 60, 0), &[]);
    nic.kick(TX);
    nic.add_rx(1600);
    nic.kick(RX);
    nic.device.pause();
    nic.device.pause();
    assert_eq!(nic.used(TX).len(), 1, "what was in flight is done");
    nic.add_tx(&frame(PLAIN, 60, 1), &[]);
    for kick in &nic.kicks {
        kick.write(1).unwrap();
    }
    nic.turn();
    assert_eq!(nic.peer.take().len(), 1);
    assert_eq!(nic.peer.give_frames([frame(PLAIN, 60, 2)]), Drained::NoRoom);
    nic.peer.state().answer = Answer::Take;
    let rooms = nic.peer.state().rooms;
    nic.device.resume();
    nic.turn();
    assert_eq!(nic.peer.take().len(), 1);
    assert_eq!(nic.peer.state().rooms, rooms + 1);
    let _ = nic.peer.give();
    assert_eq!(nic.used(RX).len(), 1);
}

#[test]
fn the_links_state_is_in_configuration_space_and_told() {
    let nic = Nic::new();
    let status = || {
        let mut data = [0; 2];
        nic.device.read_config(6, &mut data);
        u16::from_le_bytes(data)
    };
    let told = || nic.reports.config_changes.load(Ordering::SeqCst);
    assert_eq!((status(), told()), (1, 0));
    nic.peer.port.set_link(false);
    assert_eq!((status(), told()), (0, 1));
    nic.peer.port.set_link(false);
    assert_eq!((status(), told()), (0, 1));
    nic.peer.port.set_link(true);
    assert_eq!((status(), told()), (1, 2));
}

#[test]
fn dropping_an_active_device_leaves_nothing() {
    let mut nic = Nic::with(&|peer| peer.answer = Answer::Keep, NetF::all());
    for i in 0..3 {
        nic.add_tx(&frame(PLAIN, 60, i), &[]);
        nic.add_rx(1600);
    }
    nic.kick(TX);
    nic.kick(RX);
    nic.peer.state().slow = true;
    let _ = nic.peer.give();
    let Nic {
        memory,
        device,
        context,
        peer,
        reports,
        drivers,
        kicks,
        calls,
        ..
    } = nic;
    let gone: Weak<VirtioNet<Memory>> = Arc::downgrade(&device);
    drop(device);
    assert_eq!(gone.strong_count(), 0);
    assert!(peer.state().kept.is_empty() && peer.state().reads.is_empty());
    assert!(peer.port.peer().is_none());
    // What the context may still hold goes with its next turn.
    while context.turn(Some(std::time::Duration::ZERO)).unwrap() > 0 {}
    drop(drivers);
    assert_eq!(Arc::strong_count(&memory), 1);
    assert_eq!(Arc::strong_count(&reports), 1);
    for call in &calls {
        assert_eq!(Arc::strong_count(call), 1);
    }
    for kick in &kicks {
        assert_eq!(Arc::strong_count(kick), 1);
    }
}

/// A NIC that is its own network: what is sent comes back, within the call that sends it.
#[test]
fn frames_go_round_a_loop_without_deadlock_and_with_back_pressure() {
    let context = EventLoop::new().unwrap();
    let loopback = Loopback::new("loop");
    let device = VirtioNet::<Memory>::new(
        VirtioNetConfig::default(),
        vec![loopback.port().clone()],
        vec![context.clone()],
    )
    .unwrap();
    let mut nic = Nic::idle(&|_| {}, NetF::all());
    nic.device = device;
    nic.context = context;
    nic.features = nic.device.offered_features();
    nic.drivers.truncate(0);
    for (i, size) in (0..).zip(nic.device.queue_max_sizes()) {
        nic.drivers.push(virtqueue::mock::Driver::new(
            nic.memory.clone(),
            vm_memory::GuestAddress(i * 0x1_0000),
            size,
            nic.features,
        ));
    }
    nic.device.negotiate(nic.features).unwrap();
    nic.activate();
    for i in 0..10 {
        nic.add_tx(&frame(PLAIN, 60, i), &[]);
    }
    nic.kick(TX);
    assert!(nic.used(TX).is_empty(), "nowhere to go");
    let mut placed = Vec::new();
    for _ in 0..4 {
        placed.push(nic.add_rx(1600));
    }
    nic.kick(RX);
    assert_eq!(nic.used(TX).len(), 4);
    assert_eq!(nic.used(RX).len(), 4);
    for _ in 0..6 {
        placed.push(nic.add_rx(1600));
    }
    nic.kick(RX);
    assert_eq!(nic.used(TX).len(), 6);
    assert_eq!(nic.used(RX).len(), 6);
    for (i, (_, at)) in (0..).zip(placed) {
        assert_eq!(nic.bytes(at + 12, 60), frame(PLAIN, 60, i)[HEADER..]);
    }
}

#[test]
fn reset_while_a_thread_of_its_own_works_the_queues() {
    // Frames are sent as fast as they are taken while the device is reset again and again.
    let thread = IoThread::new("nic").unwrap();
    let peer = Peer::new();
    peer.state().answer = Answer::Keep;
    let device = VirtioNet::<Memory>::new(
        VirtioNetConfig::default(),
        vec![peer.port.clone()],
        vec![thread.context()],
    )
    .unwrap();
    let mut nic = Nic::idle(&|_| {}, NetF::all());
    nic.device = device;
    nic.peer = peer;
    for round in 0..50_u8 {
        nic.device.negotiate(nic.features).unwrap();
        let mut driver = virtqueue::mock::Driver::new(
            nic.memory.clone(),
            vm_memory::GuestAddress(0x1_0000),
            256,
            nic.features,
        );
        std::mem::swap(&mut nic.drivers[TX], &mut driver);
        nic.activate();
        for i in 0..100 {
            nic.add_tx(&frame(PLAIN, 60, i), &[]);
            nic.kicks[TX].write(1).unwrap();
        }
        let queues = nic.device.reset();
        assert_eq!(queues.len(), 3, "{round}");
        let taken = queues[TX].state;
        assert_eq!(taken.next_avail, taken.next_used, "{round}");
        assert_eq!(taken, state(u16::try_from(nic.used(TX).len()).unwrap()));
        assert!(nic.peer.state().kept.is_empty());
        nic.peer.take();
    }
}

/// A peer that completes nothing any more, and says so by being gone.
#[test]
fn what_a_peer_had_that_is_gone_is_not_waited_for() {
    let mut nic = Nic::with(
        &|peer| {
            peer.answer = Answer::Keep;
            peer.revoking = Revoking::Late;
        },
        NetF::all(),
    );
    let sent = nic.add_tx(&frame(PLAIN, 60, 0), &[]);
    nic.kick(TX);
    nic.add_rx(2000);
    nic.kick(RX);
    nic.peer.state().slow = true;
    let _ = nic.peer.give();
    assert_eq!(nic.peer.state().reads.len(), 1);
    // What it completes afterwards has no way to come.
    nic.peer.port.disconnect();
    nic.device.pause();
    assert_eq!(nic.used(TX), [(u32::from(sent), 0)]);
    let states: Vec<_> = nic.device.reset().iter().map(|q| q.state).collect();
    assert_eq!(
        states[..2],
        [state(0), state(1)],
        "the buffer is available again"
    );
    nic.turn();
    let statistics = nic.device.tx_statistics(0).unwrap();
    assert_eq!(statistics.stray_completions, 0);
}

/// A reset waits for the queue's lock, so what is reported under it is not the next driver's.
#[test]
fn a_broken_queue_is_reported_before_its_lock_is_free() {
    for (queue, shown) in [(RX, "rx: None"), (TX, "tx: None")] {
        let mut nic = Nic::new();
        let seen = Arc::new(Mutex::new(String::new()));
        let (device, show) = (Arc::downgrade(&nic.device), seen.clone());
        nic.reports.reset_hook.set(move || {
            *show.lock().unwrap() = format!("{:?}", device.upgrade().unwrap());
        });
        nic.drivers[queue].offer_nonsense();
        nic.kick(queue);
        let _ = nic.peer.give_frames([frame(PLAIN, 60, 0)]);
        assert_eq!(nic.resets().len(), 1);
        assert!(seen.lock().unwrap().contains(shown), "{shown}");
    }
}

/// Frames that the port keeps for want of room, read with the header of the driver before.
#[test]
fn a_frame_that_waits_for_one_driver_does_not_reach_the_next() {
    // In place of the driver, a reset or another negotiation.
    for reset in [true, false] {
        let mut nic = Nic::new();
        nic.peer.port.post(&frame(PLAIN, 60, 1));
        assert_eq!(nic.peer.port.waiting(), 1);
        if reset {
            nic.device.reset();
            assert_eq!(nic.peer.port.waiting(), 0);
        }
        nic.device.negotiate(nic.features).unwrap();
        assert_eq!(nic.peer.port.waiting(), 0, "{reset}");
        let dropped = nic.peer.port.statistics().sent;
        assert_eq!(dropped.dropped(DropReason::NotRunning), 1);
        if reset {
            nic.restart();
        }
        nic.add_rx(2000);
        nic.kick(RX);
        assert!(nic.used(RX).is_empty());
    }
}
