//! The address of the host's side, set over netlink.

use std::fmt;
use std::io;
use std::net::IpAddr;
use std::str::FromStr;

use netlink_packet_core::{
    NLM_F_ACK, NLM_F_CREATE, NLM_F_EXCL, NLM_F_REQUEST, NetlinkMessage, NetlinkPayload,
};
use netlink_packet_route::address::{AddressAttribute, AddressMessage};
use netlink_packet_route::link::{LinkFlags, LinkMessage};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use netlink_sys::constants::NETLINK_ROUTE;
use netlink_sys::{Socket, SocketAddr};

use crate::error::TapError;
use crate::sys;

/// An address and the length of its network's prefix: `10.0.2.2/24`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HostAddress {
    address: IpAddr,
    prefix: u8,
}

impl HostAddress {
    /// An address with a prefix of so many bits.
    ///
    /// # Errors
    /// When the address has fewer bits than that.
    pub fn new(address: IpAddr, prefix: u8) -> Result<Self, TapError> {
        let bits = if address.is_ipv4() { 32 } else { 128 };
        if prefix > bits {
            return Err(TapError::BadAddress);
        }
        Ok(Self { address, prefix })
    }

    /// The address.
    pub fn address(&self) -> IpAddr {
        self.address
    }

    /// The prefix's length in bits.
    pub fn prefix(&self) -> u8 {
        self.prefix
    }
}

impl FromStr for HostAddress {
    type Err = TapError;

    fn from_str(text: &str) -> Result<Self, TapError> {
        let (address, prefix) = text.split_once('/').ok_or(TapError::BadAddress)?;
        let address = address.parse().map_err(|_| TapError::BadAddress)?;
        if !prefix.bytes().all(|b| b.is_ascii_digit()) {
            return Err(TapError::BadAddress);
        }
        Self::new(address, prefix.parse().map_err(|_| TapError::BadAddress)?)
    }
}

impl fmt::Display for HostAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address, self.prefix)
    }
}

/// Gives `interface` the address, and brings it up. An address that it has already is left.
pub(crate) fn bring_up(interface: &str, address: HostAddress) -> Result<(), TapError> {
    let failed = |action: String| {
        let interface = interface.to_owned();
        move |source| TapError::Netlink {
            interface,
            action,
            source,
        }
    };
    let index = sys::interface_index(interface).map_err(failed("find the interface".into()))?;

    let mut message = AddressMessage::default();
    message.header.family = match address.address {
        IpAddr::V4(_) => AddressFamily::Inet,
        IpAddr::V6(_) => AddressFamily::Inet6,
    };
    message.header.prefix_len = address.prefix;
    message.header.index = index;
    message
        .attributes
        .push(AddressAttribute::Local(address.address));
    message
        .attributes
        .push(AddressAttribute::Address(address.address));
    let added = request(
        RouteNetlinkMessage::NewAddress(message),
        NLM_F_CREATE | NLM_F_EXCL,
    );
    match added {
        Err(error) if error.raw_os_error() == Some(libc::EEXIST) => {}
        result => result.map_err(failed(format!("add {address}")))?,
    }

    let mut message = LinkMessage::default();
    message.header.index = index;
    message.header.flags = LinkFlags::Up;
    message.header.change_mask = LinkFlags::Up;
    request(RouteNetlinkMessage::SetLink(message), 0).map_err(failed("set the link up".into()))
}

/// Sends one request to the kernel and waits for its answer, an acknowledgement or an error.
fn request(payload: RouteNetlinkMessage, flags: u16) -> io::Result<()> {
    let mut message = NetlinkMessage::from(payload);
    message.header.flags = NLM_F_REQUEST | NLM_F_ACK | flags;
    message.header.sequence_number = 1;
    message.finalize();
    let mut bytes = vec![0; message.buffer_len()];
    message.serialize(&mut bytes);

    // One socket a request: what comes back is the answer to it.
    let mut socket = Socket::new(NETLINK_ROUTE)?;
    socket.bind_auto()?;
    socket.connect(&SocketAddr::new(0, 0))?;
    socket.send(&bytes, 0)?;
    let (answer, _) = socket.recv_from_full()?;
    let answer = NetlinkMessage::<RouteNetlinkMessage>::deserialize(&answer)
        .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?;
    match answer.payload {
        NetlinkPayload::Error(error) => match error.code {
            None => Ok(()),
            Some(code) => Err(io::Error::from_raw_os_error(code.get().saturating_neg())),
        },
        other => Err(io::Error::new(
            io::ErrorKind::InvalidData,
            format!("not an acknowledgement: {other:?}"),
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_a_number_a_slash_and_a_prefix_that_fits() {
        let table = [
            ("10.0.2.2/24", true),
            ("10.0.2.2/0", true),
            ("10.0.2.2/32", true),
            ("fec0::2/64", true),
            ("fec0::2/128", true),
            ("10.0.2.2/33", false),
            ("fec0::2/129", false),
            ("10.0.2.2", false),
            ("10.0.2/24", false),
            ("10.0.2.2/", false),
            ("10.0.2.2/+4", false),
            ("10.0.2.2/-1", false),
            ("10.0.2.2/256", false),
            ("host/24", false),
            ("", false),
        ];
        for (text, valid) in table {
            let parsed = text.parse::<HostAddress>();
            assert_eq!(parsed.is_ok(), valid, "{text:?}");
            if let Ok(address) = parsed {
                assert_eq!(address.to_string(), text);
            }
        }
    }
}
