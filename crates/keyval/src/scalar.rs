//! The text of one value.
//!
//! These functions know nothing of the option that the text belongs to: they say whether the text
//! is a value of the kind, and the caller words the error.

/// A switch: `on`, `yes`, `true` or `y`; `off`, `no`, `false` or `n`. Capital letters are refused,
/// and so are 0 and 1.
#[must_use]
pub fn boolean(text: &str) -> Option<bool> {
    match text {
        "on" | "yes" | "true" | "y" => Some(true),
        "off" | "no" | "false" | "n" => Some(false),
        _ => None,
    }
}

/// An integer from -2^63 to 2^64 - 1, as C's `strtol` with base 0 reads it: white space and a sign
/// may lead, `0x` means hexadecimal and a leading `0` octal.
#[must_use]
pub fn integer(text: &str) -> Option<i128> {
    let text = text.trim_start_matches([' ', '\t', '\n', '\r', '\x0b', '\x0c']);
    let (negative, digits) = match text.as_bytes().first() {
        Some(b'-') => (true, text.get(1..)?),
        Some(b'+') => (false, text.get(1..)?),
        _ => (false, text),
    };
    let (digits, radix) = match strip_hex_prefix(digits) {
        Some(hex) => (hex, 16),
        None if digits.len() > 1 && digits.starts_with('0') => (digits, 8),
        None => (digits, 10),
    };
    // `from_str_radix` would take a second sign.
    if !digits.starts_with(|c: char| c.is_ascii_hexdigit()) {
        return None;
    }
    let magnitude = i128::from(u64::from_str_radix(digits, radix).ok()?);
    let value = if negative { -magnitude } else { magnitude };
    (value >= i128::from(i64::MIN)).then_some(value)
}

/// A size in bytes below 2^64, with an optional suffix: `B` for bytes, `k`, `M`, `G`, `T`, `P` or
/// `E`, in either case, for powers of 1024. With a suffix above `B` the number may have a decimal
/// fraction, which is rounded down to a byte.
#[must_use]
pub fn size(text: &str) -> Option<u64> {
    let text = text.trim_start_matches([' ', '\t', '\n', '\r', '\x0b', '\x0c']);
    let text = text.strip_prefix('+').unwrap_or(text);
    let hex = strip_hex_prefix(text);
    // In a hexadecimal number the letters B and E are digits.
    let (number, suffix) = match hex {
        Some(hex) => hex.split_at(
            hex.find(|c: char| !c.is_ascii_hexdigit())
                .unwrap_or(hex.len()),
        ),
        None => text.split_at(
            text.find(|c: char| !c.is_ascii_digit() && c != '.')
                .unwrap_or(text.len()),
        ),
    };
    let multiplier: u128 = match suffix {
        "" | "b" | "B" => 1,
        "k" | "K" => 1 << 10,
        "m" | "M" => 1 << 20,
        "g" | "G" => 1 << 30,
        "t" | "T" => 1 << 40,
        "p" | "P" => 1 << 50,
        "e" | "E" => 1 << 60,
        _ => return None,
    };
    if hex.is_some() {
        let whole = u64::from_str_radix(number, 16).ok()?;
        return u128::from(whole).checked_mul(multiplier)?.try_into().ok();
    }
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    let is_whole = fraction.bytes().all(|digit| digit == b'0');
    if !fraction.bytes().all(|b| b.is_ascii_digit()) || (!is_whole && multiplier == 1) {
        return None;
    }
    // 18 digits say a fraction of 2^60 bytes to within two bytes, and leave the sums below far from 2^128.
    let fraction = fraction.get(..18).unwrap_or(fraction);
    let numerator = if fraction.is_empty() {
        0
    } else {
        fraction.parse::<u64>().ok()?
    };
    let mut denominator = 1u128;
    for _ in 0..fraction.len() {
        denominator = denominator.checked_mul(10)?;
    }
    let below = u128::from(numerator).checked_mul(multiplier)? / denominator;
    u128::from(whole.parse::<u64>().ok()?)
        .checked_mul(multiplier)?
        .checked_add(below)?
        .try_into()
        .ok()
}

/// Whether the text can be an `id`: letters, digits, `-`, `.` and `_`, starting with a letter.
#[must_use]
pub fn is_identifier(text: &str) -> bool {
    text.starts_with(|c: char| c.is_ascii_alphabetic())
        && text
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.' | b'_'))
}

fn strip_hex_prefix(text: &str) -> Option<&str> {
    text.strip_prefix("0x").or_else(|| text.strip_prefix("0X"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn integers_are_read_as_strtol_reads_them() {
        for (text, expected) in [
            ("3", Some(3)),
            (" 3", Some(3)),
            ("+3", Some(3)),
            ("-3", Some(-3)),
            ("3 ", None),
            ("0", Some(0)),
            ("0x10", Some(16)),
            ("-0X10", Some(-16)),
            ("0400", Some(256)),
            ("08", None),
            ("0x", None),
            ("0x+1", None),
            ("--1", None),
            ("+-1", None),
            ("", None),
            ("+", None),
            ("1k", None),
            ("1.5", None),
            ("18446744073709551615", Some(i128::from(u64::MAX))),
            ("18446744073709551616", None),
            ("-9223372036854775808", Some(i128::from(i64::MIN))),
            ("-9223372036854775809", None),
            ("\u{661}", None),
        ] {
            assert_eq!(integer(text), expected, "{text:?}");
        }
    }

    #[test]
    fn sizes_take_one_binary_suffix() {
        for (text, expected) in [
            ("0", Some(0)),
            ("4096", Some(4096)),
            ("12B", Some(12)),
            ("1k", Some(1024)),
            ("1K", Some(1024)),
            ("1.5k", Some(1536)),
            ("1.M", Some(1 << 20)),
            ("0.5", None),
            ("0.0", Some(0)),
            ("1kk", None),
            ("1Q", None),
            ("-1", None),
            ("", None),
            ("k", None),
            (".5k", None),
            ("1..5k", None),
            ("1.50000000000000000000000001k", Some(1536)),
            ("1.0000000000000000000", Some(1)),
            ("1.0000000000000000001", None),
            ("1.000000000000000000x", None),
            ("0x10", Some(16)),
            ("0x10k", Some(16384)),
            ("0xB", Some(11)),
            ("15E", Some(15 << 60)),
            ("16E", None),
            ("18446744073709551615", Some(u64::MAX)),
            ("99999999999999999999", None),
            ("1\u{e9}", None),
        ] {
            assert_eq!(size(text), expected, "{text:?}");
        }
    }

    #[test]
    fn switches_are_lower_case_words() {
        for (text, expected) in [
            ("on", Some(true)),
            ("yes", Some(true)),
            ("true", Some(true)),
            ("y", Some(true)),
            ("off", Some(false)),
            ("no", Some(false)),
            ("false", Some(false)),
            ("n", Some(false)),
            ("tRuE", None),
            ("1", None),
            ("0", None),
            ("", None),
            ("auto", None),
        ] {
            assert_eq!(boolean(text), expected, "{text:?}");
        }
    }

    #[test]
    fn an_identifier_starts_with_a_letter() {
        for (text, expected) in [
            ("net0", true),
            ("a.b-c_d", true),
            ("0net", false),
            ("", false),
            ("a b", false),
            ("\u{e9}", false),
        ] {
            assert_eq!(is_identifier(text), expected, "{text:?}");
        }
    }
}
