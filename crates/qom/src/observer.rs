//! Being told of each step in the life of classes and objects, for tests and traces.

use std::fmt;
use std::sync::{Arc, Mutex};

use crate::sync::lock;

/// A kind of step in the life of classes and objects, named as QEMU names the hook.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Step {
    /// A class runs its own `class_init` on the copy of its parent's.
    ClassInit,
    /// An object runs the `instance_init` of one level.
    InstanceInit,
    /// An object runs the `instance_finalize` of one level.
    InstanceFinalize,
    /// A device's bus accepts it.
    PrePlug,
    /// A device realizes one level.
    Realize,
    /// A device is plugged into its bus.
    Plug,
    /// A device is asked to leave its bus.
    UnplugRequest,
    /// A device leaves its bus.
    Unplug,
    /// What a device's bus held for it before the plug is given back.
    Withdraw,
    /// A device unrealizes one level.
    Unrealize,
    /// A device resets one level.
    Reset,
}

impl Step {
    /// The name of the step, such as `class_init`.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::ClassInit => "class_init",
            Self::InstanceInit => "instance_init",
            Self::InstanceFinalize => "instance_finalize",
            Self::PrePlug => "pre_plug",
            Self::Realize => "realize",
            Self::Plug => "plug",
            Self::UnplugRequest => "unplug_request",
            Self::Unplug => "unplug",
            Self::Withdraw => "withdraw",
            Self::Unrealize => "unrealize",
            Self::Reset => "reset",
        }
    }
}

/// One step: which, at which level, of an object of which type.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Event {
    /// Which step.
    pub step: Step,
    /// The type whose hook runs, or, of plug steps, the type of the bus.
    pub level: Arc<str>,
    /// The type of the object; of `class_init` it is the level itself.
    pub type_name: Arc<str>,
}

impl fmt::Display for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.step.as_str(), self.level)?;
        if self.level == self.type_name {
            Ok(())
        } else {
            write!(f, " of {}", self.type_name)
        }
    }
}

/// Is told of each step just before it is taken, for tests and traces.
///
/// Called on the thread that takes the step, with no lock held.
pub trait Observer: Send + Sync {
    /// A step is about to be taken.
    fn observe(&self, event: &Event);
}

/// An [`Observer`] that keeps what it is told.
#[derive(Debug, Default)]
pub struct Recorder {
    events: Mutex<Vec<Event>>,
}

impl Recorder {
    /// Takes what was recorded so far, in order.
    pub fn take(&self) -> Vec<Event> {
        std::mem::take(&mut *lock(&self.events))
    }

    /// As [`take`](Self::take), each event as a line such as `realize pci-device of
    /// virtio-net-pci`.
    pub fn take_lines(&self) -> Vec<String> {
        self.take().iter().map(Event::to_string).collect()
    }
}

impl Observer for Recorder {
    fn observe(&self, event: &Event) {
        lock(&self.events).push(event.clone());
    }
}
