//! Requests and answers, one at a time: where a thread sleeps until another one has something for it.
#![expect(
    unsafe_code,
    reason = "system calls on descriptors and memory of the bench's own"
)]

use std::os::fd::RawFd;
use std::thread;
use std::time::Instant;

use vm_memory::{Bytes, GuestAddress};
use vmm_sys_util::eventfd::EventFd;

use crate::PacketSocket;
use crate::frame::{FrameSize, HEADER_LEN, MAC, SOURCE};
use crate::layout::Layout;
use crate::processor::pin;
use crate::raw::RawTap;
use crate::rig::{DEVICE_CPU, Rig, Took};

/// Only ends a bench that hangs, in milliseconds.
const DEADLINE: i32 = 20_000;

/// Sleeps until there is something to read.
pub fn wait_for(fd: RawFd) {
    let mut poll = libc::pollfd {
        fd,
        events: libc::POLLIN,
        revents: 0,
    };
    // SAFETY: one structure, which is there during the call.
    let ready = unsafe { libc::poll(&raw mut poll, 1, DEADLINE) };
    assert_eq!(ready, 1, "nothing comes");
}

/// How long it takes so many times to wake a thread on the devices' processor by an eventfd, and to be woken by it.
pub fn two_wake_ups(count: u64) -> Took {
    let [there, back] = [0, 0].map(|flags| EventFd::new(flags).unwrap());
    thread::scope(|scope| {
        scope.spawn(|| {
            pin(DEVICE_CPU);
            for _ in 0..count {
                there.read().unwrap();
                back.write(1).unwrap();
            }
        });
        let start = Instant::now();
        for _ in 0..count {
            there.write(1).unwrap();
            back.read().unwrap();
        }
        Took {
            wall: start.elapsed(),
            ..Took::default()
        }
    })
}

/// The frames that go there and back.
const ECHO: Layout = Layout {
    size: FrameSize::Smallest,
    small_pieces: false,
};
const ECHO_LEN: usize = HEADER_LEN + FrameSize::Smallest.frame_len();

impl Rig {
    /// Offers all buffers, and lays out answers.
    pub fn prepare_to_answer(&mut self) {
        self.prepare_to_send(ECHO);
        self.prepare_to_receive(ECHO);
        let pair = &mut self.pairs[0];
        while let Some(index) = pair.to_fill.pop_front() {
            pair.rx.offer(index);
        }
        pair.rx.want_interrupt(1);
        pair.tx.want_no_interrupt();
        pair.rx.publish();
    }

    /// Has `host` ask so many times, and the driver answer each time, once it has been interrupted. Host and driver are
    /// one thread, which sleeps when it has nothing to do: each waits for the device, never for the other.
    pub fn ping(&mut self, host: &mut PacketSocket, count: u64) -> Took {
        let request = ECHO.size.bytes(MAC);
        let before = self.clock().now();
        let start = Instant::now();
        for _ in 0..count {
            host.send(&request);
            self.answer();
            host.expect(ECHO_LEN);
        }
        self.took(start, before)
    }

    /// Has the driver send so many frames, one at a time, and sleep each time until the interrupt says that it is sent.
    pub fn kick_to_interrupt(&mut self, count: u64) -> Took {
        let before = self.clock().now();
        let start = Instant::now();
        let pair = &mut self.pairs[0];
        for _ in 0..count {
            while let Some(head) = pair.tx.take() {
                pair.to_send.push_back(head);
            }
            let head = pair.to_send.pop_front().unwrap();
            pair.tx.want_interrupt(1);
            pair.tx.offer(head);
            pair.tx.publish();
            let head = loop {
                pair.wait_for_interrupt();
                if let Some(head) = pair.tx.take() {
                    break head;
                }
            };
            pair.to_send.push_back(head);
        }
        pair.tx.want_no_interrupt();
        self.took(start, before)
    }

    fn answer(&mut self) {
        let pair = &mut self.pairs[0];
        let buffer = loop {
            if let Some(index) = pair.rx.take() {
                break index;
            }
            if !pair.rx.want_interrupt(1) {
                pair.wait_for_interrupt();
            }
        };
        while let Some(head) = pair.tx.take() {
            pair.to_send.push_back(head);
        }
        let head = pair.to_send.pop_front().unwrap();
        let mut frame = [0_u8; ECHO_LEN];
        let [from, to] =
            [pair.buffer_at(ECHO, buffer), pair.frame_at(ECHO, head)].map(GuestAddress);
        self.memory.read_slice(&mut frame, from).unwrap();
        // Back to who asks; the header that comes with a frame asks for nothing, as one that goes must.
        frame[..HEADER_LEN].fill(0);
        frame[HEADER_LEN..][..6].copy_from_slice(&SOURCE);
        frame[HEADER_LEN + 6..][..6].copy_from_slice(&MAC);
        self.memory.write_slice(&frame, to).unwrap();
        pair.tx.offer(head);
        pair.tx.publish();
        pair.rx.offer(buffer);
        pair.rx.publish();
    }
}

impl RawTap {
    /// As [`Rig::ping`]: the bare loop, on the devices' processor, writes back what it has read.
    pub fn ping(&mut self, host: &mut PacketSocket, count: u64) -> Took {
        let request = ECHO.size.bytes(MAC);
        self.echo(count, || {
            let start = Instant::now();
            for _ in 0..count {
                host.send(&request);
                host.expect(ECHO_LEN);
            }
            Took {
                wall: start.elapsed(),
                ..Took::default()
            }
        })
    }
}
