//! A VMM that takes QEMU's own options for a `virtio-net-pci` NIC on a tap:
//!
//! ```text
//! cargo run --release --example vmm -- -netdev tap,id=tap0 -device virtio-net-pci,netdev=tap0 \
//!     -kernel K -initrd I -append A -m 256 -smp 2
//! ```
//!
//! With no options it boots a guest of its own that pings the host through its NIC, and exits.

use std::process::ExitCode;

use examples::cli::{self, Command};
use examples::devices::{self, DeviceError};
use examples::log::StderrLog;
use examples::output::{complain, print, say};
use examples::vmm;

fn main() -> ExitCode {
    let help = |help: Result<String, DeviceError>| match help {
        Ok(text) => {
            print(&text);
            ExitCode::SUCCESS
        }
        Err(error) => {
            complain(error);
            ExitCode::FAILURE
        }
    };
    let options = match cli::parse(std::env::args_os().skip(1)) {
        Ok(Command::Run(options)) => options,
        Ok(Command::Help) => {
            print(cli::HELP);
            return ExitCode::SUCCESS;
        }
        Ok(Command::DeviceHelp(asked)) => {
            // As in QEMU, help was given, whether there is such a device or not.
            help(devices::device_help(&asked));
            return ExitCode::SUCCESS;
        }
        Ok(Command::NetdevHelp(asked)) => return help(devices::netdev_help(&asked)),
        Ok(Command::ObjectHelp(asked)) => return help(devices::object_help(&asked)),
        Ok(Command::Version) => {
            say(concat!("vmm ", env!("CARGO_PKG_VERSION")));
            return ExitCode::SUCCESS;
        }
        Err(error) => {
            complain(error);
            return ExitCode::FAILURE;
        }
    };
    StderrLog::install();
    match vmm::run(&options) {
        Ok(ending) => {
            let text = ending.to_string();
            if !text.is_empty() {
                complain(text);
            }
            ExitCode::from(ending.status())
        }
        Err(error) => {
            complain(error);
            ExitCode::FAILURE
        }
    }
}
