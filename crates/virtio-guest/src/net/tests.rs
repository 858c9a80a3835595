//! The driver against the fake machine.

extern crate std;

use std::vec::Vec;

use super::*;
use crate::fake::{FUNCTION, Fake};
use crate::queue::SplitRing;
use virtio::net::HashType;

fn driver<'f>(fake: &'f Fake, config: &NetConfig<'_>) -> NetDriver<&'f Fake, 64> {
    let transport = VirtioPciTransport::probe(fake, FUNCTION).unwrap();
    NetDriver::new(transport, Fake::memory(), config).unwrap()
}

/// The device fills the chain at `slot` of the receive queue.
fn deliver(fake: &Fake, slot: u16, bytes: &[u8]) {
    let layout = fake.layout(0);
    let head = fake.head(layout, slot);
    let [buffer, ..] = fake.chain(layout, head);
    assert_eq!(buffer.flags, SplitRing::WRITE);
    fake.memory_write(buffer.address, bytes);
    fake.complete(layout, head, bytes.len() as u32);
}

fn with_header(num_buffers: u8, frame: &[u8]) -> Vec<u8> {
    let mut bytes = [0; 12].to_vec();
    bytes[10] = num_buffers;
    bytes.extend_from_slice(frame);
    bytes
}

#[test]
fn a_driver_comes_up_with_a_full_receive_queue() {
    let fake = Fake::new();
    fake.offer(F::MAC | F::STATUS | F::MTU | F::CTRL_VQ | F::GUEST_TSO4);
    let mut driver = driver(&fake, &NetConfig::default());
    assert_eq!(driver.mac(), [0x52, 0x54, 0, 1, 2, 3]);
    assert!(driver.is_link_up());
    assert_eq!(driver.mtu(), Some(1500));
    assert!(
        !driver.features().contains(F::GUEST_TSO4),
        "it was not wanted"
    );
    assert_eq!(fake.enabled.get(), [true; 3]);
    assert_eq!(fake.device_avail_index(driver.receive_queue().queue()), 64);
    assert_eq!(
        *fake.notified.borrow(),
        [(0, 0)],
        "the one kick for the buffers"
    );
    let ready = DeviceStatus::ACKNOWLEDGE
        | DeviceStatus::DRIVER
        | DeviceStatus::FEATURES_OK
        | DeviceStatus::DRIVER_OK;
    assert_eq!(driver.transport().status(), ready);
}

#[test]
fn a_driver_that_cannot_come_up_says_failed() {
    let fake = Fake::new();
    let transport = VirtioPciTransport::probe(&fake, FUNCTION).unwrap();
    let config = NetConfig {
        receive_buffer_len: 1 << 20,
        ..NetConfig::default()
    };
    let error = NetDriver::<_, 64>::new(transport, Fake::memory(), &config).err();
    assert_eq!(error, Some(Error::OutOfMemory { len: 64 << 20 }));
    let transport = VirtioPciTransport::probe(&fake, FUNCTION).unwrap();
    assert!(transport.status().contains(DeviceStatus::FAILED));
}

#[test]
fn a_sent_frame_lies_behind_its_header() {
    for separate_header in [false, true] {
        let fake = Fake::new();
        let config = NetConfig {
            separate_header,
            indirect: 0,
            ..NetConfig::default()
        };
        let mut driver = driver(&fake, &config);
        driver.transmit(b"a frame").unwrap();

        let layout = fake.layout(1);
        let chain = fake.chain(layout, fake.head(layout, 0));
        let mut bytes = Vec::new();
        for part in &chain[..1 + usize::from(separate_header)] {
            let start = bytes.len();
            bytes.resize(start + part.len as usize, 0);
            fake.memory_read(part.address, &mut bytes[start..]);
        }
        assert_eq!(bytes, with_header(0, b"a frame"));
        assert_eq!(fake.notified.borrow().last(), Some(&(4, 1)));
    }
}

#[test]
fn a_full_transmit_queue_takes_more_once_the_device_is_done() {
    let fake = Fake::new();
    let config = NetConfig {
        queue_size: 2,
        ..NetConfig::default()
    };
    let mut driver = driver(&fake, &config);
    driver.transmit(b"one").unwrap();
    driver.transmit(b"two").unwrap();
    assert_eq!(driver.transmit(b"three"), Err(Error::QueueFull));
    fake.complete(fake.layout(1), fake.head(fake.layout(1), 1), 0);
    assert_eq!(driver.transmit(b"three"), Ok(()));
    assert_eq!(driver.transmit(&[0; 1525]), Err(Error::FrameTooLong(1525)));
}

#[test]
fn a_batch_is_one_notification() {
    let fake = Fake::new();
    let mut driver = driver(&fake, &NetConfig::default());
    fake.notified.borrow_mut().clear();
    for _ in 0..10 {
        driver.queue_transmit(&Header::default(), b"frame").unwrap();
    }
    assert!(fake.notified.borrow().is_empty());
    driver.flush_transmit();
    assert_eq!(*fake.notified.borrow(), [(4, 1)]);
}

#[test]
fn frames_arrive_in_order_and_their_buffers_go_back() {
    let fake = Fake::new();
    let mut driver = driver(
        &fake,
        &NetConfig {
            queue_size: 4,
            ..NetConfig::default()
        },
    );
    for round in 0..9_u8 {
        deliver(&fake, u16::from(round) * 2, &with_header(1, &[round; 60]));
        deliver(
            &fake,
            u16::from(round) * 2 + 1,
            &with_header(1, &[round; 1514]),
        );
        let mut frames = Vec::new();
        let mut buffer = [0; 1514];
        driver
            .poll_receive(&mut buffer, |frame| frames.push(frame.to_vec()))
            .unwrap();
        assert_eq!(frames, [[round; 60].to_vec(), [round; 1514].to_vec()]);
    }
}

#[test]
fn a_merged_frame_is_put_together() {
    let fake = Fake::new();
    fake.offer(F::MRG_RXBUF);
    let config = NetConfig {
        features: F::MRG_RXBUF,
        receive_buffer_len: 112,
        ..NetConfig::default()
    };
    let mut driver = driver(&fake, &config);
    deliver(&fake, 0, &with_header(3, &[1; 100]));
    deliver(&fake, 1, &[2; 112]);
    deliver(&fake, 2, &[3; 10]);
    deliver(&fake, 3, &with_header(1, &[4; 20]));

    let mut buffer = [0; 300];
    let received = driver.receive(&mut buffer).unwrap().unwrap();
    assert_eq!(received.len, 222);
    assert_eq!(buffer[..100], [1; 100]);
    assert_eq!(buffer[100..212], [2; 112]);
    assert_eq!(buffer[212..222], [3; 10]);
    assert_eq!(driver.receive(&mut buffer).unwrap().unwrap().len, 20);
}

#[test]
fn a_frame_that_is_wrong_is_dropped_and_the_next_one_taken() {
    let fake = Fake::new();
    fake.offer(F::MRG_RXBUF);
    let config = NetConfig {
        features: F::MRG_RXBUF,
        ..NetConfig::default()
    };
    let mut driver = driver(&fake, &config);
    deliver(&fake, 0, &[0; 5]);
    deliver(&fake, 1, &with_header(0, b"no buffers"));
    deliver(&fake, 2, &with_header(1, b"good"));
    let mut buffer = [0; 64];
    assert_eq!(driver.receive(&mut buffer).unwrap().unwrap().len, 4);
    assert_eq!(driver.receive_queue().dropped(), 2);

    deliver(&fake, 3, &with_header(2, b"half"));
    assert!(driver.receive(&mut buffer).unwrap().is_none());
    assert_eq!(driver.receive_queue().dropped(), 3);
}

#[test]
fn a_frame_longer_than_the_callers_buffer_is_cut() {
    let fake = Fake::new();
    let mut driver = driver(&fake, &NetConfig::default());
    deliver(&fake, 0, &with_header(1, b"0123456789"));
    deliver(&fake, 1, &with_header(1, b"0123456789"));
    let mut buffer = [0; 4];
    assert_eq!(driver.receive(&mut buffer).unwrap().unwrap().len, 10);
    driver
        .poll_receive(&mut buffer, |frame| assert_eq!(frame, b"0123"))
        .unwrap();
}

#[test]
fn a_completion_of_nothing_breaks_the_queue() {
    let fake = Fake::new();
    let mut driver = driver(
        &fake,
        &NetConfig {
            queue_size: 4,
            ..NetConfig::default()
        },
    );
    fake.complete(fake.layout(0), 9, 12);
    assert_eq!(
        driver.poll_receive(&mut [0; 64], |_| ()),
        Err(Error::BrokenRing(0))
    );
}

#[test]
fn each_queue_has_its_vector_while_there_are_some() {
    let message = MsixMessage {
        address: 0xfee0_0000,
        data: 0x40,
    };
    for (messages, expected) in [
        (&[message; 3][..], [1, 2, 2]),
        (&[message; 2], [1, 1, 1]),
        (&[message; 1], [0, 0, 0]),
        (&[], [0xffff; 3]),
    ] {
        let fake = Fake::new();
        fake.offer(F::CTRL_VQ);
        let interrupts = Interrupts::Messages(messages);
        driver(
            &fake,
            &NetConfig {
                interrupts,
                ..NetConfig::default()
            },
        );
        assert_eq!([0, 1, 2].map(|queue| fake.vector(queue)), expected);
    }
}

#[test]
fn an_interrupt_by_line_is_read_once() {
    let fake = Fake::new();
    let mut driver = driver(
        &fake,
        &NetConfig {
            interrupts: Interrupts::Line,
            ..NetConfig::default()
        },
    );
    fake.isr.set(3);
    let both = InterruptStatus {
        queue: true,
        config: true,
    };
    assert_eq!(driver.handle_interrupt(), both);
    assert_eq!(driver.handle_interrupt(), InterruptStatus::default());
}

#[test]
fn sleep_is_refused_while_something_waits() {
    let fake = Fake::new();
    let mut driver = driver(&fake, &NetConfig::default());
    assert!(!driver.prepare_sleep());
    driver.wake();
    deliver(&fake, 0, &with_header(1, b"frame"));
    assert!(driver.prepare_sleep());
}

#[test]
fn a_control_command_is_answered_with_ok_or_not() {
    let fake = Fake::new();
    fake.offer(F::CTRL_VQ | F::CTRL_GUEST_OFFLOADS | F::GUEST_CSUM | F::GUEST_TSO4);
    let features = F::CTRL_VQ | F::CTRL_GUEST_OFFLOADS | F::GUEST_CSUM | F::GUEST_TSO4;
    let mut driver = driver(
        &fake,
        &NetConfig {
            features,
            ..NetConfig::default()
        },
    );
    for (slot, answer, expected) in [(0, 0, true), (1, 1, false), (2, 0xff, false)] {
        let device = || {
            let layout = fake.layout(2);
            let head = fake.head(layout, slot);
            let [header, data, ack, _] = fake.chain(layout, head);
            let mut bytes = [0; 10];
            fake.memory_read(header.address, &mut bytes[..2]);
            fake.memory_read(data.address, &mut bytes[2..]);
            assert_eq!(bytes, [5, 0, 0x82, 0, 0, 0, 0, 0, 0, 0]);
            fake.memory_write(ack.address, &[answer]);
            fake.complete(layout, head, 1);
            true
        };
        let offloads = F::GUEST_CSUM | F::GUEST_TSO4;
        assert_eq!(
            driver.set_guest_offloads(offloads, device),
            Ok(expected),
            "{answer}"
        );
    }
}

#[test]
fn a_control_command_without_an_answer_holds_back_the_next() {
    let fake = Fake::new();
    fake.offer(F::CTRL_VQ);
    let mut driver = driver(
        &fake,
        &NetConfig {
            features: F::CTRL_VQ,
            ..NetConfig::default()
        },
    );
    let nothing = F::empty();
    assert_eq!(
        driver.set_guest_offloads(nothing, || true),
        Err(Error::NotNegotiated)
    );
    assert_eq!(
        driver.control(0, 0, &[1], || false),
        Err(Error::ControlTimeout)
    );
    assert_eq!(driver.control(0, 0, &[1], || true), Err(Error::QueueFull));
}

/// Brings a driver up with these features, and has `command` run on it by a device that checks what it is asked and
/// answers: `answer`, and `result` in the buffer at this place of the chain.
fn exchange<T>(
    features: F,
    expected: &[u8],
    answer: u8,
    result: &[u8],
    command: impl FnOnce(&mut NetDriver<&Fake, 64>, &mut dyn FnMut() -> bool) -> T,
) -> T {
    let fake = Fake::new();
    let features = features | F::CTRL_VQ;
    fake.offer(features);
    let mut driver = driver(
        &fake,
        &NetConfig {
            features,
            ..NetConfig::default()
        },
    );
    let mut device = || {
        // Without RSS and MQ it follows the first pair; Fake's `max_virtqueue_pairs` says the same with them.
        let layout = fake.layout(2);
        let head = fake.head(layout, 0);
        let chain = fake.chain(layout, head);
        let mut bytes = Vec::new();
        let mut written = 0;
        let mut writable = Vec::new();
        for part in chain.iter().filter(|part| part.len > 0) {
            if part.flags & SplitRing::WRITE == 0 {
                let start = bytes.len();
                bytes.resize(start + part.len as usize, 0);
                fake.memory_read(part.address, &mut bytes[start..]);
            } else {
                writable.push(*part);
            }
        }
        assert_eq!(bytes, expected);
        // The answer is the buffer of one byte.
        for part in writable {
            if part.len == 1 {
                fake.memory_write(part.address, &[answer]);
                written += 1;
            } else if answer == 0 {
                assert!(result.len() <= part.len as usize);
                fake.memory_write(part.address, result);
                written += result.len() as u32;
            }
        }
        fake.complete(layout, head, written);
        true
    };
    command(&mut driver, &mut device)
}

#[test]
fn coalescing_is_set_and_read_as_the_specification_lays_it_out() {
    let coalescing = Coalescing {
        max_packets: 0x0403_0201,
        max_usecs: 100,
    };
    let bytes = [1, 2, 3, 4, 100, 0, 0, 0];
    let both = F::NOTF_COAL | F::VQ_NOTF_COAL;
    for (class_and_command, is_rx) in [([6, 1], true), ([6, 0], false)] {
        let asked = [&class_and_command[..], &bytes].concat();
        let done = exchange(both, &asked, 0, &[], |driver, device| {
            if is_rx {
                driver.set_receive_coalescing(coalescing, device)
            } else {
                driver.set_transmit_coalescing(coalescing, device)
            }
        });
        assert_eq!(done, Ok(true));
    }
    let asked = [&[6, 2, 1, 0, 0, 0][..], &bytes].concat();
    let done = exchange(both, &asked, 1, &[], |driver, device| {
        driver.set_queue_coalescing(1, coalescing, device)
    });
    assert_eq!(done, Ok(false), "the device says no");
    for (answer, result, expected) in [
        (0, &bytes[..], Some(coalescing)),
        (0, &bytes[..7], None),
        (1, &bytes[..], None),
    ] {
        let asked = [6, 3, 0, 1, 0, 0];
        let read = exchange(both, &asked, answer, result, |driver, device| {
            driver.queue_coalescing(0x100, device)
        });
        assert_eq!(read, Ok(expected), "{answer} {result:?}");
    }
}

#[test]
fn statistics_are_asked_for_and_taken_apart() {
    let types = exchange(
        F::DEVICE_STATS,
        &[8, 0],
        0,
        &[3, 0, 3, 0, 1, 0, 0, 0],
        |driver, device| driver.statistics_types(device),
    );
    assert_eq!(types, Ok(Some(0x1_0003_0003)));
    let mut asked = [0; 18];
    asked[..4].copy_from_slice(&[8, 1, 2, 0]);
    // Bit 32 of the bitmap.
    asked[14] = 1;
    let reply = [
        32, 0, 2, 0, 0, 0, 24, 0, //
        7, 0, 0, 0, 0, 0, 0, 0, //
        6, 0, 0, 0, 0, 0, 0, 0,
    ];
    for (answer, expected) in [
        (
            0,
            Some(ControlStatistics {
                commands: 7,
                acknowledged: 6,
            }),
        ),
        (1, None),
    ] {
        let read = exchange(F::DEVICE_STATS, &asked, answer, &reply, |driver, device| {
            driver.queue_statistics::<ControlStatistics>(2, device)
        });
        assert_eq!(read, Ok(expected));
    }
}

#[test]
fn hashing_and_spreading_are_configured() {
    let key = [0xa5; 40];
    let hash = HashConfig {
        types: HashType::TCPV4 | HashType::IPV6,
        key: &key,
    };
    let asked = [&[4, 2, 0x0a, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 40][..], &key].concat();
    let done = exchange(F::HASH_REPORT, &asked, 0, &[], |driver, device| {
        driver.set_hash(&hash, device)
    });
    assert_eq!(done, Ok(true));

    let mut config = RssConfig {
        hash,
        unclassified: 1,
        table: &[0, 1, 1, 0],
        transmit_pairs: 2,
    };
    let asked = [
        &[
            4, 1, 0x0a, 0, 0, 0, 3, 0, 1, 0, 0, 0, 1, 0, 1, 0, 0, 0, 2, 0, 40,
        ][..],
        &key,
    ]
    .concat();
    let done = exchange(F::RSS, &asked, 0, &[], |driver, device| {
        driver.set_rss(&config, device)
    });
    assert_eq!(done, Ok(true));
    config.table = &[];
    let long = [0; 2048];
    let refused = exchange(F::RSS, &[], 0, &[], |driver, device| {
        let empty = driver.set_rss(&config, &mut *device);
        config.table = &long;
        [empty, driver.set_rss(&config, device)]
    });
    assert_eq!(refused[0], Err(Error::FrameTooLong(0)));
    assert!(matches!(refused[1], Err(Error::FrameTooLong(_))));
}

#[test]
fn a_command_whose_feature_is_not_there_is_not_sent() {
    let fake = Fake::new();
    let every = F::NOTF_COAL | F::VQ_NOTF_COAL | F::DEVICE_STATS | F::RSS | F::HASH_REPORT;
    fake.offer(F::CTRL_VQ | every);
    let mut driver = driver(
        &fake,
        &NetConfig {
            features: F::CTRL_VQ,
            ..NetConfig::default()
        },
    );
    let never = || -> bool { panic!("it was sent") };
    let hash = HashConfig {
        types: HashType::empty(),
        key: &[],
    };
    let rss = RssConfig {
        hash,
        unclassified: 0,
        table: &[0],
        transmit_pairs: 1,
    };
    let none = Err(Error::NotNegotiated);
    let coalescing = Coalescing::default();
    assert_eq!(driver.set_receive_coalescing(coalescing, never), none);
    assert_eq!(driver.set_transmit_coalescing(coalescing, never), none);
    assert_eq!(driver.set_queue_coalescing(0, coalescing, never), none);
    assert_eq!(driver.set_hash(&hash, never), none);
    assert_eq!(driver.set_rss(&rss, never), none);
    let none = Error::NotNegotiated;
    assert_eq!(driver.queue_coalescing(0, never), Err(none));
    assert_eq!(driver.statistics_types(never), Err(none));
    let read = driver.queue_statistics::<ReceiveStatistics>(0, never);
    assert_eq!(read, Err(none));
}
