//! The heads under which help lists types: QEMU's, in its order.

use std::fmt;

/// Under which head `-device help` lists a type. In the order of the heads.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
#[non_exhaustive]
pub enum Category {
    /// Bridges, ports and hubs.
    Bridge,
    /// USB controllers and devices.
    Usb,
    /// Disks and their controllers.
    Storage,
    /// Network cards.
    Network,
    /// Keyboards, serial ports and the like.
    Input,
    /// Graphics cards.
    Display,
    /// Sound cards.
    Sound,
    /// Whatever has no head of its own, such as balloons and sources of entropy.
    Misc,
    /// Processors.
    Cpu,
    /// Watchdogs.
    Watchdog,
    /// The type says nothing.
    #[default]
    Uncategorized,
}

impl fmt::Display for Category {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Bridge => "Controller/Bridge/Hub",
            Self::Usb => "USB",
            Self::Storage => "Storage",
            Self::Network => "Network",
            Self::Input => "Input",
            Self::Display => "Display",
            Self::Sound => "Sound",
            Self::Misc => "Misc",
            Self::Cpu => "CPU",
            Self::Watchdog => "Watchdog",
            Self::Uncategorized => "Uncategorized",
        })
    }
}
