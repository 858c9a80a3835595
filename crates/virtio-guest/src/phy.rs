//! The network driver as a [`smoltcp`] device, so that its IP stack runs on top.

use smoltcp::phy::{self, DeviceCapabilities, Medium};
use smoltcp::time::Instant;

use crate::{NetDriver, Platform};

/// The longest Ethernet frame without its checksum.
const MAX_FRAME: usize = 1514;

/// A network driver with a frame in each direction between it and the stack.
#[derive(Debug)]
pub struct Device<P, const N: usize> {
    driver: NetDriver<P, N>,
    received: [u8; MAX_FRAME],
    sent: [u8; MAX_FRAME],
}

impl<P: Platform, const N: usize> Device<P, N> {
    /// Wraps a driver that is up.
    pub const fn new(driver: NetDriver<P, N>) -> Self {
        Self {
            driver,
            received: [0; MAX_FRAME],
            sent: [0; MAX_FRAME],
        }
    }

    /// The driver.
    pub const fn driver(&mut self) -> &mut NetDriver<P, N> {
        &mut self.driver
    }

    /// The driver, without the stack.
    pub fn into_driver(self) -> NetDriver<P, N> {
        self.driver
    }
}

impl<P: Platform, const N: usize> phy::Device for Device<P, N> {
    type RxToken<'a>
        = RxToken<'a>
    where
        Self: 'a;
    type TxToken<'a>
        = TxToken<'a, P, N>
    where
        Self: 'a;

    /// A frame is lost if the stack has to answer it and the transmit queue is full, as on any
    /// wire; a broken queue looks like silence, which [`NetDriver::needs_reset`] can tell apart.
    fn receive(&mut self, _now: Instant) -> Option<(RxToken<'_>, TxToken<'_, P, N>)> {
        let received = self.driver.receive(&mut self.received);
        // Not a batch: the stack takes frames one by one and may stop at any.
        self.driver.flush_receive();
        let len = received.ok()??.len;
        let frame = self.received.get(..len)?;
        Some((
            RxToken { frame },
            TxToken {
                driver: &mut self.driver,
                frame: &mut self.sent,
            },
        ))
    }

    fn transmit(&mut self, _now: Instant) -> Option<TxToken<'_, P, N>> {
        self.driver.reap_transmit().ok()?;
        if self.driver.transmit_queue().is_full() {
            return None;
        }
        Some(TxToken {
            driver: &mut self.driver,
            frame: &mut self.sent,
        })
    }

    fn capabilities(&self) -> DeviceCapabilities {
        let mut capabilities = DeviceCapabilities::default();
        capabilities.medium = Medium::Ethernet;
        capabilities.max_transmission_unit = MAX_FRAME;
        capabilities
    }
}

/// One received frame.
#[derive(Debug)]
pub struct RxToken<'a> {
    frame: &'a [u8],
}

impl phy::RxToken for RxToken<'_> {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, f: F) -> R {
        f(self.frame)
    }
}

/// Room for one frame to send.
#[derive(Debug)]
pub struct TxToken<'a, P, const N: usize> {
    driver: &'a mut NetDriver<P, N>,
    frame: &'a mut [u8; MAX_FRAME],
}

impl<P: Platform, const N: usize> phy::TxToken for TxToken<'_, P, N> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, len: usize, f: F) -> R {
        // The stack asks for no more than the capabilities say.
        let frame = &mut self.frame[..len.min(MAX_FRAME)];
        let result = f(frame);
        // A frame that finds no room is lost, as on any wire.
        let _lost = self.driver.transmit(frame);
        result
    }
}
