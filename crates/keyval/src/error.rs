//! Why an option string is refused, in QEMU's words.

/// Why an option string is refused; the words name the option, as QEMU's do. Each is one line.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// An option that must be given is not.
    #[error("Parameter '{0}' is missing")]
    Missing(String),
    /// An option that no consumer took.
    #[error("Invalid parameter '{0}'")]
    Unknown(String),
    /// The value of a switch is neither on nor off.
    #[error("Parameter '{0}' expects 'on' or 'off'")]
    NotABool(String),
    /// The value is not one of the words that the option takes.
    #[error("Parameter '{key}' does not accept value '{value}'")]
    NotAChoice {
        /// The option.
        key: String,
        /// What it was given.
        value: String,
    },
    /// The value is not a non-negative integer below 2^64.
    #[error("Parameter '{0}' expects a uint64 value")]
    NotAnInteger(String),
    /// The value is an integer, too large for the option's type.
    #[error("Parameter '{key}' expects {expected}")]
    OutOfRange {
        /// The option.
        key: String,
        /// The type that the option has, as C spells it, such as `uint32_t`.
        expected: &'static str,
    },
    /// The value is not a size, such as `64k`.
    #[error("Parameter '{0}' expects a size value")]
    NotASize(String),
    /// The value of `id` is not an identifier.
    #[error(
        "Parameter '{0}' expects an identifier: \
         letters, digits, '-', '.', '_', starting with a letter"
    )]
    NotAnIdentifier(String),
}
