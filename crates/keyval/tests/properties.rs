//! Whatever a user writes.

use keyval::Options;
use proptest::prelude::*;

/// A key as it can be written.
fn key() -> impl Strategy<Value = String> {
    "[a-z][a-z0-9_.-]{0,11}"
}

/// Text that is likely to mean something.
fn text() -> impl Strategy<Value = String> {
    let piece = prop_oneof![
        3 => Just(",".to_owned()),
        2 => Just("=".to_owned()),
        1 => Just(",,".to_owned()),
        1 => Just("no".to_owned()),
        1 => Just("help".to_owned()),
        4 => key(),
        2 => any::<String>(),
        1 => any::<i64>().prop_map(|number| number.to_string()),
    ];
    prop::collection::vec(piece, 0..12).prop_map(|pieces| pieces.concat())
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(500) })]

    #[test]
    fn pairs_that_are_written_are_read_as_they_were(
        pairs in prop::collection::vec((key(), any::<String>()), 0..8),
    ) {
        let written: Vec<_> = (pairs.iter())
            .map(|(key, value)| format!("{key}={}", value.replace(',', ",,")))
            .collect();
        let read = Options::parse(&written.join(","), None);
        let expected: Vec<_> = (pairs.iter())
            .map(|(key, value)| (key.as_str(), value.as_str()))
            .collect();
        prop_assert_eq!(read.iter().collect::<Vec<_>>(), expected);
    }

    #[test]
    fn what_is_taken_is_gone_and_what_is_left_is_refused_by_name(text in text(), implied: bool) {
        let mut options = Options::parse(&text, implied.then_some("driver"));
        let keys: Vec<_> = options.iter().map(|(key, _)| key.to_owned()).collect();
        for (n, key) in keys.iter().enumerate() {
            match n % 4 {
                0 => drop(options.take(key)),
                1 => drop(options.take_u32(key)),
                2 => drop(options.take_bool(key)),
                _ => continue,
            }
            prop_assert_eq!(options.get(key), None);
        }
        let left = options.iter().next().map(|(key, _)| key.to_owned());
        match (left, options.finish()) {
            (None, finished) => prop_assert!(finished.is_ok()),
            (Some(key), Err(keyval::Error::Unknown(refused))) => prop_assert_eq!(key, refused),
            (left, finished) => prop_assert!(false, "{left:?} is left, {finished:?}"),
        }
    }

    #[test]
    fn a_number_is_itself_in_each_base_if_it_fits_and_an_error_if_not(number: u64) {
        for written in [format!("{number}"), format!("{number:#x}")] {
            let of = || Options::parse(&format!("n={written}"), None);
            prop_assert_eq!(of().take_u64("n"), Ok(Some(number)));
            prop_assert_eq!(of().take_u32("n").ok(), u32::try_from(number).ok().map(Some));
            prop_assert_eq!(of().take_u16("n").ok(), u16::try_from(number).ok().map(Some));
        }
    }

    #[test]
    fn a_size_is_its_number_times_its_suffix_or_an_error_if_that_is_too_large(
        number in prop_oneof![0..0x1_0000_u64, 0..1_u64 << 53],
    ) {
        for (suffix, shift) in [("", 0), ("k", 10), ("K", 10), ("M", 20), ("G", 30), ("T", 40)] {
            let mut options = Options::parse(&format!("n={number}{suffix}"), None);
            let fits = number.leading_zeros() >= shift;
            let expected = fits.then_some(Some(number << shift));
            prop_assert_eq!(options.take_size("n").ok(), expected, "{}{}", number, suffix);
        }
    }
}
