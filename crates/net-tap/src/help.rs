//! What `-netdev tap,help` prints.

use keyval::OptionInfo;
use net_client::KindHelp;

/// The options that [`TapConfig`](crate::TapConfig) takes.
pub(crate) const TAP: KindHelp = KindHelp {
    options: &[
        OptionInfo::new("downscript", "str")
            .describe("Run with the interface's name before it is closed")
            .default("\"no\""),
        OptionInfo::new("fd", "str").describe("An open tap or macvtap, by number"),
        OptionInfo::new("fds", "str").describe("Several of one interface, as 3:4:5"),
        OptionInfo::new("ifname", "str").describe("Name of the interface, made if there is none"),
        OptionInfo::new("queues", "uint32")
            .describe("Queue pairs")
            .default("1"),
        OptionInfo::new("script", "str")
            .describe("Run with the interface's name when it is open")
            .default("\"no\""),
        OptionInfo::new("sndbuf", "size")
            .describe("Bytes on their way to the host at most, 0 for no limit")
            .default("0"),
        OptionInfo::new("vhost", "bool")
            .describe("Frames are moved by the kernel: not supported but for off")
            .default("false"),
        OptionInfo::new("vnet_hdr", "bool")
            .describe("Offloads are passed on (default: if the kernel can)"),
    ],
    our_own: &[
        OptionInfo::new("engine", "str")
            .describe("How frames are moved: sync, io_uring, or (auto) what is faster here")
            .default("\"auto\""),
        OptionInfo::new("ip", "str").describe("The host's address, as 10.0.2.2/24, and up"),
    ],
};
