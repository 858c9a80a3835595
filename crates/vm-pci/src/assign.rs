//! What firmware does before an operating system runs: addresses and interrupt lines.

use crate::Error;
use crate::address::DevFn;
use crate::aperture::Aperture;
use crate::bar::{BarIndex, BarSpace};
use crate::host::PciHost;
use crate::irq::IntxPin;
use crate::registers::{BAR_0, COMMAND, Command, HEADER_TYPE, INTERRUPT_LINE, INTERRUPT_PIN};

/// A BAR that wants a place.
#[derive(Clone, Copy, Debug)]
struct Request {
    devfn: DevFn,
    bar: BarIndex,
    space: BarSpace,
    /// The next register is the upper half.
    wide: bool,
    prefetchable: bool,
    size: u64,
}

impl PciHost {
    /// Gives every BAR on the root bus an address, switches decoding on and notes the interrupt
    /// lines, as a PC's firmware does after power-on: for machines that have none. 64-bit
    /// prefetchable memory goes above 4 GiB, other memory below, each above or below only if
    /// there is no room where it belongs. To be called before software runs, after all functions are on
    /// the bus, and again after each [`reset`](Self::reset).
    ///
    /// It goes through configuration accesses alone. Bus mastering is left to drivers.
    ///
    /// # Errors
    /// [`Error::NoRoom`]; no function decodes anything then.
    pub fn assign_resources(&self) -> Result<(), Error> {
        let places: Vec<DevFn> = self.bus().slots().iter().map(|(at, _)| *at).collect();
        let mut requests = Vec::new();
        for devfn in &places {
            self.set_decoding(*devfn, Command::empty());
            self.size_bars(*devfn, &mut requests);
        }
        // The largest first: with all sizes powers of two, none is wasted on alignment.
        requests.sort_by_key(|request| {
            (
                std::cmp::Reverse(request.size),
                request.devfn,
                request.bar.get(),
            )
        });
        let assigned = self.place(&requests)?;
        for (request, address) in &assigned {
            self.set_bar(request, *address);
        }
        for devfn in places {
            let mut decoding = Command::empty();
            for request in requests.iter().filter(|request| request.devfn == devfn) {
                decoding |= match request.space {
                    BarSpace::Io => Command::IO,
                    BarSpace::Memory => Command::MEMORY,
                };
            }
            self.set_decoding(devfn, decoding);
            self.note_interrupt_line(devfn);
        }
        Ok(())
    }

    fn set_decoding(&self, devfn: DevFn, decoding: Command) {
        let decoded = Command::IO | Command::MEMORY;
        let command = Command::from_bits_retain(self.read_u16(devfn, COMMAND));
        let command = command.difference(decoded) | decoding;
        self.write(devfn, COMMAND, &command.bits().to_le_bytes());
    }

    /// Sizes all BARs of a function and leaves them zero.
    fn size_bars(&self, devfn: DevFn, requests: &mut Vec<Request>) {
        // A bridge's header has two.
        let count = match self.read_u16(devfn, HEADER_TYPE) & 0x7f {
            0 => 6,
            1 => 2,
            _ => 0,
        };
        let mut bars = BarIndex::all().take(count);
        while let Some(bar) = bars.next() {
            let low = self.size_register(devfn, bar);
            let wide = low & 0x7 == 0x4;
            let (space, mask) = if low & 1 == 0 {
                let upper = if wide { bars.next() } else { None };
                let high = upper.map_or(u32::MAX, |upper| self.size_register(devfn, upper));
                let low = u64::from(low & !0xf);
                (BarSpace::Memory, low | u64::from(high) << 32)
            } else {
                // The upper half may be wired to zero: ports have 16 bits.
                let low = u64::from(low & 0xfffc);
                (BarSpace::Io, low | !0xffff)
            };
            if low == 0 {
                continue;
            }
            requests.push(Request {
                devfn,
                bar,
                space,
                wide,
                prefetchable: low & 0x9 == 0x8,
                size: mask.wrapping_neg(),
            });
        }
    }

    fn size_register(&self, devfn: DevFn, bar: BarIndex) -> u32 {
        self.write(devfn, register(bar), &[0xff; 4]);
        let mut data = [0; 4];
        self.config_read(self.bus().number(), devfn, register(bar), &mut data);
        self.write(devfn, register(bar), &[0; 4]);
        u32::from_le_bytes(data)
    }

    fn place(&self, requests: &[Request]) -> Result<Vec<(Request, u64)>, Error> {
        let mut io = Free::new(&self.config().io);
        let mut low = Free::new(&self.config().mmio32);
        let mut high = Free::new(&self.config().mmio64);
        let mut assigned = Vec::with_capacity(requests.len());
        for request in requests {
            let size = request.size;
            let address = match request.space {
                BarSpace::Io => io.take(size),
                BarSpace::Memory if !request.wide => low.take(size),
                BarSpace::Memory if request.prefetchable => {
                    high.take(size).or_else(|| low.take(size))
                }
                BarSpace::Memory => low.take(size).or_else(|| high.take(size)),
            };
            let address = address.ok_or(Error::NoRoom {
                devfn: request.devfn,
                bar: request.bar,
                size,
            })?;
            assigned.push((*request, address));
        }
        Ok(assigned)
    }

    fn set_bar(&self, request: &Request, address: u64) {
        let len = if request.wide { 8 } else { 4 };
        let bytes = address.to_le_bytes();
        self.write(request.devfn, register(request.bar), &bytes[..len]);
    }

    fn note_interrupt_line(&self, devfn: DevFn) {
        let [pin, _] = self.read_u16(devfn, INTERRUPT_PIN).to_le_bytes();
        let pin = match pin {
            1 => IntxPin::A,
            2 => IntxPin::B,
            3 => IntxPin::C,
            4 => IntxPin::D,
            _ => return,
        };
        let [line, ..] = self.bus().gsi(devfn, pin).to_le_bytes();
        self.write(devfn, INTERRUPT_LINE, &[line]);
    }

    fn read_u16(&self, devfn: DevFn, offset: u16) -> u16 {
        let mut data = [0; 2];
        self.config_read(self.bus().number(), devfn, offset, &mut data);
        u16::from_le_bytes(data)
    }

    fn write(&self, devfn: DevFn, offset: u16, data: &[u8]) {
        self.config_write(self.bus().number(), devfn, offset, data);
    }
}

fn register(bar: BarIndex) -> u16 {
    BAR_0 + 4 * u16::from(bar.get())
}

/// What is left of an aperture.
struct Free {
    next: u64,
    end: u64,
}

impl Free {
    fn new(aperture: &Aperture) -> Self {
        Self {
            // Zero is a BAR without address.
            next: aperture.base.max(1),
            end: aperture.base.saturating_add(aperture.size),
        }
    }

    fn take(&mut self, size: u64) -> Option<u64> {
        let address = self.next.checked_next_multiple_of(size)?;
        let end = address.checked_add(size)?;
        // A BAR that ends with the first 4 GiB is one that is being sized.
        if end > self.end || end == 1 << 32 {
            return None;
        }
        self.next = end;
        Some(address)
    }
}
