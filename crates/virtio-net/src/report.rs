//! What of a NIC's features is offered, what the driver has accepted, and why the rest is not there.

use std::fmt;

use virtio::F;
use virtio::net::F as NetF;

/// The features of a NIC: what the device offers to its transport, which may add to it or take from it, and what
/// became of it. Its text is what the property `features` and the log say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FeatureReport {
    /// Offered.
    pub offered: F,
    /// Accepted by the driver, if there is one.
    pub accepted: F,
    /// Not offered, and why.
    pub withheld: Vec<(F, Withheld)>,
}

/// Why a feature is not offered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Withheld {
    /// It is switched off.
    SwitchedOff,
    /// The backend cannot do it.
    Backend,
    /// The backend carries no header in front of frames.
    NoHeader,
    /// One of these is needed, and none is offered.
    Needs(F),
}

impl fmt::Display for FeatureReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "offered: {}", names(self.offered))?;
        write!(f, "; accepted: {}", names(self.accepted))?;
        f.write_str("; withheld:")?;
        if self.withheld.is_empty() {
            f.write_str(" none")?;
        }
        for (i, (feature, reason)) in self.withheld.iter().enumerate() {
            let comma = if i == 0 { "" } else { "," };
            write!(f, "{comma} {} ({reason})", names(*feature))?;
        }
        Ok(())
    }
}

impl fmt::Display for Withheld {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::SwitchedOff => f.write_str("switched off"),
            Self::Backend => f.write_str("the backend lacks it"),
            Self::NoHeader => f.write_str("the backend carries no header"),
            Self::Needs(features) => write!(f, "needs {}", names(*features)),
        }
    }
}

/// The features' names, as the specification has them without their prefix.
fn names(features: F) -> String {
    let names: Vec<_> = NetF::from(features)
        .iter_names()
        .map(|(name, _)| name)
        .collect();
    match names.as_slice() {
        [] => "none".to_owned(),
        names => names.join(" "),
    }
}
