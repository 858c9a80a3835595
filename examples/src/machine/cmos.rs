//! The real-time clock of a PC: read-only, in universal time.

use std::sync::atomic::{AtomicU8, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

use vm_device::DevicePio;
use vm_device::bus::{PioAddress, PioAddressOffset};

/// The index and data registers of an MC146818 clock. A guest reads the time; what it writes is
/// ignored, and the RAM beside the clock reads as zero.
#[derive(Debug, Default)]
pub(super) struct Cmos {
    index: AtomicU8,
}

impl DevicePio for Cmos {
    fn pio_read(&self, _base: PioAddress, offset: PioAddressOffset, data: &mut [u8]) {
        data.fill(0xff);
        if let (1, Some(first)) = (offset, data.first_mut()) {
            *first = register(self.index.load(Ordering::Relaxed), SystemTime::now());
        }
    }

    fn pio_write(&self, _base: PioAddress, offset: PioAddressOffset, data: &[u8]) {
        if let (0, Some(&first)) = (offset, data.first()) {
            // Bit 7 masks NMI.
            self.index.store(first & 0x7f, Ordering::Relaxed);
        }
    }
}

/// What register `index` reads at `now`.
fn register(index: u8, now: SystemTime) -> u8 {
    let seconds = now
        .duration_since(UNIX_EPOCH)
        .map_or(0, |since| since.as_secs());
    let time = CivilTime::from_unix(seconds);
    match index {
        0x00 => bcd(time.second),
        0x02 => bcd(time.minute),
        0x04 => bcd(time.hour),
        0x06 => bcd(time.weekday),
        0x07 => bcd(time.day),
        0x08 => bcd(time.month),
        0x09 => bcd(time.year % 100),
        0x32 => bcd(time.year / 100),
        // Status A: the divider of a 32 kHz crystal, no update in progress.
        0x0a => 0x26,
        // Status B: 24 hours, BCD.
        0x0b => 0x02,
        // Status D: the battery is good.
        0x0d => 0x80,
        _ => 0,
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct CivilTime {
    year: u64,
    month: u64,
    day: u64,
    /// 1 is Sunday.
    weekday: u64,
    hour: u64,
    minute: u64,
    second: u64,
}

impl CivilTime {
    /// The proleptic Gregorian date of `seconds` since 1970, reckoned in eras of 400 years that
    /// begin on 1 March.
    fn from_unix(seconds: u64) -> Self {
        let days = seconds / 86_400;
        let of_day = seconds % 86_400;
        let since_era = days + 719_468;
        let era = since_era / 146_097;
        let day_of_era = since_era % 146_097;
        let year_of_era =
            (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
        let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
        let shifted_month = (5 * day_of_year + 2) / 153;
        let month = if shifted_month < 10 {
            shifted_month + 3
        } else {
            shifted_month - 9
        };
        Self {
            year: year_of_era + era * 400 + u64::from(month <= 2),
            month,
            day: day_of_year - (153 * shifted_month + 2) / 5 + 1,
            weekday: (days + 4) % 7 + 1,
            hour: of_day / 3600,
            minute: of_day / 60 % 60,
            second: of_day % 60,
        }
    }
}

fn bcd(value: u64) -> u8 {
    u8::try_from(value / 10 % 10 * 16 + value % 10).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn dates_are_those_of_the_calendar() {
        // Seconds since 1970; year, month, day, weekday, hour, minute, second.
        let table = [
            (0, [1970, 1, 1, 5, 0, 0, 0]),
            (951_782_399, [2000, 2, 28, 2, 23, 59, 59]),
            (951_782_400, [2000, 2, 29, 3, 0, 0, 0]),
            (1_709_251_200, [2024, 3, 1, 6, 0, 0, 0]),
            (4_107_542_400, [2100, 3, 1, 2, 0, 0, 0]),
        ];
        for (seconds, expected) in table {
            let t = CivilTime::from_unix(seconds);
            assert_eq!(
                [
                    t.year, t.month, t.day, t.weekday, t.hour, t.minute, t.second
                ],
                expected,
                "{seconds}"
            );
        }
    }

    #[test]
    fn registers_are_in_bcd() {
        let at = UNIX_EPOCH + Duration::from_secs(951_782_399);
        let table = [
            (0x00, 0x59),
            (0x04, 0x23),
            (0x07, 0x28),
            (0x09, 0x00),
            (0x32, 0x20),
            (0x0b, 0x02),
            (0x40, 0),
        ];
        for (index, expected) in table {
            assert_eq!(register(index, at), expected, "{index:#x}");
        }
    }
}
