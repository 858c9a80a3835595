//! The capture of a NIC's traffic: a pcap file for tcpdump or Wireshark.
//!
//! ```text
//! cargo run --example capture -- nic.pcap && tcpdump -e -r nic.pcap
//! ```
//!
//! The machine is the VMM's without a processor. A driver in this process takes the guest's place and
//! sends a few frames through the NIC; the NIC's peer sends each back, and a filter between the two
//! writes both ways down.

use std::error::Error;
use std::io;
use std::process::ExitCode;
use std::thread;
use std::time::{Duration, Instant};

use net_client::Loopback;
use virtio_guest::{DmaMemory, DmaRegion, NetConfig, NetDriver, VirtioPciTransport, pci};

use examples::devices::Devices;
use examples::machine::layout::MIB;
use examples::machine::{DriverView, Machine, MachineConfig, ManualInterrupts};
use examples::output::say;

const FRAMES: u8 = 3;
const DEADLINE: Duration = Duration::from_secs(10);

fn main() -> ExitCode {
    let file = std::env::args_os().nth(1);
    let file = file.unwrap_or_else(|| std::env::temp_dir().join("nic.pcap").into());
    let Some(file) = file.to_str() else {
        eprintln!("capture: {}: not UTF-8", file.to_string_lossy());
        return ExitCode::FAILURE;
    };
    match capture(file) {
        Ok(frames) => {
            say(format_args!("{frames} frames in {file}"));
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("capture: {error}");
            ExitCode::FAILURE
        }
    }
}

fn capture(file: &str) -> Result<u64, Box<dyn Error>> {
    // A machine with a NIC, whose peer is a loopback.
    let interrupts = ManualInterrupts::new();
    let config = MachineConfig {
        ram: 16 * MIB,
        exit_port: None,
    };
    let machine = Machine::new(&config, interrupts.interrupts(), Box::new(io::sink()))?;
    let devices = Devices::new(&machine)?;
    let netdevs = devices.netdevs();
    netdevs.insert("net0", Loopback::new("net0"))?;
    devices.device_add("virtio-net-pci,netdev=net0,mac=52:54:00:00:00:01")?;
    machine.assign_resources()?;

    // What `-object` takes in QEMU. A comma in the file's name is doubled.
    let file = file.replace(',', ",,");
    let capture = netdevs.add_filter(&format!("filter-dump,id=dump0,netdev=net0,file={file}"))?;

    // The guest: frames of an experimental EtherType, and back they come.
    let view = DriverView::new(machine.clone());
    let nic = pci::functions(&view, 0)
        .find(|function| pci::is_virtio_net(&view, *function))
        .ok_or("no NIC on the bus")?;
    let transport = VirtioPciTransport::probe(view, nic)?;
    let memory = DmaMemory::new(DmaRegion {
        address: 4 * MIB,
        len: 1 << 20,
    });
    let mut driver = NetDriver::<_, 64>::new(transport, memory, &NetConfig::default())?;
    let header = [&[0xff; 6][..], &driver.mac(), &[0x88, 0xb5]].concat();
    for number in 0..FRAMES {
        driver.transmit(&[&header[..], &[number; 46]].concat())?;
    }
    let end = Instant::now() + DEADLINE;
    let mut came = 0;
    while came < FRAMES {
        driver.poll_receive(&mut [0; 2048], |_| came += 1)?;
        if Instant::now() > end {
            return Err(format!("only {came} frames came back").into());
        }
        thread::yield_now();
    }
    netdevs.remove_filter("dump0")?;
    match capture.error() {
        Some(error) => Err(error.to_string().into()),
        None => Ok(capture.frames()),
    }
}

#[cfg(test)]
#[test]
fn each_frame_is_captured_both_ways() {
    let file = std::env::temp_dir().join(format!("capture-{}.pcap", std::process::id()));
    let frames = capture(&file.to_string_lossy());
    std::fs::remove_file(file).unwrap();
    assert_eq!(frames.unwrap(), 2 * u64::from(FRAMES));
}
