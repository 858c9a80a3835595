//! Property values from the text of an option string, by the kind of the property.
//!
//! A notation of its own, such as [`MAC_ADDRESS`] has, needs nothing here: it is a [`CustomKind`].

use std::fmt;
use std::str::FromStr;

use keyval::scalar;
use qom::{CustomKind, Kind, Object, PropertyError, PropertyType, Value};

/// Sets a property from text, as an option string has it.
///
/// # Errors
/// Those of [`Object::set`], and those of text that is no value of the property's kind:
/// [`PropertyError::Expects`],
/// [`PropertyError::NotAChoice`], [`PropertyError::BadValue`].
#[doc(alias = "object_property_parse")]
pub fn set_text(object: &Object, name: &str, text: &str) -> Result<(), PropertyError> {
    object.set_with(name, |kind, type_name, name| {
        let expects = |expected| PropertyError::Expects {
            name: name.to_owned(),
            expected,
        };
        match kind {
            Kind::Bool => scalar::boolean(text)
                .map(Value::Bool)
                .ok_or_else(|| expects("'on' or 'off'")),
            Kind::U8 | Kind::U16 | Kind::U32 | Kind::U64 => scalar::integer(text)
                .map(Value::Int)
                .ok_or_else(|| expects("integer")),
            Kind::I32 | Kind::I64 => scalar::integer(text)
                .filter(|value| i64::try_from(*value).is_ok())
                .map(Value::Int)
                .ok_or_else(|| expects("integer")),
            Kind::Size => scalar::size(text)
                .map(Value::from)
                .ok_or_else(|| expects("size")),
            Kind::Custom(kind) => (kind.parse)(text).ok_or_else(|| PropertyError::BadValue {
                type_name: type_name.to_owned(),
                name: name.to_owned(),
                value: text.to_owned(),
            }),
            // A word of an enumeration is looked up when it is admitted.
            _ => Ok(Value::from(text)),
        }
    })
}

/// An Ethernet address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, PartialOrd, Ord)]
pub struct MacAddr(pub [u8; 6]);

/// Why a text is no Ethernet address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("an Ethernet address is six bytes of two hexadecimal digits, as in 52:54:00:12:34:56")]
pub struct BadMacAddr;

/// The kind of a property that is an Ethernet address; read it as [`MacAddr`].
pub const MAC_ADDRESS: CustomKind = CustomKind {
    type_name: "str",
    parse: |text| {
        text.parse::<MacAddr>()
            .ok()
            .map(|mac| Value::from(mac.to_string()))
    },
    accepts: |value| {
        matches!(value, Value::Str(text)
            if text.parse::<MacAddr>().is_ok_and(|mac| mac.to_string() == *text))
    },
};

impl FromStr for MacAddr {
    type Err = BadMacAddr;

    fn from_str(text: &str) -> Result<Self, BadMacAddr> {
        let mut parts = text.split([':', '-']);
        let mut mac = [0; 6];
        for byte in &mut mac {
            let digits = parts.next().ok_or(BadMacAddr)?;
            if digits.len() != 2 || !digits.bytes().all(|digit| digit.is_ascii_hexdigit()) {
                return Err(BadMacAddr);
            }
            *byte = u8::from_str_radix(digits, 16).map_err(|_| BadMacAddr)?;
        }
        if parts.next().is_some() {
            Err(BadMacAddr)
        } else {
            Ok(Self(mac))
        }
    }
}

impl fmt::Display for MacAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

impl From<MacAddr> for Value {
    fn from(mac: MacAddr) -> Self {
        Self::from(mac.to_string())
    }
}

impl PropertyType for MacAddr {
    fn from_value(value: Option<&Value>) -> Option<Self> {
        if let Some(Value::Str(text)) = value {
            text.parse().ok()
        } else {
            None
        }
    }
}
