//! Control commands that carry more than a bit, and those that answer with a result (virtio 1.4, 5.1.9.5).

use virtio::net::{Ctrl, F, HashType, ctrl};

use super::NetDriver;
use super::control::{ControlQueue, ResultAt};
use super::statistics::QueueStatistics;
use crate::{Error, Platform};

/// What the device hashes of a frame, and with which key.
#[derive(Clone, Copy, Debug)]
pub struct HashConfig<'a> {
    /// Which parts of which packets; none ends hashing.
    pub types: HashType,
    /// At most as many bytes as the device can take, 40 in general.
    pub key: &'a [u8],
}

/// How the device spreads frames over receive queues by their hash.
#[doc(alias = "virtio_net_rss_config")]
#[derive(Clone, Copy, Debug)]
pub struct RssConfig<'a> {
    /// What is hashed.
    pub hash: HashConfig<'a>,
    /// The pair whose receive queue gets what has no hash.
    pub unclassified: u16,
    /// The pair for each value of the hash's lowest bits: 2 to some power of them.
    pub table: &'a [u16],
    /// The pairs, from the first on, whose transmit queues are used.
    pub transmit_pairs: u16,
}

/// When the device tells of used buffers: as soon as one of both has been reached; zeros mean at once.
#[doc(alias = "virtio_net_ctrl_coal")]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Coalescing {
    /// Frames.
    pub max_packets: u32,
    /// Microseconds after the first.
    pub max_usecs: u32,
}

/// Each of these returns what the device answered: false, or `None` where there is a result, for no. `wait` is that of
/// [`control`](Self::control), and so are the errors; [`Error::NotNegotiated`] also without the feature of the command.
impl<P: Platform, const N: usize> NetDriver<P, N> {
    /// Has frames hashed (5.1.9.5.6.4, `VIRTIO_NET_F_HASH_REPORT`); they are not spread by it any more.
    ///
    /// # Errors
    ///
    /// [`Error::FrameTooLong`] for a key past 255 bytes, and those of [`control`](Self::control).
    #[doc(alias = "VIRTIO_NET_CTRL_MQ_HASH_CONFIG")]
    pub fn set_hash(
        &mut self,
        config: &HashConfig<'_>,
        wait: impl FnMut() -> bool,
    ) -> Result<bool, Error> {
        self.negotiated(F::HASH_REPORT)?;
        let mut data = Data::new();
        data.put(&config.types.bits().to_ne().to_le_bytes())?;
        // Reserved.
        data.put(&[0; 8])?;
        data.put_key(config.key)?;
        let command = ctrl::Mq::HashConfig.into();
        self.control(Ctrl::Mq.into(), command, data.bytes(), wait)
    }

    /// Has frames spread over receive queues by their hash (5.1.9.5.7, `VIRTIO_NET_F_RSS`).
    ///
    /// # Errors
    ///
    /// [`Error::FrameTooLong`] for an empty table, or one or a key that does not fit, and those of
    /// [`control`](Self::control).
    #[doc(alias = "VIRTIO_NET_CTRL_MQ_RSS_CONFIG")]
    pub fn set_rss(
        &mut self,
        config: &RssConfig<'_>,
        wait: impl FnMut() -> bool,
    ) -> Result<bool, Error> {
        self.negotiated(F::RSS)?;
        let len = config.table.len();
        let mask = len.checked_sub(1).and_then(|mask| u16::try_from(mask).ok());
        let mask = mask.ok_or(Error::FrameTooLong(len))?;
        let mut data = Data::new();
        data.put(&config.hash.types.bits().to_ne().to_le_bytes())?;
        data.put(&mask.to_le_bytes())?;
        data.put(&config.unclassified.to_le_bytes())?;
        for pair in config.table {
            data.put(&pair.to_le_bytes())?;
        }
        data.put(&config.transmit_pairs.to_le_bytes())?;
        data.put_key(config.hash.key)?;
        let command = ctrl::Mq::RssConfig.into();
        self.control(Ctrl::Mq.into(), command, data.bytes(), wait)
    }

    /// Sets when the device tells of received frames, in all receive queues (5.1.9.5.10, `VIRTIO_NET_F_NOTF_COAL`).
    ///
    /// # Errors
    ///
    /// Those of [`control`](Self::control).
    #[doc(alias = "VIRTIO_NET_CTRL_NOTF_COAL_RX_SET")]
    pub fn set_receive_coalescing(
        &mut self,
        coalescing: Coalescing,
        wait: impl FnMut() -> bool,
    ) -> Result<bool, Error> {
        self.negotiated(F::NOTF_COAL)?;
        self.control(NOTF_COAL, RX_SET, &coalescing.to_bytes(), wait)
    }

    /// Sets when the device tells of sent frames, in all transmit queues (5.1.9.5.10, `VIRTIO_NET_F_NOTF_COAL`).
    ///
    /// # Errors
    ///
    /// Those of [`control`](Self::control).
    #[doc(alias = "VIRTIO_NET_CTRL_NOTF_COAL_TX_SET")]
    pub fn set_transmit_coalescing(
        &mut self,
        coalescing: Coalescing,
        wait: impl FnMut() -> bool,
    ) -> Result<bool, Error> {
        self.negotiated(F::NOTF_COAL)?;
        self.control(NOTF_COAL, TX_SET, &coalescing.to_bytes(), wait)
    }

    /// Sets when the device tells of frames in one queue (5.1.9.5.10, `VIRTIO_NET_F_VQ_NOTF_COAL`).
    ///
    /// # Errors
    ///
    /// Those of [`control`](Self::control).
    #[doc(alias = "VIRTIO_NET_CTRL_NOTF_COAL_VQ_SET")]
    pub fn set_queue_coalescing(
        &mut self,
        queue: u16,
        coalescing: Coalescing,
        wait: impl FnMut() -> bool,
    ) -> Result<bool, Error> {
        self.negotiated(F::VQ_NOTF_COAL)?;
        let mut data = [0; 12];
        data[..2].copy_from_slice(&queue.to_le_bytes());
        data[4..].copy_from_slice(&coalescing.to_bytes());
        self.control(NOTF_COAL, VQ_SET, &data, wait)
    }

    /// When the device tells of frames in one queue (5.1.9.5.10, `VIRTIO_NET_F_VQ_NOTF_COAL`).
    ///
    /// # Errors
    ///
    /// Those of [`control`](Self::control).
    #[doc(alias = "VIRTIO_NET_CTRL_NOTF_COAL_VQ_GET")]
    pub fn queue_coalescing(
        &mut self,
        queue: u16,
        wait: impl FnMut() -> bool,
    ) -> Result<Option<Coalescing>, Error> {
        self.negotiated(F::VQ_NOTF_COAL)?;
        let [low, high] = queue.to_le_bytes();
        let data = [low, high, 0, 0];
        let mut bytes = [0; 8];
        let before = ResultAt::BeforeAnswer;
        let len = self.control_for(NOTF_COAL, VQ_GET, &data, before, &mut bytes, wait)?;
        Ok((len == Some(bytes.len())).then(|| Coalescing::from_bytes(bytes)))
    }

    /// Which kinds of statistics the device has, each the bit of its [`TYPE`](QueueStatistics::TYPE) (5.1.9.5.11,
    /// `VIRTIO_NET_F_DEVICE_STATS`).
    ///
    /// # Errors
    ///
    /// Those of [`control`](Self::control).
    #[doc(alias = "VIRTIO_NET_CTRL_STATS_QUERY")]
    pub fn statistics_types(&mut self, wait: impl FnMut() -> bool) -> Result<Option<u64>, Error> {
        self.negotiated(F::DEVICE_STATS)?;
        let mut bytes = [0; 8];
        let behind = ResultAt::BehindAnswer;
        let len = self.control_for(STATS, QUERY, &[], behind, &mut bytes, wait)?;
        Ok((len == Some(bytes.len())).then(|| u64::from_le_bytes(bytes)))
    }

    /// What the device counts of one queue (5.1.9.5.11, `VIRTIO_NET_F_DEVICE_STATS`). `None` also if what it answers is
    /// not what it was asked.
    ///
    /// # Errors
    ///
    /// Those of [`control`](Self::control).
    #[doc(alias = "VIRTIO_NET_CTRL_STATS_GET")]
    pub fn queue_statistics<S: QueueStatistics>(
        &mut self,
        queue: u16,
        wait: impl FnMut() -> bool,
    ) -> Result<Option<S>, Error> {
        self.negotiated(F::DEVICE_STATS)?;
        let mut data = [0; 16];
        data[..2].copy_from_slice(&queue.to_le_bytes());
        data[8..].copy_from_slice(&(1_u64 << (S::TYPE & 63)).to_le_bytes());
        let mut bytes = [0; ControlQueue::MOST_RESULT];
        let behind = ResultAt::BehindAnswer;
        let len = self.control_for(STATS, GET, &data, behind, &mut bytes, wait)?;
        Ok(len.and_then(|len| S::from_reply(queue, bytes.get(..len)?)))
    }

    fn negotiated(&self, feature: F) -> Result<(), Error> {
        if self.features().contains(feature) {
            Ok(())
        } else {
            Err(Error::NotNegotiated)
        }
    }
}

impl Coalescing {
    fn to_bytes(self) -> [u8; 8] {
        let mut bytes = [0; 8];
        bytes[..4].copy_from_slice(&self.max_packets.to_le_bytes());
        bytes[4..].copy_from_slice(&self.max_usecs.to_le_bytes());
        bytes
    }

    fn from_bytes([p0, p1, p2, p3, u0, u1, u2, u3]: [u8; 8]) -> Self {
        Self {
            max_packets: u32::from_le_bytes([p0, p1, p2, p3]),
            max_usecs: u32::from_le_bytes([u0, u1, u2, u3]),
        }
    }
}

/// The data of one command, put together.
struct Data {
    bytes: [u8; ControlQueue::MOST_DATA as usize],
    len: usize,
}

impl Data {
    fn new() -> Self {
        Self {
            bytes: [0; ControlQueue::MOST_DATA as usize],
            len: 0,
        }
    }

    fn put(&mut self, bytes: &[u8]) -> Result<(), Error> {
        let end = self.len.saturating_add(bytes.len());
        let place = self.bytes.get_mut(self.len..end);
        place
            .ok_or(Error::FrameTooLong(end))?
            .copy_from_slice(bytes);
        self.len = end;
        Ok(())
    }

    /// A key with its length in front.
    fn put_key(&mut self, key: &[u8]) -> Result<(), Error> {
        let len = u8::try_from(key.len()).map_err(|_| Error::FrameTooLong(key.len()))?;
        self.put(&[len])?;
        self.put(key)
    }

    fn bytes(&self) -> &[u8] {
        self.bytes.get(..self.len).unwrap_or_default()
    }
}

// Classes and commands of virtio 1.4, 5.1.9.5.10 and 5.1.9.5.11.
const NOTF_COAL: u8 = 6;
const TX_SET: u8 = 0;
const RX_SET: u8 = 1;
const VQ_SET: u8 = 2;
const VQ_GET: u8 = 3;
const STATS: u8 = 8;
const QUERY: u8 = 0;
const GET: u8 = 1;
