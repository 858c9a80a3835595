//! Checks of properties that QEMU has and that are not built: their values are refused by name rather than taken and
//! ignored.

use qom::Value;

/// Refuses every value.
///
/// # Errors
/// Always.
pub fn not_supported(_: &Value) -> Result<(), String> {
    Err("is not supported".to_owned())
}

/// Takes `off`, which is what the device does anyway.
///
/// # Errors
/// For any other value.
pub fn only_off(value: &Value) -> Result<(), String> {
    only(value, false, "off")
}

/// Takes `on`, which is what the device does anyway.
///
/// # Errors
/// For any other value.
pub fn only_on(value: &Value) -> Result<(), String> {
    only(value, true, "on")
}

fn only(value: &Value, switch: bool, word: &str) -> Result<(), String> {
    let taken = match value {
        Value::Bool(value) => *value == switch,
        Value::Choice(value) => *value == word || *value == "auto",
        _ => false,
    };
    if taken {
        Ok(())
    } else {
        Err(format!("is not supported with any value but '{word}'"))
    }
}
