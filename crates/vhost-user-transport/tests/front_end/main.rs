//! The transport as a front end finds it.
#![expect(clippy::unwrap_used, reason = "a test ends where its set-up fails")]

mod harness;
mod hostile;
mod inflight;

use std::io::Write;
use std::os::fd::{AsRawFd, FromRawFd, IntoRawFd};
use std::os::unix::net::UnixStream;

use net_client::Received;
use vhost::VhostBackend;
use vhost::vhost_user::VhostUserFrontend;
use vhost::vhost_user::message::VhostUserConfigFlags;
use vhost_user_transport::{Refusal, ServeError};
use virtqueue::mock::Buffer;
use vm_memory::{Bytes, GuestAddress};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};
use vmm_sys_util::tempfile::TempFile;

use self::harness::{
    Format, Guest, MEMORY, Nic, PROTOCOL_FEATURES, SIZE, USER, arrived, signalled,
};

const FRAME: [u8; 60] = [0x5a; 60];

/// A frame comes in on the first pair's wire.
fn receive(nic: &Nic, bytes: &[u8]) {
    let port = nic.wires[0].port();
    assert_eq!(port.send_bytes(bytes), Received::Taken);
    port.flush(&mut |_| {});
}

#[test]
fn frames_pass_both_ways_and_are_signalled() {
    for format in Format::ALL {
        let nic = Nic::new(1);
        let mut guest = Guest::new(&nic, 2, format);
        guest.run();
        guest.send(1, &FRAME);
        arrived(&nic.wires[0], &FRAME);
        guest.used(1);
        signalled(&guest.rings[1].call);

        let at = guest.offer(0);
        receive(&nic, &FRAME);
        let (_, len) = guest.used(0);
        signalled(&guest.rings[0].call);
        assert_eq!(len, 72);
        let mut bytes = [0; 60];
        guest
            .memory
            .read_slice(&mut bytes, GuestAddress(at + 12))
            .unwrap();
        assert_eq!(bytes, FRAME);
        assert!(guest.leave().is_ok());
    }
}

#[test]
fn one_front_end_after_the_other_finds_the_device_as_new_and_the_wire_as_it_was() {
    for format in Format::ALL {
        let nic = Nic::new(1);
        for n in 0..5 {
            let mut guest = Guest::new(&nic, 2, format);
            guest.run();
            let frame = [n; 80];
            guest.send(1, &frame);
            arrived(&nic.wires[0], &frame);
            guest.offer(0);
            guest.leave().unwrap();
            assert!(nic.wires[0].port().peer().is_some(), "front end {n}");
        }
    }
}

#[test]
fn a_second_front_end_at_the_same_time_is_sent_away() {
    for format in Format::ALL {
        let nic = Nic::new(1);
        let mut guest = Guest::new(&nic, 2, format);
        guest.run();
        let (_socket, ours) = UnixStream::pair().unwrap();
        assert!(matches!(
            nic.transport.serve(ours),
            Err(ServeError::Occupied)
        ));
        guest.send(1, &FRAME);
        arrived(&nic.wires[0], &FRAME);
    }
}

#[test]
fn a_ring_that_is_stopped_says_where_it_stands_and_goes_on_from_there() {
    for format in Format::ALL {
        let nic = Nic::new(1);
        let mut guest = Guest::new(&nic, 2, format);
        guest.run();
        for _ in 0..3 {
            guest.send(1, &FRAME);
            guest.used(1);
        }
        // A buffer that was not used is not lost: it is taken again.
        guest.offer(0);
        let (at, start) = (format.base(3), format.base(0));
        assert_eq!(guest.frontend.get_vring_base(1).unwrap(), at);
        assert_eq!(guest.frontend.get_vring_base(0).unwrap(), start);
        guest.send(1, &[0x77; 70]);
        assert!(guest.set_base(1, at));
        assert!(guest.set_base(0, start));
        guest.start(1);
        guest.start(0);
        arrived(&nic.wires[0], &[0x77; 70]);
        receive(&nic, &FRAME);
        guest.used(0);
    }
}

#[test]
fn rings_that_are_not_enabled_pass_nothing() {
    for format in Format::ALL {
        let nic = Nic::new(1);
        let mut guest = Guest::new(&nic, 2, format);
        guest.start(0);
        guest.start(1);
        guest.offer(0);
        guest.send(1, &FRAME);
        // It is dropped, and the guest has its memory back.
        guest.used(1);
        let _ = nic.wires[0].port().send_bytes(&FRAME);
        nic.wires[0].port().flush(&mut |_| {});
        assert!(nic.wires[0].is_empty());
        assert!(!guest.rings[0].driver.has_used());
        guest.frontend.set_vring_enable(0, true).unwrap();
        guest.frontend.set_vring_enable(1, true).unwrap();
        guest.send(1, &[1; 64]);
        arrived(&nic.wires[0], &[1; 64]);
    }
}

#[test]
fn several_pairs_need_no_control_queue_of_the_devices() {
    for format in Format::ALL {
        let nic = Nic::new(2);
        let mut guest = Guest::new(&nic, 4, format);
        assert_ne!(guest.features & 1 << 22, 0, "VIRTIO_NET_F_MQ");
        assert_eq!(guest.features & 1 << 17, 0, "VIRTIO_NET_F_CTRL_VQ");
        assert_eq!(guest.frontend.get_queue_num().unwrap(), 4);
        guest.run();
        for (ring, wire, byte) in [(1, 0, 0x10), (3, 1, 0x11)] {
            let frame = [byte; 90];
            guest.send(ring, &frame);
            arrived(&nic.wires[wire], &frame);
        }
        guest.frontend.set_vring_enable(2, false).unwrap();
        guest.frontend.set_vring_enable(3, false).unwrap();
        guest.send(3, &FRAME);
        guest.used(3);
        guest.used(3);
        assert!(nic.wires[1].is_empty());
    }
}

#[test]
fn configuration_space_is_read_as_far_as_it_goes() {
    for format in Format::ALL {
        let nic = Nic::new(1);
        let mut guest = Guest::new(&nic, 2, format);
        let flags = VhostUserConfigFlags::empty();
        let (_, mac) = guest.frontend.get_config(0, 6, flags, &[0; 6]).unwrap();
        assert_eq!(mac, [0x52, 0x54, 0, 0x12, 0x34, 0x56]);
        assert!(guest.frontend.set_config(250, flags, &[0; 6]).is_err());
    }
}

#[test]
fn a_ring_that_makes_no_sense_signals_the_error_descriptor() {
    for format in Format::ALL {
        let nic = Nic::new(1);
        let mut guest = Guest::new(&nic, 2, format);
        let error = EventFd::new(EFD_NONBLOCK).unwrap();
        guest.frontend.set_vring_err(1, &error).unwrap();
        guest.run();
        guest.rings[1]
            .driver
            .add(&[Buffer::readable(MEMORY as u64, 64)]);
        guest.rings[1].kick.write(1).unwrap();
        signalled(&error);
        assert!(guest.leave().is_ok());
    }
}

#[test]
fn memory_that_is_taken_away_under_a_running_ring_is_read_no_more() {
    for format in Format::ALL {
        let nic = Nic::new(1);
        let mut guest = Guest::new(&nic, 2, format);
        let error = EventFd::new(EFD_NONBLOCK).unwrap();
        guest.frontend.set_vring_err(1, &error).unwrap();
        guest.run();
        guest.send(1, &FRAME);
        guest.used(1);
        let region = guest.region;
        guest.frontend.remove_mem_region(&region).unwrap();
        guest.send(1, &[9; 61]);
        signalled(&error);
        assert!(
            nic.wires[0]
                .take_frames()
                .iter()
                .all(|frame| !frame.ends_with(&[9; 61]))
        );
        guest.frontend.add_mem_region(&region).unwrap();
    }
}

#[test]
fn a_ring_that_was_enabled_before_features_were_chosen_stays_so() {
    const SET_VRING_ENABLE: u32 = 18;
    let nic = Nic::new(1);
    for need_reply in [0, 8] {
        let (mut socket, served) = nic.connect();
        for ring in 0..2 {
            let words = [SET_VRING_ENABLE, 1 | need_reply, 8, ring, 1];
            let message: Vec<u8> = words.iter().flat_map(|word| word.to_ne_bytes()).collect();
            socket.write_all(&message).unwrap();
        }
        let mut guest = Guest::over(socket, served, 2, Format::Split);
        guest.start(0);
        guest.start(1);
        guest.send(1, &FRAME);
        arrived(&nic.wires[0], &FRAME);
        guest.leave().unwrap();
    }
}

#[test]
fn memory_that_each_queue_pair_adds_is_there_until_each_has_taken_it_away() {
    let nic = Nic::new(1);
    let mut guest = Guest::new(&nic, 2, Format::Split);
    guest.frontend.add_mem_region(&guest.region).unwrap();
    guest.frontend.remove_mem_region(&guest.region).unwrap();
    guest.run();
    guest.send(1, &FRAME);
    arrived(&nic.wires[0], &FRAME);
    guest.used(1);
    // Another file at the same place is other memory.
    guest.frontend.get_vring_base(1).unwrap();
    let other = TempFile::new().unwrap();
    other.as_file().set_len(MEMORY as u64).unwrap();
    let mut region = guest.region;
    region.mmap_handle = other.as_file().as_raw_fd();
    let _ = guest.frontend.add_mem_region(&region);
    assert!(matches!(
        guest.leave(),
        Err(ServeError::Refused(Refusal::Memory { .. }))
    ));

    let mut guest = Guest::new(&nic, 2, Format::Split);
    guest.frontend.remove_mem_region(&guest.region).unwrap();
    let _ = guest.frontend.remove_mem_region(&guest.region);
    assert!(matches!(
        guest.leave(),
        Err(ServeError::Refused(Refusal::Memory { .. }))
    ));
}

/// What a front end does wrong, and what is to be said of it.
type Wrong = (&'static str, fn(&mut Guest), fn(&Refusal) -> bool);

#[test]
fn each_wrong_request_ends_its_connection_with_its_own_error_and_the_next_is_served() {
    let table: &[Wrong] = &[
        (
            "a ring that is not there",
            |guest| {
                let _ = guest.frontend.set_vring_num(7, SIZE);
            },
            |refusal| matches!(refusal, Refusal::NoRing { index: 7, rings: 2 }),
        ),
        (
            "no entries",
            |guest| {
                let _ = guest.frontend.set_vring_num(0, 0);
            },
            |refusal| matches!(refusal, Refusal::Size { size: 0, .. }),
        ),
        (
            "too many entries",
            |guest| {
                let _ = guest.frontend.set_vring_num(0, 0xffff);
            },
            |refusal| matches!(refusal, Refusal::Size { size: 0xffff, .. }),
        ),
        (
            "a kick that is a socket",
            |guest| {
                let (socket, _) = UnixStream::pair().unwrap();
                #[expect(unsafe_code, reason = "to pass what is no eventfd")]
                // SAFETY: the descriptor was just given up by its owner.
                let kick = unsafe { EventFd::from_raw_fd(socket.into_raw_fd()) };
                let _ = guest.frontend.set_vring_kick(0, &kick);
            },
            |refusal| matches!(refusal, Refusal::NotAnEventFd { index: 0, .. }),
        ),
        (
            "a ring that lies nowhere",
            |guest| {
                let mut addresses = guest.addresses(0);
                addresses.avail_ring_addr = USER + MEMORY as u64;
                guest.frontend.set_vring_addr(0, &addresses).unwrap();
                let _ = guest.frontend.set_vring_kick(0, &guest.rings[0].kick);
            },
            |refusal| matches!(refusal, Refusal::Address { area: "driver", .. }),
        ),
        (
            "a ring that ends past its memory",
            |guest| {
                let mut addresses = guest.addresses(0);
                addresses.desc_table_addr = USER + MEMORY as u64 - 16;
                guest.frontend.set_vring_addr(0, &addresses).unwrap();
                let _ = guest.frontend.set_vring_kick(0, &guest.rings[0].kick);
            },
            |refusal| matches!(refusal, Refusal::Device(_)),
        ),
        (
            "a base further ahead than the ring is long",
            |guest| {
                let base = guest.format.base(SIZE + 1);
                assert!(guest.set_base(0, base));
                let _ = guest.frontend.set_vring_kick(0, &guest.rings[0].kick);
            },
            |refusal| matches!(refusal, Refusal::Device(_)),
        ),
        (
            "a running ring's size",
            |guest| {
                guest.run();
                let _ = guest.frontend.set_vring_num(0, SIZE);
            },
            |refusal| matches!(refusal, Refusal::Running { index: 0, .. }),
        ),
        (
            "a running ring's address",
            |guest| {
                guest.run();
                let mut addresses = guest.addresses(0);
                addresses.desc_table_addr += 0x1000;
                let _ = guest.frontend.set_vring_addr(0, &addresses);
            },
            |refusal| matches!(refusal, Refusal::Running { index: 0, .. }),
        ),
        (
            "features that were not offered",
            |guest| {
                let _ = guest.frontend.set_features(guest.features | 1 << 37);
            },
            |refusal| matches!(refusal, Refusal::Features { excess, .. } if *excess == 1 << 37),
        ),
        (
            "other features while rings run",
            |guest| {
                guest.run();
                let _ = guest.frontend.set_features(PROTOCOL_FEATURES);
            },
            |refusal| matches!(refusal, Refusal::FeaturesRunning { .. }),
        ),
        (
            "memory that is longer than its file",
            |guest| {
                let mut region = guest.region;
                region.memory_size *= 2;
                let _ = guest.frontend.set_mem_table(&[region]);
            },
            |refusal| matches!(refusal, Refusal::Memory { .. }),
        ),
        (
            "memory that is there already",
            |guest| {
                let mut region = guest.region;
                region.userspace_addr += 0x1_0000_0000;
                let _ = guest.frontend.add_mem_region(&region);
            },
            |refusal| matches!(refusal, Refusal::Memory { .. }),
        ),
    ];
    let nic = Nic::new(1);
    for format in Format::ALL {
        for (what, wrong, is_right) in table {
            let mut guest = Guest::new(&nic, 2, format);
            wrong(&mut guest);
            match guest.leave() {
                Err(ServeError::Refused(refusal)) => {
                    assert!(is_right(&refusal), "{format:?}: {what}: {refusal}");
                }
                other => panic!("{format:?}: {what}: {other:?}"),
            }
        }
        let mut guest = Guest::new(&nic, 2, format);
        guest.run();
        guest.send(1, &FRAME);
        arrived(&nic.wires[0], &FRAME);
        guest.leave().unwrap();
    }
}

#[test]
fn what_is_no_message_ends_the_connection() {
    let nic = Nic::new(1);
    let garbage: [&[u8]; 4] = [
        &[0xff; 64],
        &[0; 12],
        // GET_FEATURES with a body.
        &[1, 0, 0, 0, 1, 0, 0, 0, 4, 0, 0, 0, 1, 2, 3, 4],
        // SET_FEATURES, cut short.
        &[2, 0, 0, 0, 1, 0, 0, 0, 8, 0, 0, 0, 1],
    ];
    for bytes in garbage {
        let (mut theirs, ours) = UnixStream::pair().unwrap();
        theirs.write_all(bytes).unwrap();
        drop(theirs);
        let served = nic.transport.serve(ours);
        assert!(
            matches!(served, Err(ServeError::Protocol(_))),
            "{bytes:x?}: {served:?}"
        );
    }
}
