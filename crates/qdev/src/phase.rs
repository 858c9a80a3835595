//! Where a device is in its life, and which moves are legal.

use std::fmt;

/// Where a device is in its life.
///
/// ```text
///            realize          plug            unplug_request
///  Created ---------> Realized ----> Plugged ----------------> UnplugRequested
///    ^  ^                |             |  ^                        |   |
///    |  |    unrealize   |             |  '------- cancelled ------'   |
///    |  '----------------'             | unplug                        | unplug
///    |                 unrealize       v                               |
///    '----------------------------- Unplugged <------------------------'
/// ```
///
/// A device without a bus stays at `Realized`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Phase {
    /// Its properties can be set.
    Created,
    /// Its levels are realized; no bus has it yet.
    Realized,
    /// On its bus: the guest may see it.
    Plugged,
    /// Still on its bus, and asked to leave; the guest has a say.
    UnplugRequested,
    /// Off its bus, not unrealized yet.
    Unplugged,
}

impl Phase {
    /// All phases, in the order of a life.
    pub const ALL: [Self; 5] = [
        Self::Created,
        Self::Realized,
        Self::Plugged,
        Self::UnplugRequested,
        Self::Unplugged,
    ];

    /// Whether a device may go from this phase to `next`.
    #[must_use]
    pub const fn may_become(self, next: Self) -> bool {
        matches!(
            (self, next),
            (Self::Created, Self::Realized)
                | (Self::Realized, Self::Created | Self::Plugged)
                | (Self::Plugged, Self::UnplugRequested | Self::Unplugged)
                | (Self::UnplugRequested, Self::Plugged | Self::Unplugged)
                | (Self::Unplugged, Self::Created)
        )
    }

    /// Whether the device's levels are realized.
    #[must_use]
    pub const fn is_realized(self) -> bool {
        !matches!(self, Self::Created)
    }
}

impl fmt::Display for Phase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Created => "created",
            Self::Realized => "realized",
            Self::Plugged => "plugged",
            Self::UnplugRequested => "unplug requested",
            Self::Unplugged => "unplugged",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::Phase::{self, Created, Plugged, Realized, UnplugRequested, Unplugged};

    #[test]
    fn only_the_drawn_moves_are_legal() {
        let legal = [
            (Created, Realized),
            (Realized, Created),
            (Realized, Plugged),
            (Plugged, UnplugRequested),
            (Plugged, Unplugged),
            (UnplugRequested, Plugged),
            (UnplugRequested, Unplugged),
            (Unplugged, Created),
        ];
        for from in Phase::ALL {
            for to in Phase::ALL {
                assert_eq!(
                    from.may_become(to),
                    legal.contains(&(from, to)),
                    "{from} to {to}"
                );
            }
        }
    }
}
