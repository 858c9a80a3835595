//! One model alone: a network card between a driver's queues in memory and a peer that sends each
//! frame back. No registry of types, no transport, no thread, no KVM.
//!
//! ```text
//! cargo run --example model
//! ```

use std::error::Error;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use iothread::EventLoop;
use net_client::Loopback;
use virtio::F;
use virtio_bus::{Activation, ActiveQueue, GuestNotifier, VirtioDevice};
use virtio_net::{VirtioNet, VirtioNetConfig};
use virtqueue::mock::{Buffer, SplitDriver};
use virtqueue::{QueueIndex, QueueState};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

type Memory = Arc<GuestMemoryMmap<()>>;

fn main() -> Result<(), Box<dyn Error>> {
    // The card, its peer, and the event loop that both work on.
    let peer = Loopback::new("peer");
    let events = EventLoop::new()?;
    let card: Arc<VirtioNet<Memory>> = VirtioNet::new(
        VirtioNetConfig::default(),
        vec![peer.port().clone()],
        vec![events.clone()],
    )?;

    // What a transport does up to FEATURES_OK. A driver that takes nothing but VERSION_1 has plain
    // rings, and a header of 12 bytes in front of each frame.
    let features = card.offered_features() & F::VERSION_1;
    card.negotiate(features)?;

    // The driver's half: two rings, a buffer to receive into, and a frame to send.
    let ram = [(GuestAddress(0), 1 << 20)];
    let memory: Memory = Arc::new(GuestMemoryMmap::from_ranges(&ram)?);
    let ring = |base| SplitDriver::new(memory.clone(), GuestAddress(base), 16, features);
    let (mut receive, mut transmit) = (ring(0x1000), ring(0x2000));
    receive.add(&[Buffer::writable(0x8000, 2048)]);
    let frame = b"\xff\xff\xff\xff\xff\xff\x52\x54\x00\x12\x34\x56\x88\xb5there and back";
    let sent = [&[0; HEADER][..], frame].concat();
    memory.write_slice(&sent, GuestAddress(0x9000))?;
    transmit.add(&[Buffer::readable(0x9000, u32::try_from(sent.len())?)]);

    // DRIVER_OK: the queues move into the card, each with a descriptor to kick it and a way to be
    // told of what it has done. The first kick is for what is there already.
    let interrupts = Arc::new(Interrupts::default());
    let mut queues = Vec::new();
    for (index, driver) in [(0, &receive), (1, &transmit)] {
        let kick = Arc::new(EventFd::new(EFD_NONBLOCK)?);
        kick.write(1)?;
        queues.push(ActiveQueue {
            index: QueueIndex(index),
            config: driver.config(),
            state: QueueState::default(),
            kick,
            call: interrupts.clone(),
            in_flight: None,
        });
    }
    card.activate(Activation {
        features,
        memory: memory.clone(),
        queues,
    })
    .map_err(|not| not.error)?;

    // The card works whenever its event loop turns: here, until there is nothing left to do.
    while events.turn(Some(Duration::ZERO))? > 0 {}

    let (_, written) = transmit.take_used().ok_or("the frame was not sent")?;
    println!(
        "sent {} bytes, of which the card wrote {written}",
        sent.len()
    );
    let (_, len) = receive.take_used().ok_or("nothing came back")?;
    let mut received = vec![0; usize::try_from(len)?];
    memory.read_slice(&mut received, GuestAddress(0x8000))?;
    let text = received.get(HEADER + 14..).unwrap_or_default();
    println!("received {len} bytes: {:?}", String::from_utf8_lossy(text));
    println!("interrupts: {}", interrupts.0.load(Ordering::Relaxed));
    if received.get(HEADER..) != Some(frame) {
        return Err("it is another frame".into());
    }

    // The queues come back, and say where they stopped.
    for queue in card.reset() {
        println!("queue {}: {:?}", queue.index, queue.state);
    }
    Ok(())
}

/// Counts what a guest would be interrupted for.
#[derive(Debug, Default)]
struct Interrupts(AtomicUsize);

impl GuestNotifier for Interrupts {
    fn notify(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }

    fn event_fd(&self) -> Option<&EventFd> {
        None
    }
}

/// Bytes in front of each frame: `struct virtio_net_hdr_v1`.
const HEADER: usize = 12;

#[cfg(test)]
#[test]
fn what_is_sent_comes_back() {
    main().unwrap();
}
