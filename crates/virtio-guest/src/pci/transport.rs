//! A virtio device behind PCI: its registers, features, queues and interrupts.

mod probe;

use virtio::pci::CapCfgType;
use virtio::{DeviceStatus, F, FeatureBits, le128};

use super::{COMMAND_INTX_DISABLE, CommonRegister, Msix, MsixMessage, change_command, legacy};
use crate::queue::{QueueLayout, VirtQueue};
use crate::{Error, PciAddress, Platform, Width};

/// A structure of the device, found through its capability.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Structure {
    /// The base address register that it lies in.
    pub bar: u8,
    /// Its offset there.
    pub offset: u32,
    /// Its length in bytes.
    pub length: u32,
    /// Whether the BAR maps ports.
    io: bool,
    /// Bus address of its first byte.
    address: u64,
}

/// What the ISR status register said (virtio 1.4, 4.1.4.5); reading it lowers the line.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct InterruptStatus {
    /// A queue has used buffers.
    pub queue: bool,
    /// The device configuration changed.
    pub config: bool,
}

/// A virtio function on PCI (virtio 1.4, 4.1), through its modern interface or its legacy one.
///
/// Thin on purpose: each method is one register, or one sequence that the specification
/// prescribes, and none checks that it is called in the right order. What is in order is the
/// business of a device driver such as [`NetDriver`](crate::NetDriver).
#[derive(Debug)]
pub struct VirtioPciTransport<P> {
    platform: P,
    function: PciAddress,
    common: Structure,
    notify: Structure,
    notify_off_multiplier: u32,
    isr: Option<Structure>,
    device: Option<Structure>,
    /// Where the PCI configuration access capability lies.
    window: Option<u8>,
    through_window: bool,
    msix: Option<Msix>,
    /// The registers in BAR 0 are used, and `common` and `notify` are just those.
    legacy: bool,
}

impl<P: Platform> VirtioPciTransport<P> {
    /// Whether the legacy interface is used: features end at bit 31, and queues have the size and the
    /// layout that the device gives them.
    pub const fn is_legacy(&self) -> bool {
        self.legacy
    }

    /// Sends all further accesses to the device's structures through the window in configuration
    /// space (virtio 1.4, 4.1.4.9), or again straight to the BARs.
    ///
    /// # Errors
    ///
    /// [`Error::MissingCapability`] if the device has no such window.
    pub fn use_config_window(&mut self, yes: bool) -> Result<(), Error> {
        if yes && self.window.is_none() {
            return Err(Error::MissingCapability(u8::from(CapCfgType::Pci)));
        }
        self.through_window = yes;
        Ok(())
    }

    /// Resets the device and waits until it says that it is (virtio 1.4, 4.1.4.3.2).
    ///
    /// # Errors
    ///
    /// [`Error::ResetTimeout`] if it does not within many reads of the status.
    pub fn reset(&mut self) -> Result<(), Error> {
        self.write_common(CommonRegister::DeviceStatus, 0);
        for _ in 0..RESET_READS {
            if self.status().is_empty() {
                return Ok(());
            }
        }
        Err(Error::ResetTimeout)
    }

    /// Sets status bits on top of those that are set.
    pub fn add_status(&mut self, bits: DeviceStatus) {
        let status = self.status() | bits;
        self.write_common(CommonRegister::DeviceStatus, status.bits().into());
    }

    /// All 128 bits that the device offers, 32 through the legacy interface.
    pub fn device_features(&mut self) -> F {
        let mut bits = 0;
        for word in (0..self.feature_words()).rev() {
            self.write_common(CommonRegister::DeviceFeatureSelect, word);
            bits = bits << 32 | u128::from(self.read_common(CommonRegister::DeviceFeature));
        }
        F::from_bits_retain(le128::from_ne(bits))
    }

    /// Writes all 128 bits that the driver takes, whether or not they were offered.
    pub fn write_driver_features(&mut self, features: F) {
        let bits = features.bits().to_ne();
        for word in 0..self.feature_words() {
            #[expect(clippy::cast_possible_truncation, reason = "one word of four")]
            let value = (bits >> (word * 32)) as u32;
            self.write_common(CommonRegister::DriverFeatureSelect, word);
            self.write_common(CommonRegister::DriverFeature, value);
        }
    }

    const fn feature_words(&self) -> u32 {
        if self.legacy { 1 } else { 4 }
    }

    /// Takes what is both offered and wanted, and has the device accept it (virtio 1.4, 3.1.1,
    /// steps 4 to 6). Through the legacy interface a device cannot refuse.
    ///
    /// # Errors
    ///
    /// [`Error::Legacy`] without `VIRTIO_F_VERSION_1`; [`Error::Features`] if what is left lacks
    /// a feature that it depends on; [`Error::FeaturesRefused`] if the device does not agree.
    pub fn negotiate<T: FeatureBits + Copy>(&mut self, wanted: T) -> Result<T, Error> {
        let offered = self.device_features();
        if !self.legacy && !offered.contains(F::VERSION_1) {
            return Err(Error::Legacy);
        }
        let wanted: F = wanted.into();
        let accepted = T::from(offered & (wanted | F::VERSION_1));
        if !accepted.requirements_satisfied() {
            return Err(Error::Features(accepted.bits().to_ne()));
        }
        self.write_driver_features(accepted.into());
        if self.legacy {
            return Ok(accepted);
        }
        self.add_status(DeviceStatus::FEATURES_OK);
        if !self.status().contains(DeviceStatus::FEATURES_OK) {
            return Err(Error::FeaturesRefused);
        }
        Ok(accepted)
    }

    /// The most entries that queue `index` can have; 0 if there is no such queue.
    pub fn max_queue_size(&mut self, index: u16) -> u16 {
        self.write_common(CommonRegister::QueueSelect, index.into());
        self.read_common_u16(CommonRegister::QueueSize)
    }

    /// Tells the device where a queue lies, and enables it. The queue learns where its
    /// notifications go.
    ///
    /// # Errors
    ///
    /// [`Error::NoQueue`] if its notifications would lie outside of their structure;
    /// [`Error::QueueSize`] if a legacy device has another size for it.
    pub fn enable_queue<const N: usize>(&mut self, queue: &mut VirtQueue<N>) -> Result<(), Error> {
        let layout = queue.layout();
        if self.legacy {
            if self.max_queue_size(layout.index) != layout.size {
                return Err(Error::QueueSize(layout.size));
            }
            let page = u32::try_from(layout.desc / legacy::PAGE);
            let page = page.map_err(|_| Error::NoQueue(layout.index))?;
            queue.set_notify_offset(legacy::QUEUE_NOTIFY);
            self.write(self.common, legacy::QUEUE_PFN, Width::U32, page);
            return Ok(());
        }
        self.write_queue(layout);
        let unit = self.read_common_u16(CommonRegister::QueueNotifyOff);
        let offset = u32::from(unit)
            .checked_mul(self.notify_off_multiplier)
            .filter(|offset| {
                offset
                    .checked_add(2)
                    .is_some_and(|end| end <= self.notify.length)
            })
            .ok_or(Error::NoQueue(layout.index))?;
        queue.set_notify_offset(offset);
        self.write_common(CommonRegister::QueueEnable, 1);
        Ok(())
    }

    /// Selects a queue and writes its size and addresses, without enabling it.
    pub fn write_queue(&mut self, layout: QueueLayout) {
        use CommonRegister as R;
        self.write_common(R::QueueSelect, layout.index.into());
        self.write_common(R::QueueSize, layout.size.into());
        for (low, high, address) in [
            (R::QueueDescLow, R::QueueDescHigh, layout.desc),
            (R::QueueDriverLow, R::QueueDriverHigh, layout.driver),
            (R::QueueDeviceLow, R::QueueDeviceHigh, layout.device),
        ] {
            #[expect(
                clippy::cast_possible_truncation,
                reason = "the two halves of an address"
            )]
            let halves = (address as u32, (address >> 32) as u32);
            self.write_common(low, halves.0);
            self.write_common(high, halves.1);
        }
    }

    /// Writes the messages into the table from vector 0 on and turns MSI-X on; the interrupt line
    /// is left alone from then on.
    ///
    /// # Errors
    ///
    /// [`Error::NoVector`] with fewer vectors than messages, or no MSI-X at all.
    pub fn enable_msix(&mut self, messages: &[MsixMessage]) -> Result<(), Error> {
        let msix = self.msix.ok_or(Error::NoVector(0))?;
        // Nothing is sent with a half-written table.
        msix.set_enabled(&self.platform, true, true);
        for (vector, message) in (0..=u16::MAX).zip(messages) {
            msix.set_message(&self.platform, vector, *message)?;
        }
        change_command(&self.platform, self.function, COMMAND_INTX_DISABLE, 0);
        msix.set_enabled(&self.platform, true, false);
        Ok(())
    }

    /// Turns MSI-X off and lets the device use its interrupt line.
    pub fn use_interrupt_line(&mut self) {
        if let Some(msix) = self.msix {
            msix.set_enabled(&self.platform, false, false);
        }
        change_command(&self.platform, self.function, 0, COMMAND_INTX_DISABLE);
    }

    /// Keeps the device from interrupting in any way.
    pub fn disable_interrupts(&mut self) {
        if let Some(msix) = self.msix {
            msix.set_enabled(&self.platform, false, false);
        }
        change_command(&self.platform, self.function, COMMAND_INTX_DISABLE, 0);
    }

    /// Has queue `index` signal by MSI-X vector `vector`, or by none ([`NO_VECTOR`]).
    ///
    /// # Errors
    ///
    /// [`Error::VectorRefused`] if the device does not read the vector back (virtio 1.4, 4.1.5.1.2).
    pub fn set_queue_vector(&mut self, index: u16, vector: u16) -> Result<(), Error> {
        self.write_common(CommonRegister::QueueSelect, index.into());
        self.set_vector(CommonRegister::QueueMsixVector, vector)
    }

    /// Has changes of the configuration signalled by MSI-X vector `vector`, or by none.
    ///
    /// # Errors
    ///
    /// [`Error::VectorRefused`] if the device does not read the vector back.
    pub fn set_config_vector(&mut self, vector: u16) -> Result<(), Error> {
        self.set_vector(CommonRegister::ConfigMsixVector, vector)
    }

    fn set_vector(&mut self, register: CommonRegister, vector: u16) -> Result<(), Error> {
        self.write_common(register, vector.into());
        if self.read_common_u16(register) == vector {
            Ok(())
        } else {
            Err(Error::VectorRefused(vector))
        }
    }

    /// Notifies the device of buffers in the queue whose register lies at `offset`
    /// ([`VirtQueue::notify_offset`]). `value` is the queue's index, or with
    /// `VIRTIO_F_NOTIFICATION_DATA` (then four bytes wide) also where the driver stands.
    pub fn notify(&self, offset: u32, width: Width, value: u32) {
        self.write(self.notify, offset, width, value);
    }

    /// Notifies the device of buffers in `queue`.
    pub fn kick<const N: usize>(&self, queue: &VirtQueue<N>) {
        let (width, value) = queue.notification();
        self.notify(queue.notify_offset(), width, value);
    }

    /// Reads the ISR status, which clears it and lowers the line. Only of use without MSI-X.
    pub fn interrupt_status(&self) -> InterruptStatus {
        let bits = match self.isr {
            Some(isr) => self.read(isr, 0, Width::U8),
            None if self.legacy => self.read(self.common, legacy::ISR, Width::U8),
            None => 0,
        };
        InterruptStatus {
            queue: bits & 1 != 0,
            config: bits & 2 != 0,
        }
    }

    /// Reads the device-specific configuration from `offset` on, byte by byte, again until it did
    /// not change meanwhile (virtio 1.4, 2.5.3). Bytes past its end are 0. The legacy interface counts no
    /// changes; there it is read until two reads agree (2.5.5).
    pub fn read_config(&self, offset: u32, data: &mut [u8]) {
        for _ in 0..CONFIG_READS {
            let generation = self.config_generation();
            let mut agrees = true;
            for (at, byte) in (offset..).zip(data.iter_mut()) {
                let value = self.config_byte(at);
                agrees &= value == *byte;
                *byte = value;
            }
            let is_stable = if self.legacy {
                agrees
            } else {
                self.config_generation() == generation
            };
            if is_stable {
                return;
            }
        }
    }

    fn config_byte(&self, at: u32) -> u8 {
        #[expect(clippy::cast_possible_truncation, reason = "read with one byte")]
        match self.device_config() {
            Some((device, base)) if at < device.length => {
                self.read(device, base.wrapping_add(at), Width::U8) as u8
            }
            _ => 0,
        }
    }

    /// The structure that has the device-specific configuration, and where in it.
    fn device_config(&self) -> Option<(Structure, u32)> {
        if self.legacy {
            let msix = self
                .msix
                .is_some_and(|msix| msix.is_enabled(&self.platform));
            Some((self.common, legacy::config_offset(msix)))
        } else {
            self.device.map(|device| (device, 0))
        }
    }

    /// Writes one byte of the device-specific configuration.
    pub fn write_config(&mut self, offset: u32, value: u8) {
        if let Some((device, base)) = self.device_config() {
            self.write(device, base.wrapping_add(offset), Width::U8, value.into());
        }
    }

    /// The device status register.
    pub fn status(&self) -> DeviceStatus {
        #[expect(clippy::cast_possible_truncation, reason = "one byte wide")]
        let bits = self.read_common(CommonRegister::DeviceStatus) as u8;
        DeviceStatus::from_bits_retain(bits)
    }

    /// Counts the changes of the device configuration.
    pub fn config_generation(&self) -> u32 {
        self.read_common(CommonRegister::ConfigGeneration)
    }

    /// Reads a register of the common configuration; 0 where the legacy interface has no such one.
    pub fn read_common(&self, register: CommonRegister) -> u32 {
        self.place(register)
            .map_or(0, |(offset, width)| self.read(self.common, offset, width))
    }

    /// Writes a register of the common configuration, if there is one.
    pub fn write_common(&mut self, register: CommonRegister, value: u32) {
        if let Some((offset, width)) = self.place(register) {
            self.write(self.common, offset, width, value);
        }
    }

    const fn place(&self, register: CommonRegister) -> Option<(u32, Width)> {
        if self.legacy {
            legacy::place(register)
        } else {
            Some(register.place())
        }
    }

    fn read_common_u16(&self, register: CommonRegister) -> u16 {
        #[expect(clippy::cast_possible_truncation, reason = "two bytes wide")]
        let value = self.read_common(register) as u16;
        value
    }

    /// The machine.
    pub const fn platform(&self) -> &P {
        &self.platform
    }

    /// Where the function is.
    pub const fn function(&self) -> PciAddress {
        self.function
    }

    /// MSI-X, if the function has it.
    pub const fn msix(&self) -> Option<Msix> {
        self.msix
    }

    /// Where the notification registers lie.
    pub const fn notify_structure(&self) -> Structure {
        self.notify
    }

    /// Reads from a structure, by whichever way is in use.
    fn read(&self, structure: Structure, offset: u32, width: Width) -> u32 {
        match self.window.filter(|_| self.through_window) {
            Some(window) => {
                self.point_window(window, structure, offset, width);
                self.platform
                    .config_read(self.function, window_data(window), width)
            }
            #[expect(clippy::cast_possible_truncation, reason = "ports have 16 bits")]
            None if structure.io => {
                let port = structure.address.wrapping_add(offset.into()) as u16;
                self.platform.port_read(port, width)
            }
            #[expect(clippy::cast_possible_truncation, reason = "at most four bytes wide")]
            None => {
                let address = structure.address.wrapping_add(offset.into());
                self.platform.mmio_read(address, width) as u32
            }
        }
    }

    /// Writes to a structure, by whichever way is in use.
    fn write(&self, structure: Structure, offset: u32, width: Width, value: u32) {
        match self.window.filter(|_| self.through_window) {
            Some(window) => {
                self.point_window(window, structure, offset, width);
                self.platform
                    .config_write(self.function, window_data(window), width, value);
            }
            #[expect(clippy::cast_possible_truncation, reason = "ports have 16 bits")]
            None if structure.io => {
                let port = structure.address.wrapping_add(offset.into()) as u16;
                self.platform.port_write(port, width, value);
            }
            None => {
                let address = structure.address.wrapping_add(offset.into());
                self.platform.mmio_write(address, width, value.into());
            }
        }
    }

    /// Points the window in configuration space at `width` bytes of a structure.
    fn point_window(&self, window: u8, structure: Structure, offset: u32, width: Width) {
        let at = |field| u16::from(window) + field;
        let offset = structure.offset.wrapping_add(offset);
        self.platform
            .config_write(self.function, at(4), Width::U8, structure.bar.into());
        self.platform
            .config_write(self.function, at(8), Width::U32, offset);
        self.platform
            .config_write(self.function, at(12), Width::U32, width.bytes().into());
    }
}

/// Offset of the window's data in configuration space.
fn window_data(window: u8) -> u16 {
    u16::from(window) + 16
}

/// In a vector register: none (virtio 1.4, 4.1.5.1.2).
#[doc(alias = "VIRTIO_MSI_NO_VECTOR")]
pub const NO_VECTOR: u16 = 0xffff;

/// How often the status is read before a reset counts as stuck.
const RESET_READS: u32 = 1_000_000;

/// How often the configuration is read again because it changed meanwhile.
const CONFIG_READS: u32 = 100;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fake::{FUNCTION, Fake};
    use crate::pci::Bar;

    #[test]
    fn registers_are_found_through_the_capabilities() {
        let fake = Fake::new();
        let mut transport = VirtioPciTransport::probe(&fake, FUNCTION).unwrap();
        transport.reset().unwrap();
        transport.add_status(DeviceStatus::ACKNOWLEDGE);
        transport.add_status(DeviceStatus::DRIVER);
        assert_eq!(
            transport.status(),
            DeviceStatus::ACKNOWLEDGE | DeviceStatus::DRIVER
        );
        assert_eq!(transport.max_queue_size(0), 256);
        assert_eq!(transport.max_queue_size(7), 0);
    }

    #[test]
    fn probing_enables_decoding_and_bus_mastering() {
        let fake = Fake::new();
        VirtioPciTransport::probe(&fake, FUNCTION).unwrap();
        assert_eq!(change_command(&fake, FUNCTION, 0, 0), 7);
    }

    #[test]
    fn the_window_in_configuration_space_reaches_the_same_registers() {
        let fake = Fake::new();
        let mut transport = VirtioPciTransport::probe(&fake, FUNCTION).unwrap();
        transport.use_config_window(true).unwrap();
        transport.add_status(DeviceStatus::ACKNOWLEDGE);
        let through = fake.mmio_accesses.get();
        transport.use_config_window(false).unwrap();
        assert_eq!(through, 0, "an access went past the window");
        assert_eq!(transport.status(), DeviceStatus::ACKNOWLEDGE);
    }

    #[test]
    fn all_128_feature_bits_cross() {
        let fake = Fake::new();
        let offered = 1 << 127 | 1 << 70 | 1 << 32 | 1 << 5;
        fake.features.set(offered);
        let mut transport = VirtioPciTransport::probe(&fake, FUNCTION).unwrap();
        assert_eq!(transport.device_features().bits().to_ne(), offered);
        let accepted = transport
            .negotiate(F::from_bits_retain(le128::from_ne(!0)))
            .unwrap();
        assert_eq!(accepted.bits().to_ne(), offered);
        assert_eq!(fake.accepted.get(), offered);
    }

    #[test]
    fn a_legacy_device_and_a_refusal_are_told_apart() {
        let fake = Fake::new();
        let mut transport = VirtioPciTransport::probe(&fake, FUNCTION).unwrap();
        fake.features.set(1 << 5);
        assert_eq!(transport.negotiate(F::EVENT_IDX), Err(Error::Legacy));
        fake.features.set(1 << 32);
        fake.refuse_features.set(true);
        assert_eq!(
            transport.negotiate(F::EVENT_IDX),
            Err(Error::FeaturesRefused)
        );
    }

    #[test]
    fn what_cannot_be_driven_is_named() {
        let fake = Fake::new();
        let nobody = PciAddress::from_devfn(0, 0xf8);
        assert_eq!(
            VirtioPciTransport::probe(&fake, nobody).err(),
            Some(Error::NotVirtio(nobody))
        );

        Bar::assign(&fake, FUNCTION, 4, 0);
        assert_eq!(
            VirtioPciTransport::probe(&fake, FUNCTION).err(),
            Some(Error::BarUnassigned(4))
        );

        let fake = Fake::new();
        fake.set_config(u16::from(Fake::COMMON_CAPABILITY) + 4, &[6]);
        assert_eq!(
            VirtioPciTransport::probe(&fake, FUNCTION).err(),
            Some(Error::MissingCapability(1)),
            "a reserved BAR number"
        );
    }

    #[test]
    fn messages_are_in_the_table_before_msix_is_unmasked() {
        let fake = Fake::new();
        let mut transport = VirtioPciTransport::probe(&fake, FUNCTION).unwrap();
        let messages = [0x41, 0x42].map(|data| MsixMessage {
            address: 0x1_fee0_0000,
            data,
        });
        transport.enable_msix(&messages).unwrap();
        assert_eq!(fake.msix_entry(0), [0xfee0_0000, 1, 0x41, 0]);
        assert_eq!(fake.msix_entry(1), [0xfee0_0000, 1, 0x42, 0]);
        assert_eq!(
            fake.msix_control(),
            0x8000 | 2,
            "three vectors, enabled, not masked"
        );
        assert_eq!(
            transport.enable_msix(&[messages[0]; 4]),
            Err(Error::NoVector(3)),
            "one more than there are"
        );
    }

    #[test]
    fn a_vector_that_is_not_read_back_was_refused() {
        let fake = Fake::new();
        let mut transport = VirtioPciTransport::probe(&fake, FUNCTION).unwrap();
        assert_eq!(transport.set_queue_vector(0, 2), Ok(()));
        assert_eq!(
            transport.set_queue_vector(0, 3),
            Err(Error::VectorRefused(3))
        );
        assert_eq!(transport.set_config_vector(NO_VECTOR), Ok(()));
    }
}
