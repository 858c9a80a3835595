//! How a machine ends, and what the process then ends with.

use std::fmt;

use payload::ExitStatus;

/// How a machine ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ending {
    /// The guest switched it off, or reset it where that ends it too.
    PoweredOff,
    /// The embedded guest ended with this [`ExitStatus`].
    Status(u8),
    /// The user left.
    Quit,
    /// The guest cannot go on by its own doing.
    Crashed(String),
    /// This host's KVM cannot run the guest's code.
    CannotRun(String),
    /// The VMM cannot go on.
    Failed(String),
    /// The embedded guest took too long.
    TimedOut,
    /// The process was asked to end.
    Signal(i32),
}

impl Ending {
    /// The status that the process ends with.
    pub fn status(&self) -> u8 {
        match self {
            Self::PoweredOff | Self::Quit => 0,
            Self::Status(SUCCESS) => 0,
            Self::Status(NO_BOOT_INFO | PANIC | EXCEPTION) => 2,
            Self::Status(_) | Self::CannotRun(_) | Self::Failed(_) => 1,
            Self::Crashed(_) => 2,
            Self::TimedOut => 3,
            Self::Signal(signal) => u8::try_from(*signal).unwrap_or(0).saturating_add(128),
        }
    }
}

const SUCCESS: u8 = ExitStatus::Success as u8;
const NO_BOOT_INFO: u8 = ExitStatus::NoBootInfo as u8;
const PANIC: u8 = ExitStatus::Panic as u8;
const EXCEPTION: u8 = ExitStatus::Exception as u8;

/// What to tell the user of it; empty where there is nothing to tell.
impl fmt::Display for Ending {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::PoweredOff | Self::Status(_) | Self::Quit => Ok(()),
            Self::Crashed(why) => write!(f, "the guest crashed: {why}"),
            Self::CannotRun(why) => write!(f, "this host cannot run the guest: {why}"),
            Self::Failed(why) => f.write_str(why),
            Self::TimedOut => f.write_str("the embedded guest took too long"),
            Self::Signal(signal) => write!(f, "ended by signal {signal}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn statuses_tell_endings_apart() {
        let table = [
            (Ending::PoweredOff, 0),
            (Ending::Quit, 0),
            (Ending::Status(ExitStatus::Success as u8), 0),
            (Ending::Status(ExitStatus::Lost as u8), 1),
            (Ending::Status(ExitStatus::NoDevice as u8), 1),
            (Ending::Status(ExitStatus::NoBootInfo as u8), 2),
            (Ending::Status(ExitStatus::Panic as u8), 2),
            (Ending::Status(ExitStatus::Exception as u8), 2),
            (Ending::Status(77), 1),
            (Ending::Failed(String::new()), 1),
            (Ending::CannotRun(String::new()), 1),
            (Ending::Crashed(String::new()), 2),
            (Ending::TimedOut, 3),
            (Ending::Signal(15), 143),
        ];
        for (ending, status) in table {
            assert_eq!(ending.status(), status, "{ending:?}");
        }
    }
}
