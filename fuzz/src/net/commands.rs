//! Commands for the control queue that there are (virtio 1.4, 5.1.9.5), with as much data as they have.

/// Class, command and data, of which `bits` and `len` decide.
pub(super) fn known(class: u8, command: u8, bits: [u8; 8], len: u16) -> Vec<u8> {
    let [a, b, c, d, ..] = bits;
    let small = len % 16;
    let mut bytes = match class % 8 {
        0 => vec![0, command % 6],
        1 => vec![1, command % 2],
        2 => vec![2, command % 2],
        3 => vec![4, 1 + command % 2],
        4 => vec![5, 0],
        5 => vec![6, command % 4],
        6 => vec![8, command % 2],
        _ => vec![3, 0],
    };
    match (bytes[0], bytes[1]) {
        // Receive modes, by switch.
        (0, _) => bytes.push(a & 1),
        // Two tables of addresses.
        (1, 0) => {
            for count in [small, small / 2] {
                bytes.extend(u32::from(count).to_le_bytes());
                for n in 0..count {
                    bytes.extend([a & 3, b, c, d, 0, n as u8]);
                }
            }
        }
        (1, _) => bytes.extend([a & 2, b, c, d, 0, 1]),
        (2, _) => bytes.extend([a, b & 0x1f]),
        // RSS: types, mask, queue for what has no hash, the table, the last transmit queue, the key.
        (4, 1) => {
            let table = 1_u16 << (small % 9);
            bytes.extend([a, b & 1, 0, 0]);
            let mask = if c == 0xff { u16::from(d) } else { table - 1 };
            bytes.extend(mask.to_le_bytes());
            bytes.extend(u16::from(c & 3).to_le_bytes());
            for n in 0..table {
                bytes.extend((n.wrapping_mul(c.into()) % 4).to_le_bytes());
            }
            bytes.extend((1 + u16::from(d & 3)).to_le_bytes());
            key(&mut bytes, bits);
        }
        (4, _) => {
            bytes.extend([a, b & 1, 0, 0]);
            bytes.extend([0; 8]);
            key(&mut bytes, bits);
        }
        (5, _) => bytes.extend(bits),
        // Coalescing: of all queues one way, then of one, with what is reserved.
        (6, 0 | 1) => bytes.extend([a, 0, 0, 0, b, 0, 0, 0]),
        (6, _) => bytes.extend([c % 8, 0, d & 1, 0, a, 0, 0, 0, b, 0, 0, 0]),
        // Statistics: of a queue, by type.
        (8, 1) => {
            for n in 0..=small % 4 {
                bytes.extend([c.wrapping_add(n as u8) % 8, 0, d & 1, 0, 0, 0, 0, 0]);
                bytes.extend([a, b, 0, 0, u8::from(d & 2 != 0), 0, 0, 0]);
            }
        }
        _ => {}
    }
    bytes
}

/// Of the length that the device wants, unless the last byte is odd.
fn key(bytes: &mut Vec<u8>, bits: [u8; 8]) {
    let len = 40 - (bits[7] & 1);
    bytes.push(len);
    bytes.extend((0..len).map(|n| bits[4] ^ n));
}
