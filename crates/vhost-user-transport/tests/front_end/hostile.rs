//! Front ends that send whatever they like: messages that are right, nearly right and not at all, in any order.

use std::io::Write;
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};
use vmm_sys_util::sock_ctrl_msg::ScmSocket;
use vmm_sys_util::tempfile::TempFile;

use super::harness::{Format, Guest, MEMORY, Nic, SIZE, USER, arrived};

/// Connections, and messages on each at most.
const CONNECTIONS: u64 = 200;
const MESSAGES: u64 = 40;

/// Xorshift: the same numbers in each run.
struct Random {
    state: u64,
    /// One value of so many is wrong.
    odds: u64,
}

impl Random {
    fn next(&mut self) -> u64 {
        self.state ^= self.state << 13;
        self.state ^= self.state >> 7;
        self.state ^= self.state << 17;
        self.state
    }

    fn below(&mut self, end: u64) -> u64 {
        self.next() % end
    }

    fn one<T: Copy>(&mut self, of: &[T]) -> T {
        of[usize::try_from(self.below(of.len() as u64)).unwrap()]
    }

    /// What is right, or now and then what is wrong.
    fn pick<T: Copy>(&mut self, right: &[T], wrong: &[T]) -> T {
        let wanted = if self.below(self.odds) == 0 {
            wrong
        } else {
            right
        };
        self.one(wanted)
    }

    fn ring(&mut self) -> u32 {
        self.pick(&[0, 1], &[2, 255, u32::MAX])
    }

    /// An address in the front end's memory, or not.
    fn address(&mut self) -> u64 {
        let page = USER + (self.below(MEMORY as u64) & !0xfff);
        let end = USER + MEMORY as u64;
        self.pick(
            &[page],
            &[page + 1, end - 16, end, 0, u64::MAX, USER - 1, 1 << 63],
        )
    }

    fn number(&mut self) -> u64 {
        let any = self.next();
        self.one(&[
            0,
            1,
            2,
            64,
            256,
            0x8000,
            0x8000_8000,
            0xffff,
            1 << 40,
            u64::MAX,
            any,
        ])
    }
}

/// MQ, REPLY_ACK, CONFIG, INFLIGHT_SHMFD, RESET_DEVICE, CONFIGURE_MEM_SLOTS.
const OFFERED: u64 = 1 << 0 | 1 << 3 | 1 << 9 | 1 << 12 | 1 << 13 | 1 << 15;

/// What can be passed along.
struct Files {
    memory: TempFile,
    event: EventFd,
    socket: UnixStream,
}

/// The code, the body and the descriptors of a message that may be right.
fn message(random: &mut Random, files: &Files, features: u64) -> (u64, Vec<u8>, Vec<RawFd>) {
    let memory = files.memory.as_file().as_raw_fd();
    let event = files.event.as_raw_fd();
    let fd = random.pick(&[event], &[memory, files.socket.as_raw_fd()]);
    let right = [
        1, 2, 3, 5, 8, 9, 10, 11, 12, 13, 14, 15, 18, 24, 25, 31, 32, 36,
    ];
    let wrong = [0, 4, 6, 7, 16, 17, 20, 21, 34, 37, 38, 41, 43, 44, 99];
    let code = random.pick(&right, &wrong);
    let mut words = Vec::new();
    let mut fds = Vec::new();
    let region = |random: &mut Random, base: u64| {
        let size = random.pick(&[MEMORY as u64], &[0x1000, 0, u64::MAX]);
        [
            base,
            size,
            USER.wrapping_add(base),
            random.pick(&[0], &[0x1000, u64::MAX]),
        ]
    };
    match code {
        2 => words.push(random.pick(&[features], &[1 << 30, 0, u64::MAX])),
        16 => words.push(random.pick(&[OFFERED], &[0x1_ffff, 0, u64::MAX])),
        5 => {
            let count = random.pick(&[1, 2], &[8, 9]);
            words.push(count);
            for i in 0..count {
                let step = random.pick(&[MEMORY as u64], &[0x1000]);
                words.extend(region(random, i * step));
                fds.push(memory);
            }
        }
        37 | 38 => {
            let base = random.one(&[0, MEMORY as u64, u64::MAX - 0xfff]);
            words.push(0);
            words.extend(region(random, base));
            fds.extend((code == 37).then_some(memory));
        }
        8 | 10 | 11 | 18 => {
            let value = match code {
                18 => random.below(2),
                8 => random.pick(&[SIZE.into()], &[0, 63, 256, 0xffff_ffff]),
                _ => random.number() & 0xffff_ffff,
            };
            words.push(u64::from(random.ring()) | value << 32);
        }
        9 => {
            words.push(random.ring().into());
            words.extend([0; 4].map(|_| random.address()));
        }
        12..=14 => {
            let without = random.pick(&[0], &[1 << 8]);
            words.push(u64::from(random.ring() & 0xff) | without);
            fds.extend((without == 0).then_some(fd));
        }
        24 | 25 => {
            let (offset, size) = (
                random.pick(&[0], &[6, 250, u64::MAX >> 32]),
                random.pick(&[1, 6], &[12, 255]),
            );
            words.push(offset | size << 32);
        }
        31 | 32 => {
            words.push(random.pick(&[0x4000], &[0, 64, u64::MAX]));
            words.push(random.pick(&[0], &[8, 0x1000, u64::MAX]));
            let queues = random.pick(&[2], &[0, 1, 3, 0xffff]);
            let size = random.pick(&[u64::from(SIZE)], &[0, 16, 0xffff]);
            words.push(queues | size << 16);
            fds.extend((code == 32).then_some(memory));
        }
        _ => {}
    }
    let mut body: Vec<u8> = words.iter().flat_map(|word| word.to_ne_bytes()).collect();
    if code == 24 || code == 25 {
        let size = usize::try_from(words[0] >> 32).unwrap();
        body.extend(vec![0x5a; 4 + size]);
    }
    (code, body, fds)
}

/// Sends one message, spoilt now and then. An error is that the connection has ended.
fn send(
    socket: &mut UnixStream,
    random: &mut Random,
    files: &Files,
    features: u64,
) -> std::io::Result<()> {
    let (mut code, mut body, mut fds) = message(random, files, features);
    if matches!(code, 8..=10 | 12) && random.below(random.odds) != 0 {
        // As it should be, the ring is stopped by GET_VRING_BASE first.
        let words = [11, 1, 8, u32::from(body[0]), 0];
        let stop: Vec<u8> = words.iter().flat_map(|word| word.to_ne_bytes()).collect();
        socket.write_all(&stop)?;
    }
    let mut flags = random.one(&[1, 9]);
    let mut size = body.len() as u64;
    match random.below(10 * random.odds) {
        0 => code = random.below(64),
        1 => flags = random.next() & 0xffff_ffff,
        2 => size = random.number() & 0xffff_ffff,
        3 => body.truncate(usize::try_from(random.below(size + 1)).unwrap()),
        4 => fds.clear(),
        5 => fds.extend([files.event.as_raw_fd(); 3]),
        _ => {}
    }
    let header: Vec<u8> = [code, flags, size]
        .iter()
        .flat_map(|word| u32::try_from(*word).unwrap().to_ne_bytes())
        .collect();
    // Whoever has gone away leaves a broken pipe, of which a program of Rust's hears as an error.
    if fds.is_empty() {
        socket.write_all(&header)?;
    } else {
        socket.send_with_fds(&[&header[..]], &fds)?;
    }
    socket.write_all(&body)
}

#[test]
fn whatever_a_front_end_sends_the_next_one_is_served() {
    let mut random = Random {
        state: 0x5eed_1234_5678_9abc,
        odds: 1,
    };
    let nic = Nic::new(1);
    let (mut left, mut sent_away) = (0, 0);
    for connection in 0..CONNECTIONS {
        let format = random.one(&Format::ALL);
        random.odds = random.one(&[4, 50, 1000]);
        let files = Files {
            memory: TempFile::new().unwrap(),
            event: EventFd::new(EFD_NONBLOCK).unwrap(),
            socket: UnixStream::pair().unwrap().0,
        };
        files.memory.as_file().set_len(2 * MEMORY as u64).unwrap();
        // From nothing, set up, or running.
        let (mut socket, served, features, guest) = match random.below(3) {
            0 => {
                let (socket, served) = nic.connect();
                (socket, Some(served), 0x4000_0000, None)
            }
            stage => {
                let mut guest = Guest::new(&nic, 2, format);
                if stage == 2 {
                    guest.run();
                }
                (guest.socket(), None, guest.features, Some(guest))
            }
        };
        // An answer that nobody reads must not stop the one who sends it for ever.
        socket
            .set_write_timeout(Some(Duration::from_secs(5)))
            .unwrap();
        for _ in 0..random.below(MESSAGES) {
            if send(&mut socket, &mut random, &files, features).is_err() {
                break;
            }
            if let Some(guest) = &guest {
                let _ = guest.rings[0].kick.write(1);
                let _ = guest.rings[1].kick.write(1);
            }
            let _ = files.event.write(1);
        }
        drop(socket);
        // How it ended is the front end's affair; that it did, and that nothing panicked, is ours.
        let ended = match (guest, served) {
            (Some(guest), _) => guest.leave(),
            (None, Some(served)) => served.join().unwrap(),
            (None, None) => Ok(()),
        };
        match ended {
            Ok(()) => left += 1,
            Err(_) => sent_away += 1,
        }
        if connection % 16 == 0 {
            let frame = [u8::try_from(connection & 0xff).unwrap(); 77];
            let mut guest = Guest::new(&nic, 2, format);
            guest.run();
            guest.send(1, &frame);
            arrived(&nic.wires[0], &frame);
            guest.used(1);
            guest.leave().unwrap();
        }
    }
    // Some of each, or the mixture is not what it should be.
    assert!(left > CONNECTIONS / 10, "only {left} left by themselves");
    assert!(
        sent_away > CONNECTIONS / 10,
        "only {sent_away} were sent away"
    );
}
