//! What is written is what is read, and what was not written so is refused.

use proptest::prelude::*;
use vmstate::{Error, Reader, Section, Writer};

fn saved() -> Vec<u8> {
    let mut writer = Writer::new();
    writer.section("one", 1, |fields| {
        fields.u8(1);
        fields.u16(0x1234);
        fields.u32(0x1234_5678);
        fields.u64(u64::MAX - 1);
        fields.u128(1 << 100);
        fields.bool(true);
        fields.array(&[1, 2, 3]);
        fields.bytes(b"four");
        fields.option(Some(7), |fields, value| fields.u16(value));
        fields.option(None::<u16>, |fields, value| fields.u16(value));
        fields.list([5_u8, 6], |fields, value| fields.u8(value));
    });
    writer.section("two", 3, |_| ());
    writer.into_bytes()
}

#[derive(Debug, PartialEq)]
struct One {
    numbers: (u8, u16, u32, u64, u128),
    flag: bool,
    array: [u8; 3],
    bytes: Vec<u8>,
    options: [Option<u16>; 2],
    list: Vec<u8>,
}

fn read_one(mut one: Section<'_>) -> Result<One, Error> {
    let read = One {
        numbers: (
            one.u8("u8")?,
            one.u16("u16")?,
            one.u32("u32")?,
            one.u64("u64")?,
            one.u128("u128")?,
        ),
        flag: one.bool("flag")?,
        array: one.array("array")?,
        bytes: one.bytes("bytes")?.to_vec(),
        options: [
            one.option("some", |one| one.u16("some"))?,
            one.option("none", |one| one.u16("none"))?,
        ],
        list: one.list("list", 2, |one| one.u8("list"))?,
    };
    one.finish()?;
    Ok(read)
}

fn read(bytes: &[u8]) -> Result<One, Error> {
    let mut reader = Reader::new(bytes)?;
    let one = read_one(reader.section("one", 1)?)?;
    reader.section("two", 3)?.finish()?;
    reader.finish()?;
    Ok(one)
}

#[test]
fn what_was_written_is_read() {
    let expected = One {
        numbers: (1, 0x1234, 0x1234_5678, u64::MAX - 1, 1 << 100),
        flag: true,
        array: [1, 2, 3],
        bytes: b"four".to_vec(),
        options: [Some(7), None],
        list: vec![5, 6],
    };
    assert_eq!(read(&saved()), Ok(expected));
}

#[test]
fn a_saved_state_that_is_cut_anywhere_is_refused() {
    let whole = saved();
    for len in 0..whole.len() {
        assert!(read(&whole[..len]).is_err(), "{len} of {}", whole.len());
    }
}

#[test]
fn what_is_not_known_is_refused_by_name() {
    let section = |name: &str, version, body: &[u8]| {
        let mut writer = Writer::new();
        let body: Vec<u8> = body.to_vec();
        writer.section(name, version, |fields| {
            for byte in &body {
                fields.u8(*byte);
            }
        });
        writer.into_bytes()
    };
    let twice = [section("a", 1, &[1]), section("a", 1, &[1])[8..].to_vec()].concat();
    let table = [
        (vec![], "this is no saved state, or one of another framing"),
        (
            b"VMSTATE\x02".to_vec(),
            "this is no saved state, or one of another framing",
        ),
        (b"VMSTATE\x01".to_vec(), "section 'a' is missing"),
        (section("b", 1, &[1]), "section 'a' is missing"),
        (section("a", 2, &[1]), "section 'a' has version 2, not 1"),
        (section("a", 1, &[]), "section 'a' ends within field 'flag'"),
        (
            section("a", 1, &[2]),
            "section 'a', field 'flag': 2 is neither 0 nor 1",
        ),
        (section("a", 1, &[1, 1]), "section 'a' is 1 bytes too long"),
        (twice, "section 'a' is there twice"),
        (
            [section("a", 1, &[1]), section("z", 1, &[])[8..].to_vec()].concat(),
            "section 'z' is unknown",
        ),
        (
            b"VMSTATE\x01\x01\xff\x01\x00\x00\x00\x00\x00".to_vec(),
            "the name of section 0 is no text",
        ),
        (
            b"VMSTATE\x01\x01a\x01\x00\xff\xff\xff\xff".to_vec(),
            "the saved state ends within the head of section 0",
        ),
    ];
    let read = |bytes: &[u8]| {
        let mut reader = Reader::new(bytes)?;
        let mut a = reader.section("a", 1)?;
        a.bool("flag")?;
        a.finish()?;
        reader.finish()
    };
    for (bytes, message) in table {
        let error = read(&bytes).expect_err(message);
        assert_eq!(error.to_string(), message, "{bytes:?}");
    }
}

#[test]
fn a_list_of_more_than_there_may_be_is_refused_before_it_is_read() {
    let mut writer = Writer::new();
    writer.section("a", 1, |fields| fields.u16(3));
    let bytes = writer.into_bytes();
    let mut a = Reader::new(&bytes).unwrap().section("a", 1).unwrap();
    let error = a.list("list", 2, |a| a.u8("list")).unwrap_err();
    let message = "section 'a', field 'list': 3 of them, more than 2";
    assert_eq!(error.to_string(), message);
}

proptest! {
    #[test]
    fn no_bytes_do_harm(bytes: Vec<u8>, at: prop::sample::Index, value: u8) {
        let _ = read(&bytes);
        let _ = read(&[b"VMSTATE\x01".as_slice(), &bytes].concat());
        let mut mutated = saved();
        let at = at.index(mutated.len());
        mutated[at] = value;
        let _ = read(&mutated);
    }
}
