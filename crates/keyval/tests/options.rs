//! Option strings against what QEMU 7.2 makes of them.

use keyval::{Error, Options};

fn pairs(text: &str) -> Vec<(String, String)> {
    Options::parse(text, Some("driver"))
        .iter()
        .map(|(k, v)| (k.to_owned(), v.to_owned()))
        .collect()
}

#[test]
fn strings_split_as_qemu_splits_them() {
    let cases: &[(&str, &[(&str, &str)])] = &[
        ("", &[]),
        ("foo", &[("driver", "foo")]),
        ("foo,", &[("driver", "foo")]),
        (",id=x", &[("driver", ""), ("id", "x")]),
        ("id=x", &[("id", "x")]),
        ("id=x,foo", &[("id", "x"), ("foo", "on")]),
        ("foo,bar", &[("driver", "foo"), ("bar", "on")]),
        ("foo,nobar", &[("driver", "foo"), ("bar", "off")]),
        ("foo,no", &[("driver", "foo"), ("", "off")]),
        ("foo,=x", &[("driver", "foo"), ("", "x")]),
        ("foo,a=", &[("driver", "foo"), ("a", "")]),
        ("foo,a=b=c", &[("driver", "foo"), ("a", "b=c")]),
        (
            "foo,a=1,,2,b=3",
            &[("driver", "foo"), ("a", "1,2"), ("b", "3")],
        ),
        (
            "foo,a=1,,,b=3",
            &[("driver", "foo"), ("a", "1,"), ("b", "3")],
        ),
        ("foo,a=,,", &[("driver", "foo"), ("a", ",")]),
        ("foo,,mq=on", &[("driver", "foo,mq=on")]),
        (
            "foo,mq=on,mq=off",
            &[("driver", "foo"), ("mq", "on"), ("mq", "off")],
        ),
        (
            "foo,\u{e9}=\u{fc}",
            &[("driver", "foo"), ("\u{e9}", "\u{fc}")],
        ),
    ];
    for (text, expected) in cases {
        let expected: Vec<_> = expected
            .iter()
            .map(|(k, v)| ((*k).to_owned(), (*v).to_owned()))
            .collect();
        assert_eq!(pairs(text), expected, "{text:?}");
    }
}

#[test]
fn a_first_word_without_an_implied_key_is_a_switch() {
    let options = Options::parse("foo,a=b", None);
    assert_eq!(
        options.iter().collect::<Vec<_>>(),
        [("foo", "on"), ("a", "b")]
    );
}

#[test]
fn help_is_a_question_and_no_option() {
    for text in ["help", "?", "foo,help", "foo,?,a=b"] {
        let options = Options::parse(text, Some("driver"));
        assert!(options.wants_help(), "{text}");
        assert_eq!(options.get("help"), None);
    }
    assert!(!Options::parse("foo,help=on", Some("driver")).wants_help());
}

#[test]
fn bare_words_earn_a_warning() {
    let options = Options::parse("foo,nomq,bar,a=on", Some("driver"));
    assert_eq!(
        options.short_forms().collect::<Vec<_>>(),
        [
            "short-form boolean option 'nomq' deprecated: please use mq=off instead",
            "short-form boolean option 'bar' deprecated: please use bar=on instead",
        ]
    );
}

#[test]
fn the_last_value_counts_but_the_first_id() {
    let mut options = Options::parse("a=1,id=x,a=2,id=y", None);
    assert_eq!(options.get("a"), Some("2"));
    assert_eq!(options.take_u16("a"), Ok(Some(2)));
    assert_eq!(options.take_id(), Ok(Some("x".to_owned())));
    assert!(options.is_empty());
    assert_eq!(options.take("a"), None);
}

#[test]
fn only_the_value_that_counts_is_judged() {
    let refused = Err(Error::NotABool("mq".to_owned()));
    for (text, expected) in [
        ("mq=maybe,mq=on", Ok(Some(true))),
        ("mq=on,mq=maybe", refused),
    ] {
        let mut options = Options::parse(text, None);
        assert_eq!(options.take_bool("mq"), expected, "{text}");
        assert!(options.is_empty(), "{text}");
    }
}

#[test]
fn whatever_there_is_can_be_taken_key_by_key() {
    let mut options = Options::parse("b=1,a=2,b=3,=4", None);
    let pair = |key: &str, value: &str| Some((key.to_owned(), value.to_owned()));
    assert_eq!(options.take_next(), pair("b", "3"));
    assert_eq!(options.take_next(), pair("a", "2"));
    assert_eq!(options.take_next(), pair("", "4"));
    assert_eq!(options.take_next(), None);
}

#[test]
fn errors_name_the_option_in_qemus_words() {
    let of = |text: &str| Options::parse(text, None);
    let cases: Vec<(Error, &str)> = vec![
        (
            of("").take_required("type").unwrap_err(),
            "Parameter 'type' is missing",
        ),
        (of("foo=1").finish().unwrap_err(), "Invalid parameter 'foo'"),
        (
            of("vnet_hdr=maybe").take_bool("vnet_hdr").unwrap_err(),
            "Parameter 'vnet_hdr' expects 'on' or 'off'",
        ),
        (
            of("m=yes")
                .take_choice("m", &["on", "off", "auto"])
                .unwrap_err(),
            "Parameter 'm' does not accept value 'yes'",
        ),
        (
            of("queues=abc").take_u32("queues").unwrap_err(),
            "Parameter 'queues' expects a uint64 value",
        ),
        (
            of("queues=-1").take_u32("queues").unwrap_err(),
            "Parameter 'queues' expects a uint64 value",
        ),
        (
            of("queues= -0").take_u32("queues").unwrap_err(),
            "Parameter 'queues' expects a uint64 value",
        ),
        (
            of("queues=").take_u64("queues").unwrap_err(),
            "Parameter 'queues' expects a uint64 value",
        ),
        (
            of("queues=5000000000").take_u32("queues").unwrap_err(),
            "Parameter 'queues' expects uint32_t",
        ),
        (
            of("n=65536").take_u16("n").unwrap_err(),
            "Parameter 'n' expects uint16_t",
        ),
        (
            of("sndbuf=1Q").take_size("sndbuf").unwrap_err(),
            "Parameter 'sndbuf' expects a size value",
        ),
        (
            of("id=0x").take_id().unwrap_err(),
            "Parameter 'id' expects an identifier: letters, digits, '-', '.', '_', starting with a \
             letter",
        ),
    ];
    for (error, expected) in cases {
        assert_eq!(error.to_string(), expected);
    }
}

#[test]
fn values_are_taken_typed() {
    let mut options = Options::parse(
        "a=on,b=0x10,c=65535,d=18446744073709551615,e=1M,f=auto",
        None,
    );
    assert_eq!(options.take_bool("a"), Ok(Some(true)));
    assert_eq!(options.take_u32("b"), Ok(Some(16)));
    assert_eq!(options.take_u16("c"), Ok(Some(u16::MAX)));
    assert_eq!(options.take_u64("d"), Ok(Some(u64::MAX)));
    assert_eq!(options.take_size("e"), Ok(Some(1 << 20)));
    assert_eq!(
        options.take_choice("f", &["on", "off", "auto"]),
        Ok(Some("auto"))
    );
    assert_eq!(options.finish(), Ok(()));
}

#[test]
fn splitting_gives_back_what_was_joined() {
    // Every string over a small alphabet of the characters that matter, up to six long: nothing
    // panics, and a value whose commas are doubled comes back as it was.
    let alphabet = ['a', ',', '=', 'n', 'o', '\u{e9}'];
    let mut texts = vec![String::new()];
    for _ in 0..6 {
        let longer: Vec<String> = texts
            .iter()
            .flat_map(|text| alphabet.map(|letter| format!("{text}{letter}")))
            .collect();
        for text in &longer {
            let _ = Options::parse(text, Some("driver"));
            let joined = format!("x,key={},end=1", text.replace(',', ",,"));
            assert_eq!(
                Options::parse(&joined, Some("driver")).get("key"),
                Some(text.as_str()),
                "{joined}"
            );
        }
        texts = longer;
    }
}
