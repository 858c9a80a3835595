//! The common configuration structure as a table of registers (virtio 1.4, 4.1.4.3).

/// One register. The 64-bit ones are two, since a driver "MAY access each of the high and low 32-bit
/// parts of the field independently" (virtio 1.4, 4.1.3.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Register {
    DeviceFeatureSelect,
    DeviceFeature,
    DriverFeatureSelect,
    DriverFeature,
    ConfigMsixVector,
    NumQueues,
    DeviceStatus,
    ConfigGeneration,
    QueueSelect,
    QueueSize,
    QueueMsixVector,
    QueueEnable,
    QueueNotifyOff,
    QueueDescLow,
    QueueDescHigh,
    QueueDriverLow,
    QueueDriverHigh,
    QueueDeviceLow,
    QueueDeviceHigh,
    QueueNotifConfigData,
    QueueReset,
    AdminQueueIndex,
    AdminQueueNum,
}

use Register::{
    AdminQueueIndex, AdminQueueNum, ConfigGeneration, ConfigMsixVector, DeviceFeature,
    DeviceFeatureSelect, DeviceStatus, DriverFeature, DriverFeatureSelect, NumQueues,
    QueueDescHigh, QueueDescLow, QueueDeviceHigh, QueueDeviceLow, QueueDriverHigh, QueueDriverLow,
    QueueEnable, QueueMsixVector, QueueNotifConfigData, QueueNotifyOff, QueueReset, QueueSelect,
    QueueSize,
};

/// Each register with its bytes, in order and without gaps.
pub(crate) const COMMON: [(Register, u8); 23] = [
    (DeviceFeatureSelect, 4),
    (DeviceFeature, 4),
    (DriverFeatureSelect, 4),
    (DriverFeature, 4),
    (ConfigMsixVector, 2),
    (NumQueues, 2),
    (DeviceStatus, 1),
    (ConfigGeneration, 1),
    (QueueSelect, 2),
    (QueueSize, 2),
    (QueueMsixVector, 2),
    (QueueEnable, 2),
    (QueueNotifyOff, 2),
    (QueueDescLow, 4),
    (QueueDescHigh, 4),
    (QueueDriverLow, 4),
    (QueueDriverHigh, 4),
    (QueueDeviceLow, 4),
    (QueueDeviceHigh, 4),
    (QueueNotifConfigData, 2),
    (QueueReset, 2),
    (AdminQueueIndex, 2),
    (AdminQueueNum, 2),
];

/// What reads and writes registers of one kind, each as a whole.
pub(crate) trait RegisterFile<R> {
    fn read(&mut self, register: R) -> u32;
    fn write(&mut self, register: R, value: u32);
}

/// Reads `data.len()` bytes from `offset` on in the registers of `table`: any width, any alignment. Each
/// register that is touched is read once, in order; bytes past the last are 0.
pub(crate) fn read<R: Copy>(
    file: &mut impl RegisterFile<R>,
    table: &[(R, u8)],
    offset: u64,
    data: &mut [u8],
) {
    data.fill(0);
    for part in parts(table, offset, data.len()) {
        let value = file.read(part.register).to_le_bytes();
        for (to, from) in data.iter_mut().skip(part.in_data).zip(part.of(&value)) {
            *to = *from;
        }
    }
}

/// Writes `data` from `offset` on in the registers of `table`: any width, any alignment. Each register that is
/// touched is written once, in order; the bytes of it that are not written keep what it reads. Bytes past the
/// last are ignored.
pub(crate) fn write<R: Copy>(
    file: &mut impl RegisterFile<R>,
    table: &[(R, u8)],
    offset: u64,
    data: &[u8],
) {
    for part in parts(table, offset, data.len()) {
        let mut value = if part.len < part.size {
            file.read(part.register).to_le_bytes()
        } else {
            [0; 4]
        };
        let bytes = value.iter_mut().skip(part.in_register).take(part.len);
        for (to, from) in bytes.zip(data.iter().skip(part.in_data)) {
            *to = *from;
        }
        file.write(part.register, u32::from_le_bytes(value));
    }
}

/// What one access touches of one register.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Part<R> {
    register: R,
    size: usize,
    in_register: usize,
    in_data: usize,
    len: usize,
}

impl<R> Part<R> {
    fn of<'a>(&self, value: &'a [u8; 4]) -> impl Iterator<Item = &'a u8> {
        value.iter().skip(self.in_register).take(self.len)
    }
}

fn parts<R: Copy>(table: &[(R, u8)], offset: u64, len: usize) -> impl Iterator<Item = Part<R>> {
    let start = usize::try_from(offset).unwrap_or(usize::MAX);
    let end = start.saturating_add(len);
    let mut next = 0;
    table.iter().filter_map(move |&(register, size)| {
        let size = usize::from(size);
        let at = next;
        next += size;
        let (from, to) = (start.max(at), end.min(at + size));
        (from < to).then(|| Part {
            register,
            size,
            in_register: from - at,
            in_data: from - start,
            len: to - from,
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Keeps what is written, and in which order registers were touched.
    #[derive(Default)]
    struct Kept {
        values: std::collections::BTreeMap<usize, u32>,
        written: Vec<Register>,
    }

    impl RegisterFile<Register> for Kept {
        fn read(&mut self, register: Register) -> u32 {
            *self.values.get(&(register as usize)).unwrap_or(&0)
        }
        fn write(&mut self, register: Register, value: u32) {
            self.written.push(register);
            self.values.insert(register as usize, value);
        }
    }

    #[test]
    fn the_table_is_as_long_as_the_structure_of_the_specification() {
        let len: usize = COMMON.iter().map(|(_, size)| usize::from(*size)).sum();
        assert_eq!(len, size_of::<virtio::pci::CommonCfg>());
    }

    #[test]
    fn registers_are_where_the_specification_puts_them() {
        let table = [
            (0x00, DeviceFeatureSelect),
            (0x10, ConfigMsixVector),
            (0x12, NumQueues),
            (0x14, DeviceStatus),
            (0x15, ConfigGeneration),
            (0x16, QueueSelect),
            (0x18, QueueSize),
            (0x1a, QueueMsixVector),
            (0x1c, QueueEnable),
            (0x1e, QueueNotifyOff),
            (0x20, QueueDescLow),
            (0x28, QueueDriverLow),
            (0x30, QueueDeviceLow),
            (0x38, QueueNotifConfigData),
            (0x3a, QueueReset),
            (0x3c, AdminQueueIndex),
            (0x3e, AdminQueueNum),
        ];
        for (offset, register) in table {
            let part = parts(&COMMON, offset, 1).next().unwrap();
            assert_eq!(
                (part.register, part.in_register),
                (register, 0),
                "{offset:#x}"
            );
        }
    }

    /// The driver's half has a table of its own, as it knows nothing of this crate.
    #[test]
    fn the_drivers_half_finds_each_register_at_the_same_place_and_as_wide() {
        use virtio_guest::pci::CommonRegister as Theirs;
        let theirs = [
            Theirs::DeviceFeatureSelect,
            Theirs::DeviceFeature,
            Theirs::DriverFeatureSelect,
            Theirs::DriverFeature,
            Theirs::ConfigMsixVector,
            Theirs::NumQueues,
            Theirs::DeviceStatus,
            Theirs::ConfigGeneration,
            Theirs::QueueSelect,
            Theirs::QueueSize,
            Theirs::QueueMsixVector,
            Theirs::QueueEnable,
            Theirs::QueueNotifyOff,
            Theirs::QueueDescLow,
            Theirs::QueueDescHigh,
            Theirs::QueueDriverLow,
            Theirs::QueueDriverHigh,
            Theirs::QueueDeviceLow,
            Theirs::QueueDeviceHigh,
            Theirs::QueueNotifConfigData,
            Theirs::QueueReset,
        ];
        for register in theirs {
            let (offset, width) = register.place();
            let part = parts(&COMMON, offset.into(), 1).next().unwrap();
            assert_eq!(format!("{:?}", part.register), format!("{register:?}"));
            let place = (part.in_register, part.size);
            assert_eq!(place, (0, width.bytes().into()), "{register:?}");
        }
    }

    #[test]
    fn every_width_and_alignment_writes_and_reads_the_same_bytes() {
        for offset in 0..0x48_u64 {
            for len in 0..=9_usize {
                let mut kept = Kept::default();
                let bytes: Vec<u8> = (1..).take(len).collect();
                write(&mut kept, &COMMON, offset, &bytes);
                let mut back = vec![0xa5; len];
                read(&mut kept, &COMMON, offset, &mut back);
                let inside = usize::try_from(0x40_u64.saturating_sub(offset)).unwrap();
                let expected: Vec<u8> = (bytes.iter().enumerate())
                    .map(|(at, byte)| if at < inside { *byte } else { 0 })
                    .collect();
                assert_eq!(back, expected, "{len} bytes at {offset:#x}");
                let mut once = kept.written.clone();
                once.dedup();
                assert_eq!(once, kept.written, "{len} bytes at {offset:#x}");
            }
        }
    }

    #[test]
    fn a_partial_write_keeps_the_rest_of_the_register() {
        let mut kept = Kept::default();
        write(&mut kept, &COMMON, 0x20, &0x1122_3344_u32.to_le_bytes());
        write(&mut kept, &COMMON, 0x21, &[0xaa]);
        assert_eq!(kept.read(QueueDescLow), 0x1122_aa44);
    }

    #[test]
    fn an_access_far_past_the_end_touches_nothing() {
        for offset in [0x40, 0x1000, u64::MAX] {
            assert_eq!(parts(&COMMON, offset, 8).count(), 0, "{offset:#x}");
        }
    }
}
