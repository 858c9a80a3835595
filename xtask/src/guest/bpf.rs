//! Small XDP programs for the guest, as the ELF objects that `ip link set ... xdp obj` loads.
//!
//! | program | what it does |
//! |---|---|
//! | `pass` | passes every frame |
//! | `drop-icmp` | drops ICMP over IPv4, passes the rest |
//! | `answer-icmp` | answers echo requests by itself, out of the port they came in by |

use super::cpio::Tree;

/// Puts the objects into `tree`, as `xdp/NAME.o`.
pub(crate) fn install(tree: &mut Tree) {
    for (name, program) in [
        ("pass", pass()),
        ("drop-icmp", drop_icmp()),
        ("answer-icmp", answer_icmp()),
    ] {
        tree.file(&format!("xdp/{name}.o"), object(&program));
    }
}

/// One instruction: opcode, registers, offset, immediate, as `struct bpf_insn` has them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Insn {
    code: u8,
    to: u8,
    from: u8,
    offset: i16,
    value: i32,
}

impl Insn {
    const fn new(code: u8, to: u8, from: u8, offset: i16, value: i32) -> Self {
        Self {
            code,
            to,
            from,
            offset,
            value,
        }
    }

    fn bytes(self) -> [u8; 8] {
        let [o0, o1] = self.offset.to_le_bytes();
        let [v0, v1, v2, v3] = self.value.to_le_bytes();
        [self.code, self.from << 4 | self.to, o0, o1, v0, v1, v2, v3]
    }
}

// Bytes moved at once, in the opcodes of loads and stores.
const B: u8 = 0x10;
const H: u8 = 0x08;
const W: u8 = 0x00;

const fn load(size: u8, to: u8, from: u8, offset: i16) -> Insn {
    Insn::new(0x61 | size, to, from, offset, 0)
}
const fn store(size: u8, to: u8, offset: i16, from: u8) -> Insn {
    Insn::new(0x63 | size, to, from, offset, 0)
}
const fn set(to: u8, value: i32) -> Insn {
    Insn::new(0xb7, to, 0, 0, value)
}
const fn copy(to: u8, from: u8) -> Insn {
    Insn::new(0xbf, to, from, 0, 0)
}
const fn add(to: u8, value: i32) -> Insn {
    Insn::new(0x07, to, 0, 0, value)
}
const fn add_register(to: u8, from: u8) -> Insn {
    Insn::new(0x0f, to, from, 0, 0)
}
const fn and(to: u8, value: i32) -> Insn {
    Insn::new(0x57, to, 0, 0, value)
}
const fn shift_right(to: u8, value: i32) -> Insn {
    Insn::new(0x77, to, 0, 0, value)
}
const EXIT: Insn = Insn::new(0x95, 0, 0, 0, 0);

const DROP: i32 = 1;
const PASS: i32 = 2;
const TX: i32 = 3;

const ICMP: i32 = 1;
const ECHO_REQUEST: i32 = 8;
/// 0x0800 as a little-endian processor loads it.
const IPV4: i32 = 0x0008;

// Offsets in the frame, of Ethernet, IPv4 without options, and ICMP.
const ETHER_TYPE: i16 = 12;
const PROTOCOL: i16 = 23;
const SOURCE: i16 = 26;
const DESTINATION: i16 = 30;
const ICMP_TYPE: i16 = 34;
const ICMP_SUM: i16 = 36;
const ICMP_END: i32 = 42;

fn pass() -> Vec<Insn> {
    vec![set(0, PASS), EXIT]
}

fn drop_icmp() -> Vec<Insn> {
    where_icmp(&[], vec![set(0, DROP), EXIT])
}

fn answer_icmp() -> Vec<Insn> {
    let mut body = vec![
        // The Ethernet addresses change places, in two pieces each.
        load(W, 5, 2, 0),
        load(H, 0, 2, 4),
        load(W, 6, 2, 6),
        load(H, 7, 2, 10),
        store(W, 2, 0, 6),
        store(H, 2, 4, 7),
        store(W, 2, 6, 5),
        store(H, 2, 10, 0),
        // So do the IP addresses, which leaves the header's sum as it is.
        load(W, 5, 2, SOURCE),
        load(W, 6, 2, DESTINATION),
        store(W, 2, SOURCE, 6),
        store(W, 2, DESTINATION, 5),
    ];
    body.extend([
        // The type falls from 8 to 0, so the sum's complement grows by as much, with the carry.
        set(5, 0),
        store(B, 2, ICMP_TYPE, 5),
        load(H, 5, 2, ICMP_SUM),
        add(5, ECHO_REQUEST),
        copy(6, 5),
        shift_right(6, 16),
        and(5, 0xffff),
        add_register(5, 6),
        store(H, 2, ICMP_SUM, 5),
        set(0, TX),
        EXIT,
    ]);
    where_icmp(&[(B, ICMP_TYPE, ECHO_REQUEST)], body)
}

/// Runs `body`, with the frame's address in register 2, for ICMP frames where each `(size, offset)`
/// of `also` has its value; passes all others.
fn where_icmp(also: &[(u8, i16, i32)], body: Vec<Insn>) -> Vec<Insn> {
    let mut tests = vec![(H, ETHER_TYPE, IPV4), (B, PROTOCOL, ICMP)];
    tests.extend(also);
    // From each jump over the instructions behind it to the two that pass the frame.
    let over = |rest: usize| i16::try_from(rest).unwrap_or(i16::MAX);
    let mut rest = tests.len() * 2 + body.len();
    let mut program = vec![
        load(W, 2, 1, 0),
        load(W, 3, 1, 4),
        copy(4, 2),
        add(4, ICMP_END),
        // Above the frame's end, which the verifier wants to see asked for.
        Insn::new(0x2d, 4, 3, over(rest), 0),
    ];
    for (size, offset, value) in tests {
        rest -= 2;
        program.push(load(size, 5, 2, offset));
        program.push(Insn::new(0x55, 5, 0, over(rest), value));
    }
    program.extend(body);
    program.extend(pass());
    program
}

/// A relocatable object with the program in section `xdp`, as libbpf wants it.
fn object(program: &[Insn]) -> Vec<u8> {
    const STRINGS: &[u8] = b"\0xdp\0license\0.symtab\0.strtab\0program\0";
    const LICENSE: &[u8] = b"GPL\0";
    let code: Vec<u8> = program.iter().flat_map(|insn| insn.bytes()).collect();
    let name = |text: &[u8]| {
        let at = STRINGS.windows(text.len()).position(|w| w == text);
        at.and_then(|at| u32::try_from(at).ok()).unwrap_or(0)
    };

    // struct Elf64_Sym: the null symbol, then a global function at the start of section 1.
    let mut symbols = vec![0; 24];
    symbols.extend(name(b"program\0").to_le_bytes());
    symbols.extend([0x12, 0]);
    symbols.extend(1u16.to_le_bytes());
    symbols.extend(0u64.to_le_bytes());
    symbols.extend((code.len() as u64).to_le_bytes());

    // Name, type, flags and contents; link, info, alignment and size of an entry.
    type Section<'a> = (&'a [u8], u32, u64, &'a [u8], [u32; 2], [u64; 2]);
    let sections: [Section<'_>; 4] = [
        (b"xdp\0", 1, 0x6, &code, [0, 0], [8, 0]),
        (b"license\0", 1, 0x3, LICENSE, [0, 0], [1, 0]),
        (b".symtab\0", 2, 0, &symbols, [4, 1], [8, 24]),
        (b".strtab\0", 3, 0, STRINGS, [0, 0], [1, 0]),
    ];
    const HEADER: usize = 64;
    let mut contents = Vec::new();
    let mut table = vec![0; 64];
    for (section, kind, flags, bytes, links, entries) in sections {
        contents.resize(contents.len().next_multiple_of(8), 0);
        let offset = (HEADER + contents.len()) as u64;
        table.extend(name(section).to_le_bytes());
        table.extend(kind.to_le_bytes());
        for number in [flags, 0, offset, bytes.len() as u64] {
            table.extend(number.to_le_bytes());
        }
        for number in links {
            table.extend(number.to_le_bytes());
        }
        for number in entries {
            table.extend(number.to_le_bytes());
        }
        contents.extend(bytes);
    }
    contents.resize(contents.len().next_multiple_of(8), 0);

    // struct Elf64_Ehdr: 64 bits, little endian, relocatable, for BPF.
    let mut elf = b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0".to_vec();
    elf.extend(1u16.to_le_bytes());
    elf.extend(247u16.to_le_bytes());
    elf.extend(1u32.to_le_bytes());
    for number in [0, 0, (HEADER + contents.len()) as u64] {
        elf.extend(number.to_le_bytes());
    }
    elf.extend(0u32.to_le_bytes());
    for number in [64u16, 0, 0, 64, 5, 4] {
        elf.extend(number.to_le_bytes());
    }
    elf.extend(contents);
    elf.extend(table);
    elf
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_jump_ends_inside_the_program_and_every_way_ends() {
        for program in [pass(), drop_icmp(), answer_icmp()] {
            assert_eq!(program.last(), Some(&EXIT));
            let passing = i16::try_from(program.len() - 2).unwrap();
            for (at, insn) in (0i16..).zip(&program) {
                if matches!(insn.code, 0x2d | 0x55) {
                    assert_eq!(at + 1 + insn.offset, passing, "{insn:?}");
                }
            }
        }
    }

    #[test]
    fn an_instruction_is_laid_out_as_the_kernel_has_it() {
        assert_eq!(
            load(H, 5, 2, ETHER_TYPE).bytes(),
            [0x69, 0x25, 12, 0, 0, 0, 0, 0]
        );
        assert_eq!(set(0, PASS).bytes(), [0xb7, 0, 0, 0, 2, 0, 0, 0]);
    }

    #[test]
    fn an_object_has_its_sections_where_its_header_says() {
        let elf = object(&pass());
        let number = |at: usize| usize::from(u16::from_le_bytes([elf[at], elf[at + 1]]));
        let table = number(0x28);
        assert_eq!(elf.len(), table + number(0x3a) * number(0x3c));
        let code = number(table + 64 + 0x18);
        assert_eq!(&elf[code..code + 8], set(0, PASS).bytes());
    }
}
